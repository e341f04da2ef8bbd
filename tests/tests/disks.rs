//! Claims about disks that fail: whoever looks after the host learns of it, wherever he looks, once and not
//! a thousand times. Needs root: the hosts here have a small file system of their own.

use tests::raw_client::ask;
use tests::screen::Screen;
use tests::{GuestConsole, TestHost, Value, number, text, wait_for, wait_until};

/// A sparse image of 64 MiB on a file system with room for 8, where nothing was before.
const FULL_FILE_SYSTEM: &str = "mount -t tmpfs -o size=8M none tmp && truncate -s 64M tmp/disk.img";

/// A VM whose guest writes to that image.
fn start(rounds_ms: &str) -> (TestHost, GuestConsole) {
    let host = TestHost::start_after(FULL_FILE_SYSTEM, "256M", rounds_ms);
    host.start_vm("a", &["--memory", "64M", "--disk", &image(&host)]);
    let console = host.console("a");
    (host, console)
}

fn image(host: &TestHost) -> String {
    let path = host.temporary_folder().join("disk.img");
    path.display().to_string()
}

/// Has the guest meet errors, more than it has met already.
fn meet_errors(console: &mut GuestConsole) {
    let start = console.text().len();
    console.workload("dbench:seek_us=0,write=100");
    wait_until("the guest's files fail", || {
        console.text()[start..].contains("dbench: ")
    });
}

fn errors(host: &TestHost) -> u64 {
    number(&host.vm("a"), "/disks/0/counters/errors")
}

/// What was said of errors of the disk.
fn told(host: &TestHost) -> Vec<String> {
    let overview = host.overview();
    let events = overview.pointer("/host/events").and_then(Value::as_array);
    let said = events
        .into_iter()
        .flatten()
        .map(|event| text(event, "/what"));
    said.filter(|what| what.contains("I/O errors"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_disk_on_a_full_file_system_is_told_of_once_and_shown_everywhere() {
    let (host, mut console) = start("200");
    let disk = image(&host);
    assert_eq!(told(&host), Vec::<String>::new());
    wait_until("the disk is shown", || {
        host.ok(&["stats", "a"]).contains(&disk)
    });
    meet_errors(&mut console);
    let events = wait_for("an event", || {
        Some(told(&host)).filter(|events| !events.is_empty())
    });
    for word in [&*disk, "No space left on device", "make room"] {
        assert!(events[0].contains(word), "no '{word}' in {events:?}");
    }
    let line = |text: String| {
        let mut lines = text.lines().map(str::to_owned);
        lines.find(|line| line.contains(&disk)).unwrap_or(text)
    };
    let shown = line(host.ok(&["stats", "a"]));
    assert!(shown.contains("errors, the last: No space left"), "{shown}");
    let log = std::fs::read_to_string(host.path().join("host.log")).expect("it logs");
    assert!(line(log).contains("No space left on device"));
    let metric = "ballonet_vm_disk_errors_total{vm=\"a\",disk=\"0\"";
    let metrics = ask(&host.socket(), "GET", "/metrics", b"");
    let errors_line = metrics.lines().find(|line| line.starts_with(metric));
    assert!(
        errors_line.is_some_and(|line| !line.ends_with(" 0")),
        "{metrics}"
    );
    let screen = Screen::run(&host, &["top", "--interval", "0.1"], 100, 60);
    screen.wait_for(&["a", "64"]);
    screen.press(&["Enter"]);
    screen.wait_for(&["errors, the last: No space left"]);
    // The guest goes on with it.
    for _ in 0..3 {
        let before = errors(&host);
        meet_errors(&mut console);
        wait_until("more errors are counted", || errors(&host) > before);
    }
    assert_eq!(told(&host), events, "it was told of again at once");
}

/// The host looks at its VMs once a minute here, and the VM does not live so long.
#[test]
fn errors_of_a_vms_last_moments_are_told_of_too() {
    let (host, mut console) = start("60000");
    meet_errors(&mut console);
    host.ok(&["stop", "a"]);
    let events = told(&host);
    assert_eq!(events.len(), 1, "{:#}", host.overview());
    assert!(events[0].contains("No space left on device"), "{events:?}");
}
