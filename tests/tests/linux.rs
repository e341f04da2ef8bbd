//! Claims about unmodified Linux guests: Debian's own kernels, from `tests/linux/build`.
//!
//! Where this machine's KVM cannot run them, each claim is checked in the outer machine of
//! `tests/nested/run`. Figures there come from a machine that is emulated in software: they say what
//! happens, and nothing about how fast.

use tests::linux::{GuestMemory, Image, LinuxGuest, LinuxKernel, where_linux_runs};
use tests::sharing::{check_sums, clean_audit, scan_at_full_speed};
use tests::{MIB, TestHost, number, wait_for, wait_until};

/// How long the outer machine may run for one claim, in seconds; the longest takes a third.
const LIMIT: u64 = 280;

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
        for _ in 0..10 {
            host.ok(&["balloon", "a", "128M"]);
            host.wait_for_balloon("a", size / 2);
            wait_until_available(&mut guest, whole - size / 2, size / 20);
            fill(&mut guest, 48);
            wait_until_held_memory_is_right(&mut guest, size, size / 2);
            guest.run("rm fill");
            host.ok(&["balloon", "a", "0"]);
            host.wait_for_balloon("a", 0);
            wait_until_available(&mut guest, whole, size / 20);
            fill(&mut guest, 128);
            wait_until_held_memory_is_right(&mut guest, size, 0);
            guest.run("rm fill");
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
            guest.run("yes a line to be checked | head -c 140m >fill");
            let sum = guest.run("yes a line to be checked | head -c 140m | md5sum");
            assert_eq!(guest.run("md5sum <fill"), sum);
            let vm = guest.vm();
            let balloon = number(&vm, "/balloon/held");
            assert!(balloon < 96 * MIB, "{vm:#}");
            assert!(number(&vm, "/memory_file_bytes") > 140 * MIB, "{vm:#}");
            assert_eq!(guest.run("grep oom_kill /proc/vmstat").trim(), "oom_kill 0");
            assert_eq!(guest.complaints(), "");
            host.ok(&["stop", "a"]);
        }
    });
}

/// Checks a file that all guests have and one that only it has, again and again, until told to stop;
/// a wrong sum ends it early.
const CHECK_UNTIL_STOPPED: &str = "md5sum same own >sums; (n=0; \
    while [ ! -e stop ] && md5sum -c -s sums; do n=$((n+1)); echo $n >checks; done; touch stopped) &";

fn checks_so_far(guest: &mut LinuxGuest<'_>) -> u64 {
    let count = guest.run("cat checks 2>&- || echo 0");
    count.trim().parse().expect("a number")
}

#[test]
fn guests_of_one_kernel_share_its_pages_and_keep_their_bytes() {
    let name = "guests_of_one_kernel_share_its_pages_and_keep_their_bytes";
    where_linux_runs(name, LIMIT, |guests| {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let host = TestHost::start("768M");
        let kernel = guests.newest();
        let words = ["--memory", "192M", "--trust-group", "debian"];
        let mut all = NAMES.map(|name| kernel.boot(&host, name, Image::Elf, &words));
        scan_at_full_speed(&host);
        for guest in &mut all {
            guest.run("seq 1 2000000 | head -c 12m >same; head -c 4m /dev/urandom >own");
            guest.run(CHECK_UNTIL_STOPPED);
        }
        for (round, balloon) in ["64M", "0", "96M", "32M", "auto"].into_iter().enumerate() {
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
        let sharing = host.overview()["host"]["sharing"].clone();
        assert!(number(&sharing, "/shared_bytes") > 100 * MIB, "{sharing:#}");
        let saving = sharing["saving_bytes"].as_i64();
        assert!(saving > Some(64 << 20), "{sharing:#}");
        for guest in &mut all {
            guest.run("touch stop; until [ -e stopped ]; do sleep 0.2; done; md5sum -c -s sums");
            assert_eq!(guest.complaints(), "");
        }
        for name in NAMES {
            host.ok(&["stop", name]);
        }
    });
}
