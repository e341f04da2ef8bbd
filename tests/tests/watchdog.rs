//! Claims about guests that do not play along: without a balloon driver, with statistics that lie, and
//! with an appetite for everything at once. The others keep what they are promised, the budget holds, and
//! nobody is killed.

use std::fs;
use std::thread;
use std::time::Duration;
use tests::process::{self, Signal};
use tests::{
    MIB, TestHost, Value, number, text, wait_for, wait_until, wait_until_at_least,
    wait_until_at_most,
};

const BUDGET: u64 = 260 * MIB;
/// Two VMs like this deserve 115 MiB each.
const VM: [&str; 4] = ["--memory", "256M", "--min", "64M"];
const DUE: u64 = 110 * MIB;

fn host() -> TestHost {
    let host = TestHost::start("260M");
    host.ok(&["set", "host", "sample-period=4", "sharing=off"]);
    host
}

fn boot(host: &TestHost, name: &str, words: &[&str]) {
    host.boot_vm(name, &[&VM, words].concat());
}

/// One that takes no balloon and touches all it sees.
fn start_driverless(host: &TestHost, name: &str) {
    let words = ["--cmdline", "balloon=off", "--workload", "toucher:size=max"];
    host.start_vm(name, &[&VM[..], &words].concat());
}

fn blocked(host: &TestHost, name: &str) -> u64 {
    number(&host.vm(name), "/blocked_permille")
}

fn backed(host: &TestHost, name: &str) -> u64 {
    number(&host.vm(name), "/memory_file_bytes")
}

#[track_caller]
fn assert_promises_are_kept(host: &TestHost) {
    let overview = host.overview();
    assert!(
        number(&overview, "/host/used_max_bytes") <= BUDGET,
        "{overview:#}"
    );
    assert_eq!(number(&overview, "/host/state_sum_violations"), 0);
    for vm in overview["vms"].as_array().expect("a list") {
        assert_eq!(text(vm, "/phase"), "running");
        let (target, min) = (number(vm, "/target_bytes"), number(vm, "/min_bytes"));
        assert!(target >= min, "{vm:#}");
    }
}

#[test]
fn a_guest_without_a_driver_is_stopped_at_what_it_may_have_and_goes_on_when_there_is_more() {
    let host = host();
    boot(&host, "good", &["--workload", "toucher:size=max"]);
    start_driverless(&host, "driverless");
    wait_until("it is found out and blocked", || {
        let driverless = host.vm("driverless");
        text(&driverless, "/balloon_health") == "stuck"
            && number(&driverless, "/blocked_permille") > 500
    });
    host.wait_until_backed("driverless", DUE);
    host.wait_until_backed("good", DUE);
    host.wait_for_figure("driverless", "/touch_limit/slow_above_bytes", DUE);
    wait_until("its neighbour is not blocked", || {
        blocked(&host, "good") == 0
    });
    wait_until("it is explained", || {
        let why = host.ok(&["explain", "driverless"]);
        why.contains("blocked most of the time") && why.contains("no driver for its balloon")
    });
    let touches = number(&host.report("good"), "/touches");
    wait_until("its neighbour gets on", || {
        number(&host.report("good"), "/touches") > touches
    });
    assert_promises_are_kept(&host);
    host.ok(&["set", "host", "memory=640M"]);
    host.wait_until_backed("driverless", 200 * MIB);
    wait_until("nobody blocks it now", || blocked(&host, "driverless") == 0);
    let events = host.overview()["host"]["events"].to_string();
    assert!(
        events.contains("is blocked: it touches more than"),
        "{events}"
    );
    assert!(events.contains("is not blocked any more"), "{events}");
}

#[test]
fn a_vm_that_is_blocked_when_its_host_dies_runs_on() {
    let mut host = host();
    boot(&host, "good", &["--workload", "toucher:size=max"]);
    start_driverless(&host, "driverless");
    wait_until("it is blocked", || blocked(&host, "driverless") > 500);
    let pid = number(&host.vm("driverless"), "/pid");
    host.end_by(Signal::KILL);
    wait_until_at_least("it touches all it wants", 200 * MIB, || shared_memory(pid));
    host.into_place().clear();
}

/// What a process has mapped of files in memory.
fn shared_memory(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssShmem:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kibibytes.expect("the kernel counts it") * 1024
}

/// It came first, took everything, and says that it needs all of it; it touches nothing.
#[test]
fn a_guest_that_lies_about_its_need_keeps_its_share_and_no_more() {
    let host = host();
    let words = [
        "--cmdline",
        "lie=needs",
        "--workload",
        "verify:size=max,rate=1",
    ];
    boot(&host, "liar", &words);
    host.wait_until_backed("liar", 180 * MIB);
    wait_until("its word is known", || {
        host.vm("liar").pointer("/guest/available") == Some(&Value::from(0))
    });
    boot(&host, "good", &["--workload", "toucher:size=max"]);
    host.wait_until_backed("good", DUE);
    wait_until("what it touches contradicts it, and that is said", || {
        let witness = &host.vm("liar")["working_set"]["witness"];
        witness.get("says_busier").is_some()
    });
    wait_until("it is explained", || {
        host.ok(&["explain", "liar"])
            .contains("Its guest says that it needs")
    });
    wait_until("it deserves less than its share", || {
        number(&host.vm("liar"), "/target_bytes") < 100 * MIB
    });
    assert!(backed(&host, "liar") >= 64 * MIB, "its min is its own");
    assert_promises_are_kept(&host);
}

#[test]
fn a_guest_that_allocates_everything_at_once_gets_its_share_and_is_not_blocked() {
    let host = host();
    boot(&host, "good", &["--workload", "verify:size=80M"]);
    boot(&host, "greedy", &[]);
    for _ in 0..4 {
        let mut console = host.console("greedy");
        console.workload("verify:size=max,rate=0");
        host.wait_until_backed("greedy", DUE);
        assert_eq!(blocked(&host, "greedy"), 0, "its balloon suffices");
        console.workload("idle");
        wait_until_at_most("it has given it back", 32 * MIB, || backed(&host, "greedy"));
        assert_promises_are_kept(&host);
    }
    let report = host.report("good");
    assert_eq!(number(&report, "/errors") + number(&report, "/leaks"), 0);
    host.wait_until_backed("good", 80 * MIB);
}

/// The host is held before it has seen what the guest is, and the guest touches all that it can meanwhile.
#[test]
fn a_guest_without_a_driver_keeps_to_its_grant_before_its_host_has_looked() {
    let host = host();
    boot(&host, "good", &["--workload", "toucher:size=max"]);
    host.wait_until_backed("good", 180 * MIB);
    // Held too early it does not begin, held too late its host has looked.
    let touched = wait_for("it begins while its host is held", || {
        let touched = touched_while_held(&host);
        host.ok(&["stop", "driverless"]);
        (touched > MIB).then_some(touched)
    });
    assert!(touched <= 120 * MIB, "{touched} bytes are touched");
}

/// What a guest that touches all it sees has touched after a while in which its host does nothing.
fn touched_while_held(host: &TestHost) -> u64 {
    let before = process::children(host.host_pid());
    thread::scope(|scope| {
        let start = scope.spawn(|| start_driverless(host, "driverless"));
        let mut looks = (0..1_000_000).filter_map(|_| {
            let children = process::children(host.host_pid());
            children.into_iter().find(|child| !before.contains(child))
        });
        let pid = looks.next().expect("its process is there");
        // It is told to boot, and that takes it longer.
        thread::sleep(Duration::from_millis(3));
        process::signal(host.host_pid(), Signal::STOP);
        thread::sleep(Duration::from_secs(2));
        let touched = shared_memory(pid.into());
        process::signal(host.host_pid(), Signal::CONT);
        start.join().expect("it starts");
        touched
    })
}
