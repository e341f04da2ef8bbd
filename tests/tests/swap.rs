//! Claims about VMs whose pages go out of memory: in less memory than they touch every guest runs on, reads what it wrote, and
//! the budget holds; a host that stands still or dies stalls none of them; a disk without room refuses a VM.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::process::{self, Signal};
use tests::sharing::{FULL_SPEED, clean_audit};
use tests::{
    MIB, Place, TestHost, Value, number, states_total, vms, wait_until, wait_until_at_least,
};

const BUDGET: u64 = 400 * MIB;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Each touches all of its 200 MiB: together twice the budget. None has a driver for its balloon.
const VM: [&str; 8] = [
    "--memory",
    "200M",
    "--min",
    "32M",
    "--cmdline",
    "balloon=off",
    "--workload",
    "verify:size=max",
];
/// How long they are watched.
const WATCHED: Duration = Duration::from_secs(20);

fn host() -> TestHost {
    TestHost::start_with_swap("400M")
}

fn start_all(host: &TestHost) {
    for name in NAMES {
        host.start_vm(name, &VM);
    }
}

fn checks(host: &TestHost, name: &str) -> u64 {
    let report = host.console(name).report();
    assert_eq!(number(&report, "/errors"), 0, "{report:#}");
    number(&report, "/checks")
}

fn all_go_on(host: &TestHost) {
    for name in NAMES {
        let least = checks(host, name) + 1000;
        wait_until_at_least("it checks more pages", least, || checks(host, name));
    }
}

fn went_out(host: &TestHost) -> u64 {
    let overview = host.overview();
    let vms = vms(&overview).iter();
    vms.map(|vm| number(vm, "/counters/swap/out"))
        .min()
        .expect("there are VMs")
}

#[test]
fn guests_that_touch_twice_what_there_is_all_run_on_and_read_what_they_wrote() {
    let host = host();
    start_all(&host);
    wait_until_at_least("pages of each have gone out", 5000, || went_out(&host));
    let begin = Instant::now();
    while begin.elapsed() < WATCHED {
        let overview = host.overview();
        let used = number(&overview, "/host/used_max_bytes");
        assert!(used <= BUDGET, "{used} bytes: {overview:#}");
        assert_eq!(number(&overview, "/host/state_sum_violations"), 0);
        for vm in vms(&overview) {
            assert_eq!(states_total(vm), number(vm, "/size_bytes"), "{vm:#}");
            assert_eq!(vm["phase"], "running", "{vm:#}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    all_go_on(&host);
    let swapped = |vm| number(vm, "/states/swapped");
    let overview = host.overview();
    assert!(
        vms(&overview).iter().map(swapped).sum::<u64>() > 200 * MIB,
        "{overview:#}"
    );
    // What two of them held is there for the others.
    host.ok(&["stop", "c", "d"]);
    wait_until("the others have more again", || {
        let overview = host.overview();
        vms(&overview)
            .iter()
            .all(|vm| number(vm, "/memory_file_bytes") > 150 * MIB)
    });
    for name in ["a", "b"] {
        checks(&host, name);
    }
    host.remove_swap_folder();
}

/// Two whose pages are equal beside two that check theirs: what is there of the first is shared while the rest is out.
#[test]
fn of_guests_whose_pages_are_out_what_is_there_is_shared() {
    let host = host();
    let clone = "clone:zero=0,common=100,rewrite=1";
    for (name, workload) in NAMES.into_iter().zip([clone, clone, VM[7], VM[7]]) {
        let mut words = VM;
        words[7] = workload;
        host.start_vm(name, &[&words[..], &["--trust-group", "g"]].concat());
    }
    wait_until_at_least("pages of each have gone out", 5000, || went_out(&host));
    host.ok(&FULL_SPEED);
    let out = |vm: &Value| number(vm, "/states/compressed") + number(vm, "/states/swapped");
    let both = |vm: &Value| number(vm, "/states/shared").min(out(vm));
    let most = || vms(&host.overview()).iter().map(both).max();
    wait_until_at_least("one has much of both", 10 * MIB, || {
        most().expect("there are VMs")
    });
    let overview = host.overview();
    let used = number(&overview, "/host/used_max_bytes");
    assert!(used <= BUDGET, "{used} bytes: {overview:#}");
    for vm in vms(&overview) {
        assert_eq!(states_total(vm), number(vm, "/size_bytes"), "{vm:#}");
    }
    clean_audit(&host);
    for name in ["c", "d"] {
        let least = checks(&host, name) + 1000;
        wait_until_at_least("it checks more pages", least, || checks(&host, name));
    }
    host.remove_swap_folder();
}

/// What others may touch and have not is there for it, before their balloons have taken it.
#[test]
fn a_vm_starts_while_others_have_given_up_less_than_it_needs() {
    let host = host();
    for name in ["a", "b"] {
        let words = ["--memory", "300M", "--workload", "toucher:size=40M"];
        let vm = host.boot_vm(name, &words);
        assert_eq!(number(&vm, "/min_bytes"), 16 * MIB, "{vm:#}");
        host.console(name).wait_until_held(40 * MIB);
    }
    host.ok(&["run", "--name", "c", "--memory", "200M", "--min", "100M"]);
    let overview = host.overview();
    let kept = |vm: &Value| number(vm, "/size_bytes") - number(vm, "/balloon/held");
    let kept: u64 = vms(&overview).iter().map(kept).sum();
    assert!(
        kept > BUDGET,
        "their balloons were not waited for: {overview:#}"
    );
    for vm in vms(&overview) {
        assert_eq!(number(vm, "/counters/swap/out"), 0, "{vm:#}");
    }
    // One that keeps all that it has needs no file.
    host.ok(&["run", "--name", "tiny", "--memory", "16M"]);
    host.ok(&["stop", "tiny"]);
    let lower = host.run(&["set", "c", "min=50M"]);
    lower.expect_failure(1, &["'c' is not changed", "swap file", "100 MiB or more"]);
    host.ok(&["set", "c", "min=120M"]);
    host.ok(&["set", "c", "min=100M"]);
    host.remove_swap_folder();
}

/// Its VMs need no host to find their pages.
#[test]
fn a_host_that_stands_still_or_dies_stalls_no_guest_whose_pages_are_out() {
    let mut host = host();
    start_all(&host);
    wait_until_at_least("pages of each have gone out", 5000, || went_out(&host));
    let pids = NAMES.map(|name| host.pid(name));
    let worked = |pid: u32| {
        let path = format!("/proc/{pid}/task");
        let threads = fs::read_dir(path).expect("it runs");
        let of_vcpus = threads.filter_map(|thread| {
            let thread = thread.ok()?.path();
            let name = fs::read_to_string(thread.join("comm")).ok()?;
            let time = fs::read_to_string(thread.join("schedstat")).ok()?;
            name.starts_with("vcpu")
                .then(|| time.split(' ').next()?.parse::<u64>().ok())?
        });
        of_vcpus.sum::<u64>()
    };
    let goes_on = |what: &str| {
        for pid in pids {
            let least = worked(pid) + 300_000_000;
            wait_until_at_least(what, least, || worked(pid));
        }
    };
    process::signal(host.host_pid(), Signal::STOP);
    goes_on("it runs while its host stands still");
    process::signal(host.host_pid(), Signal::CONT);
    all_go_on(&host);
    host.end_by(Signal::KILL);
    goes_on("it runs without a host");
    for pid in pids {
        process::signal(pid, Signal::KILL);
    }
    wait_until("they have ended", || {
        pids.iter()
            .all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    host.remove_swap_folder();
    // Another host finds nobody there, and takes away what the first left.
    drop(TestHost::start_in(host.into_place(), "64M"));
}

#[test]
fn a_disk_without_room_for_a_swap_file_refuses_the_vm_and_leaves_nothing() {
    let script = "mkdir swap && mount -t tmpfs -o size=64M none swap";
    let place = Place::new();
    let mut command = std::process::Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            &format!("{script} && exec \"$@\""),
            "sh",
        ])
        .arg(tests::program::program())
        .args(["host", "--memory", "400M", "--swap", "swap"])
        .current_dir(place.path());
    place.adapt(&mut command);
    let host = TestHost::start_by(place, command);
    let done = host.run(&["run", "--name", "a", "--memory", "200M", "--min", "32M"]);
    done.expect_failure(
        1,
        &["its swap file needs", "/swap", "64 MiB is free", "--min"],
    );
    assert!(vms(&host.overview()).is_empty());
    host.ok(&["run", "--name", "a", "--memory", "64M", "--min", "48M"]);
    host.remove_swap_folder();
}
