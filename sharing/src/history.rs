//! How each page behaved, in four bits, so that volatile pages are left alone.
//!
//! A page has a level from 0 (calm) to 4. A disappointment raises it: its content changed between two
//! visits, it was broken after it was shared, or it came back after it was found zero. At level n it
//! has a turn only on every 2^n-th visit to its block, spread over the pages; the visits between do not
//! count. A turn at which it was found unchanged lowers the level. So the wait doubles with every
//! disappointment, and one who has waited and kept calm is tried again.
//!
//! The four bits hold level and mark: `1 + 3 * level + mark`, 0 for a page never seen. The mark of an
//! unshared page is its hash modulo 3, so that two changes of three are noticed without a bit more;
//! that of a shared page tells whether it was seen shared since. Visits are counted in a byte a block.

use crate::block::{BLOCK_PAGES, PageSet};
use crate::content::ContentHash;

/// The level of the most volatile pages.
pub(crate) const MOST_VOLATILE: u8 = 4;
/// Added when sharing was refused or soon lost, so that it was all cost. A change between visits adds one.
const SOON_LOST: u8 = 2;

const MARK_JUST_SHARED: u8 = 0;
const MARK_SETTLED: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    level: u8,
    mark: u8,
}

impl Memory {
    fn raised(self, by: u8) -> Self {
        let level = (self.level + by).min(MOST_VOLATILE);
        Self { level, ..self }
    }

    fn lowered(self) -> Self {
        let level = self.level.saturating_sub(1);
        Self { level, ..self }
    }

    fn pack(self) -> u8 {
        1 + 3 * self.level + self.mark
    }

    fn unpack(bits: u8) -> Option<Self> {
        let code = bits.checked_sub(1)?;
        Some(Self {
            level: code / 3,
            mark: code % 3,
        })
    }
}

fn mark(hash: ContentHash) -> u8 {
    u8::try_from(hash.0 % 3).expect("below 3")
}

/// The pages of one VM.
#[derive(Debug)]
pub(crate) struct History {
    /// Two pages a byte.
    pages: Vec<u8>,
    visits: Vec<u8>,
}

impl History {
    pub(crate) fn new(block_count: usize) -> Self {
        Self {
            pages: vec![0; block_count * BLOCK_PAGES / 2],
            visits: vec![0; block_count],
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pages.capacity() + self.visits.capacity()
    }

    /// A visit to a block begins.
    pub(crate) fn visit(&mut self, block: u32) {
        let visits = &mut self.visits[block as usize];
        *visits = visits.wrapping_add(1);
    }

    /// How volatile a page is.
    pub(crate) fn level(&self, block: u32, index: usize) -> u8 {
        self.get(block, index).map_or(0, |memory| memory.level)
    }

    /// The pages of a block that are not calm: those with a code of four or more.
    pub(crate) fn volatile(&self, block: u32) -> PageSet {
        let start = block as usize * BLOCK_PAGES / 2;
        let codes = &self.pages[start..start + BLOCK_PAGES / 2];
        // One look at all first: most blocks are calm.
        if codes.iter().fold(0, |all, code| all | code) & 0xcc == 0 {
            return PageSet::EMPTY;
        }
        (0..BLOCK_PAGES)
            .filter(|&index| self.level(block, index) > 0)
            .collect()
    }

    /// Notes the content of an unshared page. True if it is calm, so that it may be hinted or shared.
    pub(crate) fn content_seen(&mut self, block: u32, index: usize, hash: ContentHash) -> bool {
        let now = mark(hash);
        let Some(memory) = self.get(block, index) else {
            self.set(
                block,
                index,
                Memory {
                    level: 0,
                    mark: now,
                },
            );
            return true;
        };
        let is_same = memory.mark == now;
        let has_turn = self.has_turn(block, index);
        let after = match (is_same, has_turn) {
            (false, _) => memory.raised(1),
            (true, true) => memory.lowered(),
            (true, false) => memory,
        };
        self.set(block, index, Memory { mark: now, ..after });
        is_same && has_turn
    }

    /// Notes that a page is zero. True if it may be punched: a page that has just become zero may, for
    /// a guest zeroes what it frees, but one that came back before waits for its turn.
    pub(crate) fn zero_seen(&mut self, block: u32, index: usize) -> bool {
        let level = self.level(block, index);
        let has_turn = self.has_turn(block, index);
        let memory = Memory { level, mark: 0 };
        let after = if has_turn { memory.lowered() } else { memory };
        self.set(block, index, after);
        has_turn
    }

    /// A page shows a frame from now on.
    pub(crate) fn shared(&mut self, block: u32, index: usize) {
        let level = self.level(block, index);
        let mark = MARK_JUST_SHARED;
        self.set(block, index, Memory { level, mark });
    }

    /// A page was seen still shared.
    pub(crate) fn still_shared(&mut self, block: u32, index: usize) {
        let level = self.level(block, index);
        let mut memory = Memory {
            level,
            mark: MARK_SETTLED,
        };
        if self.has_turn(block, index) {
            memory = memory.lowered();
        }
        self.set(block, index, memory);
    }

    /// The guest wrote to a shared page; `now` is what it holds since, if that is known.
    pub(crate) fn broke(&mut self, block: u32, index: usize, now: Option<ContentHash>) {
        let level = self.level(block, index);
        let was_settled =
            matches!(self.get(block, index), Some(memory) if memory.mark == MARK_SETTLED);
        let memory = Memory {
            level,
            mark: now.map_or(0, mark),
        };
        self.set(
            block,
            index,
            memory.raised(if was_settled { 1 } else { SOON_LOST }),
        );
    }

    /// The first look at what a page holds since it broke.
    pub(crate) fn first_seen(&mut self, block: u32, index: usize, now: ContentHash) {
        let level = self.level(block, index);
        let mark = mark(now);
        self.set(block, index, Memory { level, mark });
    }

    /// A page that was found zero is in use again.
    pub(crate) fn zero_came_back(&mut self, block: u32, index: usize) {
        let level = self.level(block, index);
        self.set(block, index, Memory { level, mark: 0 }.raised(SOON_LOST));
    }

    /// A comparison failed: the page changed while it was being shared, or is another one with its hash.
    pub(crate) fn differed(&mut self, block: u32, index: usize) {
        if let Some(memory) = self.get(block, index) {
            self.set(block, index, memory.raised(SOON_LOST));
        }
    }

    /// Visits to a block so far, modulo 256.
    pub(crate) fn visits(&self, block: u32) -> usize {
        usize::from(self.visits[block as usize])
    }

    /// Whether this visit is one at which the page is tried.
    pub(crate) fn has_turn(&self, block: u32, index: usize) -> bool {
        (self.visits(block) + index).is_multiple_of(1 << self.level(block, index))
    }

    fn get(&self, block: u32, index: usize) -> Option<Memory> {
        let page = block as usize * BLOCK_PAGES + index;
        Memory::unpack(self.pages[page / 2] >> (page % 2 * 4) & 0xf)
    }

    fn set(&mut self, block: u32, index: usize, memory: Memory) {
        let page = block as usize * BLOCK_PAGES + index;
        let shift = page % 2 * 4;
        let byte = &mut self.pages[page / 2];
        *byte = *byte & !(0xf << shift) | memory.pack() << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many of `visits` visits find the page fit, when it holds what `content` says at each.
    fn fit(visits: u64, content: impl Fn(u64) -> u64) -> usize {
        let mut history = History::new(1);
        let is_fit = |visit: &u64| {
            history.visit(0);
            history.content_seen(0, 3, ContentHash(content(*visit)))
        };
        (0..visits).filter(is_fit).count()
    }

    #[test]
    fn a_calm_page_is_fit_at_every_visit() {
        assert_eq!(fit(20, |_| 77), 20);
    }

    #[test]
    fn a_restless_page_is_hardly_ever_fit() {
        assert!(fit(320, |visit| visit) <= 1);
        assert!(fit(320, |visit| visit / 2) <= 40);
    }

    /// Each time that it is shared it breaks: the sharings become rare.
    #[test]
    fn one_that_breaks_each_time_waits_ever_longer() {
        let mut history = History::new(1);
        let mut shared_at = Vec::new();
        for visit in 0..200 {
            history.visit(0);
            if history.content_seen(0, 0, ContentHash(9)) {
                shared_at.push(visit);
                history.shared(0, 0);
                history.broke(0, 0, Some(ContentHash(9)));
            }
        }
        assert!(shared_at.len() <= 17, "{shared_at:?}");
        let waits: Vec<i32> = shared_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.iter().skip(2).all(|&wait| wait >= 8), "{waits:?}");
    }

    #[test]
    fn one_that_calmed_down_is_fit_again() {
        let mut history = History::new(1);
        for visit in 0..10 {
            history.visit(0);
            history.content_seen(0, 0, ContentHash(visit));
        }
        for _ in 0..40 {
            history.visit(0);
            history.content_seen(0, 0, ContentHash(5));
        }
        assert_eq!(history.level(0, 0), 0);
    }

    #[test]
    fn a_zero_page_that_comes_back_waits() {
        let mut history = History::new(1);
        let mut punched = 0;
        for _ in 0..160 {
            history.visit(0);
            if history.zero_seen(0, 0) {
                punched += 1;
                history.zero_came_back(0, 0);
            }
        }
        assert!((10..=25).contains(&punched), "{punched}");
    }

    proptest! {
        #[test]
        fn four_bits_hold_what_is_put(level in 0..=MOST_VOLATILE, mark in 0u8..3, other in 0usize..512) {
            let memory = Memory { level, mark };
            prop_assert!(memory.pack() < 16);
            let mut history = History::new(2);
            history.set(1, 5, memory);
            history.set(1, other, Memory { level: 2, mark: 2 });
            prop_assert!(other == 5 || history.get(1, 5) == Some(memory));
            prop_assert_eq!(history.get(0, other), None);
        }
    }
}
