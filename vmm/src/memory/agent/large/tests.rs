//! The agent's large pages, in real guest memory.

use super::*;
use crate::memory::agent::AgentHandle;
use crate::memory::mapping::refused;
use crate::memory::pagemap::Pagemap;
use crate::memory::ram::GuestRam;
use page::{Gfn, GfnRange, PAGE_SIZE};
use protocol::page_sharing::{FromAgent, SharingSocket, ToAgent};
use std::thread::sleep;
use vm_memory::{Bytes, GuestAddress};

const BLOCKS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    ram: GuestRam,
    agent: AgentHandle,
}

impl Bench {
    /// Whose touches make whole blocks where that is advised.
    fn advised() -> Self {
        Self::of(GuestRam::with_large_pages(PageCount(BLOCKS * BLOCK)).unwrap())
    }

    /// Whose touches make single pages.
    fn unadvised() -> Self {
        Self::of(GuestRam::new(PageCount(BLOCKS * BLOCK)).unwrap())
    }

    fn of(ram: GuestRam) -> Self {
        let agent = AgentHandle::start(&ram, None).unwrap();
        Self { ram, agent }
    }

    /// The same with a scanner, and so many blocks mapped as large pages; none if the machine has no memory in one piece.
    fn scanned(blocks: u64) -> Option<(SharingSocket, Self)> {
        let (host, vm) = SharingSocket::pair().unwrap();
        let ram = GuestRam::with_large_pages(PageCount(BLOCKS * BLOCK)).unwrap();
        let agent = AgentHandle::start(&ram, Some(vm)).unwrap();
        let bench = Self { ram, agent };
        bench.order(LargePages::Fill, 0, false);
        (0..blocks * BLOCK).for_each(|page| bench.touch(page));
        if !bench.wait_for_mapped(blocks * BLOCK) {
            println!("the machine has no memory in one piece");
            return None;
        }
        Some((host, bench))
    }

    fn order(&self, pages: LargePages, balloon_target: u64, is_limited: bool) {
        self.agent.order_large_pages(LargePageOrder {
            pages,
            balloon_target: PageCount(balloon_target),
            is_limited,
        });
    }

    fn touch(&self, page: u64) {
        let address = GuestAddress(page * PAGE_SIZE);
        self.ram.memory().write_obj(page + 1, address).unwrap();
    }

    fn held(&self) -> u64 {
        self.ram.allocated().unwrap().0
    }

    fn inflate(&self, start: u64, count: u64) {
        self.agent.inflate(vec![range(start, count)]);
    }

    /// Waits until so many pages are mapped large, or the machine has no memory in one piece: that is no fault.
    fn wait_for_mapped(&self, pages: u64) -> bool {
        let begin = Instant::now();
        loop {
            let large = self.agent.counters().large();
            if large.mapped == PageCount(pages) || large.no_memory > 3 {
                return large.mapped == PageCount(pages);
            }
            assert!(begin.elapsed() < PATIENCE, "{large:?}");
            sleep(Duration::from_millis(10));
        }
    }
}

/// Asks for a sample of these; the blocks whose mappings were dropped, by their places.
fn sample(host: &SharingSocket, pages: Vec<u32>, blocks: Vec<u32>) -> PageSet {
    let sample = ToAgent::Sample {
        number: 1,
        pages,
        blocks,
    };
    host.ask(&sample, None).unwrap();
    let begin = Instant::now();
    loop {
        if let Ok(FromAgent::Sampled { blocks, .. }) = host.hear_agent() {
            return blocks;
        }
        assert!(begin.elapsed() < PATIENCE);
        sleep(Duration::from_millis(1));
    }
}

fn range(start: u64, count: u64) -> GfnRange {
    GfnRange {
        start: Gfn(start),
        count: PageCount(count),
    }
}

#[test]
fn a_touch_makes_a_block_only_while_the_guest_may_touch_all_of_it() {
    let bench = Bench::advised();
    for (pages, target, is_limited) in [
        (LargePages::Off, 0, false),
        (LargePages::Full, 0, false),
        (LargePages::Fill, 0, true),
        (LargePages::Fill, 1, false),
    ] {
        bench.order(pages, target, is_limited);
        let before = bench.held();
        bench.touch(BLOCK + 7);
        assert_eq!(bench.held(), before + 1, "{pages:?} {target} {is_limited}");
        bench.agent.give_back(vec![range(BLOCK + 7, 1)]);
    }
    bench.order(LargePages::Fill, 0, false);
    bench.touch(BLOCK + 7);
    if bench.wait_for_mapped(BLOCK) {
        assert_eq!(bench.held(), BLOCK);
    }
    // What one order allowed the next takes back.
    bench.order(LargePages::Fill, 1, false);
    bench.touch(2 * BLOCK);
    assert!(bench.held() <= BLOCK + 1);
}

/// What is reported free may be touched again, a page at a time where the guest may not touch all.
#[test]
fn a_touch_of_what_was_reported_free_makes_no_more_than_the_guest_may_touch() {
    let bench = Bench::advised();
    bench.order(LargePages::Fill, 0, false);
    (0..2 * BLOCK).for_each(|page| bench.touch(page));
    bench.wait_for_mapped(2 * BLOCK);
    bench.order(LargePages::Fill, 0, true);
    bench.agent.give_back(vec![range(5, BLOCK)]);
    assert_eq!(bench.held(), BLOCK);
    bench.touch(6);
    assert_eq!(bench.held(), BLOCK + 1);
    bench.order(LargePages::Fill, 0, false);
    if bench.wait_for_mapped(2 * BLOCK) {
        assert_eq!(bench.held(), 2 * BLOCK);
    }
}

#[test]
fn what_is_in_the_balloon_stays_there_when_its_neighbours_are_touched() {
    let bench = Bench::advised();
    bench.order(LargePages::Fill, 0, false);
    bench.inflate(BLOCK, 1);
    bench.inflate(2 * BLOCK, BLOCK);
    bench.touch(BLOCK + 1);
    bench.touch(3 * BLOCK);
    bench.wait_for_mapped(BLOCK);
    let states = bench.agent.page_states(true).unwrap();
    assert_eq!(states.ballooned, PageCount(BLOCK + 1));
    assert_eq!(bench.agent.counters().popped(), 0);
    assert!(bench.held() <= BLOCK + 1, "{} pages", bench.held());
    // All of its own again, and one page there.
    bench.agent.deflate(vec![range(BLOCK, 1)]);
    if bench.wait_for_mapped(2 * BLOCK) {
        assert_eq!(bench.held(), 2 * BLOCK);
    }
}

#[test]
fn a_large_page_of_which_a_part_is_given_up_keeps_the_rest() {
    let bench = Bench::advised();
    bench.order(LargePages::Fill, 0, false);
    (0..BLOCK).for_each(|page| bench.touch(page));
    let was_large = bench.wait_for_mapped(BLOCK);
    bench.inflate(10, 20);
    assert_eq!(bench.held(), BLOCK - 20);
    let large = bench.agent.counters().large();
    assert_eq!(large.broken_by_balloon, u64::from(was_large));
    for page in (0..BLOCK).filter(|page| !(10..30).contains(page)) {
        let address = GuestAddress(page * PAGE_SIZE);
        let value: u64 = bench.ram.memory().read_obj(address).unwrap();
        assert_eq!(value, page + 1);
    }
}

/// A machine on which a touch makes one page whatever is advised.
#[test]
fn small_pages_become_large_afterwards() {
    let bench = Bench::unadvised();
    (0..BLOCK).for_each(|page| bench.touch(page));
    bench.touch(2 * BLOCK);
    bench.order(LargePages::Full, 0, false);
    if bench.wait_for_mapped(BLOCK) {
        assert_eq!(bench.held(), BLOCK + 1, "that takes no memory");
    }
    bench.order(LargePages::Fill, 0, false);
    if bench.wait_for_mapped(2 * BLOCK) {
        assert_eq!(bench.held(), 2 * BLOCK);
    }
}

/// The kernel's own thread may do that while a page is given up, or a guest reads what it has given up.
#[test]
fn a_page_of_the_balloon_that_holds_zeros_is_given_back_and_has_not_popped() {
    let bench = Bench::advised();
    bench.inflate(5, 3);
    let read: u64 = bench
        .ram
        .memory()
        .read_obj(GuestAddress(6 * PAGE_SIZE))
        .unwrap();
    assert_eq!((read, bench.held()), (0, 1));
    bench.touch(7);
    let states = bench.agent.page_states(true).unwrap();
    assert_eq!(states.ballooned, PageCount(2));
    assert_eq!((bench.held(), bench.agent.counters().popped()), (1, 1));
}

/// Memory in pieces, pages in use, a kernel that has none at all: the guest goes on with small pages, a figure says so,
/// and it is tried again.
#[test]
fn where_the_kernel_makes_no_large_page_the_guest_goes_on_with_small_ones() {
    for errno in [Errno::NOMEM, Errno::BUSY, Errno::INVAL, Errno::AGAIN] {
        let bench = Bench::unadvised();
        let all = bench.ram.addresses(0..BLOCKS * BLOCK);
        refused::collapses(&all, Some(errno));
        (0..BLOCK).for_each(|page| bench.touch(page));
        bench.order(LargePages::Fill, 0, false);
        let begin = Instant::now();
        let is_told = |large: LargePageCounters| match errno {
            Errno::NOMEM => large.no_memory > 0,
            _ => large.refused > 0,
        };
        while !is_told(bench.agent.counters().large()) {
            assert!(begin.elapsed() < PATIENCE, "{errno}");
            sleep(Duration::from_millis(5));
        }
        bench.touch(BLOCK + 3);
        assert_eq!(bench.held(), BLOCK + 1, "{errno}");
        let large = bench.agent.counters().large();
        assert_eq!((large.made, large.mapped), (0, PageCount(0)), "{errno}");
        for page in (0..BLOCK).chain([BLOCK + 3]) {
            let address = GuestAddress(page * PAGE_SIZE);
            let value: u64 = bench.ram.memory().read_obj(address).unwrap();
            assert_eq!(value, page + 1, "{errno}");
        }
        refused::collapses(&all, None);
        bench.wait_for_mapped(2 * BLOCK);
    }
}

/// What is used most is large again soon, and what is watched and left alone is not touched by that.
#[test]
fn a_sampled_block_is_large_again_once_its_pages_were_written() {
    let Some((host, bench)) = Bench::scanned(2) else {
        return;
    };
    let (used, left) = (7, BLOCK + 7);
    let pages = [used, left].map(|page| u32::try_from(page).unwrap());
    sample(&host, pages.into(), Vec::new());
    bench.touch(used);
    if !bench.wait_for_mapped(BLOCK) {
        return println!("the machine has no memory in one piece");
    }
    let pagemap = Pagemap::open(std::process::id()).unwrap();
    let touch = |page: u64| {
        let address = bench.ram.addresses(page..page + 1).start;
        pagemap.touch(address).unwrap()
    };
    assert_eq!((touch(used), touch(left)), (Some(Touch::Written), None));
    assert_eq!(bench.agent.counters().large().broken_by_sampling, 2);
}

/// The touch of one page is that of the block, which is as large as before.
#[test]
fn a_block_that_is_watched_as_a_whole_stays_large_and_shows_one_touch() {
    let Some((host, bench)) = Bench::scanned(3) else {
        return;
    };
    // Of the second something is in the balloon: it is no large page. The last has not been touched, the others are not there.
    bench.inflate(BLOCK + 5, 1);
    let dropped = sample(&host, Vec::new(), vec![0, 1, 2, 3, 4, u32::MAX]);
    assert_eq!(dropped, [0, 2].into_iter().collect());
    let pagemap = Pagemap::open(std::process::id()).unwrap();
    let block = |number: u64| bench.ram.addresses(number * BLOCK..(number + 1) * BLOCK);
    let is_present = |number: u64| pagemap.is_any_present(block(number)).unwrap();
    // Nothing but a touch maps it, however long the agent has time to look after large pages.
    sleep(Duration::from_millis(200));
    assert_eq!([0, 2].map(is_present), [false, false]);
    bench.touch(2 * BLOCK + 77);
    assert_eq!([0, 2].map(is_present), [false, true]);
    assert!(pagemap.is_large(block(2)).unwrap());
    assert_eq!(bench.agent.counters().large().mapped, PageCount(2 * BLOCK));
}

/// Once it is no large page it is to be made one again like any other.
#[test]
fn a_watched_block_that_was_broken_is_made_large_again_when_it_is_whole() {
    let Some((host, bench)) = Bench::scanned(1) else {
        return;
    };
    sample(&host, Vec::new(), vec![0]);
    bench.inflate(5, 1);
    assert_eq!(bench.agent.counters().large().mapped, PageCount(0));
    bench.agent.deflate(vec![range(5, 1)]);
    bench.wait_for_mapped(BLOCK);
}
