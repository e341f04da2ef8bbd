//! Claims about the guest's balloon driver against a device that nobody here wrote: QEMU's.

use tests::qemu::Qemu;
use tests::{MIB, Value, number, wait_for, wait_until, wait_until_at_least, wait_until_at_most};

fn has_no_errors(report: &Value) {
    for never in ["/errors", "/leaks"] {
        assert_eq!(number(report, never), 0, "{report:#}");
    }
}

/// Inflates and deflates under a workload that checks every page.
fn balloon_both_ways(accelerator: &str, rounds: usize) {
    let mut qemu = Qemu::boot(accelerator, "256M", "verify:size=max,rate=2000");
    for _ in 0..rounds {
        for left in [96 * MIB, 200 * MIB, 64 * MIB, 256 * MIB] {
            qemu.balloon_to(left);
            let report = qemu.report();
            let actual = number(&report, "/balloon_actual") * 4096;
            assert_eq!(actual, 256 * MIB - left, "{report:#}");
            has_no_errors(&report);
        }
    }
    wait_until_at_least("the guest checks pages", 5_000, || {
        number(&qemu.report(), "/checks")
    });
    has_no_errors(&qemu.report());
}

#[test]
fn the_driver_inflates_and_deflates_qemus_balloon_on_kvm() {
    balloon_both_ways("kvm", 3);
}

#[test]
fn the_driver_inflates_and_deflates_qemus_balloon_on_tcg() {
    balloon_both_ways("tcg", 1);
}

#[test]
fn pages_in_qemus_balloon_are_really_gone() {
    let mut qemu = Qemu::boot("kvm", "256M", "verify:size=max,rate=1000");
    wait_until_at_least("the guest holds its memory", 250 * 256, || {
        number(&qemu.report(), "/held")
    });
    let before = qemu.resident_bytes();
    qemu.balloon_to(64 * MIB);
    wait_until_at_most("the balloon has taken it", before - 180 * MIB, || {
        qemu.resident_bytes()
    });
    has_no_errors(&qemu.report());
}

#[test]
fn qemu_gets_statistics() {
    for accelerator in ["kvm", "tcg"] {
        let mut qemu = Qemu::boot(accelerator, "128M", "verify:size=64M,rate=1000");
        qemu.poll_statistics(1);
        let statistics = wait_for("statistics come", || {
            let all = qemu.statistics();
            (number(&all, "/last-update") > 0).then_some(all)
        });
        let total = number(&statistics, "/stats/stat-total-memory");
        assert!(total > 64 * MIB && total <= 128 * MIB, "{statistics:#}");
        wait_until("they follow the guest", || {
            number(&qemu.statistics(), "/stats/stat-free-memory") < 64 * MIB
        });
    }
}

#[test]
fn memory_that_the_guest_frees_leaves_qemu_by_free_page_reporting() {
    for accelerator in ["kvm", "tcg"] {
        let mut qemu = Qemu::boot(accelerator, "256M", "verify:size=192M,rate=1000");
        wait_until_at_least("the guest holds its memory", 192 * 256, || {
            number(&qemu.report(), "/held")
        });
        wait_until_at_least("and QEMU for it", 192 * MIB, || qemu.resident_bytes());
        let before = qemu.resident_bytes();
        qemu.ask("stop");
        wait_until_at_most("QEMU has given it back", before - 150 * MIB, || {
            qemu.resident_bytes()
        });
        let report = qemu.report();
        assert!(number(&report, "/reported") > 0, "{report:#}");
        assert_eq!(number(&report, "/balloon_actual"), 0, "{report:#}");
        qemu.ask("workload verify:size=192M,rate=0");
        let checks = number(&qemu.report(), "/checks");
        wait_until_at_least("it can be had again", checks + 2000, || {
            let report = qemu.report();
            has_no_errors(&report);
            number(&report, "/checks")
        });
    }
}

#[test]
fn a_guest_out_of_memory_takes_pages_back_from_qemus_balloon() {
    let mut qemu = Qemu::boot("kvm", "256M", "idle");
    qemu.balloon_to(64 * MIB);
    qemu.ask("workload toucher:size=128M");
    wait_until_at_least("the guest has its memory", 128 * 256, || {
        number(&qemu.report(), "/held")
    });
    let report = qemu.report();
    assert!(number(&report, "/oom_deflated") > 0, "{report:#}");
}
