//! The embedded guest's page allocator.
//!
//! Workloads take the lowest free frames and the balloon the highest, so that both stay in long
//! runs and the host can give and take long ranges. All it knows is in bitmaps: a free frame is
//! never touched, for an untouched frame costs the host nothing.
//!
//! A block of 2 MiB is worth reporting to the host when it is entirely free and something in it
//! was handed to a workload since it was last reported. What only went through the balloon, or
//! was never used, costs the host nothing already.

use crate::set::FrameSet;
use crate::{BLOCK_FRAMES, Gfn};

/// The free frames of the guest.
#[derive(Debug)]
pub struct Frames<'a> {
    free: FrameSet<'a>,
    /// Blocks of which something was handed to a workload since they were last reported.
    used_blocks: FrameSet<'a>,
    /// Those of them that are entirely free.
    unreported: FrameSet<'a>,
    total: u32,
    handed_out: u64,
}

impl<'a> Frames<'a> {
    /// How many words of storage frames below `limit` need.
    #[must_use]
    pub const fn words_for(limit: Gfn) -> usize {
        FrameSet::words_for(limit) + 2 * FrameSet::words_for(limit.div_ceil(BLOCK_FRAMES))
    }

    /// No frames yet; all will be below `limit`.
    ///
    /// # Panics
    /// If the storage has fewer than [`words_for`](Self::words_for) words.
    #[must_use]
    pub fn new(storage: &'a mut [u64], limit: Gfn) -> Self {
        let blocks = limit.div_ceil(BLOCK_FRAMES);
        let (free, storage) = storage.split_at_mut(FrameSet::words_for(limit));
        let (used_blocks, unreported) = storage.split_at_mut(FrameSet::words_for(blocks));
        Self {
            free: FrameSet::new(free, limit),
            used_blocks: FrameSet::new(used_blocks, blocks),
            unreported: FrameSet::new(unreported, blocks),
            total: 0,
            handed_out: 0,
        }
    }

    /// Adds memory that nobody has used yet.
    pub fn add_untouched(&mut self, frames: core::ops::Range<Gfn>) {
        for gfn in frames {
            self.total += u32::from(self.free.insert(gfn));
        }
    }

    /// Frames that there are, free or not.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// Frames that are free.
    #[must_use]
    pub const fn free_count(&self) -> u32 {
        self.free.count()
    }

    /// Frames handed to workloads since boot: what another system would count as minor faults.
    #[must_use]
    pub const fn handed_out(&self) -> u64 {
        self.handed_out
    }

    /// Blocks that [`isolate_block`](Self::isolate_block) would give.
    #[must_use]
    pub const fn unreported_blocks(&self) -> u32 {
        self.unreported.count()
    }

    /// Hands the lowest free frames to a workload. Returns how many.
    pub fn allocate(&mut self, out: &mut [Gfn]) -> usize {
        let count = self.free.take_lowest(out);
        self.handed_out += count as u64;
        each_block(&out[..count], |block| {
            self.used_blocks.insert(block);
            self.unreported.remove(block);
        });
        count
    }

    /// Takes free frames for the balloon, from the top, long runs first. Returns how many.
    pub fn take_for_balloon(&mut self, out: &mut [Gfn]) -> usize {
        let count = self.free.take_highest(out);
        each_block(&out[..count], |block| {
            self.unreported.remove(block);
        });
        count
    }

    /// Takes frames back, from wherever they were.
    pub fn give_back(&mut self, gfns: &[Gfn]) {
        for &gfn in gfns {
            let was_away = self.free.insert(gfn);
            debug_assert!(was_away, "frame {gfn} was free already");
        }
        each_block(gfns, |block| {
            let whole = self.free.contains_run(block * BLOCK_FRAMES, BLOCK_FRAMES);
            if whole && self.used_blocks.contains(block) {
                self.unreported.insert(block);
            }
        });
    }

    /// Takes out an entirely free block that the host should hear of; its first frame.
    pub fn isolate_block(&mut self) -> Option<Gfn> {
        let block = self.unreported.lowest()?;
        self.unreported.remove(block);
        self.used_blocks.remove(block);
        let first = block * BLOCK_FRAMES;
        for gfn in first..first + BLOCK_FRAMES {
            self.free.remove(gfn);
        }
        Some(first)
    }

    /// Takes an isolated block back, now known to the host.
    pub fn return_block(&mut self, first: Gfn) {
        for gfn in first..first + BLOCK_FRAMES {
            self.free.insert(gfn);
        }
    }
}

/// Calls `act` for each block that the frames are in; once for each run of frames of one block.
fn each_block(gfns: &[Gfn], mut act: impl FnMut(u32)) {
    for run in gfns.chunk_by(|a, b| a / BLOCK_FRAMES == b / BLOCK_FRAMES) {
        act(run[0] / BLOCK_FRAMES);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: Gfn = 8 * BLOCK_FRAMES;

    fn storage() -> Vec<u64> {
        vec![0; Frames::words_for(LIMIT)]
    }

    #[test]
    fn memory_that_was_never_used_is_not_reported() {
        let mut storage = storage();
        let mut frames = Frames::new(&mut storage, LIMIT);
        frames.add_untouched(0..LIMIT);
        let mut out = [0; 600];
        assert_eq!(frames.take_for_balloon(&mut out), 600);
        frames.give_back(&out);
        assert_eq!(frames.isolate_block(), None);
    }

    #[test]
    fn a_block_is_reported_once_after_it_was_used() {
        let mut storage = storage();
        let mut frames = Frames::new(&mut storage, LIMIT);
        frames.add_untouched(0..LIMIT);
        let mut out = [0; 600];
        assert_eq!(frames.allocate(&mut out), 600);
        assert_eq!(frames.isolate_block(), None, "nothing used is free");
        frames.give_back(&out[..512]);
        assert_eq!(frames.isolate_block(), Some(0));
        assert_eq!(frames.free_count(), LIMIT - 600);
        frames.return_block(0);
        assert_eq!(frames.free_count(), LIMIT - 600 + 512);
        assert_eq!(frames.isolate_block(), None, "the host knows it now");
        frames.give_back(&out[512..]);
        assert_eq!(frames.isolate_block(), Some(512));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(usize),
        Balloon(usize),
        GiveBack(usize),
        Report,
    }

    proptest! {
        #[test]
        fn no_frame_is_in_two_places(steps in prop::collection::vec(prop_oneof![
            (1_usize..700).prop_map(Step::Allocate),
            (1_usize..700).prop_map(Step::Balloon),
            (1_usize..700).prop_map(Step::GiveBack),
            Just(Step::Report),
        ], 0..60)) {
            let mut storage = storage();
            let mut frames = Frames::new(&mut storage, LIMIT);
            frames.add_untouched(100..LIMIT);
            let mut away: Vec<Gfn> = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate(count) => {
                        let mut out = vec![0; count];
                        let got = frames.allocate(&mut out);
                        away.extend(&out[..got]);
                    }
                    Step::Balloon(count) => {
                        let mut out = vec![0; count];
                        let got = frames.take_for_balloon(&mut out);
                        away.extend(&out[..got]);
                    }
                    Step::GiveBack(count) => {
                        let keep = away.len().saturating_sub(count);
                        frames.give_back(&away[keep..]);
                        away.truncate(keep);
                    }
                    Step::Report => if let Some(block) = frames.isolate_block() {
                        assert!(away.iter().all(|gfn| gfn / BLOCK_FRAMES != block / BLOCK_FRAMES));
                        frames.return_block(block);
                    },
                }
                let distinct: BTreeSet<_> = away.iter().collect();
                assert_eq!(distinct.len(), away.len());
                assert_eq!(frames.free_count() as usize + away.len(), frames.total() as usize);
            }
        }
    }
}
