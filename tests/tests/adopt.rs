//! Claims about QEMUs that somebody started and that are put under a host: real ones, on KVM, with the embedded guest.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use tests::outer_machine::test_inside;
use tests::place::Place;
use tests::process::{self, Signal};
use tests::qemu::Qemu;
use tests::{
    MIB, TestHost, Value, number, text, wait_until, wait_until_at_least, wait_until_at_most,
};

/// It gives up whatever its balloon wants, so by its word it needs little.
const WORKLOAD: &str = "verify:size=max,rate=2000";
/// It needs all of that.
const BUSY: &str = "verify:size=180M,rate=2000";

fn adopt(host: &TestHost, qemu: &Qemu, name: &str) -> Value {
    host.json(&[
        "adopt",
        "--qmp",
        qemu.socket(),
        "--name",
        name,
        "--min",
        "32M",
    ])
}

fn is_right(qemu: &mut Qemu) {
    let report = qemu.report();
    for never in ["/errors", "/leaks"] {
        assert_eq!(number(&report, never), 0, "{report:#}");
    }
}

#[test]
fn memory_moves_between_adopted_guests_and_no_byte_is_wrong() {
    let names = ["a", "b", "c", "d"];
    let host = TestHost::start("512M");
    let mut qemus = names.map(|name| Qemu::boot_unattended(name, "256M", WORKLOAD));
    for (qemu, name) in qemus.iter().zip(names) {
        let vm = adopt(&host, qemu, name);
        assert_eq!(text(&vm, "/kind"), "qemu");
        assert_eq!(number(&vm, "/pid"), u64::from(qemu.pid()));
    }
    let used = || number(&host.overview(), "/host/used_bytes");
    let all = || names.iter().map(|name| host.held(name)).sum();
    wait_until_at_most("they come to hold no more than there is", 512 * MIB, all);
    wait_until_at_most("each as much as the others", 130 * MIB, || {
        let held = names.iter().map(|name| host.held(name));
        held.max().unwrap_or(u64::MAX)
    });
    // What guests give up leaves QEMU a moment later.
    wait_until_at_most("no more is used than there is", 512 * MIB, used);
    for qemu in &mut qemus[1..] {
        qemu.ask("stop");
    }
    qemus[0].ask(&format!("workload {BUSY}"));
    // A balloon leaves each of them 35 %.
    wait_until_at_least("who is busy gets what the idle leave", 145 * MIB, || {
        host.held("a")
    });
    wait_until_at_most("still no more is used", 512 * MIB, used);
    qemus.iter_mut().for_each(is_right);
    let explained = host.ok(&["explain", "a"]);
    assert!(explained.contains("own word"), "{explained}");
    for name in names {
        host.ok(&["release", name]);
    }
    for qemu in &mut qemus {
        qemu.attend();
        wait_until("its balloon is empty again", || {
            let left = qemu.execute("query-balloon", &tests::json!({}));
            number(&left, "/actual") == 256 * MIB
        });
        is_right(qemu);
    }
}

#[test]
fn a_host_that_was_killed_finds_its_qemus_again_and_one_that_ends_leaves_nothing() {
    let mut host = TestHost::start("160M");
    let mut qemu = Qemu::boot_unattended("q", "256M", WORKLOAD);
    host.ok(&["adopt", "--qmp", qemu.socket(), "--min", "32M"]);
    wait_until_at_most("it is squeezed", 160 * MIB, || host.held("q"));
    let before = host.held("q");
    host.die_and_start_again();
    assert_eq!(text(&host.vm("q"), "/kind"), "qemu");
    wait_until("it answers", || {
        host.vm("q").pointer("/stale") == Some(&Value::Bool(false))
    });
    let after = host.held("q");
    assert!(
        after <= before + 16 * MIB,
        "it stayed as it was: {before}, {after}"
    );
    is_right(&mut qemu);
    process::signal(qemu.pid(), Signal::STOP);
    wait_until("it is told that it is silent", || {
        host.vm("q").pointer("/responding") == Some(&Value::Bool(false))
    });
    process::signal(qemu.pid(), Signal::CONT);
    wait_until("it answers again", || {
        host.vm("q").pointer("/responding") == Some(&Value::Bool(true))
    });
    host.fails(&["stop", "q"], 1, &["run by QEMU", "ballonet release q"]);
    drop(qemu);
    wait_until("it is forgotten", || {
        tests::vms(&host.overview()).is_empty()
    });
}

#[test]
fn qemus_come_and_go_with_their_sockets_in_a_folder_whatever_else_lies_there() {
    let place = Place::new();
    let folder = place.path().join("qmp");
    fs::create_dir(&folder).unwrap();
    let path = |name: &str| folder.join(name);
    fs::write(path("file"), "").unwrap();
    let silent = UnixListener::bind(path("silent.qmp")).unwrap();
    let forged = UnixListener::bind(path("a\nhost: b")).unwrap();
    let no_text = folder.join(OsStr::from_bytes(b"no\xfftext.qmp"));
    let no_text = UnixListener::bind(no_text).unwrap();
    let mut qemu = Qemu::boot_unattended("q", "64M", "idle");
    symlink(qemu.socket(), path("link.qmp")).unwrap();
    let words = [
        "host",
        "--memory",
        "256M",
        "--interval-ms",
        "200",
        "--qmp-dir",
    ];
    let command = place.command(&[&words[..], &[folder.to_str().unwrap()]].concat());
    let mut host = TestHost::start_by(place, command);
    let is_told = |host: &TestHost, words: [&str; 2]| {
        let overview = host.overview();
        let events = overview.pointer("/host/events").and_then(Value::as_array);
        let mut events = events.into_iter().flatten();
        events.any(|event| words.iter().all(|word| text(event, "/what").contains(word)))
    };
    wait_until("what is no monitor is told of", || {
        is_told(&host, ["silent.qmp", "another client"])
            && is_told(&host, ["qmp", "no socket"])
            && is_told(&host, ["text.qmp", "no UTF-8 text"])
            && is_told(&host, ["a\\nhost: b", "another client"])
    });
    let log = fs::read_to_string(host.path().join("host.log")).unwrap();
    assert!(
        !log.lines().any(|line| line.starts_with("host: b")),
        "{log}"
    );
    drop((forged, no_text));
    assert!(!host.has("q"), "a link is no socket");
    fs::hard_link(qemu.socket(), path("a.qmp")).unwrap();
    wait_until("it is adopted", || host.has("q"));
    host.ok(&["release", "q"]);
    host.die_and_start_again();
    let other = Qemu::boot_unattended("other", "64M", "idle");
    fs::hard_link(other.socket(), path("b.qmp")).unwrap();
    wait_until("another one comes", || host.has("other"));
    assert!(!host.has("q"), "it was released");
    host.ok(&["adopt", "--qmp", path("a.qmp").to_str().unwrap()]);
    fs::remove_file(path("a.qmp")).unwrap();
    wait_until("it is let go with its socket", || !host.has("q"));
    qemu.attend();
    is_right(&mut qemu);
    drop(other);
    wait_until("the other has ended", || !host.has("other"));
    drop(silent);
    fs::remove_dir_all(&folder).unwrap();
    wait_until("that it is gone is told", || {
        is_told(&host, ["cannot be read", "qmp"])
    });
}

/// As libvirt's are: it has made the socket, and the kernel names it as whoever listens.
#[test]
fn a_monitor_whose_process_is_no_qemu_is_refused() {
    let host = TestHost::start("256M");
    let socket = host.path().join("own");
    let listener = UnixListener::bind(&socket).unwrap();
    let monitor = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let version = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}}}"#;
        writeln!(stream, "{version}").unwrap();
        let mut asked = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut asked)
            .unwrap();
        writeln!(stream, r#"{{"return": {{}}, "id": 1}}"#).unwrap();
        stream
    });
    host.fails(
        &["adopt", "--qmp", socket.to_str().unwrap()],
        1,
        &["no QEMU", "--libvirt", "as it was"],
    );
    drop(monitor.join());
    fs::remove_file(socket).unwrap();
}

#[test]
fn what_cannot_be_adopted_is_told_why() {
    let host = TestHost::start("512M");
    let path = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    let (file, silent, missing) = (path("file"), path("silent"), path("missing"));
    fs::write(&file, "").unwrap();
    let listener = UnixListener::bind(&silent).unwrap();
    for (socket, words) in [
        (&file, ["no socket", "as it was"]),
        (&silent, ["another client", "as it was"]),
        (&missing, ["No such file", "as it was"]),
    ] {
        host.fails(&["adopt", "--qmp", socket], 1, &words);
    }
    drop(listener);
    fs::remove_file(silent).unwrap();
    fs::remove_file(file).unwrap();
    let qemu = Qemu::boot_unattended("q", "64M", "idle");
    host.ok(&["adopt", "--qmp", qemu.socket()]);
    host.fails(
        &["adopt", "--qmp", qemu.socket(), "--name", "other"],
        1,
        &["adopted already", "'q'"],
    );
    host.fails(&["release", "nobody"], 1, &["nobody"]);
    let other = Qemu::boot_unattended("q", "64M", "idle");
    host.fails(&["adopt", "--qmp", other.socket()], 1, &["'q' is running"]);
    host.ok(&["release", "q"]);
}

/// Swap in compressed memory, and a cgroup of version 2 in which memory is counted.
const PREPARE: &str = "set -e; echo +memory >/sys/fs/cgroup/cgroup.subtree_control; mkdir /sys/fs/cgroup/q; modprobe zram; \
    echo 512M >/sys/block/zram0/disksize; mkswap /dev/zram0 >/dev/null; swapon /dev/zram0";

#[test]
#[ignore = "changes the machine"]
fn the_kernel_takes_what_a_guest_without_a_driver_does_not_give_up() {
    let prepared = Command::new("sh").args(["-c", PREPARE]).status();
    assert!(prepared.expect("there is a shell").success());
    let group = Path::new("/sys/fs/cgroup/q");
    let read = |file: &str| fs::read_to_string(group.join(file)).expect("the kernel tells");
    let current = || -> u64 {
        read("memory.current")
            .trim()
            .parse()
            .expect("it is a number")
    };
    let host = TestHost::start("160M");
    let mut qemu = Qemu::boot_driverless("q", "256M");
    let reclaimed = ["adopt", "--qmp", qemu.socket(), "--min", "32M", "--reclaim"];
    let reclaimed = reclaimed.map(str::to_owned);
    let adopt: Vec<&str> = reclaimed.iter().map(String::as_str).collect();
    host.fails(&adopt, 1, &["root cgroup", "as it was"]);
    fs::write(group.join("cgroup.procs"), qemu.pid().to_string()).expect("root may");
    // What it touches from now on is counted there.
    qemu.ask("workload verify:size=200M,rate=2000");
    wait_until_at_least("it uses more than there is", 190 * MIB, current);
    host.ok(&adopt);
    assert_eq!(read("memory.low").trim(), (32 * MIB).to_string());
    wait_until_at_most("the kernel has taken what is too much", 170 * MIB, || {
        number(&host.overview(), "/host/used_bytes")
    });
    assert!(
        number(&host.vm("q"), "/balloon/held") == 0,
        "its balloon did nothing"
    );
    is_right(&mut qemu);
    host.ok(&["set", "q", "min=48M"]);
    wait_until("its min is protected", || {
        read("memory.low").trim() == (48 * MIB).to_string()
    });
    host.ok(&["release", "q"]);
    assert_eq!(read("memory.low").trim(), "0");
    is_right(&mut qemu);
}

#[test]
fn a_guest_without_a_driver_is_swapped_by_the_kernel_where_that_is_allowed() {
    test_inside(
        400,
        "the_kernel_takes_what_a_guest_without_a_driver_does_not_give_up",
    );
}

#[test]
fn where_cgroups_are_of_version_1_nothing_is_reclaimed_and_it_is_said_why() {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return;
    }
    let host = TestHost::start("512M");
    let qemu = Qemu::boot_unattended("q", "64M", "idle");
    let adopt = ["adopt", "--qmp", qemu.socket(), "--reclaim"];
    host.fails(
        &adopt,
        1,
        &["version 1", "as it was", "unified_cgroup_hierarchy"],
    );
    host.ok(&["adopt", "--qmp", qemu.socket()]);
}
