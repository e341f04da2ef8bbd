//! The disk and the agent at once: what the agent takes away, protects or shares in the middle of a
//! read is whole when the guest looks.

use super::*;
use crate::memory::agent::AgentHandle;
use crate::memory::store::Store;
use page::PAGE_BYTES;
use protocol::page_sharing::{BlockRequest, FromAgent, SharingSocket, ToAgent};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::fd::AsFd;
use sharing::{Frame, PageSet, Span, Ticket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Pages of the disk hold one of these values, zero among them, as the store's frames do.
const VALUES: u64 = 4;
const FRAMES: u64 = 1024;
/// Pages that the agent works on and the disk reads into, behind rings, header and status.
const FIRST_PAGE: u64 = 64;
const PAGES: u64 = 256;
const PAGES_IN_READ: u64 = 16;
const PAGES_AT_ONCE: usize = 32;
const READS: usize = 400;
const DISTURBANCES: u64 = 600;

fn content(value: u64) -> [u8; PAGE_BYTES] {
    [u8::try_from(value).unwrap(); PAGE_BYTES]
}

fn value_on_disk(page: u64) -> u64 {
    page * 7 / 5 % VALUES
}

/// The scanner's side.
struct Scanner {
    socket: SharingSocket,
    _store: Store,
    ticket: u64,
    random: SmallRng,
    agent: AgentHandle,
}

impl Scanner {
    fn new(ram: &GuestRam) -> Self {
        let (socket, vm) = SharingSocket::pair().unwrap();
        let agent = AgentHandle::start(ram, Some(vm)).unwrap();
        let store = Store::new(FRAMES).unwrap();
        let message = ToAgent::Store { frames: FRAMES };
        let file = store.read_only().unwrap();
        socket.ask(&message, Some(file.as_fd())).unwrap();
        for frame in (0..FRAMES).filter(|frame| frame % VALUES != 0) {
            let number = Frame(u32::try_from(frame).unwrap());
            store.fill(number, &content(frame % VALUES)).unwrap();
        }
        let seed = rand::random();
        println!("seed {seed}");
        Self {
            socket,
            _store: store,
            ticket: 0,
            random: SmallRng::seed_from_u64(seed),
            agent,
        }
    }

    /// Asks for pages of the block to be shared, or to be zeroed and brought home, whatever they hold.
    fn disturb(&mut self) {
        self.ticket += 1;
        let first = usize::try_from(FIRST_PAGE).unwrap();
        let count = usize::try_from(PAGES).unwrap();
        let start = first + self.random.random_range(0..count - PAGES_AT_ONCE);
        let pages: PageSet = (start..start + PAGES_AT_ONCE).collect();
        let frame = self
            .random
            .random_range(0..u32::try_from(FRAMES).unwrap() - 32);
        let mut request = BlockRequest {
            ticket: Ticket(self.ticket),
            number: 0,
            drops: PageSet::EMPTY,
            zeros: PageSet::EMPTY,
            spans: Vec::new(),
            rehomes: PageSet::EMPTY,
        };
        match self.ticket % 3 {
            0 => (request.zeros, request.rehomes) = (pages, pages),
            1 => request.drops = pages,
            _ => request.spans.push(Span {
                start,
                count: PAGES_AT_ONCE,
                frame: Frame(frame),
                copied: PageSet::EMPTY,
            }),
        }
        self.socket
            .ask(&ToAgent::Request(Box::new(request)), None)
            .unwrap();
        loop {
            match self.socket.hear_agent() {
                Ok(FromAgent::Outcome { .. }) => return,
                Ok(
                    FromAgent::Unmapped(_) | FromAgent::Sampled { .. } | FromAgent::Synced { .. },
                )
                | Err(protocol::ChannelError::Socket(_)) => {
                    thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn bench(engine: EngineKind, direct: bool) -> Bench {
    let bench = Bench::with(engine, |spec| spec.direct = direct);
    for page in 0..DISK_BYTES / PAGE_SIZE {
        let content = content(value_on_disk(page));
        bench
            .file
            .as_file()
            .write_all_at(&content, page * PAGE_SIZE)
            .unwrap();
    }
    bench
}

/// Reads into pages in no order, and looks at each after the read was answered.
fn read_and_check(bench: &mut Bench, random: &mut SmallRng, disturbed: &AtomicU64) {
    let mut reads = 0;
    while reads < READS || disturbed.load(Ordering::SeqCst) < DISTURBANCES {
        reads += 1;
        let from = random.random_range(0..DISK_BYTES / PAGE_SIZE - PAGES_IN_READ);
        let to = FIRST_PAGE + random.random_range(0..PAGES - PAGES_IN_READ);
        let bytes = u32::try_from(PAGES_IN_READ * PAGE_SIZE).unwrap();
        let answer = bench.ask(READ, from * 8, &[(to * PAGE_SIZE, bytes, WRITE)]);
        assert_eq!(answer.status, OK);
        for page in 0..PAGES_IN_READ {
            let seen: [u8; PAGE_BYTES] = bench.driver.get((to + page) * PAGE_SIZE);
            let expected = content(value_on_disk(from + page));
            assert!(seen == expected, "page {} is not what was read", to + page);
        }
        // What the guest writes comes out of the same pages.
        let answer = bench.ask(WRITE_OUT, from * 8, &[(to * PAGE_SIZE, bytes, 0)]);
        assert_eq!(answer.status, OK);
    }
}

#[test]
fn no_byte_is_lost_when_the_agent_works_on_pages_that_the_disk_reads_into() {
    for (engine, direct) in [
        (EngineKind::Best, false),
        (EngineKind::Plain, false),
        (EngineKind::Best, true),
    ] {
        let mut bench = bench(engine, direct);
        let mut scanner = Scanner::new(&bench.driver.ram);
        let mut random = SmallRng::seed_from_u64(rand::random());
        let before = bench.file();
        let (stop, disturbed) = (AtomicBool::new(false), AtomicU64::new(0));
        let sharing = thread::scope(|scope| {
            let disturber = scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    scanner.disturb();
                    disturbed.fetch_add(1, Ordering::SeqCst);
                }
                scanner.agent.counters().sharing()
            });
            // Stops the other thread on a failed assertion as well.
            let _stop = StopOnDrop(&stop);
            read_and_check(&mut bench, &mut random, &disturbed);
            stop.store(true, Ordering::SeqCst);
            disturber.join().unwrap()
        });
        println!("{engine:?} direct={direct}: {sharing:?}");
        for count in [sharing.shared, sharing.zeroed, sharing.rehomed] {
            assert!(count.0 > 20, "the agent was busy: {sharing:?}");
        }
        assert!(bench.file() == before, "what was read was written back");
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
