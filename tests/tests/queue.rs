//! Claims about VMs that wait to be admitted.

use tests::process::{self, Signal};
use tests::{TestHost, Value, text, wait_until};

fn queue(host: &TestHost) -> Vec<String> {
    let overview = host.overview();
    let queue = overview["queue"].as_array().expect("a list");
    queue
        .iter()
        .map(|queued| text(queued, "/name").to_owned())
        .collect()
}

fn run<'a>(name: &'a str, min: &'a str) -> [&'a str; 8] {
    [
        "run", "--name", name, "--memory", "128M", "--min", min, "--wait",
    ]
}

/// A host on which one more large VM has no room.
fn full_host() -> TestHost {
    let host = TestHost::start("200M");
    host.boot_vm("a", &["--memory", "128M", "--min", "120M"]);
    host
}

#[test]
fn whoever_waits_to_be_admitted_has_its_turn_before_those_that_came_later() {
    let host = full_host();
    let mut large = host.start_command(&run("large", "100M"));
    wait_until("it waits", || queue(&host) == ["large"]);
    let mut small = host.start_command(&run("small", "10M"));
    wait_until("one that would fit waits behind it", || {
        queue(&host) == ["large", "small"]
    });
    let hasty = ["run", "--name", "hasty", "--memory", "16M", "--min", "4M"];
    host.fails(&hasty, 1, &["2 of them", "--wait"]);
    host.fails(&run("small", "10M"), 1, &["'small'", "another name"]);
    let why = host.overview()["queue"][0]["why"].clone();
    let why = why.as_str().unwrap_or_default();
    assert!(why.contains("min 100 MiB + overhead 6 MiB"), "{why}");
    let table = host.ok(&["ps"]);
    assert!(table.contains("queued"), "{table}");
    host.ok(&["stop", "a"]);
    for waiting in [&mut large, &mut small] {
        let status = waiting.wait().expect("a child can be waited for");
        assert!(status.success(), "{status}");
    }
    assert!(queue(&host).is_empty());
    let names = ["large", "small"].map(|name| text(&host.vm(name), "/phase").to_owned());
    assert_eq!(names, ["running", "running"]);
}

#[test]
fn a_request_that_is_interrupted_is_taken_back() {
    let host = full_host();
    let mut waiting = host.start_command(&run("b", "100M"));
    wait_until("it waits", || queue(&host) == ["b"]);
    process::signal(waiting.id(), Signal::INT);
    let status = waiting.wait().expect("a child can be waited for");
    assert!(!status.success());
    wait_until("nobody waits", || queue(&host).is_empty());
    host.ok(&["stop", "a"]);
    host.boot_vm("c", &["--memory", "128M"]);
    assert!(host.overview()["vms"].as_array().map(Vec::len) == Some(1));
}

#[test]
fn waiting_in_vain_ends_with_the_reason() {
    let host = full_host();
    let mut words = run("b", "100M").to_vec();
    words.pop();
    words.push("--wait=1");
    host.fails(&words, 1, &["'b'", "within 1 s", "126 MiB", "--min"]);
    assert!(queue(&host).is_empty());
}

#[test]
fn a_vm_starts_with_an_idle_tax_of_its_own() {
    let host = TestHost::start("200M");
    let vm = host.start_vm("a", &["--memory", "64M", "--idle-tax", "12.5"]);
    assert_eq!(vm["idle_tax_permille"], Value::from(125));
    let too_much = ["run", "--memory", "64M", "--idle-tax", "100"];
    host.fails(&too_much, 2, &["less than 100 %"]);
}
