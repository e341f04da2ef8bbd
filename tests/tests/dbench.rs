//! Claims about files in a guest's buffer cache, on a disk of its own: what clients read is what they
//! wrote, whatever the balloon does, and memory makes them faster.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tests::qemu::Qemu;
use tests::{
    GuestConsole, MIB, TestHost, Value, number, wait_until, wait_until_at_least, wait_until_at_most,
};

/// The first word of every block that `dbench` of the guest wrote.
const MAGIC: u64 = 0x424e_4c54;

fn temporary_folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn new_disk(folder: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = folder.join(name);
    let file = File::create(&path).expect("a file can be made");
    file.set_len(bytes).expect("it can be sparse");
    path
}

fn has_no_errors(report: &Value) {
    for never in ["/errors", "/leaks", "/disk_errors"] {
        assert_eq!(number(report, never), 0, "{report:#}");
    }
}

fn wait_for_more(console: &mut GuestConsole, key: &str, more: u64) -> Value {
    let before = number(&console.report(), key);
    let report = console.wait_for_figure(key, before + more);
    has_no_errors(&report);
    report
}

/// Blocks of the image that name a guest and their own number, and those that do not but have contents.
fn blocks_of(image: &Path, guest: u64) -> (u64, u64) {
    let file = File::open(image).expect("the image is there");
    let blocks = file.metadata().expect("it is open").len() / 4096;
    let (mut right, mut wrong) = (0, 0);
    for block in 0..blocks {
        let mut bytes = [0; 16];
        file.read_exact_at(&mut bytes, block * 4096)
            .expect("it can be read");
        let (first, second) = bytes.split_at(8);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        if word(first) == MAGIC << 32 | guest && word(second) >> 32 == block {
            right += 1;
        } else if bytes != [0; 16] {
            wrong += 1;
        }
    }
    (right, wrong)
}

#[test]
fn files_are_right_whatever_the_balloon_does_and_all_on_the_disk_at_the_end() {
    let folder = temporary_folder();
    let host = TestHost::start("512M");
    let image = new_disk(folder.path(), "disk", 96 * MIB);
    let disk = image.display().to_string();
    host.boot_vm("a", &["--memory", "128M", "--disk", &disk]);
    let mut console = host.console("a");
    console.workload("dbench:seek_us=100,write=30");
    wait_for_more(&mut console, "/operations", 2000);
    for (size, bytes) in [
        ("64M", 64 * MIB),
        ("16M", 16 * MIB),
        ("80M", 80 * MIB),
        ("0", 0),
    ] {
        host.ok(&["balloon", "a", size]);
        host.wait_for_balloon("a", bytes);
        for key in ["/operations", "/hits", "/read_bytes", "/written_bytes"] {
            wait_for_more(&mut console, key, 100);
        }
    }
    let report = console.report();
    assert!(number(&report, "/misses") > 0, "{report:#}");
    console.ask("stop");
    // What was not written back yet is now.
    wait_until_at_most("the cache is gone", 0, || {
        number(&console.report(), "/held")
    });
    has_no_errors(&console.report());
    let (right, wrong) = blocks_of(&image, number(&report, "/guest"));
    assert_eq!(wrong, 0);
    assert!(right > 48 * MIB / 4096, "{right} blocks were written");
}

#[test]
fn a_run_can_be_changed_for_another_while_it_runs() {
    let folder = temporary_folder();
    let host = TestHost::start("256M");
    let image = new_disk(folder.path(), "disk", 64 * MIB);
    let disk = image.display().to_string();
    let workload = ["--workload", "dbench:seek_us=0,files=32M"];
    let words = ["--memory", "64M", "--disk", &disk];
    host.boot_vm("a", &[&words[..], &workload].concat());
    let mut console = host.console("a");
    wait_for_more(&mut console, "/operations", 1000);
    for spec in [
        "verify:size=max,rate=0",
        "idle",
        "dbench:dist=zipf,seek_us=0",
    ] {
        console.workload(spec);
        wait_until("it runs", || {
            let report = console.report();
            has_no_errors(&report);
            report["workload"]
                .as_str()
                .is_some_and(|runs| runs.starts_with(&spec[..4]))
        });
    }
    wait_for_more(&mut console, "/operations", 1000);
}

#[test]
fn a_guest_without_a_disk_that_it_can_write_says_so_and_runs_on() {
    let folder = temporary_folder();
    let host = TestHost::start("256M");
    let refused = "dbench needs a disk";
    let words = ["run", "--memory", "64M", "--workload", "dbench"];
    host.fails(&words, 1, &[refused]);
    host.boot_vm("a", &["--memory", "64M"]);
    let mut console = host.console("a");
    let answer = console.ask("workload dbench");
    assert!(answer.contains(refused), "{answer}");
    let image = new_disk(folder.path(), "disk", 64 * MIB);
    let read_only = format!("{},ro", image.display());
    host.boot_vm("b", &["--memory", "64M", "--disk", &read_only]);
    let mut other = host.console("b");
    let answer = other.ask("workload dbench");
    assert!(answer.contains("a disk that can be written"), "{answer}");
    for console in [&mut console, &mut other] {
        console.workload("verify:size=16M,rate=0");
        console.wait_for_checks(1000);
    }
}

#[test]
fn a_disk_that_becomes_too_short_is_an_error_that_is_told() {
    let folder = temporary_folder();
    let host = TestHost::start("256M");
    let image = new_disk(folder.path(), "disk", 96 * MIB);
    let disk = image.display().to_string();
    host.boot_vm("a", &["--memory", "64M", "--disk", &disk]);
    let mut console = host.console("a");
    console.workload("dbench:seek_us=0");
    wait_for_more(&mut console, "/misses", 1000);
    let file = File::options()
        .write(true)
        .open(&image)
        .expect("it is there");
    file.set_len(0).expect("it can be cut");
    console.expect("dbench: ");
    let report = console.report();
    assert!(
        number(&report, "/disk_errors") + number(&report, "/errors") > 0,
        "{report:#}"
    );
    console.workload("verify:size=16M,rate=0");
    console.wait_for_checks(1000);
}

#[test]
fn files_are_right_on_qemus_disk_too() {
    let folder = temporary_folder();
    let image = new_disk(folder.path(), "disk", 96 * MIB);
    let mut qemu = Qemu::boot_with_disk("kvm", "128M", "dbench:seek_us=0", &image);
    for left in [96 * MIB, 64 * MIB, 128 * MIB] {
        qemu.balloon_to(left);
        let before = number(&qemu.report(), "/misses");
        wait_until_at_least("clients go on", before + 500, || {
            let report = qemu.report();
            has_no_errors(&report);
            number(&report, "/misses")
        });
    }
    qemu.ask("stop");
    wait_until_at_most("the cache is gone", 0, || number(&qemu.report(), "/held"));
    let (right, wrong) = blocks_of(&image, 1);
    assert_eq!(wrong, 0);
    assert!(right > 48 * MIB / 4096, "{right} blocks were written");
}
