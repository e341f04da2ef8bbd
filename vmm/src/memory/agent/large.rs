//! Large pages: makes them where the VM may hold a whole block, and breaks them before anything is taken out of one.
//!
//! A guest whose memory is mapped by 4 KiB makes a third of the accesses of one whose memory is mapped by 2 MiB. But a
//! large page is 512 pages at once, whatever the guest touched of it. So a block is large only if **nothing of it is
//! given up or shared**, and only what the guest may touch anyway is filled:
//!
//! * Where a touch is advised to make a whole block, it does so only of a block that is empty. Advice therefore
//!   stands for blocks that are the guest's own, as long as it may touch all that is not in its balloon. It
//!   is taken back before a page goes into the balloon or gets a frame.
//! * What was touched while there was no advice, or no large page to be had, is made large afterwards, a block at
//!   a time and for a bounded share of a core ([`Agent::tend_large_pages`]). While the guest may not touch more, only
//!   blocks without holes are: that takes no memory. Where pages may be out, only those that are used whole.
//!
//! The kernel's own thread for large pages (khugepaged) goes by the same advice, and may be at work on a block in the moment
//! in which that is taken back: then it fills what was a hole when it began. So what went into the balloon or got a frame
//! is looked at again a little later.
//!
//! The kernel makes nothing large that is registered with a userfaultfd, but maps by 2 MiB what is large already. The
//! tracker lets go of a block for as long as it takes. A sample watches most blocks as a whole, by dropping their mappings:
//! a touch maps them again as they were. In a few it watches single pages, and such a block is left in small
//! mappings until all that is watched in it was written to: from then on there is nothing more to be seen, and what
//! is used most is large again soonest. Where a page is left alone the block stays as it is until the next sample.

use super::Agent;
use crate::memory::left_out::{self, is_left_out};
use crate::memory::mapping::{Addresses, advise_large, collapse, drop_mappings};
use crate::memory::pagemap::Touch;
use crate::memory::pages::runs;
use page::PageCount;
use policy::LargePages;
use protocol::LargePageCounters;
use rustix::io::Errno;
use sharing::{BLOCK_PAGES, PageSet};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

/// A block in pages of the memory file.
const BLOCK: u64 = BLOCK_PAGES as u64;
/// The part of a core that making large pages may take, as a divisor.
const CORE_DIVISOR: u32 = 10;
/// How long blocks are looked at in one go.
const LONGEST_LOOK: Duration = Duration::from_millis(10);
/// How long is paused at least between two looks,
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// and when all blocks were looked at and nothing was to be done.
const IDLE_PAUSE: Duration = Duration::from_secs(5);
/// How long is waited when the machine had no memory in one piece, at first and at most.
const NO_MEMORY_PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(64)];

/// How long after a sample has begun its blocks are looked at, at first and at most: each time the double. A guest that
/// uses all of its memory all the time maps each page of them again, so soon is cheap.
const SAMPLE_PAUSE: [Duration; 2] = [Duration::from_millis(8), Duration::from_secs(4)];

/// How long the kernel's thread may be at work on a block.
const LATE_FILL: Duration = Duration::from_millis(100);

/// What the host lets a VM have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LargePageOrder {
    /// Which are made.
    pub pages: LargePages,
    /// Pages that must be in the balloon before the guest may touch all others.
    pub balloon_target: PageCount,
    /// Whether the guest may not touch all that is not in its balloon.
    pub is_limited: bool,
}

/// Why a large page is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Balloon,
    Sharing,
}

/// What the agent knows of a VM's blocks.
#[derive(Debug)]
pub(super) struct LargeBlocks {
    pub(super) order: LargePageOrder,
    /// Those of whole blocks alone.
    blocks: Vec<Block>,
    /// In which a sample watches pages: these.
    sampled: BTreeMap<usize, Vec<u64>>,
    /// Whose mappings were dropped as a whole, so that a touch is seen: nothing else may map them again.
    watched: BTreeSet<usize>,
    /// When those are to be looked at, and how long after that again.
    look_at_sampled: Option<Instant>,
    sample_pause: Duration,
    /// Whether advice may stand for blocks with holes.
    is_advice_given: bool,
    /// The next block to look at.
    next: usize,
    /// Blocks looked at since one was changed.
    unchanged: usize,
    due: Option<Instant>,
    /// When the balloon is to be looked at again.
    look_again: Option<Instant>,
    no_memory_pause: Duration,
    pub(super) counters: LargePageCounters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    is_advised: bool,
    /// When it was last looked at.
    is_large: bool,
}

impl LargeBlocks {
    pub(super) fn new(pages: PageCount) -> Self {
        let whole_blocks = usize::try_from(pages.0 / BLOCK).expect("as many as can be indexed");
        Self {
            order: LargePageOrder::default(),
            blocks: vec![Block::default(); whole_blocks],
            sampled: BTreeMap::new(),
            watched: BTreeSet::new(),
            look_at_sampled: None,
            sample_pause: SAMPLE_PAUSE[0],
            is_advice_given: false,
            next: 0,
            unchanged: 0,
            due: None,
            look_again: None,
            no_memory_pause: NO_MEMORY_PAUSE[0],
            counters: LargePageCounters::default(),
        }
    }

    /// How long until blocks are to be looked at again, if ever.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let dues = [self.due, self.look_again, self.look_at_sampled];
        let due = dues.into_iter().flatten().min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Something may have to be done soon.
    fn hurry(&mut self) {
        self.unchanged = 0;
        let soon = Instant::now() + SHORTEST_PAUSE;
        if self.order.pages != LargePages::Off {
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
    }

    fn set_large(&mut self, number: usize, is_large: bool) {
        let block = &mut self.blocks[number];
        if is_large && !block.is_large {
            self.counters.made += 1;
            self.counters.mapped += PageCount(BLOCK);
        } else if !is_large && block.is_large {
            self.counters.mapped = self.counters.mapped.saturating_sub(PageCount(BLOCK));
        }
        block.is_large = is_large;
    }

    /// The whole blocks that some of these pages are in.
    fn numbers(&self, pages: &Range<u64>) -> Range<usize> {
        let number = |page: u64| usize::try_from(page).unwrap_or(usize::MAX);
        let end = number(pages.end.div_ceil(BLOCK)).min(self.blocks.len());
        number(pages.start / BLOCK).min(end)..end
    }
}

impl Agent {
    /// Takes an order. From its answer on no touch makes more than one page, if the guest may not touch all.
    pub(super) fn order_large_pages(&mut self, order: LargePageOrder) {
        self.large.order = order;
        self.balloon_changed();
        self.look_at_sampled_later();
        match order.pages {
            LargePages::Off => self.large.due = None,
            LargePages::Full | LargePages::Fill => self.large.hurry(),
        }
    }

    /// Whether all that is not in the balloon may be touched.
    pub(super) fn may_fill(&self) -> bool {
        let order = self.large.order;
        let is_given_up = self.sharer.pages.ballooned() >= order.balloon_target.0;
        let may_touch_all = !order.is_limited && !self.is_guarded();
        order.pages == LargePages::Fill && may_touch_all && is_given_up
    }

    /// Before pages are given up or shared: a touch of their blocks makes no more than it needs. Whether that was
    /// otherwise before.
    pub(super) fn break_blocks_of(&mut self, pages: &Range<u64>, reason: Reason) -> bool {
        let numbers = self.large.numbers(pages);
        for number in numbers.clone() {
            self.note_what_may_be_large(number);
            self.large.watched.remove(&number);
            if !self.large.blocks[number].is_large {
                continue;
            }
            self.large.set_large(number, false);
            match reason {
                Reason::Balloon => self.large.counters.broken_by_balloon += 1,
                Reason::Sharing => self.large.counters.broken_by_sharing += 1,
            }
        }
        let advised = runs(numbers.filter(|&number| self.large.blocks[number].is_advised));
        let were_advised = !advised.is_empty();
        self.take_advice_back(advised);
        were_advised
    }

    /// All of a block went out.
    pub(super) fn block_is_out(&mut self, pages: &Range<u64>) {
        for number in self.large.numbers(pages) {
            self.large.set_large(number, false);
        }
        self.publish();
    }

    /// Has the balloon looked at again when nobody can be filling what went into it.
    pub(super) fn look_again_soon(&mut self, is_needed: bool) {
        if is_needed {
            self.large.look_again = Some(Instant::now() + LATE_FILL);
        }
    }

    /// After a change of what is in the balloon.
    pub(super) fn balloon_changed(&mut self) {
        match self.may_fill() {
            true => self.advise(),
            false => self.withdraw_advice(),
        }
    }

    /// Gives advice for all blocks that are the guest's own.
    fn advise(&mut self) {
        if !self.ram.takes_advice() {
            return self.large.hurry();
        }
        self.large.is_advice_given = true;
        let is_new = |&number: &usize| {
            !self.large.blocks[number].is_advised && self.sharer.pages.is_own(number)
        };
        let blocks = 0..self.large.blocks.len();
        for run in runs(blocks.filter(is_new)) {
            let addresses = self.ram.addresses(pages_of(run.clone()));
            let is_advised = advise_large(&addresses).is_ok();
            for block in &mut self.large.blocks[run] {
                block.is_advised = is_advised;
            }
            self.large.hurry();
        }
    }

    /// Takes advice back from all blocks of which a touch could make something. Those that have no holes now can get
    /// some only by what breaks them.
    fn withdraw_advice(&mut self) {
        if !std::mem::take(&mut self.large.is_advice_given) {
            return;
        }
        let has_holes = |agent: &Self, number: usize| {
            let held = agent.sharer.held(pages_of(number..number + 1));
            !held.is_ok_and(|held| held.iter().all(|&is_held| is_held))
        };
        let blocks = 0..self.large.blocks.len();
        let advised = blocks.filter(|&number| self.large.blocks[number].is_advised);
        let with_holes = runs(advised.filter(|&number| has_holes(self, number)));
        self.take_advice_back(with_holes);
    }

    /// From here on no touch makes more than one page.
    pub(super) fn take_all_advice_back(&mut self) {
        self.large.is_advice_given = false;
        self.large.watched.clear();
        self.large.sampled.clear();
        let blocks = 0..self.large.blocks.len();
        let advised = runs(blocks.filter(|&number| self.large.blocks[number].is_advised));
        self.take_advice_back(advised);
        for number in 0..self.large.blocks.len() {
            self.large.set_large(number, false);
        }
        self.large.hurry();
        self.publish();
    }

    /// The memory file is mapped anew, for what was advised is forgotten then.
    fn take_advice_back(&mut self, advised: Vec<Range<usize>>) {
        for run in advised {
            let pages = pages_of(run.clone());
            if let Err(error) = self.sharer.map_home(&pages) {
                tracing::warn!("advice for large pages stands where it should not: {error}");
                continue;
            }
            self.fence.track(&self.ram.addresses(pages));
            for number in run {
                self.large.blocks[number].is_advised = false;
                self.large.set_large(number, false);
            }
        }
    }

    /// Drops the mappings of those of these blocks that are large pages: the next touch of one maps all of it again,
    /// which is to be seen. Returns which, by their places in the list.
    pub(super) fn drop_large_mappings(&mut self, blocks: &[u32]) -> PageSet {
        let stretch = |&number: &u32| {
            let number = usize::try_from(number).ok()?;
            let is_whole = number < self.large.blocks.len() && self.sharer.pages.is_own(number);
            let addresses = is_whole.then(|| self.ram.addresses(pages_of(number..number + 1)))?;
            // One that nobody has touched since the last sample is large still.
            let is_still = self.large.watched.contains(&number);
            let is_large = self.fence.is_large(&addresses)
                || (is_still && !self.fence.is_any_present(&addresses));
            is_large.then_some((number, addresses))
        };
        let found: Vec<_> = (0..BLOCK_PAGES)
            .zip(blocks)
            .filter_map(|(place, number)| Some((place, stretch(number)?)))
            .collect();
        let stretches: Vec<Addresses> = found.iter().map(|(_, (_, at))| at.clone()).collect();
        let dropped = drop_mappings(&stretches);
        self.large.watched.clear();
        for &(_, (number, _)) in &found[..dropped] {
            self.large.watched.insert(number);
            self.large.set_large(number, true);
        }
        found[..dropped].iter().map(|&(place, _)| place).collect()
    }

    /// Those of these pages whose mappings were dropped are watched from now on, and those of the last sample no more.
    pub(super) fn watch_in_large_pages(&mut self, pages: &[u32], dropped: &PageSet) {
        self.large.sampled.clear();
        self.large.sample_pause = SAMPLE_PAUSE[0];
        for page in dropped.iter().map(|place| u64::from(pages[place])) {
            let numbers = self.large.numbers(&(page..page + 1));
            for number in numbers.clone() {
                self.large.sampled.entry(number).or_default().push(page);
            }
            if numbers
                .into_iter()
                .any(|number| self.large.blocks[number].is_large)
                && let Err(error) = self.fence.arm(&self.ram.addresses(page..page + 1))
            {
                tracing::debug!("a sampled page may be mapped with its neighbours: {error}");
            }
        }
        let numbers: Vec<usize> = self.large.sampled.keys().copied().collect();
        for number in numbers {
            self.large.counters.broken_by_sampling += u64::from(self.large.blocks[number].is_large);
            self.large.set_large(number, false);
        }
        self.look_at_sampled_later();
        self.large.hurry();
    }

    fn look_at_sampled_later(&mut self) {
        let makes_any = self.large.order.pages != LargePages::Off;
        let is_needed = makes_any && !self.large.sampled.is_empty();
        let pause = self.large.sample_pause;
        self.large.look_at_sampled = is_needed.then(|| Instant::now() + pause);
        self.large.sample_pause = (pause * 2).min(SAMPLE_PAUSE[1]);
    }

    /// Lets go of blocks in which there is nothing more to be seen.
    fn look_at_sampled(&mut self) {
        let is_done = |pages: &Vec<u64>| {
            let mut touches = pages.iter().map(|&page| {
                let address = self.ram.addresses(page..page + 1).start;
                self.fence.touch(address)
            });
            touches.all(|touch| touch == Some(Touch::Written))
        };
        let done = |(&number, pages)| is_done(pages).then_some(number);
        let done: Vec<usize> = self.large.sampled.iter().filter_map(done).collect();
        for number in done {
            self.large.sampled.remove(&number);
            self.large.watched.remove(&number);
            // There are no more of them than pages in a sample: that is little of a core.
            if self.tend(number).is_some() {
                // There is no memory in one piece: later.
                self.large.hurry();
            }
        }
        self.publish();
        self.look_at_sampled_later();
    }

    /// Looks at some blocks, if it is time.
    pub(super) fn tend_large_pages(&mut self) {
        let begin = Instant::now();
        if self.large.look_again.is_some_and(|at| at <= begin) {
            self.large.look_again = None;
            if let Err(error) = self.remove_popped() {
                tracing::debug!("the balloon is not looked at: {error}");
            }
            self.remove_hidden_or_tell();
        }
        if self.large.look_at_sampled.is_some_and(|at| at <= begin) {
            self.look_at_sampled();
        }
        if self.large.due.is_none_or(|due| due > begin) {
            return;
        }
        let count = self.large.blocks.len();
        let mut pause = None;
        while self.large.unchanged < count && begin.elapsed() < LONGEST_LOOK && pause.is_none() {
            let number = self.large.next;
            self.large.next = (number + 1) % count;
            self.large.unchanged += 1;
            pause = self.tend(number);
        }
        if self.large.unchanged >= count {
            self.large.unchanged = 0;
            pause = pause.or(Some(IDLE_PAUSE));
        }
        // Where other work has the processors, most of that time was not spent here.
        let rest = (begin.elapsed() * (CORE_DIVISOR - 1)).clamp(SHORTEST_PAUSE, IDLE_PAUSE);
        self.large.due = Some(Instant::now() + pause.unwrap_or(rest));
        self.publish();
    }

    /// Looks at one block. How long to leave all alone, if the machine has nothing to give.
    fn tend(&mut self, number: usize) -> Option<Duration> {
        if !self.sharer.pages.is_own(number) {
            self.large.set_large(number, false);
            return None;
        }
        if self.large.sampled.contains_key(&number) {
            return None;
        }
        let pages = pages_of(number..number + 1);
        let addresses = self.ram.addresses(pages.clone());
        if self.fence.is_large(&addresses) {
            self.large.set_large(number, true);
            return None;
        }
        let is_dropped = self.is_guarded() && !self.fence.is_any_present(&addresses);
        if is_dropped || self.large.watched.contains(&number) {
            // It is as large as before, if nobody has touched it.
            return None;
        }
        self.large.set_large(number, false);
        let may_be = match self.is_guarded() {
            true => self.is_used_whole(&pages),
            false => {
                let held = self.sharer.held(pages).unwrap_or_default();
                let held = held.into_iter().filter(|&is_held| is_held).count();
                held == BLOCK_PAGES || (held > 0 && self.may_fill())
            }
        };
        match may_be {
            true => self.make_large(number),
            false => None,
        }
    }

    /// Whether all of a block is there and mapped, so that it is not to go out soon: as a large page it goes as a whole.
    fn is_used_whole(&self, pages: &Range<u64>) -> bool {
        let is_whole = |(own, mapped): (PageSet, PageSet)| {
            own.count() == BLOCK_PAGES && mapped.count() == BLOCK_PAGES
        };
        let is_whole = self.own_and_mapped(pages).is_some_and(is_whole)
            && self.fence.out(pages.clone()).is_empty();
        is_whole || is_left_out(left_out::Step::LargeIsWhole)
    }

    fn make_large(&mut self, number: usize) -> Option<Duration> {
        let addresses = self.ram.addresses(pages_of(number..number + 1));
        let made = self
            .fence
            .unwatched(&addresses, || collapse(&addresses))
            .unwrap_or(Err(Errno::NOMEM));
        // It may be one even where the kernel says it is not.
        self.may_be_large_again(number as u64);
        match made {
            Ok(()) => {
                self.large.set_large(number, true);
                self.large.unchanged = 0;
                self.large.no_memory_pause = NO_MEMORY_PAUSE[0];
                None
            }
            Err(Errno::NOMEM) => {
                self.large.counters.no_memory += 1;
                let pause = self.large.no_memory_pause;
                self.large.no_memory_pause = (pause * 2).min(NO_MEMORY_PAUSE[1]);
                Some(pause)
            }
            Err(_) => {
                self.large.counters.refused += 1;
                None
            }
        }
    }
}

/// The pages of neighbouring blocks, by place in the memory file.
fn pages_of(numbers: Range<usize>) -> Range<u64> {
    numbers.start as u64 * BLOCK..numbers.end as u64 * BLOCK
}

#[cfg(test)]
mod tests;
