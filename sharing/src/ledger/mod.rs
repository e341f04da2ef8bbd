//! What the host believes one VM maps: four bytes a page, and only for blocks where there is something
//! to believe.
//!
//! A belief errs to one side. A guest may have written to a page since, which breaks it; then a frame
//! is kept a while longer than it is needed. Nothing but the agent makes a page show a frame, and the
//! agent's answer comes here, so a page that shows a frame is never missed.

mod place;

use crate::block::{BLOCK_PAGES, PageSet};
use crate::frames::Frame;
use place::PackedPlace;
pub(crate) use place::Place;

/// Pages of one VM, in ESX's words (PSHARE), and the areas that sharing costs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmCounts {
    /// Guest pages that show a frame.
    pub shared: u64,
    /// Guest pages that were found zero and have nothing behind them since.
    pub zero: u64,
    /// Anonymous pages over a frame's mapping.
    pub broken: u64,
    /// Memory areas that the mappings add, at most: one more at each change of what is mapped.
    pub areas: u64,
}

#[derive(Debug)]
struct BlockLedger {
    places: [PackedPlace; BLOCK_PAGES],
    /// Pages of which there is something to believe.
    known: usize,
}

impl BlockLedger {
    fn place(&self, index: usize) -> Place {
        self.places[index].unpack()
    }

    /// Where one mapping ends and another begins, at the pages' borders `from..=to`. At a block's ends
    /// the VM's own memory is taken to follow.
    fn borders(&self, from: usize, to: usize) -> u64 {
        let mapping = |index: Option<usize>| {
            let index = index.filter(|&index| index < BLOCK_PAGES)?;
            let frame = self.place(index).frame()?;
            Some(i64::from(frame.0) - index as i64)
        };
        let is_border = |&border: &usize| mapping(border.checked_sub(1)) != mapping(Some(border));
        (from..=to).filter(is_border).count() as u64
    }
}

#[derive(Debug)]
pub(crate) struct Ledger {
    blocks: Vec<Option<Box<BlockLedger>>>,
    counts: VmCounts,
}

impl Ledger {
    pub(crate) fn new(block_count: usize) -> Self {
        let mut blocks = Vec::new();
        blocks.resize_with(block_count, || None);
        Self {
            blocks,
            counts: VmCounts::default(),
        }
    }

    pub(crate) fn counts(&self) -> VmCounts {
        self.counts
    }

    pub(crate) fn bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<Option<Box<BlockLedger>>>()
            + self.blocks.iter().flatten().count() * size_of::<BlockLedger>()
    }

    pub(crate) fn place(&self, block: u32, index: usize) -> Place {
        let block = self.blocks.get(block as usize).and_then(Option::as_ref);
        block.map_or(Place::Own, |block| block.place(index))
    }

    /// The pages of a block over which a frame is mapped.
    pub(crate) fn mapped(&self, block: u32) -> PageSet {
        let block = self.blocks.get(block as usize).and_then(Option::as_ref);
        let Some(block) = block else {
            return PageSet::EMPTY;
        };
        (0..BLOCK_PAGES)
            .filter(|&index| block.place(index).frame().is_some())
            .collect()
    }

    /// Changes the belief about a page and returns what it was.
    pub(crate) fn set(&mut self, block: u32, index: usize, new: Place) -> Place {
        let old = self.place(block, index);
        if old == new {
            return old;
        }
        let entry = &mut self.blocks[block as usize];
        let ledger = entry.get_or_insert_with(|| {
            Box::new(BlockLedger {
                places: [PackedPlace::OWN; BLOCK_PAGES],
                known: 0,
            })
        });
        self.counts.areas -= ledger.borders(index, index + 1);
        ledger.places[index] = PackedPlace::pack(new);
        self.counts.areas += ledger.borders(index, index + 1);
        ledger.known += usize::from(new != Place::Own);
        ledger.known -= usize::from(old != Place::Own);
        if ledger.known == 0 {
            *entry = None;
        }
        if let Some(count) = self.counts.of(old) {
            *count -= 1;
        }
        if let Some(count) = self.counts.of(new) {
            *count += 1;
        }
        old
    }

    /// Every page of which there is something to believe: (block, index, place).
    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, usize, Place)> {
        (0u32..)
            .zip(&self.blocks)
            .filter_map(|(number, block)| Some((number, block.as_ref()?)))
            .flat_map(|(number, block)| {
                (0..BLOCK_PAGES).map(move |index| (number, index, block.place(index)))
            })
            .filter(|&(_, _, place)| place != Place::Own)
    }

    /// All counts anew from the pages, for the audit.
    pub(crate) fn recount(&self) -> VmCounts {
        let mut counts = VmCounts::default();
        for (_, _, place) in self.all() {
            if let Some(count) = counts.of(place) {
                *count += 1;
            }
        }
        let borders = |block: &BlockLedger| block.borders(0, BLOCK_PAGES);
        counts.areas = self
            .blocks
            .iter()
            .flatten()
            .map(|block| borders(block))
            .sum();
        counts
    }

    /// The frames that pages show.
    pub(crate) fn shared(&self) -> impl Iterator<Item = Frame> {
        self.all().filter_map(|(_, _, place)| match place {
            Place::Shared(frame) => Some(frame),
            _ => None,
        })
    }
}

impl VmCounts {
    fn of(&mut self, place: Place) -> Option<&mut u64> {
        match place {
            Place::Own => None,
            Place::Zero => Some(&mut self.zero),
            Place::Shared(_) => Some(&mut self.shared),
            Place::Broken(_) => Some(&mut self.broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn places() -> impl Strategy<Value = Place> {
        prop_oneof![
            Just(Place::Own),
            Just(Place::Zero),
            (0u32..40).prop_map(|frame| Place::Shared(Frame(frame))),
            (0u32..40).prop_map(|frame| Place::Broken(Frame(frame))),
        ]
    }

    proptest! {
        #[test]
        fn a_ledger_is_a_map_and_its_counts_hold(
            changes in prop::collection::vec((0u32..3, 480usize..512, places()), 0..200)
        ) {
            let mut ledger = Ledger::new(3);
            let mut model = BTreeMap::new();
            for (block, index, place) in changes {
                let old = ledger.set(block, index, place);
                prop_assert_eq!(old, model.insert((block, index), place).unwrap_or(Place::Own));
            }
            model.retain(|_, place| *place != Place::Own);
            let all: BTreeMap<_, _> =
                ledger.all().map(|(block, index, place)| ((block, index), place)).collect();
            prop_assert_eq!(all, model);
            prop_assert_eq!(ledger.counts(), ledger.recount());
        }
    }

    #[test]
    fn a_run_is_one_area_between_two_borders() {
        let mut ledger = Ledger::new(1);
        for index in 10..20 {
            ledger.set(0, index, Place::Shared(Frame(100).after(index)));
        }
        assert_eq!(ledger.counts().areas, 2);
        ledger.set(0, 15, Place::Broken(Frame(115)));
        assert_eq!(ledger.counts().areas, 2, "a broken page splits nothing");
        ledger.set(0, 15, Place::Own);
        assert_eq!(ledger.counts().areas, 4);
    }
}
