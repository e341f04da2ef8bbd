//! The agent under a guest that does not stop writing.

use super::*;
use crate::memory::agent::{AgentHandle, LargePageOrder, Outs};
use crate::memory::left_out::{self, is_missed};
use crate::memory::pagemap::Pagemap;
use crate::memory::store::Store;
use crate::memory::swap::Swap;
use page::{Gfn, GfnRange};
use policy::LargePages;
use protocol::page_sharing::{FromAgent, SharingSocket, TableCheck, ToAgent};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fd::AsFd;
use sharing::Ticket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 1024;
/// Pages after those, which nobody shares: they go into the balloon and come back.
const BALLOONED: u64 = 1024;
const VALUES: u64 = 4;
const FRAMES: u64 = 4096;

/// A VM's memory with its agent, and the host's end of the socket.
struct Bench {
    ram: GuestRam,
    agent: AgentHandle,
    host: SharingSocket,
    store: Store,
    tickets: u64,
    /// Pages whose mappings were dropped for samples.
    sampled: u64,
}

impl Bench {
    fn new() -> Self {
        Self::of(GuestRam::new(PageCount(PAGES + BALLOONED)).unwrap())
    }

    fn of(ram: GuestRam) -> Self {
        Self::with_outs(ram, Outs::Stay)
    }

    fn with_outs(ram: GuestRam, outs: Outs) -> Self {
        let (host, vm) = SharingSocket::pair().unwrap();
        let fence = Fence::new(&ram).unwrap();
        let agent = AgentHandle::start_behind(fence, &ram, Some(vm), outs, Vec::new()).unwrap();
        let store = Store::new(FRAMES).unwrap();
        let message = ToAgent::Store { frames: FRAMES };
        let file = store.read_only().unwrap();
        host.ask(&message, Some(file.as_fd())).unwrap();
        Self {
            ram,
            agent,
            host,
            store,
            tickets: 0,
            sampled: 0,
        }
    }

    /// Frame `n` holds `n % VALUES`; those with zero stay empty.
    fn fill(&self) {
        for frame in 0..FRAMES {
            if frame % VALUES != 0 {
                let frame_number = u32::try_from(frame).unwrap();
                self.store
                    .fill(Frame(frame_number), &content(frame % VALUES))
                    .unwrap();
            }
        }
    }

    fn ask(&mut self, mut request: BlockRequest) -> Outcome {
        self.tickets += 1;
        request.ticket = Ticket(self.tickets);
        let message = ToAgent::Request(Box::new(request));
        self.host.ask(&message, None).unwrap();
        self.outcome()
    }

    /// Answered before the next outcome.
    fn sample(&self, pages: Vec<u32>) {
        let message = ToAgent::Sample {
            number: 1,
            pages,
            blocks: Vec::new(),
        };
        self.host.ask(&message, None).unwrap();
    }

    fn table(&self) -> TableCheck {
        self.host.ask(&ToAgent::Sync { number: 1 }, None).unwrap();
        loop {
            match self.host.hear_agent() {
                Ok(FromAgent::Synced { table, .. }) => return table,
                _ => thread::yield_now(),
            }
        }
    }

    fn outcome(&mut self) -> Outcome {
        loop {
            match self.host.hear_agent() {
                Ok(FromAgent::Outcome {
                    ticket, outcome, ..
                }) => {
                    assert_eq!(ticket, Ticket(self.tickets));
                    return outcome;
                }
                Ok(FromAgent::Sampled { dropped, .. }) => self.sampled += dropped.count() as u64,
                Ok(FromAgent::Unmapped(_) | FromAgent::Synced { .. })
                | Err(protocol::ChannelError::Socket(_)) => {
                    thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn write(&self, index: u64, value: u64) {
        self.ram
            .memory()
            .write_slice(&content(value), GuestAddress(index * PAGE_SIZE))
            .unwrap();
    }

    fn value(&self, index: u64) -> u64 {
        value(&self.ram, index)
    }

    fn held(&self) -> u64 {
        self.ram.allocated().unwrap().0
    }
}

/// A page full of a value, and not of one word, unless it is zero.
fn content(value: u64) -> [u8; PAGE_BYTES] {
    let value = u8::try_from(value).unwrap();
    let byte = |at: usize| match value {
        0 => 0,
        value => value + u8::try_from(at % 13).unwrap() * 16,
    };
    std::array::from_fn(byte)
}

/// What the guest sees; all bytes must agree.
fn value(ram: &GuestRam, index: u64) -> u64 {
    let mut page = [0; PAGE_BYTES];
    let address = GuestAddress(index * PAGE_SIZE);
    ram.memory().read_slice(&mut page, address).unwrap();
    assert!(page == content(page[0].into()), "page {index} is torn");
    page[0].into()
}

fn request(number: u32) -> BlockRequest {
    BlockRequest {
        ticket: Ticket(0),
        number,
        drops: PageSet::EMPTY,
        zeros: PageSet::EMPTY,
        spans: Vec::new(),
        rehomes: PageSet::EMPTY,
    }
}

fn span(start: usize, count: usize, frame: u32, copied: &[usize]) -> Span {
    Span {
        start,
        count,
        frame: Frame(frame),
        copied: copied.iter().copied().collect(),
    }
}

#[test]
fn equal_pages_show_the_frame_and_cost_nothing() {
    let mut bench = Bench::new();
    bench.fill();
    (0..8).for_each(|index| bench.write(index, (index + 1) % VALUES));
    assert_eq!(bench.held(), 8);
    let ask = BlockRequest {
        spans: vec![span(0, 3, 1, &[])],
        zeros: PageSet::from_iter([3, 7, 5]),
        ..request(0)
    };
    let outcome = bench.ask(ask);
    assert_eq!(outcome.done, PageSet::from_iter([0, 1, 2, 3, 7]));
    assert_eq!(outcome.differed, PageSet::from_iter([5]));
    assert_eq!(bench.held(), 3);
    assert!((0..8).all(|index| bench.value(index) == (index + 1) % VALUES));
    let counters = bench.agent.counters().sharing();
    assert_eq!((counters.mapped.0, counters.zeroed.0), (3, 2));
}

#[test]
fn what_differs_is_left_out_or_copied_in() {
    let mut bench = Bench::new();
    bench.fill();
    (0..6).for_each(|index| bench.write(index, (index + 1) % VALUES));
    bench.write(1, 3);
    let outcome = bench.ask(BlockRequest {
        spans: vec![span(0, 3, 1, &[])],
        ..request(0)
    });
    assert_eq!(outcome.done, PageSet::from_iter([0, 2]));
    assert_eq!(outcome.differed, PageSet::from_iter([1]));
    let outcome = bench.ask(BlockRequest {
        spans: vec![span(0, 6, 1, &[1, 3])],
        ..request(0)
    });
    assert_eq!(outcome.done, PageSet::from_iter([0, 2, 4, 5]));
    assert_eq!(outcome.copied, PageSet::from_iter([1, 3]));
    assert_eq!(bench.held(), 0, "all of it is behind the mapping");
    let seen: Vec<u64> = (0..6).map(|index| bench.value(index)).collect();
    assert_eq!(seen, [1, 3, 3, 0, 1, 2]);
    bench.write(1, 2);
    let outcome = bench.ask(BlockRequest {
        drops: PageSet::from_iter([1, 3, 400]),
        ..request(0)
    });
    assert_eq!(outcome.done, PageSet::from_iter([1, 3]));
    assert_eq!(bench.value(1), 2);
}

#[test]
fn a_hole_is_never_copied_into_a_mapping() {
    let mut bench = Bench::new();
    bench.fill();
    for index in [0, 1, 3, 4] {
        bench.write(index, (index + 1) % VALUES);
    }
    let outcome = bench.ask(BlockRequest {
        spans: vec![span(0, 6, 1, &[2, 3])],
        ..request(0)
    });
    assert_eq!(outcome.done, PageSet::from_iter([0, 1, 4]));
    assert_eq!(outcome.copied, PageSet::EMPTY);
    assert_eq!(bench.value(3), 0);
    assert_eq!(bench.agent.counters().sharing().mapped, PageCount(3));
}

#[test]
fn pages_come_home_with_what_they_hold() {
    let mut bench = Bench::new();
    bench.fill();
    (0..8).for_each(|index| bench.write(index, (index + 1) % VALUES));
    let ask = BlockRequest {
        spans: vec![span(0, 8, 1, &[3])],
        ..request(0)
    };
    bench.ask(ask);
    bench.write(2, 1);
    bench.write(5, 0);
    let outcome = bench.ask(BlockRequest {
        rehomes: (0..8).collect(),
        ..request(0)
    });
    assert_eq!(outcome.done, (0..8).collect());
    let seen: Vec<u64> = (0..8).map(|index| bench.value(index)).collect();
    assert_eq!(seen, [1, 2, 1, 0, 1, 0, 3, 0]);
    assert_eq!(bench.agent.counters().sharing().mapped, PageCount(0));
}

#[test]
fn pages_that_a_guest_gives_up_leave_the_store_and_the_host_is_told() {
    let mut bench = Bench::new();
    bench.fill();
    (0..8).for_each(|index| bench.write(index, (index + 1) % VALUES));
    bench.ask(BlockRequest {
        spans: vec![span(0, 8, 1, &[3, 7])],
        ..request(0)
    });
    let range = GfnRange {
        start: Gfn(4),
        count: PageCount(2),
    };
    bench.agent.give_back(vec![range]);
    bench.host.ask(&ToAgent::Sync { number: 9 }, None).unwrap();
    let next = || loop {
        if let Ok(message) = bench.host.hear_agent() {
            break message;
        }
        thread::yield_now();
    };
    assert_eq!(next(), FromAgent::Unmapped(range));
    let table = TableCheck::default();
    assert_eq!(next(), FromAgent::Synced { number: 9, table });
    assert_eq!((bench.value(4), bench.value(5)), (0, 0));
    bench.write(4, 3);
    assert_eq!(bench.value(4), 3);
}

#[test]
fn what_is_elsewhere_than_the_table_says_is_found() {
    let mut bench = Bench::new();
    bench.fill();
    (0..8).for_each(|index| bench.write(index, (index + 1) % VALUES));
    bench.ask(BlockRequest {
        spans: vec![span(0, 8, 1, &[])],
        ..request(0)
    });
    // A guest that writes to its pages, shared or given up, is where it may be.
    bench.write(5, 9);
    let given_up = GfnRange {
        start: Gfn(600),
        count: PageCount(3),
    };
    bench.agent.inflate(vec![given_up]);
    bench.write(601, 9);
    assert_eq!(bench.table(), TableCheck::default());
    // Under frames, where no page may be: what the kernel fills is freed, what is not zero is told.
    write_all(bench.ram.file(), &content(0), 2 * PAGE_SIZE).unwrap();
    let held = bench.held();
    assert_eq!(bench.table(), TableCheck::default());
    assert_eq!(bench.held(), held - 1);
    write_all(bench.ram.file(), &content(7), 3 * PAGE_SIZE).unwrap();
    let wrong = TableCheck {
        large: PageCount(0),
        wrong: PageCount(1),
        first_wrong: Some(3),
    };
    assert_eq!(bench.table(), wrong);
}

#[test]
fn a_copy_over_an_empty_frame_leaves_it_empty() {
    let mut bench = Bench::new();
    bench.store.fill(Frame(1), &content(1)).unwrap();
    bench.store.fill(Frame(3), &content(3)).unwrap();
    (0..3).for_each(|index| bench.write(index, index + 1));
    let outcome = bench.ask(BlockRequest {
        spans: vec![span(0, 3, 1, &[1])],
        ..request(0)
    });
    assert_eq!(outcome.copied, PageSet::from_iter([1]));
    let seen: Vec<u64> = (0..3).map(|index| bench.value(index)).collect();
    assert_eq!(seen, [1, 2, 3]);
    assert_eq!(bench.store.allocated().unwrap(), PageCount(2));
}

#[test]
fn memory_that_came_home_is_one_area_again() {
    let areas = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let mut bench = Bench::new();
    bench.fill();
    (0..400).for_each(|index| bench.write(index, (index + 1) % VALUES));
    let before = areas();
    let lone = (0..100).map(|place| span(place * 4, 1, u32::try_from(place * 4 + 1).unwrap(), &[]));
    bench.ask(BlockRequest {
        spans: lone.collect(),
        ..request(0)
    });
    assert!(areas() >= before + 190, "{} {}", areas(), before);
    bench.ask(BlockRequest {
        rehomes: PageSet::ALL,
        ..request(0)
    });
    assert!(areas() <= before + 10, "{} {}", areas(), before);
}

/// What a host believes to be a copy it takes for no reader of the frame, and may free that.
#[test]
fn only_what_a_guest_wrote_over_a_frame_counts_as_its_copy() {
    let mut bench = Bench::new();
    bench.fill();
    (0..8).for_each(|index| bench.write(index, (index + 1) % VALUES));
    bench.ask(BlockRequest {
        spans: vec![span(0, 8, 1, &[3])],
        ..request(0)
    });
    let pagemap = Pagemap::open(std::process::id()).unwrap();
    let all = bench.ram.addresses(0..8);
    let pages = |runs: Vec<Range<u64>>| -> Vec<u64> {
        let page = |address: u64| (address - all.start) / PAGE_SIZE;
        runs.into_iter()
            .flat_map(|run| page(run.start)..page(run.end))
            .collect()
    };
    let anonymous = || {
        let mut runs = Vec::new();
        let found = |run| runs.push(run);
        pagemap.anonymous(all.clone(), found).unwrap();
        pages(runs)
    };
    let arm = || {
        let mut runs = Vec::new();
        let found = |run| runs.push(run);
        pagemap.arm_written(all.clone(), found).unwrap();
        pages(runs)
    };
    let written = || {
        let mut runs = Vec::new();
        pagemap.written(all.clone(), |run| runs.push(run)).unwrap();
        pages(runs)
    };
    assert_eq!(anonymous(), [3], "copied in");
    assert_eq!(arm(), Vec::<u64>::new(), "armed by the agent");
    assert_eq!(anonymous(), [3], "armed and untouched");
    bench.value(1);
    assert_eq!((written(), anonymous()), (vec![], vec![3]), "read");
    bench.write(1, 1);
    bench.write(2, 1);
    assert_eq!((written(), anonymous()), (vec![1, 2], vec![1, 2, 3]));
}

/// A sample must not drop what a guest wrote over a frame: it is nowhere else.
#[test]
fn a_sample_leaves_alone_what_is_not_private() {
    let mut bench = Bench::new();
    bench.fill();
    (0..8).for_each(|index| bench.write(index, (index + 1) % VALUES));
    let ask = BlockRequest {
        spans: vec![span(0, 4, 1, &[])],
        ..request(0)
    };
    bench.ask(ask.clone());
    bench.write(1, 3);
    let beyond = [u32::try_from(PAGES + BALLOONED).unwrap(), u32::MAX];
    bench.sample((0..10).chain(beyond).collect());
    bench.ask(request(0));
    assert_eq!(bench.sampled, 4, "pages 4 to 7");
    let seen: Vec<u64> = (0..8).map(|index| bench.value(index)).collect();
    assert_eq!(seen, [1, 3, 3, 0, 1, 2, 3, 0]);
    assert_eq!(bench.held(), 4);
}

/// No host asks for both, but what a wrong host asks must cost no byte.
#[test]
fn a_request_that_names_a_page_twice_is_refused() {
    let mut bench = Bench::new();
    bench.fill();
    bench.write(5, 1);
    let both = |change: fn(&mut BlockRequest)| {
        let mut both = request(0);
        both.spans.push(span(5, 1, 1, &[]));
        change(&mut both);
        both
    };
    let all: [fn(&mut BlockRequest); 4] = [
        |both| both.rehomes.insert(5),
        |both| both.zeros.insert(5),
        |both| both.drops.insert(5),
        |both| both.spans.push(span(3, 3, 9, &[])),
    ];
    for change in all {
        assert_eq!(bench.ask(both(change)), Outcome::default());
    }
    assert_eq!(bench.agent.counters().sharing().stale, PageCount(4));
    assert_eq!(bench.value(5), 1);
    assert_eq!(bench.ask(both(|_| {})).done.count(), 1);
}

#[test]
fn senseless_requests_change_nothing() {
    let mut bench = Bench::new();
    (0..8).for_each(|index| bench.write(index, 1));
    let beyond = BlockRequest {
        zeros: PageSet::ALL,
        ..request(4)
    };
    assert_eq!(bench.ask(beyond), Outcome::default());
    let no_frame = BlockRequest {
        spans: vec![span(0, 8, u32::try_from(FRAMES - 3).unwrap(), &[])],
        ..request(0)
    };
    assert_eq!(bench.ask(no_frame), Outcome::default());
    let unmapped = BlockRequest {
        rehomes: PageSet::ALL,
        drops: PageSet::ALL,
        ..request(1)
    };
    assert_eq!(bench.ask(unmapped), Outcome::default());
    assert!((0..8).all(|index| bench.value(index) == 1));
    assert!(bench.agent.counters().sharing().stale.0 > 0);
}

/// Writes every page again and again, checks each before, until told to stop. Counts the writes.
fn rewrite(ram: &GuestRam, seed: u64, stop: &AtomicBool, writes: &AtomicU64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut expected = vec![0; usize::try_from(PAGES).unwrap()];
    while !stop.load(Ordering::Relaxed) {
        let index = random.random_range(0..PAGES);
        let place = usize::try_from(index).unwrap();
        assert_eq!(
            value(ram, index),
            expected[place],
            "page {index} after {writes:?} writes"
        );
        // What is only read is as it left when it comes back.
        if random.random_ratio(1, 2) {
            continue;
        }
        expected[place] = random.random_range(0..VALUES);
        let address = GuestAddress(index * PAGE_SIZE);
        let page = content(expected[place]);
        ram.memory().write_slice(&page, address).unwrap();
        writes.fetch_add(1, Ordering::Relaxed);
    }
    for (index, expected) in (0..).zip(expected) {
        assert_eq!(value(ram, index), expected, "page {index} at the end");
    }
}

fn random_set(random: &mut StdRng, percent: u32) -> PageSet {
    (0..BLOCK_PAGES)
        .filter(|_| random.random_ratio(percent, 100))
        .collect()
}

/// Any request, sensible or not, whose spans do not overlap.
fn random_request(random: &mut StdRng) -> BlockRequest {
    let mut ask = request(random.random_range(0..2));
    let kind = random.random_range(0..5);
    if kind == 0 {
        ask.drops = random_set(random, 30);
    }
    if kind <= 1 {
        ask.zeros = random_set(random, 30);
    }
    let mut start = random.random_range(0..50);
    while kind >= 2 && start < BLOCK_PAGES {
        let longest = if kind == 4 { BLOCK_PAGES } else { 9 };
        let count = random.random_range(1..=longest).min(BLOCK_PAGES - start);
        let copied = if random.random_ratio(1, 2) {
            random_set(random, 60)
        } else {
            PageSet::EMPTY
        };
        ask.spans.push(Span {
            start,
            count,
            frame: Frame(random.random_range(0..3000)),
            copied: copied
                .iter()
                .filter(|place| (start..start + count).contains(place))
                .collect(),
        });
        start += count + random.random_range(0..60);
    }
    if random.random_ratio(1, 3) && ask.spans.is_empty() {
        ask.rehomes = random_set(random, 50);
    }
    ask
}

/// Pages given up are empty, and hold what is written to them then.
fn go_into_the_balloon_and_back(bench: &Bench, random: &mut StdRng) {
    let pages = PAGES + random.random_range(0..BALLOONED / 2)..PAGES + BALLOONED;
    let range = GfnRange {
        start: Gfn(pages.start),
        count: PageCount(pages.end - pages.start),
    };
    bench.agent.inflate(vec![range]);
    assert_eq!(bench.agent.deflate(vec![range]), range.count);
    for page in pages.clone().step_by(3) {
        assert_eq!(bench.value(page), 0);
        bench.write(page, 1 + page % 3);
    }
    bench.sample((1024..1280).collect());
    for page in pages.step_by(3) {
        assert_eq!(bench.value(page), 1 + page % 3);
    }
}

/// The heart of it: no write is lost and no page is mixed up, whatever is asked while a guest writes.
#[test]
fn a_guest_that_never_stops_writing_loses_nothing() {
    lose_nothing(Bench::new(), |_, _| {}, |_| true);
}

fn order(bench: &Bench, pages: LargePages) {
    bench.agent.order_large_pages(LargePageOrder {
        pages,
        balloon_target: PageCount::ZERO,
        is_limited: false,
    });
}

/// Large pages are made and broken all the time, by first touches and of small ones.
#[test]
fn nothing_is_lost_where_blocks_become_large_and_small_again() {
    let size = PageCount(PAGES + BALLOONED);
    for ram in [GuestRam::with_large_pages(size), GuestRam::new(size)] {
        let bench = Bench::of(ram.unwrap());
        let agent = bench.agent.clone();
        order(&bench, LargePages::Fill);
        let any = |bench: &Bench, random: &mut StdRng| {
            use LargePages::{Fill, Full, Off};
            let orders = [Fill, Fill, Fill, Full, Off];
            order(bench, orders[random.random_range(0..orders.len())]);
        };
        lose_nothing(bench, any, |agent| {
            let large = agent.counters().large();
            large.made + large.no_memory + large.refused > 0
        });
        assert_eq!(agent.counters().popped(), 0);
    }
}

/// A page that came back from the file as it left keeps its record, until it lies elsewhere.
#[test]
fn what_was_shared_and_written_since_it_came_back_goes_out_as_it_is() {
    let size = PageCount(16 << 10);
    let ram = GuestRam::new(size).unwrap();
    let outs = Outs::GoToFile(tempfile::tempfile().unwrap(), size);
    let mut bench = Bench::with_outs(ram, outs);
    // What does not shrink goes there.
    let noise = |seed: u64| {
        let mut noise = [0u8; PAGE_BYTES];
        StdRng::seed_from_u64(seed).fill(&mut noise[..]);
        noise
    };
    for page in 0..size.0 {
        let address = GuestAddress(page * PAGE_SIZE);
        let written = bench.ram.memory().write_slice(&noise(page), address);
        written.unwrap();
    }
    bench.store.fill(Frame(1), &noise(5)).unwrap();
    let goes_out = |bench: &Bench, is_out: &dyn Fn(&Swap) -> bool| {
        bench.agent.limit_held(Some(PageCount(4000)));
        let begin = Instant::now();
        while !is_out(bench.agent.swap().unwrap()) {
            assert!(begin.elapsed() < Duration::from_secs(60));
            // Others are used.
            for page in 100..size.0 {
                let address = GuestAddress(page * PAGE_SIZE);
                let _: u8 = bench.ram.memory().read_obj(address).unwrap();
            }
        }
    };
    goes_out(&bench, &|swap| swap.is_in_file(5));
    // It may be on its way out again when it is asked for.
    let begin = Instant::now();
    loop {
        let mut found = [0; PAGE_BYTES];
        let address = GuestAddress(5 * PAGE_SIZE);
        let read = bench.ram.memory().read_slice(&mut found, address);
        read.unwrap();
        assert!(found == noise(5));
        let mut share = request(0);
        share.spans.push(span(5, 1, 1, &[]));
        if bench.ask(share).done.count() == 1 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    bench.write(5, 2);
    let mut rehome = request(0);
    rehome.rehomes.insert(5);
    assert_eq!(bench.ask(rehome).done.count(), 1);
    goes_out(&bench, &|swap| !swap.out_among(5..6).is_empty());
    assert_eq!(bench.value(5), 2);
}

/// Pages go out to the log or the file and come back, while they are shared, broken and brought home.
#[test]
fn nothing_is_lost_where_pages_are_shared_of_which_some_are_out() {
    let size = PageCount(PAGES + BALLOONED);
    let file = tempfile::tempfile().unwrap();
    for (ram, outs) in [
        (GuestRam::new(size), Outs::GoToLog),
        (GuestRam::new(size), Outs::GoToFile(file, size)),
        (GuestRam::with_large_pages(size), Outs::GoToLog),
    ] {
        let bench = Bench::with_outs(ram.unwrap(), outs);
        let limit = |bench: &Bench, random: &mut StdRng| {
            if random.random_ratio(1, 8) {
                let most = PageCount(random.random_range(700..2000));
                let is_limited = random.random_ratio(7, 8);
                bench.agent.limit_held(is_limited.then_some(most));
            }
            order(
                bench,
                [LargePages::Fill, LargePages::Off][random.random_range(0..2)],
            );
        };
        lose_nothing(bench, limit, |agent| {
            let swap = agent.swap_counters();
            swap.out > 1000 && swap.stored_in > 100
        });
    }
}

/// It waits in the pager, twice: who is woken with all others of a block and finds his hole still there asks again.
#[test]
fn a_touch_that_is_answered_late_makes_no_page_where_a_frame_is_shown() {
    let mut bench = Bench::with_outs(GuestRam::new(PageCount(PAGES)).unwrap(), Outs::GoToLog);
    bench.fill();
    bench.agent.limit_held(Some(PageCount(2 * PAGES)));
    bench.write(5, 1);
    let mut share = request(0);
    share.spans.push(span(5, 1, 1, &[]));
    assert_eq!(bench.ask(share).done.count(), 1);
    bench.agent.swap().unwrap().answer_late(5);
    assert_eq!(bench.value(5), 1);
}

/// Of memory that is guarded.
#[test]
fn what_is_written_to_a_hole_that_is_taken_for_zeros_is_kept() {
    let ram = GuestRam::new(PageCount(PAGES)).unwrap();
    let mut bench = Bench::with_outs(ram, Outs::GoToLog);
    bench.agent.limit_held(Some(PageCount(2 * PAGES)));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (ram, agent) = (bench.ram.clone(), bench.agent.clone());
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut last = None;
            for write in (0u64..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                let (page, written) = (write * 7 % 512, 1 + write % 3);
                let range = GfnRange {
                    start: Gfn(page),
                    count: PageCount(1),
                };
                agent.give_back(vec![range]);
                // What was asked when it was written has been carried out.
                if let Some((page, written)) = last.replace((page, written)) {
                    assert_eq!(value(&ram, page), written);
                }
                let address = GuestAddress(page * PAGE_SIZE);
                let content = content(written);
                ram.memory().write_slice(&content, address).unwrap();
            }
        })
    };
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) && !writer.is_finished() {
        let zeros = PageSet::ALL;
        bench.ask(BlockRequest {
            zeros,
            ..request(0)
        });
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

#[test]
fn that_a_frame_stays_is_missed() {
    is_missed(
        left_out::Step::FrameStays,
        a_touch_that_is_answered_late_makes_no_page_where_a_frame_is_shown,
    );
}

#[test]
fn that_none_comes_where_all_are_kept_out_is_missed() {
    is_missed(
        left_out::Step::NoneComes,
        what_is_written_to_a_hole_that_is_taken_for_zeros_is_kept,
    );
}

#[test]
fn that_what_is_out_is_not_compared_is_missed() {
    is_missed(
        left_out::Step::OutIsNotCompared,
        nothing_is_lost_where_pages_are_shared_of_which_some_are_out,
    );
}

#[test]
fn that_what_lies_elsewhere_is_forgotten_is_missed() {
    is_missed(
        left_out::Step::MovedIsForgotten,
        what_was_shared_and_written_since_it_came_back_goes_out_as_it_is,
    );
}

/// Of the pages with which each kind of thing was done, those of the rarest.
fn each_kind(bench: &Bench) -> u64 {
    let counters = bench.agent.counters().sharing();
    let counts = [
        counters.shared,
        counters.copied,
        counters.dropped,
        counters.zeroed,
        counters.rehomed,
    ];
    counts.iter().map(|count| count.0).min().unwrap_or(0)
}

/// Until `is_enough` has been done besides.
fn lose_nothing(
    mut bench: Bench,
    also: impl Fn(&Bench, &mut StdRng),
    is_enough: impl Fn(&AgentHandle) -> bool,
) {
    bench.fill();
    let stop = Arc::new(AtomicBool::new(false));
    let writes = Arc::new(AtomicU64::new(0));
    let writer = {
        let (ram, stop, writes) = (bench.ram.clone(), Arc::clone(&stop), Arc::clone(&writes));
        thread::spawn(move || rewrite(&ram, 1, &stop, &writes))
    };
    let mut random = StdRng::seed_from_u64(2);
    let begin = Instant::now();
    let mut requests = 0;
    let has_done_enough = |bench: &Bench, requests: u64| {
        let writes = writes.load(Ordering::Relaxed);
        requests > 50
            && writes > 1000
            && bench.sampled > 1000
            && each_kind(bench) > 20
            && is_enough(&bench.agent)
    };
    // On a machine that has other work to do it takes longer.
    while !writer.is_finished()
        && (begin.elapsed() < Duration::from_secs(4) || !has_done_enough(&bench, requests))
    {
        assert!(begin.elapsed() < Duration::from_secs(120));
        bench.sample((0..64).map(|_| random.random_range(0..1280)).collect());
        go_into_the_balloon_and_back(&bench, &mut random);
        also(&bench, &mut random);
        let ask = random_request(&mut random);
        bench.ask(ask);
        requests += 1;
        let table = bench.table();
        assert_eq!(table.wrong, PageCount(0), "{table:?}");
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    let counters = bench.agent.counters().sharing();
    let sampled = bench.sampled;
    println!("{requests} requests, {writes:?} writes, {sampled} sampled, {counters:?}");
    let all = |number| BlockRequest {
        rehomes: PageSet::ALL,
        ..request(number)
    };
    let before: Vec<u64> = (0..PAGES).map(|index| bench.value(index)).collect();
    for number in 0..2 {
        bench.ask(all(number));
    }
    assert_eq!(bench.agent.counters().sharing().mapped, PageCount(0));
    assert!(
        (0..)
            .zip(before)
            .all(|(index, value)| bench.value(index) == value)
    );
}
