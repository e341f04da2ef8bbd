//! Claims about adopted QEMUs to which something happens: their guests begin anew, stand still, have no balloon or lose it, QEMU
//! hangs or ends, or somebody else has its monitor. The host goes on, says what is wrong, and is well again once that is over.

use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tests::process::{self, Signal};
use tests::qemu::Qemu;
use tests::raw_client::RawClient;
use tests::{
    MIB, Place, TestHost, json, number, vms, wait_until, wait_until_at_least, wait_until_at_most,
};

/// What its guest holds fills it, and it gives up whatever its balloon wants.
const FULL: &str = "workload=verify:size=max,rate=2000";
const BUSY: &str = "verify:size=180M,rate=2000";
const BALLOON: [&str; 2] = [
    "-device",
    "virtio-balloon-device,id=b0,deflate-on-oom=on,free-page-reporting=on",
];

fn adopt(host: &TestHost, qemu: &Qemu) {
    let socket = qemu.second_socket();
    host.ok(&["adopt", "--qmp", &socket, "--min", "32M"]);
}

/// A guest of 256 MiB on a host of 160 MiB, whose balloon follows.
fn squeezed(words: &[&str]) -> (TestHost, Qemu) {
    let host = TestHost::start("160M");
    let qemu = Qemu::boot_shared("q", "256M", FULL, &[&BALLOON, words].concat());
    adopt(&host, &qemu);
    wait_until_at_most("it is squeezed", 160 * MIB, || host.held("q"));
    (host, qemu)
}

fn is_right(qemu: &mut Qemu) {
    let report = qemu.report();
    for never in ["/errors", "/leaks"] {
        assert_eq!(number(&report, never), 0, "{report:#}");
    }
}

/// It is squeezed, answers, and is let go as it was.
fn is_well(host: &TestHost, qemu: &mut Qemu) {
    wait_until("nothing is wrong with it", || {
        host.is("q", "responding") && !host.is("q", "stale") && !host.is("q", "paused")
    });
    wait_until_at_most("it is squeezed again", 160 * MIB, || host.held("q"));
    is_right(qemu);
    host.ok(&["release", "q"]);
    assert!(vms(&host.overview()).is_empty());
    wait_until("its balloon is empty", || {
        let left = qemu.execute("query-balloon", &json!({}));
        number(&left, "/actual") == 256 * MIB
    });
    is_right(qemu);
}

#[test]
fn our_own_vms_and_qemus_share_one_budget_and_memory_moves_both_ways() {
    let host = TestHost::start("384M");
    let mut qemu = Qemu::boot_shared("theirs", "256M", "", &BALLOON);
    adopt(&host, &qemu);
    let ours = ["--memory", "256M", "--min", "32M"];
    host.boot_vm("ours", &ours);
    let mut console = host.console("ours");
    console.workload(BUSY);
    wait_until_at_least("ours gets what the other leaves", 175 * MIB, || {
        host.held("ours")
    });
    wait_until("the other's figures are new", || {
        !host.is("theirs", "stale")
    });
    console.ask("stop");
    qemu.ask(&format!("workload {BUSY}"));
    wait_until_at_least("the other gets what ours leaves", 175 * MIB, || {
        host.held("theirs")
    });
    qemu.ask("stop");
    console.workload(BUSY);
    wait_until_at_least("ours gets it back", 175 * MIB, || host.held("ours"));
    wait_until_at_most("no more is used than there is", 384 * MIB, || {
        number(&host.overview(), "/host/used_bytes")
    });
    is_right(&mut qemu);
    let report = console.report();
    assert_eq!(number(&report, "/errors"), 0, "{report:#}");
    host.ok(&["stop", "ours"]);
}

/// Its balloon takes 65 % at most, and what is left is nobody's to promise.
#[test]
fn what_a_qemu_keeps_whatever_its_min_is_not_promised_to_our_own_vms() {
    let host = TestHost::start("256M");
    let qemu = Qemu::boot_shared("theirs", "256M", "", &BALLOON);
    adopt(&host, &qemu);
    let run = ["run", "--memory", "256M", "--min", "180M"];
    host.fails(&run, 1, &["promised", "--min"]);
    drop(qemu);
    wait_until("it is forgotten", || vms(&host.overview()).is_empty());
    host.ok(&["run", "--name", "ours", "--memory", "256M", "--min", "180M"]);
    host.ok(&["stop", "ours"]);
}

#[test]
fn a_guest_that_begins_anew_while_ballooned_is_squeezed_again() {
    let (host, mut qemu) = squeezed(&[]);
    for _ in 0..2 {
        let before = qemu.printed_bytes();
        qemu.execute("system_reset", &json!({}));
        qemu.wait_for_prompt(before);
        host.wait_until_told("q", "begins anew");
    }
    is_well(&host, &mut qemu);
}

#[test]
fn a_guest_that_is_paused_is_marked_and_squeezed_no_further_until_it_runs_on() {
    let (host, mut qemu) = squeezed(&[]);
    qemu.execute("stop", &json!({}));
    wait_until("it is marked", || host.is("q", "paused"));
    wait_until("its figures are old", || host.is("q", "stale"));
    let before = host.held("q");
    // That would be less than it holds, and it cannot follow.
    host.ok(&["set", "host", "memory=150M"]);
    let shown = host.ok(&["ps"]);
    assert!(shown.contains("paused"), "{shown}");
    assert_eq!(host.held("q"), before);
    qemu.execute("cont", &json!({}));
    for words in ["is paused", "runs on"] {
        host.wait_until_told("q", words);
    }
    is_well(&host, &mut qemu);
}

#[test]
fn a_qemu_without_a_balloon_is_refused_and_told_what_to_give_it() {
    let host = TestHost::start("160M");
    let mut qemu = Qemu::boot_shared("q", "64M", "", &[]);
    let socket = qemu.second_socket();
    let words = ["no balloon", "-device virtio-balloon", "as it was"];
    host.fails(&["adopt", "--qmp", &socket], 1, &words);
    assert!(vms(&host.overview()).is_empty());
    is_right(&mut qemu);
}

/// Nothing makes it give anything up, and nothing is known of what it needs.
#[test]
fn a_guest_without_a_driver_is_marked_and_never_squeezed() {
    let host = TestHost::start("160M");
    let mut qemu = Qemu::boot_shared("q", "256M", "balloon=off", &BALLOON);
    adopt(&host, &qemu);
    wait_until("it is marked", || host.is("q", "stale"));
    wait_until("its balloon is known to be stuck", || {
        host.ok(&["explain", "q"]).contains("driver")
    });
    let vm = host.vm("q");
    assert_eq!(vm["balloon"]["has_driver"], false, "{vm:#}");
    assert_eq!(number(&vm, "/balloon/held"), 0);
    let left = qemu.execute("query-balloon", &json!({}));
    assert_eq!(number(&left, "/actual"), 256 * MIB);
    host.ok(&["release", "q"]);
    is_right(&mut qemu);
}

/// Nobody drives the balloon here either: taken out it is at the next reset.
#[test]
fn a_balloon_that_is_taken_out_is_told_of_and_the_qemu_can_be_released() {
    let host = TestHost::start("512M");
    let mut qemu = Qemu::start_without_guest("q", "64M", "b0");
    adopt(&host, &qemu);
    qemu.execute("device_del", &json!({"id": "b0"}));
    qemu.execute("system_reset", &json!({}));
    host.wait_until_told("q", "its balloon was taken out");
    wait_until("it is marked, and answers", || {
        host.is("q", "stale") && host.is("q", "responding")
    });
    host.ok(&["release", "q"]);
    assert!(vms(&host.overview()).is_empty());
}

#[test]
fn a_qemu_that_ends_while_its_balloon_moves_is_forgotten_and_its_memory_is_free() {
    let host = TestHost::start("200M");
    for _ in 0..3 {
        let mut qemu = Qemu::boot_shared("q", "256M", FULL, &BALLOON);
        adopt(&host, &qemu);
        wait_until("its balloon moves", || host.held("q") < 256 * MIB);
        qemu.quit();
        wait_until("it is forgotten", || vms(&host.overview()).is_empty());
        host.wait_until_told("q", "its QEMU has ended");
    }
    host.ok(&["run", "--name", "ours", "--memory", "256M", "--min", "180M"]);
    host.ok(&["stop", "ours"]);
}

#[test]
fn a_monitor_that_somebody_else_holds_is_told_of_and_used_once_that_has_gone() {
    let mut host = TestHost::start("160M");
    let mut qemu = Qemu::boot_shared("q", "256M", FULL, &BALLOON);
    // The test holds the first one.
    let socket = qemu.socket().to_owned();
    host.fails(
        &["adopt", "--qmp", &socket],
        1,
        &["another client", "second -qmp"],
    );
    qemu.leave_monitor();
    host.ok(&["adopt", "--qmp", &socket, "--min", "32M"]);
    wait_until_at_most("it is squeezed", 160 * MIB, || host.held("q"));
    host.end_by(Signal::KILL);
    qemu.attend();
    host.start_again();
    host.wait_until_told("q", "another client");
    wait_until("it is marked", || !host.is("q", "responding"));
    host.fails(&["release", "q"], 1, &["another client", "--force"]);
    is_right(&mut qemu);
    qemu.leave_monitor();
    wait_until("it is heard again", || host.is("q", "responding"));
    host.ok(&["release", "q"]);
    qemu.attend();
    is_right(&mut qemu);
}

#[test]
fn a_qemu_that_hangs_is_told_of_holds_nobody_up_and_can_be_let_go_as_it_is() {
    let (host, mut qemu) = squeezed(&[]);
    process::signal(qemu.pid(), Signal::STOP);
    wait_until("it is marked", || !host.is("q", "responding"));
    host.wait_until_told("q", "does not answer");
    // What it holds is not to be had, so it is promised to nobody.
    let run = ["run", "--memory", "128M", "--min", "100M"];
    host.fails(&run, 1, &["promised"]);
    let mut release = host.command(&["release", "q"]);
    let release = release.stderr(Stdio::piped()).stdout(Stdio::null());
    let mut release = release.spawn().expect("the program can be run");
    host.ok(&["set", "q", "shares=high"]);
    let waits = release.try_wait().expect("a child can be waited for");
    assert!(waits.is_none(), "others' changes wait for it: {waits:?}");
    let refused = release.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for word in ["'q'", "does not answer", "--force"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    process::signal(qemu.pid(), Signal::CONT);
    is_well(&host, &mut qemu);
    adopt(&host, &qemu);
    process::signal(qemu.pid(), Signal::STOP);
    host.ok(&["release", "q", "--force"]);
    assert!(vms(&host.overview()).is_empty());
    process::signal(qemu.pid(), Signal::CONT);
    is_right(&mut qemu);
}

#[test]
fn a_release_is_done_to_its_end_though_whoever_asked_for_it_has_gone() {
    let (host, mut qemu) = squeezed(&[]);
    process::signal(qemu.pid(), Signal::STOP);
    let mut client = RawClient::connect(&host.socket());
    client.request("DELETE", "/v1/adoptions/q", b"");
    // Those after it were answered, so it was heard.
    (0..3).for_each(|_| drop(host.overview()));
    drop(client);
    (0..3).for_each(|_| drop(host.overview()));
    process::signal(qemu.pid(), Signal::CONT);
    wait_until("it is released", || vms(&host.overview()).is_empty());
    is_right(&mut qemu);
}

/// Measures and claims nothing.
#[test]
#[ignore = "a measurement: what fifty adopted QEMUs cost their host"]
fn what_fifty_cost() {
    const COUNT: usize = 50;
    let place = Place::new();
    let command = place.command(&["host", "--memory", "3G"]);
    let host = TestHost::start_by(place, command);
    let qemus: Vec<Qemu> = (0..COUNT)
        .map(|number| Qemu::boot_unattended(&format!("q{number}"), "24M", "idle"))
        .collect();
    for qemu in &qemus {
        host.ok(&["adopt", "--qmp", qemu.socket(), "--min", "8M"]);
    }
    wait_until("all are heard", || {
        let overview = host.overview();
        vms(&overview).iter().all(|vm| vm["stale"] == false)
    });
    let (begin, before) = (Instant::now(), process::cpu_ticks(host.host_pid()));
    sleep(Duration::from_secs(30));
    let ticks = process::cpu_ticks(host.host_pid()) - before;
    let passed_s = begin.elapsed().as_secs_f64();
    let percent = f64::from(u32::try_from(ticks).expect("few")) / passed_s;
    println!(
        "{COUNT} adopted QEMUs, a round a second: {percent:.2} % of a core in {passed_s:.0} s"
    );
    for number in 0..COUNT {
        host.ok(&["release", &format!("q{number}")]);
    }
}
