//! Claims about the jail of a VM's process, seen from outside. What an attacker in it can do is tried in
//! `vmm/src/vm/jail/tests.rs`.

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use tests::{MIB, Place, TestHost, number};

const VERIFIER: [&str; 4] = ["--memory", "64M", "--workload", "verify:size=32M"];

fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix(name));
    line.expect("the kernel tells").trim().to_owned()
}

/// All threads' filters: a vCPU's has one more.
fn filters(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of_task = |task: fs::DirEntry| {
        let read = |name| fs::read_to_string(task.path().join(name)).expect("the thread lives");
        let (name, status) = (read("comm"), read("status"));
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp_filters:"));
        let count = line.expect("the kernel tells").trim().to_owned();
        (name.trim().to_owned(), count)
    };
    tasks.map(|task| of_task(task.expect("it runs"))).collect()
}

/// A guest at work behind all layers that this machine has.
#[test]
fn a_vm_is_jailed_and_works() {
    let host = TestHost::start("128M");
    host.boot_vm("a", &VERIFIER);
    let mut console = host.console("a");
    console.wait_until_held(32 * MIB);
    let report = console.wait_for_checks(1000);
    assert_eq!(number(&report, "/errors") + number(&report, "/leaks"), 0);
    let jail = host.json(&["stats", "a"])["jail"].clone();
    assert_eq!(jail["mode"], "enforce", "{jail}");
    assert_eq!(jail["layers"]["seccomp"], "whole", "{jail}");
    let pid = host.pid("a");
    assert_eq!(status(pid, "NoNewPrivs:"), "1");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "CapInh:"] {
        assert_eq!(status(pid, set).trim_start_matches('0'), "", "{set}");
    }
    let filters = filters(pid);
    let of = |name: &str| {
        let mut filters = filters.iter();
        filters
            .find(|(thread, _)| thread == name)
            .map(|(_, count)| count.as_str())
    };
    assert_eq!(
        (of("vcpu0"), of("agent")),
        (Some("3"), Some("2")),
        "{filters:?}"
    );
}

/// Where the host is root, as in the tests' own machine.
#[test]
fn each_vm_is_of_a_user_that_owns_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only a host of root's can give its VMs users of their own");
        return;
    }
    let mut host = TestHost::start("128M");
    for name in ["a", "b"] {
        host.boot_vm(name, &VERIFIER);
    }
    let check = |host: &TestHost| {
        for name in ["a", "b"] {
            let pid = host.pid(name);
            let own = (2_100_000_000 + pid).to_string();
            for of in ["Uid:", "Gid:"] {
                let words = status(pid, of);
                assert!(words.split_whitespace().all(|id| id == own), "{of} {words}");
            }
            assert_eq!(status(pid, "Groups:"), "");
        }
    };
    check(&host);
    // Another host finds all of that as it was.
    host.die_and_start_again();
    check(&host);
    for name in ["a", "b"] {
        host.ok(&["stop", name]);
    }
}

#[test]
fn a_host_that_is_told_so_jails_nobody() {
    let place = Place::new();
    let command = place.command(&["host", "--memory", "128M", "--jail", "off"]);
    let host = TestHost::start_by(place, command);
    host.boot_vm("a", &VERIFIER);
    let vm = host.json(&["stats", "a"]);
    assert_eq!(vm["jail"]["mode"], "off");
    assert_eq!(status(host.pid("a"), "Seccomp:"), "0");
}

/// The kernel counts what is on its way of all processes of a user, and holds that against the sender's own limit, which is low
/// in a jail.
#[test]
fn descriptors_on_their_way_elsewhere_keep_no_vm_from_starting() {
    const AT_ONCE: usize = 200;
    let flags = SocketFlags::CLOEXEC;
    let (ours, _theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("sockets can be made");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    for _ in 0..4 {
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let many = [ours.as_fd(); AT_ONCE];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
        let sent = sendmsg(
            &ours,
            &[IoSlice::new(b"x")],
            &mut ancillary,
            SendFlags::empty(),
        );
        sent.expect("nobody takes them, and there is room");
    }
    let host = TestHost::start("128M");
    host.boot_vm("a", &VERIFIER);
}
