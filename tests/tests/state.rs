//! Claims about what outlives a host: what was said to be done is there after its death and the machine's, and nothing
//! else is.

use std::fs;
use std::path::Path;
use tests::process::{self, Signal};
use tests::{MIB, Place, TestHost, Value, number, text, vms, wait_for, wait_until};

const SMALL: [&str; 4] = ["--memory", "64M", "--workload", "verify:size=16M"];

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SMALL, more].concat()
}

/// Kills a host and all its VMs at once, as a loss of power does. What was kept stays.
fn lose_power(mut host: TestHost) -> Place {
    let processes = host.processes();
    host.end_by(Signal::KILL);
    for pid in processes {
        if process::is_alive(pid) {
            process::signal(pid, Signal::KILL);
        }
    }
    let place = host.into_place();
    wait_until("nothing lives any more", || place.processes().is_empty());
    place
}

/// How it stands with a VM that is to come back; none if it is not.
fn state_of(host: &Place, name: &str) -> Option<String> {
    let overview = host.overview();
    let definitions = overview["definitions"].as_array().expect("a list");
    let mut definitions = definitions.iter();
    let found = definitions.find(|definition| text(definition, "/name") == name)?;
    Some(text(found, "/state").to_owned())
}

fn is_listed(host: &Place, name: &str) -> bool {
    vms(&host.overview()).iter().any(|vm| vm["name"] == name)
}

fn wait_until_it_runs(host: &Place, name: &str) -> Value {
    wait_for("it runs", || {
        let overview = host.overview();
        let mut vms = vms(&overview).iter();
        let vm = vms.find(|vm| vm["name"] == name)?;
        (vm["phase"] == "running").then(|| vm.clone())
    })
}

fn files(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn what_was_set_outlives_a_killed_host_and_what_the_next_is_told_wins() {
    let mut host = TestHost::start("256M");
    let changes = ["idle-tax=50", "rebalance-interval=9", "memory=200M"];
    host.ok(&[&["set", "host", "sharing=off"], &changes[..]].concat());
    host.end_by(Signal::KILL);
    let place = host.into_place();

    let command = place.command(&["host", "--interval-ms", "200"]);
    let mut host = TestHost::start_by(place, command);
    let view = host.overview()["host"].clone();
    assert_eq!(number(&view, "/idle_tax_permille"), 500);
    assert_eq!(number(&view, "/rebalance_interval_s"), 9);
    assert_eq!(number(&view, "/budget_bytes"), 200 * MIB);
    wait_until("the scanner shows what it was told", || {
        host.overview()["host"]["sharing"]["on"] == false
    });
    let log = fs::read_to_string(host.path().join("host.log")).expect("a log");
    assert!(log.contains("idle-tax=50%, as it was set before"), "{log}");
    assert!(host.end_by(Signal::TERM).success());
    let place = host.into_place();

    let words = ["host", "--memory", "300M", "--idle-tax", "10"];
    let command = place.command(&words);
    let host = TestHost::start_by(place, command);
    let view = host.overview()["host"].clone();
    assert_eq!(number(&view, "/idle_tax_permille"), 100);
    assert_eq!(number(&view, "/budget_bytes"), 300 * MIB);
    assert_eq!(number(&view, "/rebalance_interval_s"), 9);
    let log = fs::read_to_string(host.path().join("host.log")).expect("a log");
    assert!(log.contains("memory=200M was set before"), "{log}");
}

#[test]
fn vms_come_back_after_a_loss_of_power_as_they_were_and_others_do_not() {
    let host = TestHost::start("512M");
    host.boot_vm("a", &small(&["--restart", "always"]));
    host.boot_vm("b", &small(&["--restart", "on-failure"]));
    host.boot_vm("c", &SMALL);
    host.boot_vm("d", &small(&["--restart", "on-failure"]));
    host.ok(&["set", "a", "shares=high", "min=40M"]);
    host.ok(&["balloon", "b", "8M"]);
    host.ok(&["stop", "d"]);
    let host = TestHost::start_in(lose_power(host), "512M");
    let (a, b) = (
        wait_until_it_runs(&host, "a"),
        wait_until_it_runs(&host, "b"),
    );
    assert_eq!(
        (text(&a, "/shares"), number(&a, "/min_bytes")),
        ("high", 40 * MIB)
    );
    assert_eq!(number(&b, "/pinned_bytes"), 56 * MIB);
    assert!(number(&a, "/id") < number(&b, "/id"), "in their order");
    assert_eq!(a["restart"], "always");
    assert!(!is_listed(&host, "c") && !is_listed(&host, "d"));
    assert_eq!(state_of(&host, "c"), None);
    assert_eq!(state_of(&host, "d").as_deref(), Some("stopped"));
    let table = host.ok(&["ps", "--all"]);
    assert!(table.contains("d") && table.contains("stopped"), "{table}");
    assert!(!host.ok(&["ps"]).contains("stopped"));
}

#[test]
fn vms_that_come_back_are_admitted_in_their_order_and_whoever_has_no_room_waits() {
    let host = TestHost::start("512M");
    for name in ["z", "b", "a"] {
        let more = ["--memory", "128M", "--min", "100M", "--restart", "always"];
        host.boot_vm(name, &more);
    }
    let host = TestHost::start_in(lose_power(host), "240M");
    wait_until_it_runs(&host, "z");
    wait_until_it_runs(&host, "b");
    let overview = host.overview();
    let queue = overview["queue"].as_array().expect("a list");
    let names: Vec<&str> = queue.iter().map(|queued| text(queued, "/name")).collect();
    assert_eq!(names, ["a"]);
    assert_eq!(state_of(&host, "a").as_deref(), Some("coming"));
    host.ok(&["stop", "z"]);
    wait_until_it_runs(&host, "a");
    // Who waits is stopped as well.
    host.ok(&["restart", "b"]);
    let mut again = host.start_command(&["restart", "z"]);
    wait_until("it waits", || host.ok(&["ps"]).contains("queued"));
    host.ok(&["stop", "a"]);
    assert!(again.wait().expect("a child can be waited for").success());
}

#[test]
fn a_vm_that_fails_is_started_again_and_one_that_switches_itself_off_is_not_unless_always() {
    let host = TestHost::start("256M");
    host.boot_vm("f", &small(&["--restart", "on-failure"]));
    host.boot_vm("s", &small(&["--restart", "always"]));
    for name in ["f", "s"] {
        let before = host.pid(name);
        process::signal(before, Signal::KILL);
        wait_until("it is another process", || {
            let overview = host.overview();
            let mut vms = vms(&overview).iter();
            let vm = vms.find(|vm| vm["name"] == name);
            vm.is_some_and(|vm| vm["phase"] == "running" && vm["pid"] != before)
        });
    }
    let before = host.pid("s");
    let mut consoles = ["f", "s"].map(|name| host.console(name));
    consoles
        .iter_mut()
        .for_each(|console| console.type_line("off"));
    wait_until("it has switched itself off", || {
        state_of(&host, "f").as_deref() == Some("switched_off")
    });
    wait_until("the other is started again", || {
        is_listed(&host, "s") && {
            let pid = &wait_until_it_runs(&host, "s")["pid"];
            *pid != before
        }
    });
    let host = TestHost::start_in(lose_power(host), "256M");
    wait_until_it_runs(&host, "s");
    assert_eq!(state_of(&host, "f").as_deref(), Some("switched_off"));
    host.fails(&["run", "--name", "f"], 1, &["'f'", "ballonet rm f"]);
    host.fails(&["balloon", "f", "1M"], 1, &["'f'", "ballonet restart f"]);
    host.ok(&["restart", "f"]);
    assert_eq!(state_of(&host, "f").as_deref(), Some("running"));
}

#[test]
fn a_vm_that_was_stopped_stays_so_until_the_next_host_and_is_forgotten_by_rm() {
    let mut host = TestHost::start("256M");
    host.boot_vm("a", &small(&["--restart", "always"]));
    host.ok(&["stop", "a"]);
    assert_eq!(state_of(&host, "a").as_deref(), Some("stopped"));
    host.ok(&["stop", "a"]);
    assert!(host.end_by(Signal::TERM).success());
    let mut host = TestHost::start_in(host.into_place(), "256M");
    wait_until_it_runs(&host, "a");
    host.fails(&["rm", "a"], 1, &["'a'", "runs", "--force"]);
    host.fails(&["rm", "b"], 1, &["'b'"]);
    assert_eq!(files(&host.state_folder()), 1);
    host.ok(&["rm", "--force", "a"]);
    assert_eq!(state_of(&host, "a"), None);
    assert!(host.end_by(Signal::TERM).success());
    let host = TestHost::start_in(host.into_place(), "256M");
    assert!(!is_listed(&host, "a"));
    assert_eq!(files(&host.state_folder()), 0, "nothing is kept any more");
    host.boot_vm("a", &SMALL);
}

#[test]
fn any_vm_that_runs_is_started_anew_as_it_is() {
    let host = TestHost::start("256M");
    host.boot_vm("a", &small(&["--vcpus", "2"]));
    host.ok(&["set", "a", "shares=high"]);
    host.ok(&["balloon", "a", "8M"]);
    let before = host.pid("a");
    host.ok(&["restart", "a"]);
    let vm = host.vm("a");
    assert!(!process::is_alive(before));
    assert_eq!((text(&vm, "/shares"), number(&vm, "/vcpus")), ("high", 2));
    assert_eq!(number(&vm, "/pinned_bytes"), 56 * MIB);
    host.wait_until_backed("a", 16 * MIB);
    host.fails(&["restart", "b"], 1, &["'b'"]);
    host.ok(&["rm", "--force", "a"]);
    assert!(!is_listed(&host, "a"));
    assert!(!host.state_folder().exists(), "there was nothing to keep");
}

#[test]
fn a_run_that_is_refused_leaves_nothing_to_come_back() {
    let host = TestHost::start("128M");
    let large = [
        "run",
        "--name",
        "a",
        "--memory",
        "512M",
        "--restart",
        "always",
    ];
    host.fails(&large, 1, &["min"]);
    let words = [
        "run",
        "--name",
        "a",
        "--memory",
        "64M",
        "--kernel",
        "/nowhere",
        "--restart",
        "always",
    ];
    host.fails(&words, 1, &["'a'"]);
    assert_eq!(state_of(&host, "a"), None);
    let mut waiting = host.start_command(&[&large[..], &["--wait"]].concat());
    wait_until("it waits", || state_of(&host, "a").is_some());
    process::signal(waiting.id(), Signal::INT);
    drop(waiting.wait());
    wait_until("it is taken back", || state_of(&host, "a").is_none());
    let host = TestHost::start_in(lose_power(host), "128M");
    assert_eq!(state_of(&host, "a"), None);
}

/// The host sees a small disk, and the test the same through its process.
#[test]
fn where_the_disk_is_full_a_change_is_refused_and_nothing_has_changed() {
    let script = "mkdir $BALLONET_STATE && mount -t tmpfs -o size=2M none $BALLONET_STATE";
    let host = TestHost::start_after(script, "256M", "200");
    host.ok(&["set", "host", "rebalance-interval=9"]);
    host.boot_vm("a", &small(&["--restart", "always"]));
    let folder = host.state_folder();
    let seen_by_host = format!("/proc/{}/root{}", host.host_pid(), folder.display());
    let filler = Path::new(&seen_by_host).join("filler");
    let written = fs::write(&filler, vec![1; 4 << 20]);
    assert!(written.is_err(), "the disk is full");
    // On a disk with room it would be kept, not started, and taken back.
    let kernel = format!("/{}", "x/".repeat(10_000));
    let run = [
        "run",
        "--name",
        "b",
        "--restart",
        "always",
        "--kernel",
        &kernel,
    ];
    host.fails(
        &run,
        1,
        &["nothing was changed", "No space left", "--state"],
    );
    assert_eq!(state_of(&host, "b"), None);
    fs::remove_file(filler).expect("it is there");
    host.ok(&["set", "host", "rebalance-interval=11"]);
    host.ok(&["restart", "a"]);
    assert_eq!(state_of(&host, "a").as_deref(), Some("running"));
}
