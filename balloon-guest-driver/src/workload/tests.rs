//! Workloads over a guest's memory that tests can spoil.
#![expect(unsafe_code, reason = "pages are also seen as atomic words")]

use std::cell::Cell;
use std::string::{String, ToString};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::disk::DiskError;
use crate::disk::cache::Buffer;
use crate::disk::fake::FakeDisk;
use crate::page::{Page, Stamp, WORDS, is_zero};
use crate::pool::PROCESSORS_MAX;
use crate::pool::tests::with_pool;

const LIMIT: Gfn = 4096;

pub(crate) struct Ram(Arc<[[AtomicU64; WORDS]]>);

impl Ram {
    pub(crate) fn new(pages: u32) -> Self {
        let page = |_| [const { AtomicU64::new(0) }; WORDS];
        Self((0..pages).map(page).collect())
    }

    /// The same pages, as a device has them.
    pub(crate) fn shared(&self) -> Arc<[[AtomicU64; WORDS]]> {
        self.0.clone()
    }
}

impl Memory for Ram {
    fn page(&mut self, gfn: Gfn) -> &mut Page {
        let page = self.0[gfn as usize].as_ptr();
        // SAFETY: an atomic may be changed through a shared reference and has the size and any value
        // of its integer, and at 8 bytes its alignment; the borrow of `self` goes on, and devices run
        // on the same thread, but not now.
        unsafe { &mut *page.cast_mut().cast::<Page>() }
    }

    fn word(&self, gfn: Gfn, index: usize) -> &AtomicU64 {
        &self.0[gfn as usize][index]
    }
}

/// Blocks that the caches of tests have room for.
const BLOCKS: u32 = 8192;

fn file_system() -> FileSystem<'static> {
    let buffers = vec![Buffer::EMPTY; LIMIT as usize].leak();
    let cache = Cache::new(buffers, vec![0; BLOCKS as usize].leak());
    let lengths = vec![0; Files::lengths_for(BLOCKS)].leak();
    FileSystem::new(cache, Files::new(vec![0; BLOCKS as usize].leak(), lengths))
}

struct Guest {
    ram: Ram,
    frames: Frames<'static>,
    workload: Workload<'static>,
    disk: Option<FakeDisk>,
    clock_us: Cell<u64>,
}

impl Guest {
    fn new() -> Self {
        Self::with_id(7)
    }

    fn with_id(id: u32) -> Self {
        let storage = || vec![0; Frames::words_for(LIMIT)].leak();
        let mut frames = Frames::new(storage(), LIMIT);
        frames.add_untouched(0..LIMIT);
        let held = || Held::new(vec![Slot::default(); LIMIT as usize].leak());
        let other_contents = FrameSet::new(storage(), LIMIT);
        Self {
            ram: Ram::new(LIMIT),
            frames,
            workload: Workload::new(id, held(), held(), other_contents, file_system()),
            disk: None,
            clock_us: Cell::new(0),
        }
    }

    fn wrong_page(&mut self) -> WrongPage {
        match self.workload.take_failure() {
            Some(Failure::Page(wrong)) => wrong,
            other => panic!("{other:?} is no wrong page"),
        }
    }

    fn running(spec: &'static str) -> Self {
        let mut guest = Self::new();
        guest.start(spec);
        guest
    }

    fn start(&mut self, spec: &'static str) {
        let disk = self.disk.as_ref().map(|disk| disk as &dyn Disk);
        let spec = Spec::parse(spec).unwrap();
        self.workload.start(spec, disk).unwrap();
        self.steps(20);
    }

    fn step(&mut self) -> Rest {
        self.step_helped_by(None)
    }

    /// One slice of a millisecond; each look at the clock takes 10 µs.
    fn step_helped_by(&mut self, lead: Option<&Lead<'_>>) -> Rest {
        let clock = || {
            self.clock_us.set(self.clock_us.get() + 10);
            self.clock_us.get() * 1000
        };
        let slice = Slice::new(&clock, 1000);
        let mut slice = match lead {
            Some(lead) => slice.helped_by(lead),
            None => slice,
        };
        let disk = self
            .disk
            .as_mut()
            .map(|disk| disk as &mut (dyn Disk + 'static));
        self.workload
            .step(&mut self.frames, &mut self.ram, disk, &mut slice)
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    fn give_up(&mut self, count: usize) -> Vec<Gfn> {
        let mut out = vec![0; count];
        let given = self.workload.give_up(&mut out, &mut self.ram);
        out.truncate(given);
        out
    }

    /// Gives so many pages to a balloon, whose content is lost if the host takes them, or takes them back.
    fn move_balloon(
        &mut self,
        balloon: &mut Vec<Gfn>,
        inflate: bool,
        count: usize,
        host_drops: bool,
    ) {
        if inflate {
            let given = self.give_up(count);
            if host_drops {
                given.iter().for_each(|&gfn| self.ram.page(gfn).fill(0));
            }
            balloon.extend(given);
        } else {
            let keep = balloon.len().saturating_sub(count);
            self.frames.give_back(&balloon[keep..]);
            balloon.truncate(keep);
        }
    }

    /// Frames that are free, the workload's, or in this balloon.
    fn everywhere(&self, balloon: &[Gfn]) -> usize {
        self.frames.free_count() as usize + self.workload.held() as usize + balloon.len()
    }
}

#[test]
fn a_workload_of_size_max_takes_all_but_the_reserve() {
    let guest = Guest::running("verify:rate=0");
    assert_eq!(guest.workload.held(), LIMIT - RESERVE);
    assert!(guest.workload.counters().checks > 0);
}

#[test]
fn a_workload_of_fixed_size_holds_just_that_and_gives_up_none() {
    let mut guest = Guest::running("toucher:size=4M");
    assert_eq!(guest.workload.held(), 1024);
    assert_eq!(guest.give_up(10), []);
    assert_eq!(guest.workload.would_give_up(), 0);
}

#[test]
fn what_is_given_up_for_the_balloon_is_one_run_from_the_top() {
    let mut guest = Guest::running("verify:rate=0");
    let mut given = guest.give_up(100);
    given.reverse();
    let first = LIMIT - RESERVE - 100;
    assert!(given.iter().copied().eq(first..first + 100));
}

#[test]
fn pages_that_come_back_empty_or_as_they_were_are_no_leak() {
    let mut guest = Guest::running("verify:rate=0");
    let given = guest.give_up(500);
    given[..200]
        .iter()
        .for_each(|&gfn| guest.ram.page(gfn).fill(0));
    guest.frames.give_back(&given);
    guest.steps(10);
    assert_eq!(guest.workload.held(), LIMIT - RESERVE);
    assert_eq!(guest.workload.take_failure(), None);
}

#[test]
fn a_page_of_another_guest_is_a_leak_and_stops_the_run() {
    let mut guest = Guest::running("verify:rate=0");
    let given = guest.give_up(500);
    Stamp {
        guest: 8,
        gfn: given[77],
        version: 3,
    }
    .write(guest.ram.page(given[77]));
    guest.frames.give_back(&given);
    let free_and_held = guest.frames.free_count() + guest.workload.held();
    guest.steps(10);
    let failure = guest.workload.take_failure().unwrap().to_string();
    assert!(
        failure.starts_with(&std::format!("verify: LEAK gfn={}", given[77])),
        "{failure}"
    );
    assert!(failure.contains("found guest=8"), "{failure}");
    assert_eq!(guest.workload.counters().leaks, 1);
    assert_eq!(guest.step(), Rest::Asleep);
    assert_eq!(
        guest.frames.free_count() + guest.workload.held(),
        free_and_held
    );
}

#[test]
fn an_older_version_of_the_right_page_is_an_error() {
    let mut guest = Guest::running("verify:rate=0,write=100");
    let old = *guest.ram.page(5);
    for _ in 0..10_000 {
        guest.step();
        if *guest.ram.page(5) != old {
            break;
        }
    }
    *guest.ram.page(5) = old;
    for _ in 0..10_000 {
        guest.step();
    }
    let failure = guest.wrong_page();
    assert_eq!(
        failure.found,
        Stamp {
            guest: 7,
            gfn: 5,
            version: 1
        }
    );
    assert!(failure.expected_version > Some(1));
    assert_eq!(guest.workload.counters().errors, 1);
}

#[test]
fn a_wrong_byte_is_found_when_the_page_is_given_up() {
    let mut guest = Guest::running("verify:rate=1");
    guest.ram.page(LIMIT - RESERVE - 3)[511] ^= 1 << 63;
    assert_eq!(guest.give_up(10).len(), 2, "the pages before it");
    let failure = guest.wrong_page();
    assert_eq!((failure.gfn, failure.word), (LIMIT - RESERVE - 3, 511));
}

#[test]
fn what_another_workload_of_this_guest_left_is_no_leak() {
    for before in ["toucher:size=max", "clone", "breaker:size=max,loop=1"] {
        let mut guest = Guest::running(before);
        guest.steps(50);
        guest.start("verify:rate=0");
        assert_eq!(guest.workload.take_failure(), None, "after {before}");
        assert_eq!(guest.workload.held(), LIMIT - RESERVE);
    }
}

impl Guest {
    fn pages(&mut self) -> Vec<Page> {
        (0..self.workload.held())
            .map(|gfn| *self.ram.page(gfn))
            .collect()
    }

    /// Steps until what was told is done, and nothing more is to be done.
    fn done(&mut self) -> String {
        for _ in 0..10_000 {
            let rest = self.step();
            if let Some(done) = self.workload.take_done() {
                assert_eq!((rest, self.step()), (Rest::No, Rest::Asleep));
                return done.to_string();
            }
        }
        panic!("it is not done")
    }
}

#[test]
fn verify_finds_its_common_pages_right_and_equal_to_those_of_another_guest() {
    let contents = [1, 2].map(|id| {
        let mut guest = Guest::with_id(id);
        guest.start("verify:rate=0,write=100,common=50");
        guest.steps(2000);
        assert_eq!(guest.workload.take_failure(), None);
        guest.pages()
    });
    let [common, all] = [&contents[1][..], &contents[0][..]].map(|pages| {
        let pages = pages.iter().filter(|page| contents[0].contains(page));
        pages.count()
    });
    assert!(common.abs_diff(all / 2) < all / 10, "{common} of {all}");
    assert!(contents[0].iter().any(is_zero));
}

#[test]
fn a_wrong_bit_in_any_page_is_found_with_common_pages_about() {
    for gfn in 0..50 {
        let mut guest = Guest::running("verify:size=200K,rate=0,write=0,common=50");
        guest.ram.page(gfn)[gfn as usize * 10] ^= 1 << gfn;
        guest.steps(100);
        let failure = guest.wrong_page();
        assert_eq!((failure.gfn, failure.word), (gfn, gfn as usize * 10));
        assert!(failure.to_string().starts_with("verify: WRONG BYTE"));
    }
}

/// A frame may come back from the balloon with what the guest wrote, and from nobody else.
#[test]
fn a_common_content_is_a_leak_to_a_guest_that_never_wrote_any() {
    let mut writer = Guest::running("verify:rate=0,common=100");
    let common = *writer.pages().iter().find(|page| !is_zero(page)).unwrap();
    for (before, leaks) in [("verify:common=0", 1), ("verify:common=1", 0)] {
        let mut guest = Guest::running(before);
        guest.start("verify:rate=0");
        let given = guest.give_up(10);
        *guest.ram.page(given[3]) = common;
        guest.frames.give_back(&given);
        guest.steps(10);
        assert_eq!(guest.workload.counters().leaks, leaks, "after {before}");
    }
}

#[test]
fn breakers_are_equal_until_each_breaks_and_equal_again_when_restored() {
    let mut guests = [1, 2].map(Guest::with_id);
    let before = guests.each_mut().map(|guest| {
        guest.start("breaker:size=4M");
        assert_eq!(guest.step(), Rest::Asleep);
        guest.pages()
    });
    assert_eq!(before[0], before[1]);
    let broken = guests.each_mut().map(|guest| {
        assert_eq!(guest.workload.tell(Order::Break), Ok(()));
        // Each look at the clock takes so long here.
        let line = guest.done();
        assert!(
            line.starts_with(
                "breaker: 1024 writes p50=10000ns p99=10000ns max=10000ns total=10240us"
            ),
            "{line}"
        );
        guest.pages()
    });
    for (place, before) in before[0].iter().enumerate() {
        let [a, b] = [&broken[0][place], &broken[1][place]];
        let changed = |page: &Page| {
            (0..WORDS)
                .filter(|&word| page[word] != before[word])
                .count()
        };
        assert_eq!((changed(a), changed(b)), (1, 1), "page {place}");
        assert_ne!(a, b, "page {place}");
    }
    for (guest, before) in guests.iter_mut().zip(&before) {
        assert_eq!(guest.workload.tell(Order::Restore), Ok(()));
        assert_eq!(guest.done(), "breaker: restored");
        assert_eq!(&guest.pages(), before);
        let counters = guest.workload.counters();
        assert_eq!((counters.breaks, counters.last_break.writes), (1024, 1024));
    }
}

#[test]
fn a_breaker_has_the_common_pages_of_clone() {
    let mut breaker = Guest::running("breaker:size=4M,seed=5");
    let mut clone = Guest::running("clone:size=4M,zero=0,common=100,rewrite=0,seed=5");
    assert_eq!(breaker.pages(), clone.pages());
}

#[test]
fn breaking_keeps_to_its_slice() {
    let mut guest = Guest::running("breaker:size=max");
    guest.workload.tell(Order::Break).unwrap();
    while guest.workload.take_done().is_none() {
        let start_us = guest.clock_us.get();
        guest.step();
        assert!(guest.clock_us.get() - start_us <= 1000 + 50);
    }
}

#[test]
fn an_order_waits_for_the_pages_and_for_the_order_before() {
    let mut guest = Guest::new();
    guest
        .workload
        .start(Spec::parse("breaker:size=max").unwrap(), None)
        .unwrap();
    assert_eq!(guest.workload.tell(Order::Break), Ok(()));
    assert_eq!(guest.workload.tell(Order::Restore), Err(OrderError::Busy));
    while guest.workload.counters().breaks == 0 {
        guest.step();
    }
    assert_eq!(guest.workload.tell(Order::Restore), Ok(()));
    let mut done = Vec::new();
    while done.len() < 2 {
        guest.step();
        done.extend(guest.workload.take_done());
    }
    let Done::Broken(figures) = done[0] else {
        panic!("{done:?}")
    };
    assert_eq!(figures.writes, u64::from(LIMIT - RESERVE));
    assert_eq!(done[1], Done::Restored);
}

#[test]
fn what_is_no_breaker_or_goes_on_by_itself_takes_no_order() {
    let mut guest = Guest::running("clone");
    assert_eq!(
        guest.workload.tell(Order::Break),
        Err(OrderError::NoBreaker)
    );
    guest.start("breaker:loop=1");
    assert_eq!(guest.workload.tell(Order::Break), Err(OrderError::Loops));
}

#[test]
fn a_looping_breaker_breaks_and_restores_for_ever_and_says_nothing() {
    let mut guest = Guest::running("breaker:size=64K,loop=1");
    let mut broken_counts = std::collections::BTreeSet::new();
    let original = {
        let mut still = Guest::running("breaker:size=64K");
        still.pages()
    };
    for _ in 0..500 {
        assert_eq!(guest.step(), Rest::No);
        assert_eq!(guest.workload.take_done(), None);
        let pages = guest.pages();
        broken_counts.insert(pages.iter().zip(&original).filter(|(a, b)| a != b).count());
    }
    assert!(
        broken_counts.contains(&0) && broken_counts.contains(&16),
        "{broken_counts:?}"
    );
    let counters = guest.workload.counters();
    assert_eq!(counters.last_break.writes, 16);
    assert!(counters.breaks > 100 * 16, "{}", counters.breaks);
}

#[test]
fn after_idle_all_memory_is_free_and_nothing_wakes() {
    let mut guest = Guest::running("clone");
    guest.start("idle");
    assert_eq!(guest.frames.free_count(), LIMIT);
    assert_eq!(guest.step(), Rest::Asleep);
}

#[test]
fn a_fixed_size_beyond_what_is_free_is_said_to_be_lacking() {
    let mut guest = Guest::new();
    let mut balloon = vec![0; LIMIT as usize - 100];
    assert_eq!(guest.frames.take_for_balloon(&mut balloon), balloon.len());
    guest.start("toucher:size=4M");
    assert_eq!(guest.workload.held(), 100);
    assert_eq!(guest.workload.lacks(&guest.frames), 924);
    guest.frames.give_back(&balloon[..924]);
    assert_eq!(guest.workload.lacks(&guest.frames), 0);
}

#[test]
fn a_slow_workload_sleeps_between() {
    let mut guest = Guest::running("toucher:size=64K,rate=1000");
    let Rest::Until(time) = guest.step() else {
        panic!("it should rest")
    };
    assert!(time >= guest.clock_us.get() + 9_000);
}

/// The pages whose first word is not what it was when they were obtained.
fn touched_pages(guest: &mut Guest) -> Vec<Gfn> {
    let held = guest.workload.held();
    let is_touched = |gfn: &Gfn| guest.ram.page(*gfn)[0] != u64::from(*gfn);
    (0..held).filter(is_touched).collect()
}

#[test]
fn a_toucher_leaves_alone_what_is_not_active() {
    let mut guest = Guest::running("toucher:size=4M,active=64K,write=100");
    guest.steps(50);
    assert_eq!(guest.workload.held(), 1024);
    assert_eq!(touched_pages(&mut guest), (0..16).collect::<Vec<_>>());
}

#[test]
fn a_toucher_of_the_same_size_keeps_its_pages_and_another_gets_them_anew() {
    let mut guest = Guest::running("toucher:size=4M,active=64K,write=100");
    let spec = Spec::parse("toucher:size=4M,active=128K,write=100").unwrap();
    guest.workload.start(spec, None).unwrap();
    for _ in 0..100 {
        guest.step();
        assert_eq!(guest.workload.held(), 1024);
    }
    assert_eq!(touched_pages(&mut guest), (0..32).collect::<Vec<_>>());
    guest.start("toucher:size=2M,active=64K,write=0");
    assert_eq!(guest.workload.held(), 512);
    assert_eq!(touched_pages(&mut guest), []);
}

/// What each processor has counted in the pages: words 0, 8, 16 and so on.
fn lines_of(page: &Page) -> [u64; PROCESSORS_MAX] {
    std::array::from_fn(|processor| page[8 * processor])
}

#[test]
fn what_helpers_touch_is_counted() {
    with_pool(3, |lead| {
        let mut guest = Guest::running("toucher:size=4M,write=100");
        for _ in 0..50 {
            guest.step_helped_by(Some(lead));
        }
        let mut in_pages = [0; PROCESSORS_MAX];
        for gfn in 0..1024 {
            for (sum, count) in in_pages.iter_mut().zip(lines_of(guest.ram.page(gfn))) {
                *sum += count;
            }
            // Where the lead began to count.
            in_pages[0] -= u64::from(gfn);
        }
        let counters = guest.workload.counters();
        assert_eq!(in_pages.iter().sum::<u64>(), counters.touches_written);
        assert_eq!(counters.touches, counters.touches_written);
    });
}

/// However slices and the balloon follow each other, helpers touch what is held and nothing else.
#[test]
fn what_was_given_up_is_not_touched_any_more() {
    with_pool(3, |lead| {
        let mut guest = Guest::running("toucher:size=max,write=100");
        for round in 0..30 {
            guest.step_helped_by(Some(lead));
            let given = guest.give_up(300 + 37 * round);
            let left: Vec<Page> = given.iter().map(|&gfn| *guest.ram.page(gfn)).collect();
            for _ in 0..3 {
                guest.step_helped_by(Some(lead));
            }
            for (&gfn, left) in given.iter().zip(&left) {
                assert_eq!(guest.ram.page(gfn), left, "frame {gfn}");
            }
            guest.frames.give_back(&given);
            guest.steps(2);
        }
    });
}

#[test]
fn helpers_do_no_more_than_is_due() {
    with_pool(3, |lead| {
        let mut guest = Guest::running("toucher:size=4M,rate=10000000");
        let (before, start_us) = (guest.workload.counters().touches, guest.clock_us.get());
        for _ in 0..200 {
            guest.step_helped_by(Some(lead));
        }
        let done = guest.workload.counters().touches - before;
        let due = (guest.clock_us.get() - start_us) * 10;
        // What was owed from before, at most.
        assert!(done <= due + 1_000_000, "{done} of {due}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn the_balloon_may_take_and_give_back_at_any_time(
        moves in prop::collection::vec((any::<bool>(), 1_usize..2000, any::<bool>()), 1..30),
        spec in prop_oneof![
            Just("verify:rate=0"),
            Just("verify:rate=0,common=50"),
            Just("clone:rewrite=100"),
            Just("toucher:size=max"),
            Just("breaker:size=max,loop=1"),
        ],
    ) {
        let mut guest = Guest::running(spec);
        let mut balloon: Vec<Gfn> = Vec::new();
        for (inflate, count, host_drops) in moves {
            guest.move_balloon(&mut balloon, inflate, count, host_drops);
            guest.steps(3);
            prop_assert_eq!(guest.everywhere(&balloon), LIMIT as usize);
        }
        prop_assert_eq!(guest.workload.take_failure(), None);
    }
}

impl Guest {
    /// One that has a disk of so many blocks.
    fn with_disk(blocks: u32) -> Self {
        let mut guest = Self::new();
        let mut disk = FakeDisk::new(guest.ram.shared(), blocks);
        disk.is_quick = true;
        guest.disk = Some(disk);
        guest
    }

    fn disk(&mut self) -> &mut FakeDisk {
        self.disk.as_mut().unwrap()
    }

    fn refusal(&mut self, spec: &str) -> String {
        let disk = self.disk.as_ref().map(|disk| disk as &dyn Disk);
        let refused = self.workload.start(Spec::parse(spec).unwrap(), disk);
        refused.unwrap_err().to_string()
    }

    /// Steps, and lets time pass where it sleeps, until the clients have done so much more.
    fn until_operations(&mut self, more: u64) {
        let wanted = self.workload.counters().operations + more;
        for _ in 0..200_000 {
            if self.workload.counters().operations >= wanted {
                return;
            }
            self.step_in_time();
        }
        panic!("{:?}", self.workload.counters());
    }

    fn step_in_time(&mut self) {
        match self.step() {
            Rest::No => {}
            Rest::Until(time_us) => self.clock_us.set(time_us.max(self.clock_us.get())),
            Rest::Asleep => {
                assert_eq!(self.workload.take_failure(), None);
                let has_worked = self.disk.as_mut().is_some_and(FakeDisk::work);
                assert!(has_worked, "it sleeps and nothing will wake it");
            }
        }
    }

    fn stop(&mut self) {
        self.workload.start(Spec::IDLE, None).unwrap();
        for _ in 0..10_000 {
            match self.step() {
                Rest::Asleep if self.workload.held() == 0 => return,
                Rest::Asleep => assert!(self.disk().work(), "it sleeps and holds pages"),
                _ => {}
            }
        }
        panic!("it does not stop");
    }

    /// Blocks on the disk that carry a stamp, and are as it says.
    fn blocks_on_disk(&mut self) -> usize {
        let blocks = self.disk().blocks.iter();
        let right = blocks.filter(|&(&block, page)| {
            let stamp = Stamp::read(page);
            (stamp.guest, stamp.gfn) == (7, block) && stamp.first_wrong_word(page).is_none()
        });
        right.count()
    }
}

#[test]
fn dbench_without_a_disk_that_it_can_use_is_refused_and_what_runs_goes_on() {
    let mut guest = Guest::running("clone");
    assert_eq!(
        guest.refusal("dbench"),
        "dbench needs a disk: start the VM with --disk FILE"
    );
    guest.disk = Guest::with_disk(2000).disk;
    let refusal = guest.refusal("dbench:files=8M");
    assert!(
        refusal.starts_with("files=8192K: there is room for 8000K"),
        "{refusal}"
    );
    let refusal = guest.refusal("dbench:clients=40,files=2496K");
    assert!(
        refusal.starts_with("clients=40: each needs a file of 64K and there are 2496K in all"),
        "{refusal}"
    );
    guest.disk().is_read_only = true;
    assert!(guest.refusal("dbench").contains("without `,ro`"));
    assert_eq!(guest.workload.spec(), Spec::parse("clone").unwrap());
}

#[test]
fn dbench_reads_what_it_wrote_and_leaves_it_all_on_the_disk_when_it_stops() {
    let mut guest = Guest::with_disk(BLOCKS);
    guest.start("dbench:seek_us=100");
    guest.until_operations(3000);
    let counters = guest.workload.counters();
    assert!(counters.hits > 0 && counters.misses > 0, "{counters:?}");
    assert!(counters.read_bytes > counters.written_bytes, "{counters:?}");
    assert!(
        counters.checks * 4096 >= counters.read_bytes,
        "{counters:?}"
    );
    guest.stop();
    assert_eq!(guest.disk().flushes, 1);
    assert_eq!(guest.frames.free_count(), LIMIT);
    let blocks = guest.disk().blocks.len();
    assert_eq!(guest.blocks_on_disk(), blocks);
    assert!(blocks > BLOCKS as usize / 2, "{blocks}");
    assert_eq!(guest.workload.take_failure(), None);
    assert_eq!(guest.workload.counters().errors, 0);
}

/// What the paper's experiments measure.
#[test]
fn the_more_memory_the_more_dbench_does_in_the_same_time() {
    let operations = [1024, 2048, 3000].map(|pages: usize| {
        let mut guest = Guest::with_disk(4096);
        let mut balloon = vec![0; LIMIT as usize - pages];
        guest.frames.take_for_balloon(&mut balloon);
        guest.start("dbench:files=16M,write=0,seek_us=1000");
        guest.until_operations(3000);
        let (before, from_us) = (guest.workload.counters().operations, guest.clock_us.get());
        while guest.clock_us.get() < from_us + 2_000_000 {
            guest.step_in_time();
        }
        guest.workload.counters().operations - before
    });
    assert!(operations[0] * 12 < operations[1] * 10, "{operations:?}");
    assert!(operations[1] * 12 < operations[2] * 10, "{operations:?}");
}

#[test]
fn one_wrong_bit_on_the_disk_stops_dbench_and_is_told() {
    let mut guest = Guest::with_disk(BLOCKS);
    guest.start("dbench:seek_us=0");
    guest.until_operations(3000);
    for page in guest.disk().blocks.values_mut() {
        page[300] ^= 1;
    }
    for _ in 0..1000 {
        guest.step();
    }
    let failure = guest.workload.take_failure().unwrap().to_string();
    assert!(
        failure.starts_with("dbench: WRONG BYTE block="),
        "{failure}"
    );
    assert!(failure.contains("word=300"), "{failure}");
    assert_eq!(guest.workload.counters().errors, 1);
    assert_eq!(guest.give_up(10), [], "it stays as it is");
    guest.stop();
    assert_eq!(guest.frames.free_count(), LIMIT);
}

#[test]
fn an_older_version_of_a_block_is_found() {
    let mut guest = Guest::with_disk(BLOCKS);
    guest.start("dbench:seek_us=0,write=50");
    guest.until_operations(2000);
    let old = guest.disk().blocks.clone();
    guest.until_operations(3000);
    guest.disk().blocks = old;
    for _ in 0..1000 {
        guest.step();
    }
    let failure = guest.workload.take_failure().unwrap();
    assert!(
        matches!(failure, Failure::Block(wrong) if wrong.found.version < wrong.expected.version)
    );
}

#[test]
fn a_disk_that_fails_is_counted_told_and_asked_nothing_more() {
    for fault in [DiskError::Failed, DiskError::Broken] {
        let mut guest = Guest::with_disk(BLOCKS);
        guest.start("dbench:seek_us=0");
        guest.until_operations(1000);
        guest.disk().fault = Some(fault);
        for _ in 0..1000 {
            guest.step();
        }
        let failure = guest.workload.take_failure().unwrap().to_string();
        assert!(failure.starts_with("dbench: DISK ERROR "), "{failure}");
        assert!(failure.ends_with(&fault.to_string()), "{failure}");
        assert!(guest.workload.counters().disk_errors > 0);
        assert_eq!(guest.step(), Rest::Asleep);
        guest.stop();
        guest.disk().fault = None;
        guest.start("dbench:seek_us=0");
        guest.until_operations(1000);
    }
}

#[test]
fn clients_do_no_more_than_their_rate_and_sleep_between() {
    let mut guest = Guest::with_disk(4096);
    guest.start("dbench:files=4M,rate=500,seek_us=0");
    guest.until_operations(100);
    let (before, from_us) = (guest.workload.counters().operations, guest.clock_us.get());
    let mut slept = 0;
    while guest.clock_us.get() < from_us + 4_000_000 {
        slept += u32::from(matches!(guest.step(), Rest::Until(_)));
        guest.clock_us.set(guest.clock_us.get() + 1000);
    }
    let done = guest.workload.counters().operations - before;
    assert!(done.abs_diff(2000) < 100, "{done} in 4 s");
    assert!(slept > 1000, "{slept}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn dbench_loses_nothing_however_the_balloon_and_the_disk_move(
        moves in prop::collection::vec((any::<bool>(), 1_usize..3000, any::<bool>()), 1..30),
        spec in prop_oneof![
            Just("dbench:seek_us=0,depth=7,write=50"),
            Just("dbench:seek_us=300,clients=128"),
            Just("dbench:files=16M,dist=zipf,write=100,seek_us=50"),
            Just("dbench:files=1M,clients=3"),
        ],
    ) {
        let mut guest = Guest::with_disk(BLOCKS);
        guest.start(spec);
        let mut balloon: Vec<Gfn> = Vec::new();
        for (inflate, count, is_quick) in moves {
            guest.disk().is_quick = is_quick;
            guest.move_balloon(&mut balloon, inflate, count, true);
            guest.steps(2);
            if guest.workload.held() > 0 {
                guest.until_operations(50);
            }
            prop_assert_eq!(guest.everywhere(&balloon), LIMIT as usize);
        }
        guest.stop();
        prop_assert_eq!(guest.workload.take_failure(), None);
        let blocks = guest.disk().blocks.len();
        prop_assert_eq!(guest.blocks_on_disk(), blocks);
    }
}

const TILE: &str = "tile:size=6M,low=4M,active=1M,period_s=2,rate=200,files=4M,ops=200,seek_us=100";

#[test]
fn a_tile_frees_and_takes_memory_and_serves_files_from_the_rest() {
    let mut guest = Guest::with_disk(2048);
    guest.start(TILE);
    let (mut least, mut most) = (u32::MAX, 0);
    while guest.clock_us.get() < 10_000_000 {
        guest.step_in_time();
        if guest.clock_us.get() > 3_000_000 {
            let held = guest.workload.held();
            (least, most) = (least.min(held), most.max(held));
        }
        assert_eq!(guest.everywhere(&[]), LIMIT as usize);
    }
    assert_eq!(guest.workload.take_failure(), None);
    // With all files in its cache.
    assert_eq!((least, most), (2048, 2560));
    let counters = guest.workload.counters();
    assert!(counters.transactions > 1500, "{counters:?}");
    assert!(counters.operations > 1500, "{counters:?}");
    let timed = |latencies: Latencies| latencies.buckets().iter().sum::<u64>();
    assert_eq!(timed(counters.transaction_time), counters.transactions);
    assert_eq!(timed(counters.operation_time), counters.operations);

    guest.start("tile:size=6M,low=4M,active=4K,period_s=2,rate=1,files=4M,ops=200,seek_us=100");
    let until_us = guest.clock_us.get() + 3_000_000;
    while guest.clock_us.get() < until_us {
        guest.step_in_time();
    }
    assert!(guest.workload.held() >= 2048, "it keeps its pages");
    let slept = guest.workload.counters().transactions - counters.transactions;
    assert!(slept < 30, "{slept} while asleep");
    guest.stop();
    assert_eq!(guest.frames.free_count(), LIMIT);
}

#[test]
fn a_tile_gives_its_cache_to_the_balloon_and_to_its_own_memory_but_not_that() {
    let mut guest = Guest::with_disk(2048);
    guest.start(TILE);
    while guest.clock_us.get() < 3_000_000 {
        guest.step_in_time();
    }
    let mut balloon = vec![0; LIMIT as usize];
    let free = guest.frames.take_for_balloon(&mut balloon);
    balloon.truncate(free);
    for _ in 0..5_000 {
        let given = guest.give_up(100);
        balloon.extend(given);
        guest.step_in_time();
    }
    assert_eq!(guest.workload.would_give_up(), 0);
    let held = guest.workload.held();
    assert!((1024..=1536).contains(&held), "{held}");
    assert_eq!(guest.workload.take_failure(), None);
    guest.frames.give_back(&balloon);
    while guest.workload.lacks(&guest.frames) > 0 || guest.workload.held() < 2048 {
        guest.step_in_time();
    }
    assert_eq!(guest.workload.take_failure(), None);
}

#[test]
fn a_wrong_bit_stops_a_tile_and_another_workload_can_follow() {
    let mut guest = Guest::with_disk(2048);
    guest.start(TILE);
    for gfn in 0..LIMIT {
        guest.ram.page(gfn)[300] ^= 1;
    }
    let failure = loop {
        if let Rest::Until(time_us) = guest.step() {
            guest.clock_us.set(time_us);
        }
        if let Some(failure) = guest.workload.take_failure() {
            break failure.to_string();
        }
    };
    assert!(failure.contains("WRONG BYTE"), "{failure}");
    assert_eq!(guest.workload.counters().errors, 1);
    assert_eq!(guest.give_up(10), [], "it stays as it is");
    guest.stop();
    guest.start("verify:size=4M");
    assert_eq!(guest.workload.take_failure(), None);
}
