//! Claims about every byte: whatever balloons do, a guest reads what it wrote, and never what
//! another wrote.

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tests::process::{anonymous_bytes, memory_file_bytes};
use tests::{
    GuestConsole, MIB, TestHost, Value, number, states_total, vms, wait_until, wait_until_at_least,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const BUDGET: u64 = 400 * MIB;
/// For all that these guests could touch.
const PLENTY: u64 = 1024 * MIB;
const PRESSURE: Duration = Duration::from_secs(60);
/// For less nothing would be proved.
const CHANGES: u32 = 100;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(40);

#[test]
fn random_balloons_change_no_byte_and_break_no_promise() {
    balloon_at_random(&TestHost::start("400M"), BUDGET);
}

/// Blocks are made large where a touch or the agent finds all of them the guest's, and broken by what it gives up.
#[test]
fn random_balloons_change_no_byte_of_large_pages_either() {
    for budget in [BUDGET, PLENTY] {
        let host = TestHost::start(&budget.to_string());
        host.ok(&["set", "host", "large-pages=on"]);
        balloon_at_random(&host, budget);
        let sum = |what: &str| {
            let pointer = format!("/counters/large/{what}");
            let overview = host.overview();
            let of_each = vms(&overview).iter().map(|vm| number(vm, &pointer));
            of_each.sum::<u64>()
        };
        // A machine whose memory is in pieces has none to give.
        assert!(sum("made") + sum("no_memory") > 0);
        assert!(sum("broken_by_balloon") > 0 || sum("no_memory") > 0);
    }
}

fn balloon_at_random(host: &TestHost, budget: u64) {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for name in NAMES {
        let size = ["--memory", "192M", "--min", "48M"];
        host.boot_vm(
            name,
            &[&size[..], &["--workload", "verify:size=max,rate=5000"]].concat(),
        );
    }
    let pids = NAMES.map(|name| host.pid(name));
    let begin = Instant::now();
    let mut changes = 0;
    while begin.elapsed() < PRESSURE || changes < CHANGES || moved_bytes(host) <= BUDGET {
        let name = NAMES[random.random_range(0..NAMES.len())];
        host.ok(&["balloon", name, &random_balloon(&mut random)]);
        changes += 1;
        if changes % 8 == 0 {
            check_sums(&host.overview(), budget);
            check_kernel(&pids, budget);
        }
        sleep(PAUSE);
    }
    for name in NAMES {
        host.ok(&["balloon", name, "auto"]);
        check_guest(&mut GuestConsole::attach_replaying(host, name, "64K"));
    }
    check_sums(&host.overview(), budget);
}

/// What has gone through balloons.
fn moved_bytes(host: &TestHost) -> u64 {
    let overview = host.overview();
    let inflated = |vm| number(vm, "/balloon/counters/inflated");
    vms(&overview).iter().map(inflated).sum::<u64>() * 4096
}

/// Up to what its min leaves; now and then the policy's.
fn random_balloon(random: &mut SmallRng) -> String {
    if random.random_range(0..8) == 0 {
        return "auto".into();
    }
    format!("{}K", random.random_range(0..=144 * 256_u64) * 4)
}

fn check_sums(overview: &Value, budget: u64) {
    assert_eq!(number(overview, "/host/state_sum_violations"), 0);
    let used_max = number(overview, "/host/used_max_bytes");
    assert!(used_max <= budget, "{used_max} bytes were used");
    assert_eq!(vms(overview).len(), NAMES.len(), "{overview:#}");
    for vm in vms(overview) {
        assert_eq!(states_total(vm), number(vm, "/size_bytes"), "{vm:#}");
        let counters = &vm["balloon"]["counters"];
        for never in ["outside", "repeated", "malformed", "broken_queues"] {
            assert_eq!(counters[never], 0, "{never}: {vm:#}");
        }
    }
}

/// The same from outside, by the kernel's figures alone.
fn check_kernel(pids: &[u32], budget: u64) {
    let used: u64 = pids
        .iter()
        .map(|&pid| memory_file_bytes(pid) + anonymous_bytes(pid))
        .sum();
    assert!(used <= budget, "{used} bytes are used");
}

fn check_guest(console: &mut GuestConsole) {
    console.expect("ballonet guest");
    let report = console.wait_for_checks(10_000);
    assert_eq!(number(&report, "/errors"), 0, "{report:#}");
    assert_eq!(number(&report, "/leaks"), 0, "{report:#}");
    let text = console.text();
    assert!(
        !text.contains("WRONG BYTE") && !text.contains("LEAK"),
        "{text}"
    );
}

/// A page that was in the balloon and is touched again is zero or the guest's own, never another
/// guest's: each of two guests takes what the other has just given up.
#[test]
fn memory_that_changes_hands_brings_nothing_of_its_last_owner() {
    const SIZE: u64 = 128 * MIB;
    const LARGE: u64 = 88 * MIB;
    const SMALL: u64 = 8 * MIB;
    let host = TestHost::start("196M");
    for name in ["a", "b"] {
        let size = ["--memory", "128M", "--min", "32M"];
        host.boot_vm(
            name,
            &[&size[..], &["--workload", "verify:size=max,rate=5000"]].concat(),
        );
    }
    let pids = [host.pid("a"), host.pid("b")];
    let mut consoles = [host.console("a"), host.console("b")];
    for round in 0..10 {
        let giver = round % 2;
        let (from, to) = [("a", "b"), ("b", "a")][giver];
        host.ok(&["balloon", from, &LARGE.to_string()]);
        host.wait_for_balloon(from, LARGE);
        // The pages are gone by the kernel's count, not only by ours.
        let kept = memory_file_bytes(pids[giver]);
        assert!(kept <= SIZE - LARGE, "{from} has {kept} bytes still");
        host.ok(&["balloon", to, &SMALL.to_string()]);
        host.wait_for_balloon(to, SMALL);
        wait_until_at_least("the other guest fills it", SIZE - SMALL - 4 * MIB, || {
            memory_file_bytes(pids[1 - giver])
        });
        for console in &mut consoles {
            let report = console.report();
            assert_eq!(number(&report, "/leaks"), 0, "{report:#}");
            assert_eq!(number(&report, "/errors"), 0, "{report:#}");
        }
    }
    let used_max = number(&host.overview(), "/host/used_max_bytes");
    assert!(used_max <= 196 * MIB, "{used_max} bytes were used");
}

/// The guest's own check would not be worth much if nothing could fail it.
#[test]
fn a_byte_changed_from_outside_is_found_by_the_guest() {
    use std::os::unix::fs::FileExt;
    let host = TestHost::start("256M");
    host.boot_vm(
        "a",
        &[
            "--memory",
            "64M",
            "--workload",
            "verify:size=32M,rate=0,write=0",
        ],
    );
    let mut console = host.console("a");
    console.wait_for_checks(10_000);
    let path = tests::process::memory_file(host.pid("a"));
    let file = std::fs::File::options()
        .write(true)
        .open(path)
        .expect("root may open it");
    file.write_all_at(b"x", 24 * MIB + 1234)
        .expect("it can be written");
    wait_until("the guest finds it", || {
        number(&console.report(), "/errors") == 1
    });
    console.expect("verify: WRONG BYTE");
}
