//! Claims about a program that checks at each access to guest memory that something keeps others away: what is left out in a
//! whole guest is told, by the VM process in its jail, and ends it. Named in `$BALLONET`; `tests/run` builds it.

use std::fs;
use std::time::Instant;
use tests::{Place, TestHost, wait_until};

/// A host that leaves out one step in its VMs.
fn host_without(step: &str) -> TestHost {
    let place = Place::new();
    let swap = place.path().join("swap");
    let swap = swap.to_str().expect("its path is text");
    let words = [
        "host",
        "--memory",
        "200M",
        "--interval-ms",
        "200",
        "--swap",
        swap,
    ];
    let mut command = place.command(&words);
    command.env("BALLONET_LOCKSET_FAULT", step);
    TestHost::start_by(place, command)
}

/// The guests need more than there is, and much of it is equal.
fn is_told(step: &str, file: &str) {
    let begin = Instant::now();
    let host = host_without(step);
    for name in ["a", "b"] {
        let vm = [
            "--memory",
            "160M",
            "--min",
            "32M",
            "--trust-group",
            "g",
            "--workload",
            "verify:size=130M,common=50,rate=1000",
        ];
        host.start_vm(name, &vm);
    }
    let log = host.path().join("host.log");
    let told = || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        said.lines()
            .find(|line| line.contains("lockset: "))
            .map(str::to_owned)
    };
    wait_until("it is told", || told().is_some());
    let told = told().expect("it was told");
    println!("{step}: {:?}: {told}", begin.elapsed());
    let place = told.split_once(" at vmm/").expect("it names a place").1;
    let (found, _) = place.split_once(':').expect("and a line");
    assert!(found.contains(file), "{told}");
}

#[test]
#[ignore = "needs a program that checks"]
fn what_is_left_out_ends_a_vm_and_is_told() {
    // Whoever of it comes first: what goes out, or what is compared.
    is_told("WritersWait", "memory/agent/");
}
