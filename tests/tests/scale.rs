//! Claims about many: a hundred VMs, and half a hundred who follow them.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use tests::process::resident_bytes;
use tests::web::{Web, ask_to_follow};
use tests::{MIB, TestHost, Value, number, vms, wait_until};

const VMS: usize = 100;
const READERS: usize = 40;
const STALLED: usize = 10;
/// Messages that each reader looks at: more than a stalled client's socket takes.
const MESSAGES: usize = 20;
/// What all that follow may cost the host in memory: a few messages for each, of some 150 KiB.
const MOST_MEMORY: u64 = 48 * MIB;

fn start() -> (TestHost, Web) {
    let (host, web) = Web::start_with_rounds_of(500, "4G");
    // A guest each that does nothing, in a few MiB.
    let mut starts: Vec<Command> = (0..VMS)
        .map(|index| {
            let name = format!("vm{index}");
            let words = ["run", "--name", &name, "--memory", "16M", "--min", "4M"];
            host.command(&words)
        })
        .collect();
    for start in &mut starts {
        drop(tests::run_to_end(start).expect_success());
    }
    (host, web)
}

/// The numbers of the publications that come one after the other.
fn publications(stream: impl Read, count: usize) -> Vec<u64> {
    let lines = BufReader::new(stream).lines();
    let messages = lines.filter_map(|line| {
        let line = line.expect("the stream goes on");
        let json = line.strip_prefix("data: ")?;
        let moment: Value = serde_json::from_str(json).expect("a message is JSON");
        assert_eq!(vms(&moment["figures"]).len(), VMS);
        Some(number(&moment, "/figures/publication"))
    });
    messages.take(count).collect()
}

/// Whoever follows gets every round, beside ten who take nothing.
#[test]
fn fifty_who_follow_a_hundred_vms_cost_bounded_memory_and_wait_for_nobody() {
    let (host, web) = start();
    let address = web.address.to_string();
    wait_until("all guests run", || {
        let overview = host.overview();
        vms(&overview)
            .iter()
            .all(|vm| vm["balloon"]["has_driver"] == true)
    });
    let before = resident_bytes(host.host_pid());
    // A local socket holds two messages, TCP many more.
    let stalled: Vec<UnixStream> = (0..STALLED)
        .map(|_| {
            let mut stream = UnixStream::connect(host.socket()).expect("the host listens");
            ask_to_follow(&mut stream, &address);
            stream
        })
        .collect();
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let mut stream = web.connect();
            ask_to_follow(&mut stream, &address);
            thread::spawn(move || publications(stream, MESSAGES))
        })
        .collect();
    for reader in readers {
        let seen = reader.join().expect("nothing goes wrong");
        let every_one: Vec<u64> = (seen[0]..).take(MESSAGES).collect();
        assert_eq!(seen, every_one, "no round is left out");
    }
    let after = resident_bytes(host.host_pid());
    assert!(
        after <= before + MOST_MEMORY,
        "{before} bytes became {after}"
    );
    drop(stalled);
    let page = web.get("/v1/figures").body;
    assert!(page.len() < 200 << 10, "{} bytes for {VMS} VMs", page.len());
}
