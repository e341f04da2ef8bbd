//! A claim about VM processes that do anything at all at their sockets, by chance: their host stands, answers, and is in the
//! end as it was; a VM beside them has what it was promised, and finds every byte of its own.
//!
//! The seed is printed; `BALLONET_TEST_SEED` gives it again, and `BALLONET_TEST_HOSTILE_SECONDS` more time.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{Shutdown, shutdown};
use std::env;
use std::fs;
use std::fs::File;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tests::hijacked::{Hijacked, send_with};
use tests::process::{self, Signal};
use tests::sharing::{clean_audit, sharing_host};
use tests::{MIB, TestHost, Value, json, number, text, vms, wait_for, wait_until};

const SECONDS: u64 = 20;
const HONEST: &str = "honest";
const HOSTILE: [&str; 3] = ["x", "y", "z"];
const SIZE: u64 = 64 * MIB;
const MIN: u64 = 32 * MIB;
/// What the host may have more of than before, as memory that its allocator keeps.
const KEPT: u64 = 48 * MIB;

fn from_environment(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// A number that is likely to be at the edge of something.
fn number_of(random: &mut SmallRng) -> u64 {
    match random.random_range(0..6) {
        0 => random.random_range(0..4),
        1 => SIZE / 4096 + random.random_range(0..3) - 1,
        2 => 1 << random.random_range(0..64),
        3 => u64::MAX - random.random_range(0..2),
        4 => (1 << 48) + random.random_range(0..3) - 1,
        _ => random.random(),
    }
}

fn bytes_of(random: &mut SmallRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..=most)];
    random.fill_bytes(&mut bytes);
    bytes
}

/// Puts other numbers, and other things than numbers, in some places of a message.
fn distort(value: &mut Value, random: &mut SmallRng) {
    match value {
        Value::Object(fields) => {
            for value in fields.values_mut() {
                distort(value, random);
            }
            if random.random_ratio(1, 40)
                && let Some(name) = fields.keys().next().cloned()
            {
                fields.remove(&name);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| distort(item, random)),
        other if random.random_ratio(1, 8) => {
            *other = match random.random_range(0..8) {
                0 => Value::Null,
                1 => "\u{1b}[2J".into(),
                2 => json!([[], {}]),
                3 => json!(-1),
                4 => json!(1e300),
                _ => number_of(random).into(),
            };
        }
        _ => {}
    }
}

/// A message of a kind that there is, which may be out of its order.
fn message(vm: &Hijacked, sequence: u64, random: &mut SmallRng) -> Value {
    let mut observation = vm.observation(sequence);
    distort(&mut observation, random);
    match random.random_range(0..9) {
        0 => json!("memory"),
        1 => json!({ "started": { "config": {}, "pid": 1, "start_us": 0 } }),
        2 => json!({ "description": { "config": observation, "pid": u64::MAX } }),
        3 => json!({ "failed": { "error": "no\n".repeat(random.random_range(0..20_000)) } }),
        4 => {
            json!({ "ended": { "reason": "\u{0}\u{1b}]0;x\u{7}", "is_switched_off": random.random::<bool>() } })
        }
        5 => json!({ "observe": { "sequence": sequence } }),
        _ => json!({ "observation": observation }),
    }
}

/// What the scanner is told, by the layout of its messages: a kind, a number, and what belongs to that.
fn word_to_scanner(random: &mut SmallRng) -> Vec<u8> {
    let kind = random.random_range(0..9);
    let mut word = vec![kind];
    let words: usize = match kind {
        2 => 1 + 4 * 8,
        3 => 2,
        5 => 1 + 2 * 8,
        7 => 4,
        _ => random.random_range(0..40),
    };
    for _ in 0..words {
        let number = match random.random_range(0..3) {
            0 => random.random_range(0..SIZE / 4096),
            1 => random.random_range(0..64),
            _ => number_of(random),
        };
        word.extend(number.to_le_bytes());
    }
    if random.random_ratio(1, 6) {
        word.truncate(random.random_range(0..=word.len()));
    }
    word
}

/// Descriptors that nobody should send.
fn descriptors(random: &mut SmallRng) -> Vec<OwnedFd> {
    let one = |random: &mut SmallRng| -> OwnedFd {
        match random.random_range(0..5) {
            0 => std::os::unix::net::UnixStream::pair()
                .expect("there are sockets")
                .0
                .into(),
            // Its other end is closed at once.
            1 => std::io::pipe().expect("there are pipes").0.into(),
            2 => File::open("/dev/zero").expect("it is there").into(),
            3 => File::open("/proc/self/mem").expect("it is there").into(),
            _ => {
                let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC);
                let memory = memory.expect("there is memory");
                rustix::fs::ftruncate(&memory, SIZE).expect("it is a file");
                memory
            }
        }
    };
    let count = *[1, 1, 2, 4, 5, 253].choose(random).expect("there are some");
    (0..count).map(|_| one(random)).collect()
}

/// Whether the sockets are still of use after it.
fn act(vm: &Hijacked, random: &mut SmallRng) -> bool {
    let sequence = vm.asked().unwrap_or_else(|| random.random_range(0..3));
    let sockets = [vm.channel.as_fd(), vm.scanner.as_fd(), vm.console.as_fd()];
    let any = *sockets.choose(random).expect("there are three");
    match random.random_range(0..20) {
        0..8 => {
            vm.say(&message(vm, sequence, random));
        }
        8..12 => {
            vm.send(&vm.scanner, &word_to_scanner(random));
        }
        // An honest answer between the lies, so that it is believed for a while.
        12 | 13 => {
            vm.say(&json!({ "observation": vm.observation(sequence) }));
        }
        14 => {
            let whole =
                json!({ "version": 3, "message": message(vm, sequence, random) }).to_string();
            let part = &whole.as_bytes()[..random.random_range(0..whole.len())];
            // An empty packet is an end.
            return !part.is_empty() && vm.send(&vm.channel, part);
        }
        15 => {
            vm.send(any, &bytes_of(random, 200 << 10));
        }
        16 => {
            let nested = "[".repeat(random.random_range(0..30_000));
            let version = number_of(random);
            let packet = format!("{{\"version\":{version},\"message\":{nested}");
            vm.send(&vm.channel, packet.as_bytes());
        }
        17 => {
            for _ in 0..random.random_range(0..3000) {
                vm.say(&message(vm, sequence, random));
                vm.send(&vm.scanner, &word_to_scanner(random));
                vm.send(&vm.console, b"x\x1b[31m");
            }
        }
        18 => sleep(Duration::from_millis(random.random_range(0..1500))),
        _ => {
            let sent = descriptors(random);
            let sent: Vec<BorrowedFd<'_>> = sent.iter().map(AsFd::as_fd).collect();
            send_with(any, b"anything", &sent);
            return false;
        }
    }
    true
}

/// Starts one. It may have no room as long as others are silent and keep theirs: these are stopped then.
fn start(host: &TestHost, name: &str, workload: &[&str]) {
    let words = [&["run", "--name", name], workload].concat();
    let started = host.run(&words);
    if started.status != Some(0) {
        started.expect_failure(1, &["holds", "more than it should"]);
        for other in HOSTILE {
            // It may have gone by itself.
            drop(host.run(&["stop", other]));
        }
    }
}

/// One VM process goes mad, until its end or for a while.
fn go_mad(host: &TestHost, vm: &Value, random: &mut SmallRng) {
    let pid = u32::try_from(number(vm, "/pid")).expect("processes have small numbers");
    let Some(hijacked) = Hijacked::try_take(vm) else {
        // Nobody hears it any more: it makes room for another.
        drop(host.run(&["stop", text(vm, "/name")]));
        return;
    };
    for _ in 0..random.random_range(1..40) {
        if !act(&hijacked, random) {
            break;
        }
    }
    match random.random_range(0..4) {
        0 if process::is_alive(pid) => process::signal(pid, Signal::KILL),
        1 => drop(shutdown(&hijacked.channel, Shutdown::Write)),
        2 => drop(shutdown(&hijacked.scanner, Shutdown::Both)),
        _ => {}
    }
    let stays_held = random.random_ratio(1, 5);
    drop(hijacked);
    // It is silent until its turn comes again, or somebody stops it.
    if stays_held && process::is_alive(pid) {
        process::signal(pid, Signal::STOP);
    }
}

/// The host answers, its figures can be true, and the honest VM is as well as alone.
fn check(host: &TestHost) {
    // Those that are told at one moment may be a round old.
    let overview = wait_for("targets are within the budget", || {
        let overview = host.overview();
        let targets = vms(&overview).iter().map(|vm| number(vm, "/target_bytes"));
        let is_within = targets.sum::<u64>() <= number(&overview, "/host/budget_bytes");
        is_within.then_some(overview)
    });
    let budget = number(&overview, "/host/budget_bytes");
    let promised = number(&overview, "/host/promised_bytes");
    assert!(promised <= budget, "{overview:#}");
    let mut vms = vms(&overview).iter();
    let honest = vms.find(|vm| vm["name"] == HONEST).expect("it runs");
    assert_eq!(honest["credible"], true, "{honest:#}");
    let target = number(honest, "/target_bytes");
    assert!((MIN..=SIZE).contains(&target), "{target}: {honest:#}");
    let states: u64 = tests::states_total(honest);
    assert_eq!(states, SIZE);
}

fn is_listed(host: &TestHost, name: &str) -> bool {
    vms(&host.json(&["ps"])).iter().any(|vm| vm["name"] == name)
}

fn descriptor_count(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
fn processes_that_do_anything_hurt_neither_their_host_nor_an_honest_vm() {
    let seed = from_environment("BALLONET_TEST_SEED").unwrap_or_else(rand::random);
    let seconds = from_environment("BALLONET_TEST_HOSTILE_SECONDS").unwrap_or(SECONDS);
    println!("BALLONET_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    // Not all can have all of theirs.
    let host = sharing_host("256M");
    let workload = [
        "--memory",
        "64M",
        "--min",
        "32M",
        "--workload",
        "verify:size=16M",
    ];
    host.boot_vm(HONEST, &workload);
    // One comes and goes, for what is made once.
    host.boot_vm(HOSTILE[0], &workload);
    host.ok(&["stop", HOSTILE[0]]);
    let pid = host.host_pid();
    let before = (descriptor_count(pid), process::resident_bytes(pid));
    let (begin, mut turns) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let name = HOSTILE.choose(&mut random).expect("there are some");
        if !is_listed(&host, name) {
            start(&host, name, &workload);
        }
        let overview = host.overview();
        let mut vms = vms(&overview).iter();
        // It may have ended since.
        let running = vms.find(|vm| vm["name"] == *name && vm["pid"].is_u64());
        if let Some(vm) = running {
            go_mad(&host, vm, &mut random);
            turns += 1;
        }
        check(&host);
    }
    println!("{turns} turns in {} s", begin.elapsed().as_secs());
    for name in HOSTILE {
        wait_until("it has gone", || {
            drop(host.run(&["stop", name]));
            !is_listed(&host, name)
        });
    }
    check(&host);
    wait_until("the honest VM answers", || {
        host.vm(HONEST)["responding"] == true
    });
    let report = wait_for("its guest goes on", || {
        let report = host.report(HONEST);
        (number(&report, "/checks") > 0).then_some(report)
    });
    assert_eq!(number(&report, "/errors"), 0, "{report:#}");
    let passes = || number(&host.vm(HONEST), "/sharing/passes");
    let passed = passes();
    wait_until("the scanner goes on", || passes() > passed + 1);
    clean_audit(&host);
    wait_until("the host has its descriptors back", || {
        descriptor_count(pid) <= before.0
    });
    let grown = process::resident_bytes(pid).saturating_sub(before.1);
    println!("the host has grown by {} KiB", grown >> 10);
    assert!(grown < KEPT, "the host has grown by {grown} bytes");
}
