//! Claims about one VM: how it starts, what it holds, and who says so.

use rustix::fs::{SeekFrom, ftruncate};
use std::fs::File;
use tests::process;
use tests::{
    MIB, TestHost, number, states_total, text, vms, wait_for, wait_until, wait_until_at_least,
    wait_until_at_most,
};

#[test]
fn a_vm_starts_with_one_two_and_eight_processors() {
    let host = TestHost::start("512M");
    for count in [1, 2, 8] {
        let words = count.to_string();
        let name = format!("cpus{count}");
        let vm = host.boot_vm(&name, &["--memory", "64M", "--vcpus", &words]);
        assert_eq!(number(&vm, "/vcpus"), count);
        let vcpus = process::descriptors(host.pid(&name), "kvm-vcpu").len();
        assert_eq!(vcpus as u64, count);
        let console = tests::GuestConsole::attach_replaying(&host, &name, "64K");
        console.expect(&format!("{count} cpus"));
        assert_eq!(number(&host.report(&name), "/errors"), 0);
    }
}

/// RAM above 3 GiB goes on at 4 GiB. The guest takes its lowest frames first, so it gets there only
/// with more than 3 GiB in use.
#[test]
fn a_vm_larger_than_its_host_uses_memory_above_4_gib() {
    let host = TestHost::start("3500M");
    host.boot_vm("big", &["--memory", "5G", "--min", "512M"]);
    let mut console = host.console("big");
    console.workload("verify:size=3100M,rate=0");
    let report = console.wait_until_held(3100 * MIB);
    let file = File::open(process::memory_file(host.pid("big"))).expect("root may open it");
    let above = rustix::fs::seek(&file, SeekFrom::Data(3 << 30));
    assert!(above.is_ok(), "no page above 4 GiB is in use");
    let report = console.wait_for_checks(number(&report, "/checks") + 50_000);
    assert_eq!(number(&report, "/errors") + number(&report, "/leaks"), 0);
    host.wait_for_figure("big", "/balloon/held", 1400 * MIB);
    assert!(number(&host.overview(), "/host/used_max_bytes") <= 3500 * MIB);
}

#[test]
fn a_vm_larger_than_the_budget_starts_with_less() {
    let host = TestHost::start("600M");
    host.boot_vm("big", &["--memory", "5G", "--min", "512M"]);
    let mut console = host.console("big");
    console.workload("verify:size=max,rate=0");
    console.wait_for_checks(10_000);
    let vm = host.vm("big");
    assert!(number(&vm, "/granted_bytes") >= 512 * MIB, "{vm:#}");
    assert!(number(&host.overview(), "/host/used_max_bytes") <= 600 * MIB);
    assert_eq!(states_total(&vm), 5 << 30);
}

#[test]
fn a_vm_process_holds_write_protection_over_all_of_its_memory() {
    let host = TestHost::start("6G");
    // A page that shows a shared one is not of the memory file for that time.
    host.ok(&["set", "host", "sharing=off"]);
    for (name, size) in [("small", 64 * MIB), ("big", 5 << 30)] {
        let words = ["--memory", &size.to_string(), "--min", "16M"];
        let vm = host.boot_vm(name, &words);
        assert_eq!(number(&vm, "/userfault_bytes"), size);
        let pid = host.pid(name);
        // One makes writers wait, the other tells what was written.
        assert_eq!(process::descriptors(pid, "userfaultfd").len(), 2);
        let mappings = process::memory_mappings(pid);
        let protected = mappings
            .iter()
            .filter(|mapping| mapping.flags.iter().any(|flag| flag == "uw"));
        let bytes: u64 = protected.map(|mapping| mapping.bytes).sum();
        assert_eq!(bytes, size, "{mappings:?}");
    }
}

#[test]
fn nobody_can_resize_a_running_vms_memory_file_of_small_pages() {
    let host = TestHost::start("256M");
    host.ok(&["set", "host", "large-pages=off"]);
    host.boot_vm("a", &["--memory", "64M"]);
    let path = process::memory_file(host.pid("a"));
    let file = File::options()
        .write(true)
        .open(path)
        .expect("root may open it");
    assert!(ftruncate(&file, 0).is_err());
    assert!(ftruncate(&file, 128 * MIB).is_err());
    assert_eq!(file.metadata().expect("it is open").len(), 64 * MIB);
}

/// One of large pages cannot be sealed. Only a VM's own process and root have it.
#[test]
fn a_memory_file_that_is_cut_ends_its_vm_alone() {
    let host = TestHost::start("256M");
    for name in ["a", "b"] {
        let words = ["--memory", "64M", "--workload", "verify:rate=0"];
        host.boot_vm(name, &words);
    }
    let file = File::options()
        .write(true)
        .open(process::memory_file(host.pid("a")))
        .expect("root may open it");
    if ftruncate(&file, 4096).is_err() {
        println!("this machine has no file system for large pages: it is sealed");
        return;
    }
    wait_until("it ends", || {
        vms(&host.overview()).iter().all(|vm| vm["name"] != "a")
    });
    let mut console = host.console("b");
    let before = number(&console.report(), "/checks");
    console.wait_for_checks(before + 1000);
    host.boot_vm("c", &["--memory", "64M"]);
    assert_eq!(host.json(&["audit"])["disagreements"], 0);
}

#[test]
fn statistics_come_from_the_guest() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let free_of = || {
        let vm = host.vm("a");
        let total = vm.pointer("/guest/total")?.as_u64()?;
        assert!(total > 32 * MIB && total <= 64 * MIB, "{vm:#}");
        vm.pointer("/guest/free")?.as_u64()
    };
    let idle = wait_for("statistics come", free_of);
    host.console("a").workload("verify:size=32M");
    wait_until("they change", || {
        free_of().is_some_and(|free| free + 30 * MIB < idle)
    });
}

#[test]
fn a_guest_that_runs_out_of_memory_takes_it_back_from_its_balloon_and_lives() {
    let host = TestHost::start("512M");
    host.boot_vm("a", &["--memory", "128M", "--min", "32M"]);
    host.ok(&["balloon", "a", "80M"]);
    host.wait_for_balloon("a", 80 * MIB);
    let mut console = host.console("a");
    console.workload("toucher:size=100M");
    let report = console.wait_until_held(100 * MIB);
    assert!(number(&report, "/oom_deflated") > 0, "{report:#}");
    wait_until("its balloon is smaller than wanted", || {
        let vm = host.vm("a");
        number(&vm, "/balloon/held") < 80 * MIB && number(&vm, "/memory_file_bytes") > 100 * MIB
    });
    let before = number(&console.report(), "/touches");
    wait_until("it works on", || {
        number(&console.report(), "/touches") > before
    });
}

#[test]
fn memory_that_a_guest_frees_leaves_the_host_without_a_balloon() {
    let host = TestHost::start("512M");
    host.boot_vm("a", &["--memory", "128M"]);
    let mut console = host.console("a");
    console.workload("verify:size=96M,rate=0");
    host.wait_until_backed("a", 96 * MIB);
    let pid = host.pid("a");
    console.ask("stop");
    wait_until_at_most("the host has it back", 16 * MIB, || {
        process::memory_file_bytes(pid)
    });
    let vm = wait_for("the host sees that", || {
        let vm = host.vm("a");
        (number(&vm, "/memory_file_bytes") <= 16 * MIB).then_some(vm)
    });
    assert_eq!(number(&vm, "/balloon/held"), 0, "{vm:#}");
    assert!(number(&vm, "/balloon/counters/reported") > 20_000, "{vm:#}");
    console.workload("verify:size=96M,rate=0");
    let before = number(&console.report(), "/checks");
    let report = console.wait_for_checks(before + 10_000);
    assert_eq!(number(&report, "/errors") + number(&report, "/leaks"), 0);
}

#[test]
fn shares_move_memory_between_min_and_max() {
    let host = TestHost::start("300M");
    let limits = ["--memory", "256M", "--min", "64M", "--max", "192M"];
    let busy = [&limits[..], &["--workload", "verify:size=max"]].concat();
    host.boot_vm("a", &busy);
    host.boot_vm("b", &busy);
    let target = |name: &str| number(&host.vm(name), "/target_bytes");
    wait_until("equal shares make equal targets", || {
        target("a").abs_diff(target("b")) < 2 * MIB
    });
    host.ok(&["set", "a", "shares=100000"]);
    wait_until("a has more and b less", || {
        target("a") > target("b") + 64 * MIB
    });
    wait_until("memory follows", || {
        number(&host.vm("a"), "/memory_file_bytes") > number(&host.vm("b"), "/memory_file_bytes")
    });
    for name in ["a", "b"] {
        let target = target(name);
        assert!((64 * MIB..=192 * MIB).contains(&target), "{name}: {target}");
    }
    host.ok(&["set", "b", "shares=1000000", "min=100M"]);
    host.ok(&["set", "a", "shares=low", "max=128M"]);
    wait_until("it turns round", || target("b") > target("a"));
    wait_until_at_most("the new max holds", 129 * MIB, || {
        number(&host.vm("a"), "/used_bytes")
    });
    assert!(number(&host.overview(), "/host/used_max_bytes") <= 300 * MIB);
}

#[test]
fn a_smaller_budget_takes_memory_from_the_guests_and_a_larger_gives_it_back() {
    let host = TestHost::start("400M");
    let busy = [
        "--memory",
        "192M",
        "--min",
        "48M",
        "--workload",
        "verify:size=max",
    ];
    host.boot_vm("a", &busy);
    host.boot_vm("b", &busy);
    let used = || number(&host.overview(), "/host/used_bytes");
    wait_until_at_least("the guests use all there is", 300 * MIB, used);
    host.ok(&["set", "host", "memory=200M"]);
    wait_until_at_most("they use less", 200 * MIB, used);
    host.fails(
        &["set", "host", "memory=64M"],
        1,
        &["64 MiB", "promised", "lower a VM's min"],
    );
    host.ok(&["set", "host", "memory=400M"]);
    wait_until_at_least("they use more again", 300 * MIB, used);
    for name in ["a", "b"] {
        let report = host.report(name);
        assert_eq!(number(&report, "/errors") + number(&report, "/leaks"), 0);
    }
    let what: Vec<String> = host.overview()["host"]["events"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| text(event, "/what").to_owned())
        .collect();
    assert!(
        what.iter().any(|what| what.contains("budget is 200 MiB")),
        "{what:?}"
    );
}
