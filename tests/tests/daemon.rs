//! Claims about a host as a daemon, and its VM processes: nothing that is printed, no signal sent by habit and no
//! shortage of descriptors ends them.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;
use tests::process::{self, Signal};
use tests::program::program;
use tests::raw_client::RawClient;
use tests::{MIB, Place, TestHost, Value, run_to_end, text, vms, wait_until};

const SMALL: [&str; 4] = ["--memory", "64M", "--workload", "idle"];

/// A host that a shell script starts, in which `$1` is the program.
fn host_by(place: Place, script: &str) -> TestHost {
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]).arg(program());
    place.adapt(&mut command);
    TestHost::start_by(place, command)
}

/// Makes the host log a line for each of so many changes.
fn make_it_log(host: &TestHost, lines: u64) {
    for line in 0..lines {
        let mut client = RawClient::connect(&host.socket());
        let memory = 256 * MIB + line % 2 * 4096;
        let body = format!("{{\"memory_bytes\": {memory}}}");
        client.request("PATCH", "/v1/host", body.as_bytes());
        let answer = client.answer();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

fn what_happened_to(host: &TestHost, name: &str) -> String {
    let overview = host.overview();
    let events = overview["host"]["events"].as_array().expect("a list");
    let own = events.iter().filter(|event| event["vm"] == name);
    own.map(|event| text(event, "/what"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_listed(host: &TestHost, name: &str) -> bool {
    vms(&host.overview()).iter().any(|vm| vm["name"] == name)
}

#[test]
fn a_log_that_cannot_be_written_ends_and_holds_up_nobody() {
    let full = "exec \"$1\" host --memory 256M 2>/dev/full";
    let without_reader = "exec \"$1\" host --memory 256M 2> >(head -1 >/dev/null)";
    let nobody_reads = "exec \"$1\" host --memory 256M 2> >(exec sleep 1000)";
    for script in [full, without_reader, nobody_reads] {
        let host = host_by(Place::new(), script);
        host.start_vm("a", &SMALL);
        // More than a pipe takes.
        make_it_log(&host, 2000);
        assert!(process::is_alive(host.pid("a")), "{script}");
        host.ok(&["stop", "a"]);
        host.ok(&["ps"]);
        for pid in host.processes() {
            // The one that does not read does not end by itself either.
            if pid != host.host_pid() {
                process::signal(pid, Signal::KILL);
            }
        }
    }
}

#[test]
fn a_background_host_whose_disk_fills_up_lives_on() {
    let place = Place::new();
    let script = "mount -t tmpfs -o size=64k none \"$2\" && cd \"$2\" && \
                  exec \"$1\" --socket h.sock host --memory 256M --background";
    let folder = place.temporary_folder();
    let mut command = Command::new("unshare");
    command
        .args(["-m", "bash", "-c", script, "bash"])
        .arg(program())
        .arg(&folder);
    place.adapt(&mut command);
    let mut host = command.spawn().expect("the program can be run");
    // Its file tree is its own.
    let folder = format!("/proc/{}/root{}", host.id(), folder.display());
    let socket = format!("{folder}/h.sock");
    wait_until("the host serves", || {
        place.run(&["--socket", &socket, "ps"]).status == Some(0)
    });
    let filled = std::fs::write(format!("{folder}/full"), vec![0; 1 << 20]);
    filled.expect_err("the disk is smaller");
    for memory in ["200M", "210M", "220M"] {
        let change = format!("memory={memory}");
        place.ok(&["--socket", &socket, "set", "host", &change]);
    }
    process::signal(host.id(), Signal::TERM);
    let status = host.wait().expect("a child can be waited for");
    assert!(status.success(), "{status}");
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    // As nohup does, and a shell for what it starts in the background.
    for (name, signal) in [("HUP", Signal::HUP), ("INT", Signal::INT)] {
        let script = format!("trap '' {name}; exec \"$1\" host --memory 256M");
        let host = host_by(Place::new(), &script);
        host.start_vm("a", &SMALL);
        let vm = host.pid("a");
        for pid in [host.host_pid(), vm] {
            process::signal(pid, signal);
        }
        std::thread::sleep(Duration::from_secs(1));
        assert!(process::is_alive(host.host_pid()) && process::is_alive(vm));
        assert!(is_listed(&host, "a"));
    }
}

#[test]
fn a_host_that_run_started_takes_no_notice_of_a_hang_up() {
    let place = Place::new();
    place.ok(&[&["run", "--name", "a"], &SMALL[..]].concat());
    let host = place.overview();
    let host = u32::try_from(tests::number(&host, "/host/pid")).expect("a small number");
    process::signal(host, Signal::HUP);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(place.vm("a")["phase"], "running");
    place.ok(&["stop", "a"]);
}

#[test]
fn signals_that_are_sent_by_habit_end_neither_a_host_nor_a_vm() {
    let host = TestHost::start("256M");
    host.start_vm("a", &SMALL);
    let vm = host.pid("a");
    for signal in [
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::VTALARM,
        Signal::PROF,
        Signal::IO,
        Signal::POWER,
        Signal::XCPU,
        Signal::XFSZ,
        Signal::PIPE,
        Signal::WINCH,
    ] {
        for pid in [host.host_pid(), vm] {
            process::signal(pid, signal);
        }
        host.ok(&["ps"]);
    }
    // The real-time ones, the first of which stops a vCPU for a moment.
    for signal in 34..=64 {
        let pids = format!("{} {vm}", host.host_pid());
        let sent = run_to_end(Command::new("sh").args(["-c", &format!("kill -{signal} {pids}")]));
        assert_eq!(sent.status, Some(0), "{signal}");
        host.ok(&["ps"]);
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(host.vm("a")["phase"], "running");
    assert_eq!(host.pid("a"), vm);
}

#[test]
fn a_terminals_quit_key_ends_a_host_in_order() {
    let mut host = TestHost::start("256M");
    host.start_vm("a", &SMALL);
    let status = host.end_by(Signal::QUIT);
    assert!(status.success() && status.signal().is_none(), "{status}");
}

#[test]
fn a_vm_process_that_is_told_to_end_ends_in_order_and_says_why() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let host = TestHost::start("256M");
        host.start_vm("a", &SMALL);
        process::signal(host.pid("a"), signal);
        wait_until("it has ended", || !is_listed(&host, "a"));
        let what = what_happened_to(&host, "a");
        assert!(
            what.contains("told to end by a signal"),
            "{signal:?}: {what}"
        );
    }
}

/// The guest here is a kernel as far as its host knows, and one that does not listen to its power button.
#[test]
fn a_vm_process_that_is_told_to_end_gives_a_kernel_time_to_switch_itself_off() {
    let host = TestHost::start("256M");
    let kernel = tests::guest_image::guest_image().display().to_string();
    host.start_vm("a", &["--memory", "64M", "--kernel", &kernel]);
    let pid = host.pid("a");
    process::signal(pid, Signal::TERM);
    std::thread::sleep(Duration::from_secs(5));
    assert!(process::is_alive(pid), "its guest had no time");
    wait_until("its time is over", || !is_listed(&host, "a"));
    let what = what_happened_to(&host, "a");
    assert!(what.contains("did not switch itself off"), "{what}");
}

#[test]
fn a_vm_without_a_host_ends_in_order_too() {
    let mut host = TestHost::start("256M");
    host.start_vm("a", &SMALL);
    let pid = host.pid("a");
    host.end_by(Signal::KILL);
    process::signal(pid, Signal::TERM);
    wait_until("it has ended", || !process::is_alive(pid));
    let host = TestHost::start_in(host.into_place(), "256M");
    assert!(vms(&host.overview()).is_empty());
}

#[test]
fn a_host_that_has_no_descriptors_left_says_so_and_lives_on() {
    let script = "ulimit -n 64; exec \"$1\" host --memory 1G --interval-ms 200";
    let host = host_by(Place::new(), script);
    let run = |index: u32| {
        let name = format!("vm{index}");
        host.run(&["run", "--name", &name, "--memory", "32M"])
    };
    let refused = (0..32).map(run).find(|done| done.status != Some(0));
    let refused = refused.expect("64 descriptors are not enough for 32 VMs");
    refused.expect_failure(
        1,
        &[
            "64 descriptors",
            "ulimit -Hn",
            "LimitNOFILE",
            "stop another",
        ],
    );
    let running = |overview: &Value| vms(overview).len();
    let before = running(&host.overview());
    assert!(before >= 3, "{before} VMs run");
    // Nothing of the refused one is left, and a place that comes free is used.
    assert_eq!(host.processes().len(), before + 1);
    host.ok(&["stop", "vm0"]);
    wait_until("its descriptors are closed", || run(0).status == Some(0));
    assert_eq!(running(&host.overview()), before);
}

#[test]
fn a_vm_costs_its_host_nine_descriptors_and_gives_them_back() {
    let host = TestHost::start("1G");
    let open = || process::descriptors(host.host_pid(), "").len();
    host.ok(&["ps"]);
    wait_until("something was decided", || {
        host.host_folder().join("decisions").exists()
    });
    let before = open();
    for name in ["a", "b", "c", "d"] {
        host.boot_vm(name, &SMALL);
    }
    // Clients come and go.
    wait_until("no more are open than these need", || {
        open() <= before + 4 * 9
    });
    host.stop_all_but("");
    wait_until("they are closed", || open() <= before);
}

#[test]
fn a_host_may_have_as_many_descriptors_as_its_user() {
    let script = "ulimit -Sn 64; exec \"$1\" host --memory 1G --interval-ms 200";
    let host = host_by(Place::new(), script);
    for index in 0..8 {
        host.start_vm(&format!("vm{index}"), &["--memory", "32M"]);
    }
    assert_eq!(vms(&host.overview()).len(), 8);
}
