//! Claims about a VM process that its guest has taken over: whatever it says, its host and the other VMs go
//! on, and it shows.

use rustix::fd::AsFd;
use rustix::net::{SendFlags, send};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::hijacked::{Hijacked, Lingering};
use tests::process::{self, cpu_ticks};
use tests::sharing::sharing_host;
use tests::{MIB, Place, TestHost, Value, json, number, states_total, text, vms, wait_until};

const SMALL: [&str; 4] = ["--memory", "64M", "--workload", "verify:size=16M"];
const SIZE: u64 = 64 * MIB;
/// How long a flood lasts, at least.
const FLOOD: Duration = Duration::from_secs(2);

fn events_of(host: &Place, name: &str) -> Vec<String> {
    let overview = host.overview();
    let events = overview["host"]["events"].as_array().expect("a list");
    let own = events.iter().filter(|event| event["vm"] == name);
    own.map(|event| text(event, "/what").to_owned()).collect()
}

fn is_listed(host: &Place, name: &str) -> bool {
    vms(&host.json(&["ps"])).iter().any(|vm| vm["name"] == name)
}

/// The host answers, and its rounds go on.
fn check_that_it_goes_on(host: &TestHost) {
    let samples = |host: &TestHost| number(&host.overview(), "/host/samples");
    let before = samples(host);
    wait_until("rounds go on", || samples(host) > before + 3);
    wait_until("the others answer", || host.vm("b")["responding"] == true);
}

fn hijack(host: &TestHost, name: &str) -> Hijacked {
    Hijacked::take(&host.vm(name))
}

/// In the names and numbers of the message.
const LIES: [(&str, u64); 13] = [
    ("/states/empty", 1 << 63),
    ("/states/private", 1 << 63),
    ("/states/private", 1 << 53),
    ("/states/shared", u64::MAX),
    ("/states/broken", 1),
    ("/states/compressed", u64::MAX),
    ("/balloon/held", u64::MAX),
    ("/balloon/held", SIZE / 4096 + 1),
    ("/balloon/target", u64::MAX),
    ("/counters/sharing/mapped", u64::MAX),
    ("/counters/sharing/mapped", SIZE / 4096 + 1),
    ("/blocked/total_us", 1),
    ("/blocked/at_us", u64::MAX),
];

/// What only grows, and what is the guest's own word.
const HUGE: [&str; 8] = [
    "/balloon/claimed",
    "/balloon/counters/inflated",
    "/balloon/counters/deflated",
    "/counters/given_back",
    "/counters/sharing/shared",
    "/counters/sharing/zeroed",
    "/counters/sharing/rehomed",
    "/counters/console_lost_bytes",
];

fn set(observation: &mut Value, pointer: &str, number: u64) {
    if pointer.starts_with("/blocked") && observation["blocked"].is_null() {
        observation["blocked"] = json!({ "is_now": true, "total_us": 0, "at_us": 0 });
    }
    let place = observation.pointer_mut(pointer);
    *place.unwrap_or_else(|| panic!("no {pointer}")) = number.into();
}

#[test]
fn a_vm_that_says_what_cannot_be_is_marked_and_its_last_good_figures_stand() {
    let host = TestHost::start("512M");
    host.boot_vm("a", &SMALL);
    host.boot_vm("b", &SMALL);
    let hijacked = hijack(&host, "a");

    for pointer in HUGE {
        for number in [1 << 52, 1 << 60, 1 << 63, u64::MAX] {
            hijacked.answer(|said| set(said, pointer, number));
        }
    }
    hijacked.answer(|_| {});
    assert_eq!(host.vm("a")["credible"], true);

    for (pointer, number) in LIES {
        hijacked.answer(|said| set(said, pointer, number));
    }
    hijacked.answer(|said| said["disks"] = json!([]));
    check_that_it_goes_on(&host);
    let vm = host.vm("a");
    assert_eq!(vm["credible"], false);
    assert_eq!(states_total(&vm), SIZE);
    assert_eq!(number(&vm, "/states/private"), SIZE);
    assert_eq!(host.vm("b")["credible"], true);
    assert!(
        host.ok(&["stats", "a"])
            .contains("said what cannot be true")
    );
    let told = events_of(&host, "a");
    let told = told.iter().filter(|what| what.contains("cannot be"));
    assert_eq!(told.count(), 1, "{:?}", events_of(&host, "a"));

    drop(hijacked);
    host.ok(&["stop", "a"]);
}

#[test]
fn a_vm_that_sends_a_descriptor_to_its_host_is_ended_and_nobody_waits_for_its_close() {
    let host = TestHost::start("512M");
    host.boot_vm("a", &SMALL);
    host.boot_vm("b", &SMALL);
    let mut lingering = Lingering::new();
    let hijacked = hijack(&host, "a");
    lingering.send(&host, hijacked.channel.as_fd(), b"{}");
    wait_until("it is ended", || !is_listed(&host, "a"));
    check_that_it_goes_on(&host);
    let events = events_of(&host, "a");
    assert!(
        events.iter().any(|what| what.contains("descriptors")),
        "{events:?}"
    );
}

#[test]
fn a_descriptor_sent_to_the_scanner_does_not_stop_it() {
    let host = sharing_host("512M");
    host.boot_vm("a", &SMALL);
    host.boot_vm("b", &SMALL);
    let mut lingering = Lingering::new();
    let hijacked = hijack(&host, "a");
    lingering.send(&host, hijacked.scanner.as_fd(), b"anything");
    wait_until("it shows", || {
        let vm = host.vm("a");
        vm.pointer("/sharing/problem")
            .and_then(Value::as_str)
            .is_some_and(|problem| problem.contains("descriptors"))
    });
    let passes = |host: &TestHost| number(&host.vm("b"), "/sharing/passes");
    let before = passes(&host);
    wait_until("the scanner goes on", || passes(&host) > before + 1);
    check_that_it_goes_on(&host);
    drop(hijacked);
    host.ok(&["stop", "a"]);
    let before = passes(&host);
    wait_until("it goes on after its end", || passes(&host) > before + 1);
}

#[test]
fn a_descriptor_printed_on_a_console_or_sent_by_a_client_holds_up_nobody() {
    let host = TestHost::start("512M");
    host.boot_vm("a", &SMALL);
    host.boot_vm("b", &SMALL);
    let (mut printed, mut requested) = (Lingering::new(), Lingering::new());
    let hijacked = hijack(&host, "a");
    printed.send(&host, hijacked.console.as_fd(), b"anything");
    let client = UnixStream::connect(host.socket()).expect("the host listens");
    requested.send(&host, client.as_fd(), b"GET / HTTP/1.1\r\n");
    check_that_it_goes_on(&host);
    drop(client);
    check_that_it_goes_on(&host);
    drop(hijacked);
    host.ok(&["stop", "a"]);
    check_that_it_goes_on(&host);
}

/// What lies in a socket when it is closed is closed with it.
#[test]
fn what_a_dead_vm_has_sent_and_nobody_read_holds_up_nobody() {
    let host = TestHost::start("512M");
    host.boot_vm("a", &SMALL);
    host.boot_vm("b", &SMALL);
    let mut lingering = Lingering::new();
    let hijacked = hijack(&host, "a");
    let pid = host.pid("a");
    // Behind more than the host hears at once.
    for _ in 0..100 {
        assert!(hijacked.say(&json!("anything")));
    }
    lingering.send(&host, hijacked.channel.as_fd(), b"{}");
    process::signal(pid, process::Signal::KILL);
    drop(hijacked);
    wait_until("it has gone", || !is_listed(&host, "a"));
    check_that_it_goes_on(&host);
}

/// Sends until it was done for a while. How often it was taken.
fn flood(mut send_one: impl FnMut() -> bool + Send, host: &TestHost) -> (u64, f64) {
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut taken = 0;
            while !ends.load(Ordering::Relaxed) {
                match send_one() {
                    true => taken += 1,
                    false => thread::yield_now(),
                }
            }
            taken
        });
        let (begin, before) = (Instant::now(), cpu_ticks(host.host_pid()));
        host.boot_vm("c", &SMALL);
        check_that_it_goes_on(host);
        host.ok(&["stop", "c"]);
        thread::sleep(FLOOD.saturating_sub(begin.elapsed()));
        let ticks = cpu_ticks(host.host_pid()) - before;
        let share = ticks as f64 / 100.0 / begin.elapsed().as_secs_f64();
        ends.store(true, Ordering::Relaxed);
        (flood.join().expect("sending does not panic"), share)
    })
}

#[test]
fn a_flood_of_messages_waits_in_its_own_socket() {
    let host = TestHost::start("512M");
    host.boot_vm("a", &SMALL);
    host.boot_vm("b", &SMALL);
    let memory = process::resident_bytes(host.host_pid());
    let hijacked = hijack(&host, "a");
    let garbage = json!("anything");
    let (taken, share) = flood(|| hijacked.say(&garbage), &host);
    // What a socket holds, and ten a second.
    assert!(taken < 2000, "{taken} messages were taken");
    assert!(share < 0.5, "{share} of a core went into it");
    let told = events_of(&host, "a");
    let told = told.iter().filter(|what| what.contains("no message"));
    assert_eq!(told.count(), 1, "{:?}", events_of(&host, "a"));
    let unmapped = [&[3u8][..], &[0; 16]].concat();
    let (_, share) = flood(
        || send(&hijacked.scanner, &unmapped, SendFlags::DONTWAIT).is_ok(),
        &host,
    );
    assert!(share < 0.5, "{share} of a core went into it");
    let grown = process::resident_bytes(host.host_pid()).saturating_sub(memory);
    assert!(grown < 32 * MIB, "the host has grown by {grown} bytes");
    drop(hijacked);
    host.ok(&["stop", "a"]);
}

/// What is shared is in the host's own ledger.
#[test]
fn a_vm_that_claims_to_share_brings_nobody_more() {
    const SIZE: u64 = 256 * MIB;
    let host = TestHost::start("512M");
    for name in ["b", "c"] {
        host.boot_vm(name, &["--memory", "300M", "--workload", "verify:size=max"]);
    }
    host.boot_vm("a", &["--memory", "256M", "--workload", "verify:size=16M"]);
    let hijacked = hijack(&host, "a");
    for _ in 0..20 {
        hijacked.answer(|said| {
            set(said, "/states/private", 0);
            set(said, "/states/shared", SIZE / 4096);
            set(said, "/counters/sharing/mapped", SIZE / 4096);
            set(said, "/counters/sharing/shared", SIZE / 4096);
        });
        let overview = host.overview();
        for what in ["shared", "lent"] {
            let pointer = format!("/host/sharing/{what}_bytes");
            // What the others share is true: a page or two of their own that are equal.
            assert!(number(&overview, &pointer) < MIB, "{overview:#}");
        }
    }
    assert_eq!(number(&host.vm("a"), "/states/shared"), SIZE);
    check_that_it_goes_on(&host);
    drop(hijacked);
}
