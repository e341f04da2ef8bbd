//! Claims about `ballonet demo`: four guests that were promised twice the memory there is.

use std::process::Stdio;
use tests::process::{self, Signal};
use tests::{Place, Value, number, states_total, vms, wait_for, wait_until};

const NAMES: [&str; 4] = ["anna", "bert", "cora", "dirk"];

#[test]
fn a_demo_moves_memory_between_overcommitted_guests_and_every_byte_is_right() {
    let place = Place::new();
    // Each has its turn; how much moves in one is for the machine to say.
    let summary = ["20", "60", "180"]
        .into_iter()
        .map(|seconds| checked_demo(&place, seconds))
        .find(|summary| vms(summary).iter().all(was_the_largest));
    assert!(summary.is_some(), "one was never the largest");
}

/// Runs a demo of that many seconds in which all is as it should be; its summary.
fn checked_demo(place: &Place, seconds: &str) -> Value {
    let summary = place.json(&["demo", "--seconds", seconds]);
    let budget = number(&summary, "/budget_bytes");
    assert!(
        number(&summary, "/configured_bytes") * 10 >= budget * 19,
        "{summary:#}"
    );
    let used_max = number(&summary, "/used_max_bytes");
    assert!(used_max > 0 && used_max <= budget, "{summary:#}");
    assert_eq!(number(&summary, "/verify_errors"), 0, "{summary:#}");
    assert_eq!(number(&summary, "/state_sum_violations"), 0, "{summary:#}");
    let names: Vec<&Value> = vms(&summary).iter().map(|vm| &vm["name"]).collect();
    assert_eq!(names, NAMES);
    vms(&summary).iter().for_each(check_vm);
    summary
}

fn was_the_largest(vm: &Value) -> bool {
    vm["largest_holder"].as_f64().expect("it is a number") > 0.0
}

fn check_vm(vm: &Value) {
    let size = number(vm, "/size_bytes");
    assert_eq!(states_total(vm), size, "{vm:#}");
    assert!(number(vm, "/balloon_target_bytes") < size, "{vm:#}");
    assert!(number(vm, "/balloon_held_bytes") < size, "{vm:#}");
    assert_eq!(number(vm, "/verify_errors"), 0, "{vm:#}");
    assert!(number(vm, "/verify_checks") > 0, "{vm:#}");
    assert_eq!(vm["alive"], true, "{vm:#}");
}

#[test]
fn an_interrupted_demo_ends_in_order_and_leaves_nothing_behind() {
    let place = Place::new();
    let mut demo = place
        .command(&["demo", "--seconds", "600", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program can be run");
    wait_until("all four VMs run", || place.processes().len() == 5);
    process::signal(demo.id(), Signal::INT);
    let status = wait_for("the demo ends", || {
        demo.try_wait().expect("a child can be waited for")
    });
    assert_eq!(
        status.code(),
        Some(130),
        "as shells say of an interrupted command"
    );
    // The place looks for processes and files when it is dropped.
}
