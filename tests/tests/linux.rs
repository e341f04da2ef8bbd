//! Claims about unmodified Linux guests: Debian's own kernels, from `tests/linux/build`.
//!
//! Where this machine's KVM cannot run them, each claim is checked in the outer machine of
//! `tests/nested/run`. Figures there come from a machine that is emulated in software: they say what
//! happens, and nothing about how fast.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use tests::linux::{GuestMemory, Image, LinuxGuest, LinuxKernel, Obeys, where_linux_runs};
use tests::process::{self, Signal};
use tests::sharing::{check_sums, clean_audit};
use tests::{
    Done, MIB, Place, TestHost, number, patience, wait_for, wait_until, wait_until_at_least,
};

/// How long the outer machine may run for one claim, in seconds; the longest takes half on a machine
/// that is busy with other things.
const LIMIT: u32 = 1000;

/// What `tests/linux/build` would download, where apt has that folder for a cache, if any.
fn packages(cache: Option<&Path>) -> String {
    let mut build = Command::new(BUILD);
    build.arg("--packages");
    if let Some(cache) = cache {
        build.env("APT_CONFIG", cache.join("apt.conf"));
    }
    tests::run_to_end(&mut build).expect_success()
}

const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/linux/build");

/// apt does not speak of what it has.
#[test]
fn what_guests_are_made_of_does_not_follow_from_what_lies_in_apts_cache() {
    const PACKAGE: &str = "liblzma5";
    let all = packages(None);
    assert!(all.contains(PACKAGE), "{all}");
    let cache = tempfile::tempdir().expect("a temporary folder can be made");
    let setting = format!("Dir::Cache::archives \"{}\";\n", cache.path().display());
    std::fs::write(cache.path().join("apt.conf"), setting).expect("a file can be written");
    let mut apt = Command::new("apt-get");
    let uris = ["download", "--print-uris", "-qq", PACKAGE];
    let told = tests::run_to_end(apt.args(uris).current_dir(cache.path())).expect_success();
    let words: Vec<&str> = told.split(' ').collect();
    let [_, name, size, ..] = words[..] else {
        panic!("no name and size in {told}");
    };
    // apt looks at its length only.
    let file = File::create(cache.path().join(name)).expect("a file can be made");
    let size = size.parse().expect("a number");
    file.set_len(size).expect("a hole is cheap");
    assert_eq!(packages(Some(cache.path())), all);
}

/// A kernel that runs as it should on so many processors.
fn check_kernel(guest: &mut LinuxGuest<'_>, kernel: &LinuxKernel, vcpus: &str) {
    let (major, minor) = kernel.version;
    let release = guest.run("uname -r");
    assert!(
        release.starts_with(&format!("{major}.{minor}.")),
        "{release}"
    );
    assert_eq!(guest.run("nproc").trim(), vcpus);
    let clock = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    assert_eq!(guest.run(clock).trim(), "kvm-clock");
    let random = guest.run("cat /sys/class/misc/hw_random/rng_current");
    assert!(random.starts_with("virtio_rng"), "{random}");
    assert_eq!(guest.complaints(), "");
    wait_until("its balloon driver is ready", || {
        guest.vm()["balloon"]["has_driver"] == true
    });
    assert_eq!(number(&guest.vm(), "/counters/register_violations"), 0);
}

#[test]
fn each_kernel_boots_from_its_bzimage_and_ends_its_vm_by_reboot_and_poweroff() {
    let name = "each_kernel_boots_from_its_bzimage_and_ends_its_vm_by_reboot_and_poweroff";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        for kernel in guests.kernels() {
            for (vcpus, end) in [("1", "reboot -f"), ("2", "poweroff -f")] {
                let words = ["--memory", "192M", "--vcpus", vcpus];
                let mut guest = kernel.boot(&host, "a", Image::BzImage, &words);
                check_kernel(&mut guest, &kernel, vcpus);
                guest.order(end);
                guest.wait_for_end();
            }
        }
    });
}

#[test]
fn each_kernel_boots_from_its_elf_file_and_shuts_down_when_it_is_stopped() {
    let name = "each_kernel_boots_from_its_elf_file_and_shuts_down_when_it_is_stopped";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        for kernel in guests.kernels() {
            for vcpus in ["1", "2"] {
                let words = ["--memory", "192M", "--vcpus", vcpus];
                let mut guest = kernel.boot(&host, "a", Image::Elf, &words);
                check_kernel(&mut guest, &kernel, vcpus);
                host.ok(&["stop", "a"]);
                guest.wait_for_end();
                let printed = guest.printed();
                assert!(
                    printed.contains("the power button was pressed"),
                    "{printed}"
                );
            }
        }
    });
}

#[test]
fn a_guest_whose_process_is_told_to_end_by_a_signal_shuts_down_first() {
    let name = "a_guest_whose_process_is_told_to_end_by_a_signal_shuts_down_first";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        let guest = guests
            .newest()
            .boot(&host, "a", Image::Elf, &["--memory", "192M"]);
        process::signal(host.pid("a"), Signal::TERM);
        guest.wait_for_end();
        let printed = guest.printed();
        assert!(
            printed.contains("the power button was pressed"),
            "{printed}"
        );
    });
}

/// A guest of the newest kernel whose memory nobody but the balloon moves.
fn lone_guest<'a>(kernel: &LinuxKernel, host: &'a TestHost) -> LinuxGuest<'a> {
    host.ok(&["set", "host", "sharing=off"]);
    kernel.boot(host, "a", Image::Elf, &["--memory", "256M", "--min", "64M"])
}

/// As much as the guest can hold: whatever is not in its balloon is in use, or free in pieces.
fn fill(guest: &mut LinuxGuest<'_>, mib: u64) {
    guest.run(&format!("dd if=/dev/zero of=fill bs=1M count={mib} 2>&1"));
}

/// The guest takes pages out of its balloon one by one after it has told the host.
fn wait_until_available(guest: &mut LinuxGuest<'_>, expected: u64, tolerance: u64) {
    wait_until(
        "the guest's programs can have what is not in its balloon",
        || {
            let available = guest.memory().bytes("MemAvailable");
            available.abs_diff(expected) < tolerance
        },
    );
}

/// Waits until the host's figure for the memory file and the guest's own figures agree within 5 % of
/// its size: what is neither in its balloon nor free is held, and nothing that is in the balloon.
fn wait_until_held_memory_is_right(guest: &mut LinuxGuest<'_>, size: u64, balloon: u64) {
    wait_until("the host holds what the guest uses", || {
        let free = guest.memory().bytes("MemFree");
        let held = number(&guest.vm(), "/memory_file_bytes");
        held <= size - balloon && held + size / 20 >= size - balloon - free
    });
}

#[test]
fn the_balloon_goes_to_half_the_memory_and_back_ten_times_and_all_figures_follow() {
    let name = "the_balloon_goes_to_half_the_memory_and_back_ten_times_and_all_figures_follow";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        let mut guest = lone_guest(&guests.newest(), &host);
        let size = 256 * MIB;
        let whole = guest.memory().bytes("MemAvailable");
        for round in 1..=10 {
            // Filling takes most of the time: what the host holds at the end proves as much.
            let fills = [1, 10].contains(&round);
            host.ok(&["balloon", "a", "128M"]);
            host.wait_for_balloon("a", size / 2);
            wait_until_available(&mut guest, whole - size / 2, size / 20);
            if fills {
                fill(&mut guest, 48);
            }
            wait_until_held_memory_is_right(&mut guest, size, size / 2);
            guest.run("rm -f fill");
            host.ok(&["balloon", "a", "0"]);
            host.wait_for_balloon("a", 0);
            wait_until_available(&mut guest, whole, size / 20);
            if fills {
                fill(&mut guest, 128);
            }
            wait_until_held_memory_is_right(&mut guest, size, 0);
            guest.run("rm -f fill");
        }
        assert_eq!(guest.complaints(), "");
        let vm = guest.vm();
        for never in ["outside", "repeated", "malformed", "broken_queues"] {
            let count = number(&vm, &format!("/balloon/counters/{never}"));
            assert_eq!(count, 0, "{vm:#}");
        }
    });
}

/// Compares what the host shows of a guest with the guest's own /proc/meminfo. The guest is idle, and
/// the host's figures are a second old at most, so 2 MiB of difference are generous.
fn wait_until_statistics_agree(guest: &mut LinuxGuest<'_>) {
    const TOLERANCE: u64 = 2 * MIB;
    let caches = |memory: &GuestMemory| {
        memory.bytes("Cached") + memory.bytes("Buffers") + memory.bytes("SwapCached")
    };
    let (vm, memory) = wait_for("the host's figures are the guest's", || {
        let (memory, vm) = (guest.memory(), guest.vm());
        let shown = |name: &str| vm.pointer(&format!("/guest/{name}"))?.as_u64();
        let pairs = [
            (shown("total")?, memory.bytes("MemTotal")),
            (shown("free")?, memory.bytes("MemFree")),
            (shown("available")?, memory.bytes("MemAvailable")),
            (shown("caches")?, caches(&memory)),
        ];
        let agree = |(shown, own): &(u64, u64)| shown.abs_diff(*own) <= TOLERANCE;
        pairs.iter().all(agree).then_some((vm, memory))
    });
    assert_eq!(
        number(&vm, "/guest/total"),
        memory.bytes("MemTotal"),
        "{vm:#}"
    );
}

#[test]
fn the_statistics_of_each_kernel_are_those_in_its_proc() {
    let name = "the_statistics_of_each_kernel_are_those_in_its_proc";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        for kernel in guests.kernels() {
            let mut guest = lone_guest(&kernel, &host);
            wait_until_statistics_agree(&mut guest);
            fill(&mut guest, 64);
            wait_until_statistics_agree(&mut guest);
            host.ok(&["balloon", "a", "64M"]);
            host.wait_for_balloon("a", 64 * MIB);
            wait_until_statistics_agree(&mut guest);
            // Newer kernels tell more.
            let vm = guest.vm();
            let tells_more = kernel.version >= (6, 12);
            for name in ["oom_kills", "allocation_stalls", "direct_reclaimed"] {
                assert_eq!(vm["guest"][name].is_u64(), tells_more, "{name}: {vm:#}");
            }
            host.ok(&["stop", "a"]);
        }
    });
}

#[test]
fn memory_that_a_guest_frees_leaves_the_host_by_free_page_reporting() {
    let name = "memory_that_a_guest_frees_leaves_the_host_by_free_page_reporting";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        for kernel in guests.kernels() {
            let mut guest = lone_guest(&kernel, &host);
            let held = |guest: &LinuxGuest<'_>| number(&guest.vm(), "/memory_file_bytes");
            fill(&mut guest, 64);
            wait_until_held_memory_is_right(&mut guest, 256 * MIB, 0);
            let before = held(&guest);
            guest.run("rm fill");
            // Linux reports pieces of 2 MiB and more; some that were whole are in pieces now.
            wait_until("it has left the host", || held(&guest) + 48 * MIB < before);
            assert_eq!(number(&guest.vm(), "/balloon/held"), 0);
            host.ok(&["stop", "a"]);
        }
    });
}

#[test]
fn a_guest_that_runs_out_of_memory_takes_it_from_its_balloon_and_kills_nothing() {
    let name = "a_guest_that_runs_out_of_memory_takes_it_from_its_balloon_and_kills_nothing";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        for kernel in guests.kernels() {
            let mut guest = lone_guest(&kernel, &host);
            host.ok(&["balloon", "a", "128M"]);
            host.wait_for_balloon("a", 128 * MIB);
            guest.run("dd if=/dev/urandom of=piece bs=1M count=1 2>&1");
            let pieces = "for n in $(seq 80); do cat piece; done";
            guest.run(&format!("{pieces} >fill"));
            guest.run(&format!("{pieces} | cmp - fill"));
            wait_until("the host knows", || {
                let vm = guest.vm();
                number(&vm, "/balloon/held") < 124 * MIB
                    && number(&vm, "/memory_file_bytes") > 80 * MIB
            });
            assert_eq!(guest.run("grep oom_kill /proc/vmstat").trim(), "oom_kill 0");
            assert_eq!(guest.complaints(), "");
            host.ok(&["stop", "a"]);
        }
    });
}

/// Checks a file that all guests have and one that only it has, again and again, until told to stop;
/// a wrong sum ends it early. How often is never read half written.
const CHECK_UNTIL_STOPPED: &str = "md5sum same own >sums; (n=0; \
    while [ ! -e stop ] && md5sum -c -s sums; do n=$((n+1)); echo $n >count; mv count checks; sleep 0.5; done; touch stopped) &";

/// Debian's memory tester, meanwhile; its status is in a file when it has ended.
const TEST_MEMORY: &str = "(memtester 1M 1 >tested 2>&1; echo $? >tester) &";

fn checks_so_far(guest: &mut LinuxGuest<'_>) -> u64 {
    let count = guest.run("cat checks 2>&- || echo 0");
    count.trim().parse().expect("a number")
}

/// Some of what all guests have on their disk, by way of their kernel's cache.
const READ_THE_DISK: &str = "cat /usr/lib/x86_64-linux-gnu/lib[a-f]*.so* | head -c 12m";

/// They use more than there is, have no balloon, and what they read from their disk is left to it.
#[test]
fn guests_whose_pages_go_out_keep_their_bytes() {
    let name = "guests_whose_pages_go_out_keep_their_bytes";
    where_linux_runs(name, 2 * LIMIT, |guests| {
        const NAMES: [&str; 2] = ["a", "b"];
        const BUDGET: u64 = 160 * MIB;
        let host = TestHost::start_with_swap("160M");
        let kernel = guests.newest();
        let disk = format!("{},ro", guests.disk());
        let words = ["--memory", "192M", "--disk", &disk];
        let mut all = NAMES.map(|name| kernel.boot_from_disk(&host, name, &words));
        for guest in &mut all {
            guest.run("rmmod virtio_balloon");
            guest.run(&format!(
                "{READ_THE_DISK} >same && head -c 24m /dev/urandom >own"
            ));
            guest.run(CHECK_UNTIL_STOPPED);
            guest.run(TEST_MEMORY);
        }
        let out = |guest: &LinuxGuest<'_>| number(&guest.vm(), "/counters/swap/out");
        for guest in &mut all {
            wait_until_at_least("its pages go out", 4000, || out(guest));
            let before = checks_so_far(guest);
            wait_until("the guest checks its files", || {
                checks_so_far(guest) > before
            });
        }
        for guest in &mut all {
            guest.run("touch stop; until [ -e stopped ]; do sleep 0.2; done; md5sum -c -s sums");
            guest.run(&format!("{READ_THE_DISK} | cmp - same"));
            let status = guest.run("until [ -s tester ]; do sleep 0.5; done; cat tester");
            assert_eq!(status.trim(), "0", "{}", guest.run("cat tested"));
            assert_eq!(guest.complaints(), "");
            let vm = guest.vm();
            println!("{:#}", vm["counters"]["swap"]);
            // How many each is depends on what its kernel drops by itself.
            for figure in ["stored_in", "left_to_disks", "disk_in"] {
                let count = number(&vm, &format!("/counters/swap/{figure}"));
                assert!(count > 0, "{figure}: {vm:#}");
            }
        }
        let overview = host.overview();
        let used = number(&overview, "/host/used_max_bytes");
        assert!(used <= BUDGET, "{used} bytes: {overview:#}");
        for name in NAMES {
            host.ok(&["stop", name]);
        }
        host.remove_swap_folder();
    });
}

#[test]
fn guests_of_one_kernel_and_disk_share_their_pages_and_keep_their_bytes() {
    let name = "guests_of_one_kernel_and_disk_share_their_pages_and_keep_their_bytes";
    where_linux_runs(name, LIMIT, |guests| {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let host = TestHost::start("768M");
        let kernel = guests.newest();
        let disk = format!("{},ro", guests.disk());
        let words = [
            "--memory",
            "192M",
            "--trust-group",
            "debian",
            "--disk",
            &disk,
        ];
        let mut all = NAMES.map(|name| kernel.boot_from_disk(&host, name, &words));
        // Not faster, for scanner and guests have one emulated processor together.
        host.ok(&[
            "set",
            "host",
            // There is enough for all: nothing would be shared.
            "large-pages=off",
            "scan-pass=5",
            "scan-core=30",
            "scan-priority=normal",
        ]);
        for guest in &mut all {
            // What all have read from the disk, and what only one has.
            guest.run(&format!(
                "{READ_THE_DISK} >same && head -c 4m /dev/urandom >own"
            ));
            guest.run(CHECK_UNTIL_STOPPED);
            guest.run(TEST_MEMORY);
        }
        for (round, balloon) in ["64M", "auto"].into_iter().enumerate() {
            for name in NAMES {
                host.ok(&["balloon", name, balloon]);
            }
            let before = all.each_mut().map(checks_so_far);
            for (guest, before) in all.iter_mut().zip(before) {
                wait_until("the guest checks its files", || {
                    checks_so_far(guest) > before + 1
                });
            }
            let audit = clean_audit(&host);
            let overview = host.overview();
            check_sums(&overview);
            println!(
                "round {round}: {} pages mapped from {} frames; sharing: {:#}",
                audit["mapped_pages"], audit["frames"], overview["host"]["sharing"]
            );
        }
        for (figure, least) in [("shared_bytes", 100 * MIB), ("saving_bytes", 64 * MIB)] {
            wait_until_at_least("pages are shared", least, || {
                let sharing = host.overview()["host"]["sharing"].clone();
                sharing[figure].as_u64().unwrap_or(0)
            });
        }
        for guest in &mut all {
            guest.run("touch stop; until [ -e stopped ]; do sleep 0.2; done; md5sum -c -s sums");
            let status = guest.run("until [ -s tester ]; do sleep 0.5; done; cat tester");
            assert_eq!(status.trim(), "0", "{}", guest.run("cat tested"));
            assert_eq!(guest.complaints(), "");
        }
        for name in NAMES {
            host.ok(&["stop", name]);
        }
    });
}

/// A file of that size among a test's temporary files; its path.
fn new_disk(place: &Place, name: &str, size: u64) -> String {
    let path = place.temporary_folder().join(name);
    let file = File::create(&path).expect("a file can be made");
    file.set_len(size).expect("a hole is cheap");
    path.to_str().expect("its path is text").to_owned()
}

fn remove(path: &str) {
    std::fs::remove_file(path).expect("it was made by the test");
}

fn run(program: &str, words: &[&str]) -> Done {
    tests::run_to_end(Command::new(program).args(words))
}

fn must_run(program: &str, words: &[&str]) {
    drop(run(program, words).expect_success());
}

#[test]
fn fio_reads_back_what_it_wrote_to_a_disk_in_each_kernel() {
    let name = "fio_reads_back_what_it_wrote_to_a_disk_in_each_kernel";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        for kernel in guests.kernels() {
            let (root, disk) = (guests.disk(), new_disk(&host, "disk", 64 * MIB));
            let root = format!("{root},ro");
            let words = ["--memory", "256M", "--disk", &root, "--disk", &disk];
            let mut guest = kernel.boot_from_disk(&host, "a", &words);
            let size = guest.run("blockdev --getsize64 /dev/vdb");
            assert_eq!(size.trim(), (64 * MIB).to_string());
            guest.run(
                "fio --name=verify --filename=/dev/vdb --rw=randrw --bsrange=4k-64k --size=32M \
                 --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 \
                 --thread --minimal",
            );
            // And none of it went to the other disk.
            assert_eq!(guest.run("blockdev --getro /dev/vda").trim(), "1");
            assert_eq!(guest.complaints(), "");
            host.ok(&["stop", "a"]);
            remove(&disk);
        }
    });
}

/// Files that are written and never synced, until the end.
const WRITE_UNTIL_KILLED: &str =
    "(n=0; while :; do n=$((n+1)); seq $n 20000 >/run/disk/late$((n%50)); done) &";

#[test]
fn what_was_synced_survives_a_kill_of_the_vm_and_the_file_system_is_clean() {
    let name = "what_was_synced_survives_a_kill_of_the_vm_and_the_file_system_is_clean";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        let kernel = guests.newest();
        let disk = new_disk(&host, "disk", 96 * MIB);
        must_run("mkfs.ext4", &["-q", "-F", &disk]);
        let words = ["--memory", "192M", "--disk", &disk];
        let mut guest = kernel.boot(&host, "a", Image::Elf, &words);
        guest.run("mkdir -p /run/disk && mount -t ext4 /dev/vda /run/disk");
        guest.run(
            "cd /run/disk && for n in $(seq 20); do head -c $((n*60000)) /dev/urandom >synced$n; \
             done && md5sum synced* >sums && sync",
        );
        guest.run(WRITE_UNTIL_KILLED);
        guest.run("until [ -e /run/disk/late20 ]; do sleep 0.1; done");
        process::signal(host.pid("a"), Signal::KILL);
        guest.wait_for_end();
        // Without the journal's help it need not be clean, so that is played back first.
        let recovered = run("e2fsck", &["-p", &disk]);
        assert!(matches!(recovered.status, Some(0 | 1)), "{recovered:?}");
        must_run("e2fsck", &["-f", "-n", &disk]);
        let mut guest = kernel.boot(&host, "b", Image::Elf, &words);
        guest.run("mkdir -p /run/disk && mount -t ext4 /dev/vda /run/disk");
        guest.run("cd /run/disk && md5sum -c -s sums && [ $(wc -l <sums) = 20 ]");
        assert_eq!(guest.complaints(), "");
        host.ok(&["stop", "b"]);
        must_run("e2fsck", &["-f", "-n", &disk]);
        remove(&disk);
    });
}

/// A tap of this machine with an address, and nothing behind it. Goes with this.
struct TestTap;

impl TestTap {
    const NAME: &str = "ballonettest";
    const ADDRESS: &str = "198.18.77.1";
    const GUESTS_ADDRESS: &str = "198.18.77.2";

    fn new() -> Self {
        // It may be there already, or be part of the kernel.
        drop(run("modprobe", &["tun"]));
        must_run("ip", &["tuntap", "add", Self::NAME, "mode", "tap"]);
        let tap = Self;
        let address = format!("{}/30", Self::ADDRESS);
        must_run("ip", &["address", "add", &address, "dev", Self::NAME]);
        must_run("ip", &["link", "set", Self::NAME, "up"]);
        tap
    }
}

impl Drop for TestTap {
    fn drop(&mut self) {
        drop(run("ip", &["link", "delete", Self::NAME]));
    }
}

/// Bytes that a guest sends to this machine, and what is sent back: the same.
fn take_and_return(guest: &mut LinuxGuest<'_>) -> Vec<u8> {
    let listener = TcpListener::bind((TestTap::ADDRESS, 0)).expect("the tap has its address");
    let port = listener.local_addr().expect("it is bound").port();
    // Nothing may be waited for without an end: what the guest and its card say then tells why.
    listener.set_nonblocking(true).expect("it is ours");
    let connection = |guest: &mut LinuxGuest<'_>, command: &str| {
        let address = TestTap::ADDRESS;
        let order = guest.order(&command.replace("nc", &format!("nc {address} {port}")));
        let (stream, _) = wait_for("the guest connects", || listener.accept().ok());
        stream.set_nonblocking(false).expect("it is ours");
        stream.set_read_timeout(Some(patience())).expect("some");
        stream.set_write_timeout(Some(patience())).expect("some");
        (stream, order)
    };
    let (mut stream, order) = connection(guest, "nc <sent");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the guest sends all");
    drop(stream);
    assert_eq!(guest.answer(order).1, 0);
    let (mut stream, order) = connection(guest, "nc </dev/null >returned");
    stream.write_all(&bytes).expect("the guest takes all");
    drop(stream);
    assert_eq!(guest.answer(order).1, 0);
    bytes
}

#[test]
fn each_kernel_sends_and_receives_over_a_tap_without_a_wrong_byte() {
    let name = "each_kernel_sends_and_receives_over_a_tap_without_a_wrong_byte";
    where_linux_runs(name, LIMIT, |guests| {
        let host = TestHost::start("512M");
        let _tap = TestTap::new();
        for kernel in guests.kernels() {
            let card = format!("tap={}", TestTap::NAME);
            let words = ["--memory", "256M", "--net", &card];
            let mut guest = kernel.boot(&host, "a", Image::Elf, &words);
            let address = TestTap::GUESTS_ADDRESS;
            guest.run(&format!(
                "ip address add {address}/30 dev eth0 && ip link set eth0 up"
            ));
            // On a slow machine nobody may answer who has this address before `nc` gives up.
            let ping = format!("ping -c 1 -W 10 {}", TestTap::ADDRESS);
            guest.run(&format!("for n in 1 2 3 4 5 6; do {ping} && break; done"));
            guest.run("head -c 48m /dev/urandom >sent");
            let bytes = take_and_return(&mut guest);
            assert_eq!(bytes.len() as u64, 48 * MIB);
            guest.run("cmp sent returned");
            assert_eq!(guest.complaints(), "");
            host.ok(&["stop", "a"]);
        }
    });
}
