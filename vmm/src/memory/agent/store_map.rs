//! Which frame of the store is mapped over which page: what the agent itself has brought about.

use sharing::{BLOCK_PAGES, Frame};
use std::ops::Range;

/// No frame has this number: stores are smaller.
const NONE: u32 = u32::MAX;

/// By the page's place in the memory file; four bytes a page, for blocks in which a frame is mapped.
#[derive(Debug)]
pub(super) struct StoreMap {
    blocks: Vec<Option<Box<[u32; BLOCK_PAGES]>>>,
    mapped: u64,
}

impl StoreMap {
    /// Nothing is mapped.
    pub(super) fn new(pages: u64) -> Self {
        let blocks = pages.div_ceil(BLOCK_PAGES as u64);
        let blocks = usize::try_from(blocks).expect("as many blocks as can be indexed");
        Self {
            blocks: (0..blocks).map(|_| None).collect(),
            mapped: 0,
        }
    }

    /// Pages with a frame over them.
    pub(super) fn mapped(&self) -> u64 {
        self.mapped
    }

    fn place(index: u64) -> (usize, usize) {
        let index = usize::try_from(index).expect("as many pages as can be indexed");
        (index / BLOCK_PAGES, index % BLOCK_PAGES)
    }

    pub(super) fn frame(&self, index: u64) -> Option<Frame> {
        let (block, place) = Self::place(index);
        let frame = self.blocks.get(block)?.as_ref()?[place];
        (frame != NONE).then_some(Frame(frame))
    }

    pub(super) fn set(&mut self, index: u64, frame: Option<Frame>) {
        let (block, place) = Self::place(index);
        let frame = frame.map_or(NONE, |frame| frame.0);
        if frame == NONE && self.blocks[block].is_none() {
            return;
        }
        let frames = self.blocks[block].get_or_insert_with(|| Box::new([NONE; BLOCK_PAGES]));
        let old = std::mem::replace(&mut frames[place], frame);
        self.mapped += u64::from(frame != NONE);
        self.mapped -= u64::from(old != NONE);
        if frame == NONE && frames.iter().all(|&frame| frame == NONE) {
            self.blocks[block] = None;
        }
    }

    /// The runs of pages in `pages` that have a frame over them.
    pub(super) fn runs(&self, pages: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        if self.mapped == 0 {
            return runs;
        }
        for index in pages.filter(|&index| self.frame(index).is_some()) {
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_store_map_is_a_map(changes in prop::collection::vec((0u64..1100, prop::option::of(0u32..9)), 0..200)) {
            let mut map = StoreMap::new(1100);
            let mut model = BTreeMap::new();
            for (index, frame) in changes {
                map.set(index, frame.map(Frame));
                match frame {
                    Some(frame) => drop(model.insert(index, Frame(frame))),
                    None => drop(model.remove(&index)),
                }
            }
            prop_assert_eq!(map.mapped(), model.len() as u64);
            prop_assert!((0..1200).all(|index| map.frame(index) == model.get(&index).copied()));
            let in_runs: Vec<u64> = map.runs(100..1000).into_iter().flatten().collect();
            let expected: Vec<u64> = model.range(100..1000).map(|(&index, _)| index).collect();
            prop_assert_eq!(in_runs, expected);
            let is_gone = model.is_empty();
            prop_assert!(!is_gone || map.blocks.iter().all(Option::is_none));
        }
    }
}
