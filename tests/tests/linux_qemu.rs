//! Claims about adopted QEMUs that run unmodified Linux, with Linux' own balloon driver: where this machine's KVM cannot run it,
//! in the outer machine of `tests/nested/run`. Booting takes most of the time there, so each test makes many claims.

use std::fs;
use std::path::Path;
use tests::linux::{Obeys, where_linux_runs};
use tests::linux_qemu::LinuxQemu;
use tests::process::Signal;
use tests::{
    MIB, TestHost, Value, json, number, vms, wait_until, wait_until_at_least, wait_until_at_most,
};

/// How long the outer machine may run for one claim, in seconds; the longest takes a tenth.
const LIMIT: u32 = 1000;
const SIZE: u64 = 256 * MIB;

fn adopt(host: &TestHost, guest: &LinuxQemu, more: &[&str]) {
    let socket = guest.second_socket();
    let words = ["adopt", "--qmp", &socket, "--min", "32M"];
    host.ok(&[&words[..], more].concat());
}

/// Nothing was killed in it, and its kernel has nothing to complain of.
fn is_right(guest: &mut LinuxQemu) {
    assert_eq!(guest.run("grep oom_kill /proc/vmstat").trim(), "oom_kill 0");
    assert_eq!(guest.complaints(), "");
}

/// As much of its memory as nothing but it can give up.
fn fill(guest: &mut LinuxQemu, mib: u64) {
    guest.run(&format!(
        "dd if=/dev/urandom of=fill bs=1M count={mib} 2>&1"
    ));
}

fn is_as_it_was(guest: &mut LinuxQemu) {
    assert_eq!(guest.statistics_are_polled(), 0);
    wait_until("its balloon is empty again", || {
        let left = guest.execute("query-balloon", &json!({}));
        number(&left, "/actual") == SIZE
    });
    is_right(guest);
}

/// What the kernel protects of a cgroup that one QEMU has for itself.
struct Protected {
    file: std::path::PathBuf,
}

impl Protected {
    const BEFORE: u64 = 8 * MIB;

    fn of(guest: &LinuxQemu, name: &str) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        fs::write(root.join("cgroup.subtree_control"), "+memory").expect("root may");
        let folder = root.join(name);
        fs::create_dir(&folder).expect("it is new");
        fs::write(folder.join("cgroup.procs"), guest.pid().to_string()).expect("root may");
        let file = folder.join("memory.low");
        fs::write(&file, Self::BEFORE.to_string()).expect("root may");
        Self { file }
    }

    fn bytes(&self) -> u64 {
        let text = fs::read_to_string(&self.file).expect("the kernel tells");
        text.trim().parse().expect("it is a number")
    }
}

/// What its host knows of a guest is what it says itself; its figures are two seconds old at most, and it is idle.
fn figures_agree(host: &TestHost, name: &str, guest: &mut LinuxQemu) {
    wait_until("the host's figures are the guest's", || {
        let (own, vm) = (guest.memory(), host.vm(name));
        let agrees = |figure: &str, own: u64| {
            let shown = vm.pointer(&format!("/guest/{figure}"));
            let shown = shown.and_then(Value::as_u64);
            shown.is_some_and(|shown| shown.abs_diff(own) < 8 * MIB)
        };
        agrees("total", own.bytes("MemTotal"))
            && agrees("free", own.bytes("MemFree"))
            && agrees("available", own.bytes("MemAvailable"))
    });
    let explained = host.ok(&["explain", name]);
    assert!(explained.contains("own word"), "{explained}");
}

/// Nobody says any more that its balloon does not.
fn follows(host: &TestHost, name: &str) {
    wait_until("its balloon is not stuck", || {
        let explained = host.ok(&["explain", name]);
        !explained.contains("stuck") && !explained.contains("no driver")
    });
}

/// The balloon is told to hold more than its guest can do without, and gives back what that takes.
fn out_of_memory(host: &TestHost, name: &str, guest: &mut LinuxQemu) {
    host.ok(&["balloon", name, "128M"]);
    host.wait_for_balloon(name, 128 * MIB);
    guest.run("head -c 1m /dev/urandom >piece");
    let pieces = "for n in $(seq 140); do cat piece; done";
    guest.run(&format!("{pieces} >fill"));
    guest.run(&format!("{pieces} | cmp - fill"));
    wait_until("the host knows", || {
        let vm = host.vm(name);
        number(&vm, "/balloon/held") < 100 * MIB && number(&vm, "/balloon/target") == 128 * MIB
    });
    is_right(guest);
    guest.run("rm fill piece");
    host.wait_for_balloon(name, 128 * MIB);
    follows(host, name);
    host.ok(&["balloon", name, "auto"]);
}

/// It ends while its balloon moves.
fn ends_in_between(host: &TestHost, name: &str, mut guest: LinuxQemu) {
    let low = Protected::of(&guest, name);
    adopt(host, &guest, &["--reclaim"]);
    assert_eq!(low.bytes(), 32 * MIB);
    host.ok(&["balloon", name, "128M"]);
    wait_until("its balloon moves", || host.held(name) < SIZE);
    guest.quit();
    wait_until("it is forgotten", || {
        vms(&host.overview()).iter().all(|vm| vm["name"] != name)
    });
    host.wait_until_told(name, "its QEMU has ended");
    assert_eq!(low.bytes(), Protected::BEFORE);
}

#[test]
fn memory_moves_between_linux_guests_of_qemu_and_what_one_runs_out_of_its_balloon_gives_back() {
    let name =
        "memory_moves_between_linux_guests_of_qemu_and_what_one_runs_out_of_its_balloon_gives_back";
    where_linux_runs(name, LIMIT, |guests| {
        const BUDGET: u64 = 448 * MIB;
        let host = TestHost::start("448M");
        let kernel = guests.newest();
        let mut a = LinuxQemu::boot(&kernel, "a", "256M");
        let mut b = LinuxQemu::boot(&kernel, "b", "256M");
        for guest in [&a, &b] {
            adopt(&host, guest, &[]);
        }
        let used = || number(&host.overview(), "/host/used_bytes");
        wait_until_at_most("they use no more than there is", BUDGET, used);
        figures_agree(&host, "a", &mut a);
        for (name, other) in [("a", "b"), ("b", "a")] {
            let busy = if name == "a" { &mut a } else { &mut b };
            fill(busy, 130);
            wait_until_at_least("who needs memory gets it", 210 * MIB, || host.held(name));
            wait_until_at_most("from who does not", 200 * MIB, || host.held(other));
            wait_until_at_most("there is no more than there is", BUDGET, used);
            busy.run("rm fill");
        }
        out_of_memory(&host, "a", &mut a);
        for (guest, name) in [(&mut a, "a"), (&mut b, "b")] {
            wait_until("nothing is wrong with it", || {
                host.is(name, "responding") && !host.is(name, "stale")
            });
            host.ok(&["release", name]);
            is_as_it_was(guest);
        }
        ends_in_between(&host, "a", a);
    });
}

/// It answers, follows, and nothing is wrong with it.
fn is_well(host: &TestHost, guest: &mut LinuxQemu) {
    wait_until("nothing is wrong with it", || {
        host.is("q", "responding") && !host.is("q", "stale") && !host.is("q", "paused")
    });
    wait_until_at_most("it is squeezed", 200 * MIB, || host.held("q"));
    follows(host, "q");
    assert_eq!(host.vm("q")["balloon"]["has_driver"], true);
    is_right(guest);
}

fn begins_anew(host: &TestHost, guest: &mut LinuxQemu, end: impl FnOnce(&mut LinuxQemu)) {
    let times = || {
        let told = host.told("q").into_iter();
        told.filter(|what| what.contains("begins anew")).count()
    };
    let (before, times_before) = (guest.printed_bytes(), times());
    end(guest);
    guest.wait_until_ready(before);
    wait_until("that is told", || times() > times_before);
    is_well(host, guest);
}

fn is_paused(host: &TestHost, guest: &mut LinuxQemu) {
    guest.execute("stop", &json!({}));
    wait_until("it is marked, and its figures are old", || {
        host.is("q", "paused") && host.is("q", "stale")
    });
    guest.execute("cont", &json!({}));
    host.wait_until_told("q", "runs on");
    is_well(host, guest);
}

/// Linux gives back what its balloon holds before it lets its driver go.
fn loses_its_driver(host: &TestHost, guest: &mut LinuxQemu) {
    guest.run("rmmod virtio_balloon");
    wait_until("its balloon is empty, and its figures are old", || {
        host.is("q", "stale") && host.held("q") == SIZE
    });
    wait_until("what is missing is named", || {
        host.ok(&["explain", "q"]).contains("no driver")
    });
    assert_eq!(host.vm("q")["balloon"]["has_driver"], false);
    guest.run("insmod /modules/*-virtio_balloon.ko");
    is_well(host, guest);
}

fn loses_its_balloon(host: &TestHost, guest: &mut LinuxQemu) {
    guest.execute("device_del", &json!({"id": "b0"}));
    host.wait_until_told("q", "its balloon was taken out");
    assert!(host.is("q", "responding"));
    let balloon = json!({"driver": "virtio-balloon-pci", "id": "b0", "deflate-on-oom": true,
        "free-page-reporting": true});
    guest.execute("device_add", &balloon);
    is_well(host, guest);
}

#[test]
fn whatever_happens_to_a_linux_guest_of_qemu_it_is_managed_again_and_left_as_it_was() {
    let name = "whatever_happens_to_a_linux_guest_of_qemu_it_is_managed_again_and_left_as_it_was";
    where_linux_runs(name, LIMIT, |guests| {
        let mut host = TestHost::start("208M");
        let mut guest = LinuxQemu::boot(&guests.newest(), "q", "256M");
        let low = Protected::of(&guest, "q");
        adopt(&host, &guest, &[]);
        is_well(&host, &mut guest);
        begins_anew(&host, &mut guest, |guest| {
            guest.order("reboot -f");
        });
        begins_anew(&host, &mut guest, |guest| {
            guest.execute("system_reset", &json!({}));
        });
        is_paused(&host, &mut guest);
        loses_its_driver(&host, &mut guest);
        loses_its_balloon(&host, &mut guest);
        host.ok(&["release", "q"]);
        is_as_it_was(&mut guest);
        assert_eq!(low.bytes(), Protected::BEFORE);
        adopt(&host, &guest, &["--reclaim"]);
        assert_eq!(low.bytes(), 32 * MIB);
        host.ok(&["release", "q"]);
        assert_eq!(low.bytes(), Protected::BEFORE);
        adopt(&host, &guest, &["--reclaim"]);
        host.end_by(Signal::KILL);
        guest.quit();
        assert_eq!(low.bytes(), 32 * MIB);
        host.start_again();
        host.wait_until_told("q", "its QEMU ended while there was no host");
        assert_eq!(low.bytes(), Protected::BEFORE);
        assert!(vms(&host.overview()).is_empty());
    });
}
