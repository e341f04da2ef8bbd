//! Which pages go out: those that their guest has not used for longest, as far as that may be found out.
//!
//! Whether a page is used shows once its mapping has been dropped: a touch maps it again. (Corbató's clock; a mapping is the bit
//! of use, for the kernel's is not to be had from here.) That costs the guest a fault for each page that it uses, so **one hand
//! drops mappings, at a bounded rate**, and another, which goes as fast as pages must leave, takes what the first left and
//! nobody touched. Where it finds none for a while, the guest uses what it has faster than can be seen, and which page goes
//! matters little: any does, drawn at random, for that costs nothing. A block of which nearly all was touched again is looked at
//! less often: what is used stays so, mostly, and the faults tell more elsewhere.
//!
//! Pure: what is mapped is told, and what is to be done returned.

use page::Random;
use sharing::{BLOCK_PAGES, PageSet};
use std::time::{Duration, Instant};

/// Pages that go out behind one fence.
const AT_ONCE: usize = 64;
/// Blocks that are looked at before any page goes that is used.
const LOOK_AHEAD: u64 = 16;
/// Faults a second that the hand that drops mappings may cause. One is some 3 µs of a processor's time: about a hundredth of it.
const FAULTS_PER_S: i64 = 4096;
/// No more than so many for each page that goes out: who takes little out need not know more.
const FAULTS_A_PAGE: i64 = 1;
/// Of which so many may be saved up.
const MOST_FAULTS: i64 = FAULTS_PER_S / 4;
const BILLION: i64 = 1_000_000_000;
/// Of so many pages no more than one was left when a block counts as used.
const NEARLY_ALL: usize = 16;
/// Rounds that such a block is passed by: one, and three if it is so again.
const MOST_USED: u8 = 2;
/// How long a page whose mapping was dropped is given to be touched.
const LEAST_AGE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Clock {
    blocks: Vec<Block>,
    /// The block that is taken from next.
    taking: u64,
    /// Blocks looked at since a page went out.
    in_vain: u64,
    /// The block whose mappings are dropped next.
    dropping: u64,
    /// Faults that it may cause now, in billionths; negative after it caused too many.
    faults: i64,
    /// Faults that are worth it, for the pages that went out.
    worth: i64,
    refilled: Option<Instant>,
    random: Random,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// All of it was, and nothing made a large page there since.
    is_punched: bool,
    dropped: Option<Instant>,
    /// How often in a row nearly all of it had been touched again,
    used: u8,
    /// and how many rounds of the hand pass it by from now on.
    rests: u8,
}

impl Clock {
    /// Over so many blocks.
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); blocks],
            taking: 0,
            in_vain: 0,
            dropping: 0,
            faults: 0,
            worth: 0,
            refilled: None,
            random: Random::new(1),
        }
    }

    fn count(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn block(&self, number: u64) -> Block {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        self.blocks.get(number).copied().unwrap_or_default()
    }

    fn block_mut(&mut self, number: u64) -> Option<&mut Block> {
        self.blocks.get_mut(usize::try_from(number).ok()?)
    }

    /// Memory may be large again, all of it.
    pub(super) fn forget(&mut self) {
        self.blocks.fill(Block::default());
    }

    /// All of a block was punched.
    pub(super) fn punched(&mut self, number: u64) {
        if let Some(block) = self.block_mut(number) {
            block.is_punched = true;
        }
    }

    /// The block may be a large page from here on.
    pub(super) fn may_be_large_again(&mut self, number: u64) {
        if let Some(block) = self.block_mut(number) {
            block.is_punched = false;
        }
    }

    pub(super) fn may_be_large(&self, number: u64) -> bool {
        !self.block(number).is_punched
    }

    /// The block to take pages from now. None where even what is used was looked at in vain: all of it stays for some reason.
    pub(super) fn next_to_take(&mut self) -> Option<u64> {
        self.in_vain += 1;
        if self.in_vain > 2 * self.count() + LOOK_AHEAD {
            self.in_vain = 0;
            return None;
        }
        let number = self.taking;
        self.taking = (number + 1) % self.count().max(1);
        Some(number)
    }

    /// So many pages went out.
    pub(super) fn took(&mut self, count: u64) {
        self.in_vain = 0;
        let faults = i64::try_from(count).unwrap_or(i64::MAX);
        let worth = faults.saturating_mul(FAULTS_A_PAGE);
        self.worth = self.worth.saturating_add(worth).min(MOST_FAULTS);
    }

    /// What of a block goes out, of which so many are wanted: of what it holds, some of which is mapped. All of one that may
    /// be a large page, or nothing.
    pub(super) fn choose(
        &mut self,
        number: u64,
        own: &PageSet,
        mapped: &PageSet,
        wanted: u64,
        now: Instant,
    ) -> PageSet {
        let block = self.block(number);
        let had_time = |dropped| now.saturating_duration_since(dropped) >= LEAST_AGE;
        let is_old = block.dropped.is_none_or(had_time);
        let unused = match is_old {
            true => own.without(mapped),
            false => PageSet::EMPTY,
        };
        let most = usize::try_from(wanted).unwrap_or(usize::MAX).min(AT_ONCE);
        // All blocks have the same chance to be the one from which something goes that is used.
        let is_any_due = self.in_vain > LOOK_AHEAD.min(self.count().saturating_sub(1));
        match block.is_punched {
            false if is_any_due || unused == *own => *own,
            false => PageSet::EMPTY,
            true if !unused.is_empty() => unused.iter().take(most).collect(),
            true if is_any_due => self.any(own, most),
            true => PageSet::EMPTY,
        }
    }

    /// Neighbours, which are quickly taken and brought back together.
    fn any(&mut self, own: &PageSet, most: usize) -> PageSet {
        let others = own.count().saturating_sub(most);
        let first = usize::try_from(self.random.below(others as u64 + 1)).unwrap_or(0);
        own.iter().skip(first).take(most).collect()
    }

    /// The block whose mappings may be dropped now.
    pub(super) fn next_to_drop(&mut self, now: Instant) -> Option<u64> {
        let gone = self
            .refilled
            .map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        self.refilled = Some(now);
        let gone = i64::try_from(gone.as_nanos()).unwrap_or(i64::MAX);
        let earned = gone.saturating_mul(FAULTS_PER_S);
        self.faults = self
            .faults
            .saturating_add(earned)
            .min(MOST_FAULTS * BILLION);
        if self.faults <= 0 || self.worth <= 0 {
            return None;
        }
        for _ in 0..self.count() {
            match self.block_mut(self.dropping) {
                Some(block) if block.rests > 0 => block.rests -= 1,
                _ => break,
            }
            self.dropping = (self.dropping + 1) % self.count();
        }
        Some(self.dropping)
    }

    /// They were, of pages that take so many faults to be mapped again; so many of its pages were not mapped.
    pub(super) fn dropped(&mut self, faults: u64, unmapped: usize, now: Instant) {
        let number = self.dropping;
        self.dropping = (number + 1) % self.count().max(1);
        let faults = i64::try_from(faults).unwrap_or(i64::MAX);
        self.faults = self.faults.saturating_sub(faults.saturating_mul(BILLION));
        self.worth = self.worth.saturating_sub(faults);
        if let Some(block) = self.block_mut(number) {
            // Before that it may have been touched long ago.
            let is_used = block.dropped.is_some() && unmapped <= BLOCK_PAGES / NEARLY_ALL;
            block.used = match is_used {
                true => (block.used + 1).min(MOST_USED),
                false => 0,
            };
            block.rests = (1 << block.used) - 1;
            block.dropped = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: usize = 40;

    fn clock() -> Clock {
        let mut clock = Clock::new(BLOCKS);
        (0..BLOCKS as u64).for_each(|number| clock.punched(number));
        clock
    }

    fn places(range: std::ops::Range<usize>) -> PageSet {
        range.collect()
    }

    #[test]
    fn what_is_not_mapped_goes_once_it_had_time_to_be_touched() {
        let (mut clock, begin) = (clock(), Instant::now());
        clock.took(1);
        let (own, mapped) = (places(0..500), places(0..490));
        assert_eq!(clock.next_to_drop(begin), None, "nothing is saved up");
        let later = begin + Duration::from_secs(1);
        assert_eq!(clock.next_to_drop(later), Some(0));
        clock.dropped(490, 10, later);
        let number = clock.next_to_take().unwrap();
        let soon = later + LEAST_AGE / 2;
        assert_eq!(
            clock.choose(number, &own, &mapped, 64, soon),
            PageSet::EMPTY
        );
        let late = later + LEAST_AGE;
        assert_eq!(
            clock.choose(number, &own, &mapped, 64, late),
            places(490..500)
        );
        assert_eq!(
            clock.choose(number, &own, &mapped, 3, late),
            places(490..493)
        );
    }

    /// How many blocks are looked at until one gives something, where all is mapped, and what that gives.
    fn take(clock: &mut Clock, own: &PageSet) -> (u64, u64, PageSet) {
        let mut looked = 0;
        loop {
            looked += 1;
            let number = clock.next_to_take().unwrap();
            let chosen = clock.choose(number, own, own, 10, Instant::now());
            if !chosen.is_empty() {
                clock.took(chosen.count() as u64);
                return (looked, number, chosen);
            }
        }
    }

    #[test]
    fn where_all_is_used_any_goes_after_some_blocks_and_of_a_large_page_all() {
        let (mut clock, own) = (clock(), places(0..512));
        let (looked, _, taken) = take(&mut clock, &own);
        assert_eq!((looked, taken.count()), (LOOK_AHEAD + 1, 10));
        let first = taken.iter().next().unwrap();
        assert!(taken == places(first..first + 10) && first > 0, "at random");
        clock.forget();
        assert_eq!(take(&mut clock, &own).2, own, "as a whole");
    }

    /// Else the same few would go again and again.
    #[test]
    fn all_blocks_have_the_same_chance_large_or_not() {
        let (mut clock, own) = (clock(), places(0..512));
        clock.forget();
        (0..10).for_each(|number| clock.punched(number));
        let mut times = [0; BLOCKS];
        for _ in 0..400 {
            let (_, number, _) = take(&mut clock, &own);
            times[usize::try_from(number).unwrap()] += 1;
        }
        assert!(times.iter().all(|&times| times == 10), "{times:?}");
    }

    /// In ten seconds, with so many pages going out in each hundredth of one.
    fn faults(pages: u64) -> i64 {
        let (mut clock, begin) = (clock(), Instant::now());
        let mut faults: i64 = 0;
        for ms in 0..10_000 {
            let now = begin + Duration::from_millis(ms);
            clock.took(if ms % 10 == 0 { pages } else { 0 });
            while clock.next_to_drop(now).is_some() {
                faults += 512;
                clock.dropped(512, 100, now);
            }
        }
        faults
    }

    /// However much is mapped again, and however often is asked.
    #[test]
    fn mappings_are_dropped_at_a_bounded_rate_and_not_for_nothing() {
        assert_eq!(faults(0), 0);
        let (few, worth) = (faults(1), 1000 * FAULTS_A_PAGE);
        assert!((worth - 512..=worth + 512).contains(&few), "{few}");
        let faults = faults(1000);
        assert!(
            (9 * FAULTS_PER_S..=10 * FAULTS_PER_S + 512).contains(&faults),
            "{faults}"
        );
    }

    #[test]
    fn a_block_that_is_used_is_looked_at_less_often_and_again_when_it_is_not() {
        let (mut clock, begin) = (clock(), Instant::now());
        let mut looked = Vec::new();
        for second in 0..15 * BLOCKS as u64 {
            clock.took(1000);
            let now = begin + Duration::from_secs(second);
            if let Some(number) = clock.next_to_drop(now) {
                // One is used for some time, all others are in part.
                let is_used = number == 7 && looked.len() < 8 * BLOCKS;
                clock.dropped(100, if is_used { 3 } else { 300 }, now);
                looked.push(number);
            }
        }
        let round = |at: usize| looked[..at].iter().filter(|&&number| number == 6).count();
        let of_used: Vec<usize> = (0..looked.len())
            .filter(|&at| looked[at] == 7)
            .map(round)
            .collect();
        assert_eq!(of_used[..4], [1, 2, 4, 8], "{of_used:?}");
        assert_eq!(of_used[4] - of_used[3], 4, "{of_used:?}");
        assert_eq!(of_used[6] - of_used[5], 1, "{of_used:?}");
    }

    #[test]
    fn when_nothing_can_go_it_is_said_after_two_rounds() {
        let mut clock = clock();
        let looked = std::iter::from_fn(|| clock.next_to_take()).count() as u64;
        assert_eq!(looked, 2 * BLOCKS as u64 + LOOK_AHEAD);
        assert!(clock.next_to_take().is_some(), "and later tried again");
    }
}
