//! Claims about the guest's balloon driver against a device that nobody here wrote: QEMU's.

use tests::qemu::Qemu;
use tests::{MIB, Value, number, wait_for, wait_until};

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
    let report = wait_for("the guest checks pages", || {
        let report = qemu.report();
        (number(&report, "/checks") > 5_000).then_some(report)
    });
    has_no_errors(&report);
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
    wait_until("the guest holds its memory", || {
        number(&qemu.report(), "/held") * 4096 > 250 * MIB
    });
    let before = qemu.resident_bytes();
    qemu.balloon_to(64 * MIB);
    wait_until("the balloon has taken it", || {
        qemu.resident_bytes() + 180 * MIB < before
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
        wait_until("the guest holds its memory", || {
            number(&qemu.report(), "/held") == 192 * 256 && qemu.resident_bytes() > 192 * MIB
        });
        let before = qemu.resident_bytes();
        qemu.ask("stop");
        wait_until("QEMU has given it back", || {
            qemu.resident_bytes() + 150 * MIB < before
        });
        let report = qemu.report();
        assert!(number(&report, "/reported") > 0, "{report:#}");
        assert_eq!(number(&report, "/balloon_actual"), 0, "{report:#}");
        qemu.ask("workload verify:size=192M,rate=0");
        let checks = number(&qemu.report(), "/checks");
        wait_until("it can be had again", || {
            let report = qemu.report();
            has_no_errors(&report);
            number(&report, "/checks") > checks + 2000
        });
    }
}

#[test]
fn a_guest_out_of_memory_takes_pages_back_from_qemus_balloon() {
    let mut qemu = Qemu::boot("kvm", "256M", "idle");
    qemu.balloon_to(64 * MIB);
    qemu.ask("workload toucher:size=128M");
    let report = wait_for("the guest has its memory", || {
        let report = qemu.report();
        (number(&report, "/held") == 128 * 256).then_some(report)
    });
    assert!(number(&report, "/oom_deflated") > 0, "{report:#}");
}
