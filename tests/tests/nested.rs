//! Claims about guests on real nested paging: the program in the outer machine of
//! `tests/nested/run`, where the kernel's own `kvm_amd` runs it.
//!
//! That machine is emulated in software and ten times slower than the one around it; its tests
//! want every processor for themselves. The script sets the time limits, for it can end them all.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tests::process::{self, Signal};
use tests::program::{Done, program};
use tests::{Place, Value, number, states_total, vms, wait_for, wait_until};

/// How long the outer machine may run; the longest takes a tenth.
const LIMIT_SECONDS: &str = "400";

/// A command in the outer machine.
fn inside(place: &Place, words: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("nested/run");
    let mut command = Command::new(script);
    command
        .args(["-t", LIMIT_SECONDS, "--"])
        .args(words)
        .stdin(Stdio::null());
    place.adapt(&mut command);
    command
}

/// Runs it to its end.
fn run_inside(place: &Place, words: &[&str]) -> Done {
    let output = inside(place, words)
        .output()
        .expect("the script can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done {
        command: words.join(" "),
        status: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

#[test]
fn overcommitted_guests_on_nested_paging_read_what_they_wrote_within_the_budget() {
    let place = Place::new();
    let program = program();
    let program = program.to_str().expect("its path is text");
    // Small, or the guests would touch fresh memory all the time and check nothing.
    let demo = ["demo", "--memory", "128M", "--seconds", "20", "--json"];
    let printed = run_inside(&place, &[&[program], &demo[..]].concat()).expect_success();
    let summary: Value =
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    assert_eq!(number(&summary, "/verify_errors"), 0, "{summary:#}");
    let (budget, used_max) = (
        number(&summary, "/budget_bytes"),
        number(&summary, "/used_max_bytes"),
    );
    assert!(used_max > 0 && used_max <= budget, "{summary:#}");
    assert!(number(&summary, "/moved_bytes") > 0, "{summary:#}");
    assert_eq!(number(&summary, "/state_sum_violations"), 0, "{summary:#}");
    assert_eq!(vms(&summary).len(), 4, "{summary:#}");
    for vm in vms(&summary) {
        assert_eq!(vm["alive"], true, "{vm:#}");
        assert!(number(vm, "/verify_checks") > 1_000, "{vm:#}");
        assert_eq!(states_total(vm), number(vm, "/size_bytes"), "{vm:#}");
    }
}

#[test]
fn the_outer_machine_gives_back_output_and_status_and_nothing_that_was_written() {
    let place = Place::new();
    let file = place.temporary_folder().join("file");
    let path = file.to_str().expect("its path is text");
    let words = "echo out; echo message >&2; date >\"$0\"; test -s \"$0\" && exit 7";
    let done = run_inside(&place, &["sh", "-c", words, path]);
    done.expect_failure(7, &["message"]);
    assert_eq!(
        (&*done.stdout, &*done.stderr),
        ("out\n", "message\n"),
        "{done:?}"
    );
    assert!(!file.exists(), "it was written out here");
}

fn is_qemu(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.starts_with("qemu-system"))
}

#[test]
fn an_interrupted_outer_machine_leaves_nothing_behind() {
    let place = Place::new();
    let mut script = inside(&place, &["sleep", "1000"])
        .spawn()
        .expect("the script can be run");
    wait_until("QEMU runs", || place.processes().into_iter().any(is_qemu));
    process::signal(script.id(), Signal::TERM);
    let status = wait_for("the script ends", || {
        script.try_wait().expect("a child can be waited for")
    });
    assert_eq!(status.code(), Some(143), "{status}");
    // The place looks for processes and files when it is dropped.
}
