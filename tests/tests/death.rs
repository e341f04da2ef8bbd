//! Claims about deaths: the host's stops no guest, a guest's stops nobody.

use std::fs;
use std::process::Stdio;
use std::time::Instant;
use tests::process::{self, Signal, cpu_ticks};
use tests::{
    GuestConsole, MIB, Place, TestHost, Value, number, patience, text, vms, wait_for, wait_until,
};

const SMALL: [&str; 4] = ["--memory", "64M", "--workload", "verify:size=16M"];

fn what_happened_to(overview: &Value, name: &str) -> String {
    let events = overview["host"]["events"].as_array().expect("a list");
    let own = events.iter().filter(|event| event["vm"] == name);
    own.map(|event| text(event, "/what"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_listed(host: &Place, name: &str) -> bool {
    vms(&host.json(&["ps"])).iter().any(|vm| vm["name"] == name)
}

#[test]
fn a_vm_that_is_killed_takes_nothing_from_the_others() {
    let host = TestHost::start("512M");
    for name in ["a", "b", "c", "d"] {
        host.boot_vm(name, &SMALL);
    }
    let others = ["a", "b", "d"];
    let mut consoles: Vec<GuestConsole> = others.iter().map(|name| host.console(name)).collect();
    for console in &mut consoles {
        console.wait_until_held(16 * MIB);
    }
    host.wait_until_backed("c", 16 * MIB);
    for name in others {
        // All that it will ever use.
        host.wait_until_backed(name, 16 * MIB);
    }
    let used_before = number(&host.overview(), "/host/used_bytes");
    process::signal(host.pid("c"), Signal::KILL);

    wait_until("the host notices", || !is_listed(&host, "c"));
    for console in &mut consoles {
        let before = number(&console.report(), "/checks");
        let report = console.wait_for_checks(before + 1000);
        assert_eq!(number(&report, "/errors") + number(&report, "/leaks"), 0);
    }
    wait_until("its memory is free again", || {
        number(&host.overview(), "/host/used_bytes") + 16 * MIB <= used_before
    });
    let what = what_happened_to(&host.overview(), "c");
    assert!(
        what.contains("killed by signal 9") && what.contains("free again"),
        "{what}"
    );
    host.boot_vm("c", &SMALL);
    assert!(is_listed(&host, "c"));
}

#[test]
fn a_vm_that_is_killed_while_it_starts_is_reported_and_leaves_its_name_free() {
    let host = TestHost::start("256M");
    let (begin, mut told, mut tries) = (Instant::now(), 0, 0);
    // On a machine with other work it may often be too late.
    while tries < 20 || told == 0 {
        tries += 1;
        assert!(
            begin.elapsed() < 2 * patience(),
            "no start of {tries} was early enough to be killed"
        );
        let run = host
            .command(&["run", "--name", "x", "--memory", "64M"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be run");
        kill_at_birth(&host, run.id());
        let done = run.wait_with_output().expect("a child can be waited for");
        let stderr = String::from_utf8_lossy(&done.stderr);
        if !done.status.success() {
            assert_eq!(done.status.code(), Some(1), "{stderr}");
            // Either it did not start, or it did and was gone when it was asked for.
            assert!(
                stderr.contains("VM '") || stderr.contains("'x'"),
                "{stderr}"
            );
            told += 1;
        }
        wait_until("nothing of it is left", || !is_listed(&host, "x"));
    }
    host.boot_vm("x", &SMALL);
}

/// Kills the first process that is neither the host nor a command, as soon as it is there.
fn kill_at_birth(host: &TestHost, run: u32) {
    let begin = Instant::now();
    while begin.elapsed() < patience() {
        let newborn = host
            .processes()
            .into_iter()
            .find(|&pid| pid != host.host_pid() && pid != run);
        if let Some(pid) = newborn {
            process::signal(pid, Signal::KILL);
            return;
        }
    }
    panic!("no VM process came");
}

#[test]
fn guests_outlive_a_killed_host_and_what_is_no_vm_of_a_place_is_left_alone() {
    let mut host = TestHost::start("256M");
    host.boot_vm(
        "a",
        &["--memory", "64M", "--workload", "verify:size=16M,rate=0"],
    );
    let guest = host.pid("a");
    host.end_by(Signal::KILL);
    let place = host.into_place();

    let before = cpu_ticks(guest);
    wait_until("the guest works on", || cpu_ticks(guest) > before + 20);
    // What was agreed about it is gone: nobody knows what it may hold.
    fs::remove_dir_all(place.host_folder().join("vms")).expect("the host has left it");
    let refused = place.run(&["host", "--memory", "256M"]);
    refused.expect_failure(1, &["'a'", &guest.to_string(), "kill"]);
    assert!(process::is_alive(guest), "the guest outlives its host");

    process::signal(guest, Signal::KILL);
    wait_until("the guest has ended", || !process::is_alive(guest));
    let host = TestHost::start_in(place, "256M");
    host.boot_vm("a", &SMALL);
}

#[test]
fn a_host_that_is_told_to_end_ends_its_guests() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut host = TestHost::start("256M");
        host.start_vm("a", &SMALL);
        host.start_vm("b", &SMALL);
        let status = host.end_by(signal);
        assert!(status.success(), "{signal:?}: {status}");
    }
}

#[test]
fn run_without_a_host_starts_one_that_ends_after_its_last_vm() {
    let place = Place::new();
    place.ok(&["run", "--name", "a", "--memory", "64M"]);
    place.ok(&["run", "--name", "b", "--memory", "64M"]);
    let host = u32::try_from(number(&place.overview(), "/host/pid")).expect("a small number");
    place.ok(&["stop", "a"]);
    assert!(process::is_alive(host), "one VM is left");
    place.ok(&["stop", "b"]);
    wait_until("the host ends", || !process::is_alive(host));
    place.fails(&["ps"], 1, &["no host answers", "ballonet run"]);
}

/// Eight at once: one host, and none of the eight misses it.
#[test]
fn runs_at_the_same_moment_start_one_host_with_a_whole_log() {
    let place = Place::new();
    let names: Vec<String> = (0..8).map(|number| format!("vm{number}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| place.ok(&["run", "--name", name, "--memory", "32M"]));
        }
    });
    assert_eq!(vms(&place.overview()).len(), 8);
    let log =
        std::fs::read(place.host_folder().join("log")).expect("a host in the background logs");
    let log = String::from_utf8(log).expect("it is text");
    assert!(
        !log.contains('\0'),
        "the log was cut while it was written:\n{log}"
    );
    assert_eq!(log.matches("started as process").count(), 8, "{log}");
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    place.ok(&[&["stop"], &words[..]].concat());
}

/// Each `stop` may end the host just when another `run` has found it.
#[test]
fn runs_and_stops_at_the_same_time_get_what_they_want() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let place = &place;
            scope.spawn(move || {
                for _ in 0..40 {
                    place.ok(&["run", "--name", name, "--memory", "32M"]);
                    place.ok(&["stop", name]);
                }
            });
        }
    });
}

#[test]
fn a_vm_whose_memory_does_not_come_is_refused_and_holds_up_nobody() {
    let host = TestHost::start("200M");
    let busy = [
        "--memory",
        "192M",
        "--min",
        "32M",
        "--workload",
        "verify:size=max",
    ];
    host.boot_vm("a", &busy);
    host.wait_until_backed("a", 150 * MIB);
    let pid = host.pid("a");
    process::signal(pid, Signal::STOP);
    std::thread::scope(|scope| {
        let run =
            scope.spawn(|| host.run(&["run", "--name", "b", "--memory", "128M", "--min", "96M"]));
        wait_until("it waits", || {
            is_listed(&host, "b") && host.vm("b")["phase"] == "waiting"
        });
        host.fails(&["console", "b"], 1, &["'b'", "does not run yet"]);
        let done = run.join().expect("commands do not panic");
        done.expect_failure(
            1,
            &[
                "'b'",
                "could not be taken from the other VMs",
                "'a' holds",
                "more than it should",
                "ballonet explain a",
            ],
        );
    });
    assert!(!is_listed(&host, "b"));
    process::signal(pid, Signal::CONT);
    host.boot_vm("b", &["--memory", "128M", "--min", "96M"]);
}

#[test]
fn a_host_that_is_told_to_end_does_not_wait_for_vms_that_wait() {
    let mut host = TestHost::start("200M");
    let busy = [
        "--memory",
        "192M",
        "--min",
        "32M",
        "--workload",
        "verify:size=max",
    ];
    host.boot_vm("a", &busy);
    host.wait_until_backed("a", 150 * MIB);
    process::signal(host.pid("a"), Signal::STOP);
    let mut run = host
        .command(&["run", "--name", "b", "--memory", "128M", "--min", "96M"])
        .stderr(Stdio::null())
        .spawn()
        .expect("the program can be run");
    wait_until("it waits", || is_listed(&host, "b"));
    assert!(host.end_by(Signal::TERM).success());
    let status = run.wait().expect("a child can be waited for");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_guest_that_powers_off_is_reported_and_gone() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &SMALL);
    let mut console = host.console("a");
    console.type_line("off");
    wait_until("the VM is gone", || !is_listed(&host, "a"));
    let what = what_happened_to(&host.overview(), "a");
    assert!(what.contains("free again"), "{what}");
}

#[test]
fn a_vm_that_does_not_answer_holds_up_nobody_and_is_stopped_by_force() {
    let host = TestHost::start("512M");
    host.boot_vm("silent", &SMALL);
    host.boot_vm("other", &SMALL);
    let pid = host.pid("silent");
    process::signal(pid, Signal::STOP);
    wait_until("it shows", || host.vm("silent")["responding"] == false);
    assert!(host.ok(&["ps"]).contains("silent "));

    wait_until("the other answers", || {
        host.vm("other")["responding"] == true
    });
    let mut console = host.console("other");
    let before = number(&console.report(), "/checks");
    console.wait_for_checks(before + 1000);
    host.ok(&["balloon", "other", "8M"]);
    host.wait_for_balloon("other", 8 * MIB);
    host.boot_vm("third", &SMALL);

    wait_until("it is told", || {
        what_happened_to(&host.overview(), "silent").contains("has not answered")
    });
    host.ok(&["stop", "silent"]);
    assert!(!process::is_alive(pid));
    assert!(!is_listed(&host, "silent"));
    let what = what_happened_to(&host.overview(), "silent");
    assert!(what.contains("stopped by force"), "{what}");
}

#[test]
fn a_vm_that_was_held_for_a_while_answers_again() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &SMALL);
    let pid = host.pid("a");
    process::signal(pid, Signal::STOP);
    wait_until("it shows", || host.vm("a")["responding"] == false);
    host.ok(&["balloon", "a", "16M"]);
    process::signal(pid, Signal::CONT);
    wait_until("it answers", || host.vm("a")["responding"] == true);
    host.wait_for_balloon("a", 16 * MIB);
    let report = wait_for("the guest goes on", || {
        let report = host.report("a");
        (number(&report, "/checks") > 0).then_some(report)
    });
    assert_eq!(number(&report, "/errors"), 0);
}
