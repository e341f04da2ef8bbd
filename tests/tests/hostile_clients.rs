//! Claims about clients that send anything at all, to the socket and over TCP: the host lives, answers no
//! error of its own, keeps nothing of them, and honest clients notice nothing.
//!
//! What is sent follows from one number, which a failure prints; `BALLONET_FUZZ_SEED` gives it again.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::process::resident_bytes;
use tests::raw_client::ask;
use tests::wait::wait_while_progress;
use tests::web::Web;
use tests::{MIB, number, wait_until};

const SEED_VARIABLE: &str = "BALLONET_FUZZ_SEED";
/// Clients, one after the other.
const CLIENTS: usize = 2000;
/// After so many the host has met everything once, and its memory is measured.
const WARM_UP: usize = 500;
/// Clients that say nothing more and stay.
const MOST_SLEEPERS: usize = 24;
/// How long an answer is waited for; a host that waits for more gives none.
const SILENCE: Duration = Duration::from_millis(40);
/// The most of an answer that is read: a stream has no end.
const LONGEST_ANSWER: usize = 1 << 20;
/// What the host may hold more of when all have gone: its allocator's own pools, and newer events.
const MORE_MEMORY: u64 = 16 * MIB;

fn seed() -> u64 {
    let given = std::env::var(SEED_VARIABLE).ok();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = now.map_or(0, |time| u64::from(time.subsec_nanos()));
    given
        .and_then(|text| text.parse().ok())
        .unwrap_or(nanoseconds)
}

/// A connection of either kind.
enum Connection {
    Socket(UnixStream),
    Tcp(TcpStream),
}

impl Connection {
    fn open(socket: &Path, web: &Web, over_tcp: bool) -> Self {
        match over_tcp {
            true => Self::Tcp(web.connect()),
            false => Self::Socket(UnixStream::connect(socket).expect("the host listens")),
        }
    }

    fn set_patience(&self, time: Duration) {
        let set = match self {
            Self::Socket(stream) => stream
                .set_read_timeout(Some(time))
                .and_then(|()| stream.set_write_timeout(Some(time))),
            Self::Tcp(stream) => stream
                .set_read_timeout(Some(time))
                .and_then(|()| stream.set_write_timeout(Some(time))),
        };
        set.expect("it is not zero");
    }

    /// The host may have hung up already.
    fn say_no_more(&self) {
        drop(match self {
            Self::Socket(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
        });
    }

    /// Sends as far as the host takes it.
    fn send(&mut self, bytes: &[u8]) {
        drop(match self {
            Self::Socket(stream) => stream.write_all(bytes),
            Self::Tcp(stream) => stream.write_all(bytes),
        });
    }

    /// What comes until the host hangs up or is silent.
    fn read(&mut self) -> Vec<u8> {
        let mut answer = Vec::new();
        let mut piece = [0; 16 << 10];
        while answer.len() < LONGEST_ANSWER {
            let count = match self {
                Self::Socket(stream) => stream.read(&mut piece),
                Self::Tcp(stream) => stream.read(&mut piece),
            };
            match count {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_silent_or_reset) => break,
            }
        }
        answer
    }
}

/// What a client of the worse kind sends.
struct Generator<'a> {
    random: StdRng,
    web: &'a Web,
}

const METHODS: [&str; 8] = [
    "GET", "PUT", "POST", "PATCH", "HEAD", "OPTIONS", "DELETE", "BREW",
];
/// Nothing here ends the VM of the honest client.
const PATHS: [&str; 18] = [
    "/v1/overview",
    "/v1/figures",
    "/v1/history",
    "/v1/history?span=1d&vm=a",
    "/v1/host",
    "/v1/host/audit",
    "/v1/events",
    "/v1/events/stream",
    "/v1/vms",
    "/v1/vms/b",
    "/v1/vms/a/balloon",
    "/v1/vms/a/explanation?more_bytes=4096",
    "/v1/vms/a/console?replay=100",
    "/v1/vms/%ff%00",
    "/v1/openapi.json",
    "/metrics",
    "/",
    "*",
];
const KEYS: [&str; 14] = [
    "name",
    "memory_bytes",
    "min_bytes",
    "max_bytes",
    "shares",
    "vcpus",
    "trust_group",
    "nets",
    "disks",
    "kernel",
    "workload",
    "balloon_bytes",
    "scan",
    "idle_tax",
];
const VALUES: [&str; 20] = [
    "null",
    "true",
    "0",
    "-1",
    "4096",
    "16777216",
    "33554432",
    "18446744073709551615",
    "1e400",
    "1.5",
    "\"\"",
    "\"b\"",
    "\"high\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[]",
    "{}",
    "[[[[]]]]",
    "{\"tap\":\"x\"}",
    "{\"path\":\"/\"}",
];

impl Generator<'_> {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.random).expect("it is not empty")
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.random.random_range(0..=most)];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    fn body(&mut self) -> String {
        let count = self.random.random_range(0..6);
        let fields: Vec<String> = (0..count)
            .map(|_| format!("\"{}\":{}", self.pick(&KEYS), self.pick(&VALUES)))
            .collect();
        format!("{{{}}}", fields.join(","))
    }

    /// A request as it should be.
    fn request(&mut self) -> Vec<u8> {
        let (method, path) = (self.pick(&METHODS), self.pick(&PATHS));
        let body = self.body();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.web.address);
        if self.random.random_bool(0.8) {
            head.push_str(&format!("{}\r\n", self.web.authorization()));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        head.into_bytes()
    }

    /// Bytes changed, taken out, put in, or cut off.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.random.random_range(1..8) {
            let at = self.random.random_range(0..=bytes.len());
            match self.random.random_range(0..5) {
                0 => bytes.truncate(at),
                1 => {
                    let more = self.bytes(16);
                    bytes.splice(at..at, more);
                }
                2 if at < bytes.len() => bytes[at] ^= 1 << self.random.random_range(0..8),
                3 if at < bytes.len() => drop(bytes.remove(at)),
                _ => {
                    let again = bytes[at..].to_vec();
                    bytes.extend(again);
                }
            }
        }
    }

    /// Lengths that contradict the body or each other.
    fn badly_framed(&mut self) -> Vec<u8> {
        let framing = self.pick(&[
            "Content-Length: 1",
            "Content-Length: 99999",
            "Content-Length: -1",
            "Content-Length: 18446744073709551616",
            "Content-Length: 2\r\nContent-Length: 3",
            "Content-Length: 2\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: gzip",
            "Expect: 100-continue\r\nContent-Length: 2",
        ]);
        let body = self.pick(&[
            "{}",
            "",
            "2\r\n{}\r\n0\r\n\r\n",
            "ffffffffffffffffff\r\n",
            "-1\r\n",
            "2\r\n{}{}{}\r\n",
            "0\r\nHost: other\r\n\r\n",
            "2;a=b\r\n{}\r\n",
        ]);
        let (method, path) = (self.pick(&METHODS), self.pick(&PATHS));
        let host = self.web.address;
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n{body}").into_bytes()
    }

    fn huge_head(&mut self) -> Vec<u8> {
        let (count, length) = self.pick(&[(1, 1 << 20), (5000, 20), (90, 4000)]);
        let line = format!("X: {}\r\n", "x".repeat(length)).repeat(count);
        format!("GET /v1/overview HTTP/1.1\r\n{line}\r\n").into_bytes()
    }

    /// A console where there is one and where there is none, and what is then typed.
    fn upgrade(&mut self) -> Vec<u8> {
        let path = self.pick(&PATHS);
        let protocol = self.pick(&["ballonet-console", "websocket", "h2c", ""]);
        let mut bytes = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\n{}\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n",
            self.web.address,
            self.web.authorization()
        )
        .into_bytes();
        bytes.extend(self.bytes(4000));
        bytes
    }

    fn anything(&mut self) -> Vec<u8> {
        match self.random.random_range(0..8) {
            0 => self.bytes(3000),
            1 => self.badly_framed(),
            2 => self.huge_head(),
            3 => self.upgrade(),
            // One after the other without waiting.
            4 => (0..self.random.random_range(2..40))
                .flat_map(|_| self.request())
                .collect(),
            5 | 6 => {
                let mut bytes = self.request();
                self.mutate(&mut bytes);
                bytes
            }
            _ => self.request(),
        }
    }
}

/// The statuses in what a host answered. What follows an upgrade may look like anything.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let mut lines = text.split("HTTP/1.1 ").skip(1);
    let mut statuses = Vec::new();
    for line in &mut lines {
        let status = line.get(..3).and_then(|word| word.parse().ok());
        statuses.extend(status);
        if status == Some(101) {
            break;
        }
    }
    statuses
}

/// All places are taken, or the host waits for memory: no fault of the host.
const BUSY: u16 = 503;

/// What a process has open, by what it is: there may be several of a kind.
fn open_files(pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the host lives");
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect();
    files.sort();
    files
}

#[test]
fn a_host_outlives_clients_that_send_anything_and_keeps_nothing_of_them() {
    let seed = seed();
    eprintln!("{SEED_VARIABLE}={seed}");
    let (host, web) = Web::start("512M");
    host.boot_vm("a", &["--memory", "64M"]);
    let socket = host.socket();
    let pid = host.host_pid();
    // The scanner, which has its turn when others have none, has opened what it needs of the VM.
    host.ok(&["audit"]);
    // And the host keeps what it is set to.
    host.ok(&["set", "host", "memory=512M"]);
    let files_before = open_files(pid);

    let (is_over, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let honest = {
        let (is_over, served, socket) = (is_over.clone(), served.clone(), socket.clone());
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let answer = ask(&socket, "GET", "/v1/vms/a", b"");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                served.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        })
    };

    let mut generator = Generator {
        random: StdRng::seed_from_u64(seed),
        web: &web,
    };
    let mut sleepers = Vec::new();
    let mut memory_before = 0;
    for number in 0..CLIENTS {
        if number == WARM_UP {
            memory_before = resident_bytes(pid);
        }
        let bytes = generator.anything();
        let over_tcp = generator.random.random_bool(0.5);
        let mut connection = Connection::open(&socket, &web, over_tcp);
        connection.set_patience(SILENCE);
        connection.send(&bytes);
        if generator.random.random_bool(0.7) {
            connection.say_no_more();
        }
        if generator.random.random_bool(0.1) && sleepers.len() < MOST_SLEEPERS {
            sleepers.push(connection);
            continue;
        }
        if generator.random.random_bool(0.9) {
            let answer = connection.read();
            let failed = statuses(&answer)
                .into_iter()
                .find(|&status| status >= 500 && status != BUSY);
            assert_eq!(
                failed,
                None,
                "seed {seed}, client {number}: {:?} was answered {:?}",
                String::from_utf8_lossy(&bytes),
                String::from_utf8_lossy(&answer)
            );
        }
        if number % 50 == 0 {
            host.stop_all_but("a");
        }
    }
    drop(sleepers);
    is_over.store(true, Ordering::Relaxed);
    honest
        .join()
        .expect("honest clients are served all the time");
    assert!(served.load(Ordering::Relaxed) > 10);

    // What a client began to change may end only now.
    host.ok(&["set", "host", "memory=512M", "sharing=on"]);
    host.stop_all_but("a");
    wait_while_progress("nothing is kept open for those who have gone", || {
        host.stop_all_but("a");
        let files = open_files(pid);
        let is_all_closed = files.len() <= files_before.len();
        let fewer = usize::MAX - files.len();
        is_all_closed
            .then_some(())
            .ok_or((fewer, files, &files_before))
    });
    let memory = resident_bytes(pid);
    assert!(
        memory <= memory_before + MORE_MEMORY,
        "seed {seed}: {memory_before} bytes became {memory}"
    );
    assert_eq!(number(&host.vm("a"), "/size_bytes"), 64 * MIB);
    // The line that somebody began to type is in the way of the first.
    wait_until("the guest reads on", || {
        host.console("a").ask("report").contains("report {")
    });
}
