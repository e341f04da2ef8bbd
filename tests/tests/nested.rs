//! Claims about guests on real nested paging: the program in the outer machine of
//! `tests/nested/run`, where the kernel's own `kvm_amd` runs it.

use std::fs;
use tests::host::TestHost;
use tests::outer_machine::{inside, run_inside, test_inside};
use tests::process::{self, Signal};
use tests::program::program;
use tests::{Place, Value, number, states_total, vms, wait_for, wait_until};

/// How long the outer machine may run, in seconds; the longest takes a tenth.
const LIMIT: u32 = 400;

#[test]
fn overcommitted_guests_on_nested_paging_read_what_they_wrote_within_the_budget() {
    let place = Place::new();
    let program = program();
    let program = program.to_str().expect("its path is text");
    // Small, or the guests would touch fresh memory all the time and check nothing.
    let demo = ["demo", "--memory", "128M", "--seconds", "20", "--json"];
    let printed = run_inside(&place, LIMIT, &[&[program], &demo[..]].concat()).expect_success();
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
        assert!(number(vm, "/verify_checks") > 0, "{vm:#}");
        assert_eq!(states_total(vm), number(vm, "/size_bytes"), "{vm:#}");
    }
}

/// What each machine lacks, how it comes to lack that, and what the host says.
const WITHOUT_LARGE_PAGES: [(&str, &str); 2] = [
    (
        "echo deny >/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "this machine denies large pages",
    ),
    (
        "mount -t tmpfs none /sys/kernel/mm/transparent_hugepage",
        "this kernel has no large pages for files",
    ),
];

#[test]
#[ignore = "changes the machine"]
fn guests_run_where_there_are_no_large_pages() {
    for (script, said) in WITHOUT_LARGE_PAGES {
        let host = TestHost::start_after(script, "192M", "200");
        host.start_vm("a", &["--memory", "64M", "--workload", "verify:rate=2000"]);
        let report = host.console("a").wait_for_checks(1000);
        assert_eq!(number(&report, "/errors"), 0, "{report:#}");
        let overview = host.overview();
        let vm = &vms(&overview)[0];
        assert_eq!(number(vm, "/counters/large/mapped"), 0, "{vm:#}");
        assert_eq!(states_total(vm), number(vm, "/size_bytes"), "{vm:#}");
        let log = fs::read_to_string(host.path().join("host.log")).expect("it logs");
        assert!(log.contains(said), "{log}");
    }
}

#[test]
fn guests_run_on_a_machine_without_large_pages_and_it_is_said_what_that_costs() {
    test_inside(LIMIT, "guests_run_where_there_are_no_large_pages");
}

#[test]
fn the_outer_machine_gives_back_output_and_status_and_nothing_that_was_written() {
    let place = Place::new();
    let file = place.temporary_folder().join("file");
    let path = file.to_str().expect("its path is text");
    let words = "echo out; echo message >&2; date >\"$0\"; test -s \"$0\" && exit 7";
    let done = run_inside(&place, LIMIT, &["sh", "-c", words, path]);
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
    let mut script = inside(&place, LIMIT, &["sleep", "1000"])
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
