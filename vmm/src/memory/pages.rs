//! Where each page of a VM is: the one table of it, which the VM's agent owns.
//!
//! A hole in the memory file is no fact about a page: pages that the guest has given up are holes, and those
//! that it has never touched. So what was done with a page is kept here. What the guest does by itself is asked of the
//! kernel: whether a page of its own is there already (private) or not (empty), and whether it has written to
//! a shared one (broken).
//!
//! Pages are named by their place in the memory file, and kept by block: what may be done with a block as
//! a whole hangs on what is in it.

use sharing::{BLOCK_PAGES, Frame, PageSet};
use std::ops::{Add, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// No frame has this number: stores are smaller.
const NONE: u32 = u32::MAX;

/// Where a page is, as far as the agent has brought it about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the memory file, or nowhere until the guest touches it.
    Own,
    /// In the balloon: nowhere, until its guest takes it back.
    Ballooned,
    /// In a frame of the store, which is mapped over it, or in a copy that the guest has made of it since.
    Shared(Frame),
}

/// Which pages are not the guest's own, for those who may only read: that they make no page there.
#[derive(Debug)]
pub(super) struct NotOwn {
    /// Those that have a frame over them. Behind a fence that keeps all out it may be about to change; elsewhere no page is
    /// missing here that shows a frame.
    pub(super) frames: Published,
    /// Those in the balloon. None is missing here of which the log has let go for it, and no answer was given yet.
    pub(super) ballooned: Published,
}

/// A set of pages that others read while it changes.
#[derive(Debug)]
pub(super) struct Published(Vec<AtomicU64>);

impl Published {
    fn none_of(pages: u64) -> Self {
        let words = pages.div_ceil(u64::BITS.into());
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether a page is in it.
    pub(super) fn contains(&self, index: u64) -> bool {
        let (word, bit) = Self::find(index);
        self.0[word].load(Ordering::Acquire) & bit != 0
    }

    fn set(&self, index: u64, is_in: bool) {
        let (word, bit) = Self::find(index);
        match is_in {
            true => self.0[word].fetch_or(bit, Ordering::Release),
            false => self.0[word].fetch_and(!bit, Ordering::Release),
        };
    }

    /// Pages of a block.
    fn set_all(&self, block: usize, pages: &PageSet, is_in: bool) {
        let first = (block * BLOCK_PAGES) as u64;
        for place in pages.iter() {
            self.set(first + place as u64, is_in);
        }
    }

    fn find(index: u64) -> (usize, u64) {
        let word =
            usize::try_from(index / u64::from(u64::BITS)).expect("as many as can be indexed");
        (word, 1 << (index % u64::from(u64::BITS)))
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct PageTable {
    blocks: Vec<Block>,
    not_own: Arc<NotOwn>,
    ballooned: u64,
    shared: u64,
}

/// A page is in the balloon or has a frame, never both.
#[derive(Debug, Default)]
struct Block {
    ballooned: PageSet,
    /// Only for blocks that have some: four bytes a page.
    frames: Option<Box<[u32; BLOCK_PAGES]>>,
}

impl PageTable {
    /// All pages are the guest's own.
    pub(super) fn new(pages: u64) -> Self {
        let blocks = pages.div_ceil(BLOCK_PAGES as u64);
        Self {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            not_own: Arc::new(NotOwn {
                frames: Published::none_of(pages),
                ballooned: Published::none_of(pages),
            }),
            ballooned: 0,
            shared: 0,
        }
    }

    /// Those that are not the guest's own.
    pub(super) fn not_own(&self) -> &Arc<NotOwn> {
        &self.not_own
    }

    /// Pages in the balloon.
    pub(super) fn ballooned(&self) -> u64 {
        self.ballooned
    }

    /// Pages with a frame over them.
    pub(super) fn shared(&self) -> u64 {
        self.shared
    }

    /// Whether all of a block is the guest's own.
    pub(super) fn is_own(&self, block: usize) -> bool {
        let block = &self.blocks[block];
        block.ballooned.is_empty() && block.frames.is_none()
    }

    /// The blocks of which some pages have frames over them, each with those.
    pub(super) fn with_frames(&self) -> impl Iterator<Item = (u64, PageSet)> {
        let blocks = (0..).zip(&self.blocks);
        let with_frames = blocks.filter(|(_, block)| block.frames.is_some());
        with_frames.map(|(number, block)| (number, block.with_frames()))
    }

    /// Where a page is.
    pub(super) fn place(&self, index: u64) -> Place {
        let (block, page) = place_of(index);
        let Some(block) = self.blocks.get(block) else {
            return Place::Own;
        };
        match &block.frames {
            Some(frames) if frames[page] != NONE => Place::Shared(Frame(frames[page])),
            _ if block.ballooned.contains(page) => Place::Ballooned,
            _ => Place::Own,
        }
    }

    /// The frame that is mapped over a page.
    pub(super) fn frame(&self, index: u64) -> Option<Frame> {
        match self.place(index) {
            Place::Shared(frame) => Some(frame),
            Place::Own | Place::Ballooned => None,
        }
    }

    /// A frame is mapped over a page from now on. A guest that gave the page up may be using it all the
    /// same: it has taken it back without a word then. Returns whether it has.
    pub(super) fn share(&mut self, index: u64, frame: Frame) -> bool {
        let has_popped = self.deflate(index..index + 1) > 0;
        let (block, page) = place_of(index);
        let frames = &mut self.blocks[block].frames;
        let frames = frames.get_or_insert_with(|| Box::new([NONE; BLOCK_PAGES]));
        let before = std::mem::replace(&mut frames[page], frame.0);
        self.shared += u64::from(before == NONE);
        self.not_own.frames.set(index, true);
        has_popped
    }

    /// No frame is mapped over a page any more.
    pub(super) fn unshare(&mut self, index: u64) {
        let (block, page) = place_of(index);
        let Some(frames) = &mut self.blocks[block].frames else {
            return;
        };
        let before = std::mem::replace(&mut frames[page], NONE);
        self.shared -= u64::from(before != NONE);
        self.not_own.frames.set(index, false);
        if frames.iter().all(|&frame| frame == NONE) {
            self.blocks[block].frames = None;
        }
    }

    /// The guest has given up pages. Those that have a frame over them keep it, for it could not be taken
    /// away. Returns how many are in the balloon now that were not before.
    pub(super) fn inflate(&mut self, pages: Range<u64>) -> u64 {
        let not_own = Arc::clone(&self.not_own);
        let added = self.change(pages, |number, block, pages| {
            let pages = pages.without(&block.with_frames());
            let added = pages.without(&block.ballooned);
            block.ballooned = block.ballooned.union(&added);
            not_own.ballooned.set_all(number, &added, true);
            added.count() as u64
        });
        self.ballooned += added;
        added
    }

    /// The guest has taken pages back. Returns how many of them were in the balloon.
    pub(super) fn deflate(&mut self, pages: Range<u64>) -> u64 {
        let not_own = Arc::clone(&self.not_own);
        let removed = self.change(pages, |number, block, pages| {
            let left = block.ballooned.without(&pages);
            let removed = block.ballooned.without(&left);
            block.ballooned = left;
            not_own.ballooned.set_all(number, &removed, false);
            removed.count() as u64
        });
        self.ballooned -= removed;
        removed
    }

    /// The guest knows nothing of its balloon any more.
    pub(super) fn pop(&mut self) {
        for (number, block) in self.blocks.iter_mut().enumerate() {
            let all = std::mem::take(&mut block.ballooned);
            self.not_own.ballooned.set_all(number, &all, false);
        }
        self.ballooned = 0;
    }

    /// The blocks of which pages are in the balloon, each as the pages from its first such page to its
    /// last: collected, for who looks at them may take some out.
    pub(super) fn with_ballooned(&self) -> Vec<Range<u64>> {
        let hull = |(number, block): (usize, &Block)| {
            let first = block.ballooned.iter().next()?;
            let last = block.ballooned.iter().last()?;
            let start = (number * BLOCK_PAGES) as u64;
            Some(start + first as u64..start + last as u64 + 1)
        };
        self.blocks.iter().enumerate().filter_map(hull).collect()
    }

    /// The runs of pages in `pages` that have a frame over them.
    pub(super) fn shared_runs(&self, pages: Range<u64>) -> Vec<Range<u64>> {
        if self.shared == 0 {
            return Vec::new();
        }
        runs(pages.filter(|&index| self.frame(index).is_some()))
    }

    /// Sums what `act` returns for each block and those of the pages that lie in it.
    fn change(
        &mut self,
        pages: Range<u64>,
        mut act: impl FnMut(usize, &mut Block, PageSet) -> u64,
    ) -> u64 {
        let mut sum = 0;
        let mut at = pages.start;
        while at < pages.end {
            let (number, first) = place_of(at);
            let left = usize::try_from(pages.end - at).unwrap_or(BLOCK_PAGES);
            let count = left.min(BLOCK_PAGES - first);
            let pages = PageSet::run(first, count);
            sum += act(number, &mut self.blocks[number], pages);
            at += count as u64;
        }
        sum
    }
}

/// The block that a page is in, and which it is there.
pub(super) fn place_of(index: u64) -> (usize, usize) {
    let index = usize::try_from(index).expect("as many pages as can be indexed");
    (index / BLOCK_PAGES, index % BLOCK_PAGES)
}

/// Ascending numbers as runs of neighbours, each of which one call serves.
pub(super) fn runs<N>(numbers: impl Iterator<Item = N>) -> Vec<Range<N>>
where
    N: Copy + PartialEq + Add<Output = N> + From<u8>,
{
    let one = N::from(1);
    let mut runs: Vec<Range<N>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end = number + one,
            _ => runs.push(number..number + one),
        }
    }
    runs
}

impl Block {
    fn with_frames(&self) -> PageSet {
        let frames = self.frames.iter().flat_map(|frames| frames.iter());
        let places = frames.enumerate().filter(|&(_, &frame)| frame != NONE);
        places.map(|(place, _)| place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PAGES: u64 = 1100;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Share(u64, u32),
        Unshare(u64),
        Inflate(u64, u64),
        Deflate(u64, u64),
        Pop,
    }

    fn step() -> impl Strategy<Value = Step> {
        let run = (0..PAGES - 600, 0u64..600);
        prop_oneof![
            4 => (0..PAGES, 0u32..9).prop_map(|(index, frame)| Step::Share(index, frame)),
            3 => (0..PAGES).prop_map(Step::Unshare),
            4 => run.clone().prop_map(|(start, count)| Step::Inflate(start, count)),
            3 => run.prop_map(|(start, count)| Step::Deflate(start, count)),
            1 => Just(Step::Pop),
        ]
    }

    /// By page, what is not the guest's own.
    type Model = BTreeMap<u64, Place>;

    fn ballooned(model: &Model) -> u64 {
        let places = model.values();
        places.filter(|place| **place == Place::Ballooned).count() as u64
    }

    /// As a page after the other would be changed.
    fn change(model: &mut Model, step: Step) -> u64 {
        let before = ballooned(model);
        match step {
            Step::Share(index, frame) => {
                model.insert(index, Place::Shared(Frame(frame)));
            }
            Step::Unshare(index) => {
                if matches!(model.get(&index), Some(Place::Shared(_))) {
                    model.remove(&index);
                }
            }
            Step::Inflate(start, count) => (start..start + count).for_each(|index| {
                model.entry(index).or_insert(Place::Ballooned);
            }),
            Step::Deflate(start, count) => (start..start + count).for_each(|index| {
                if model.get(&index) == Some(&Place::Ballooned) {
                    model.remove(&index);
                }
            }),
            Step::Pop => model.retain(|_, place| *place != Place::Ballooned),
        }
        before.abs_diff(ballooned(model))
    }

    proptest! {
        #[test]
        fn a_page_is_where_the_last_step_put_it(steps in prop::collection::vec(step(), 0..60)) {
            let (mut table, mut model) = (PageTable::new(PAGES), Model::new());
            for step in steps {
                let changed = change(&mut model, step);
                match step {
                    Step::Share(index, frame) => {
                        prop_assert_eq!(u64::from(table.share(index, Frame(frame))), changed);
                    }
                    Step::Unshare(index) => table.unshare(index),
                    Step::Inflate(start, count) => {
                        prop_assert_eq!(table.inflate(start..start + count), changed);
                    }
                    Step::Deflate(start, count) => {
                        prop_assert_eq!(table.deflate(start..start + count), changed);
                    }
                    Step::Pop => table.pop(),
                }
            }
            for number in 0..table.blocks.len() {
                let start = number as u64 * 512;
                let is_own = !model.range(start..start + 512).any(|_| true);
                prop_assert_eq!(table.is_own(number), is_own);
            }
            for index in 0..PAGES {
                let (place, not_own) = (table.place(index), table.not_own());
                prop_assert_eq!(not_own.frames.contains(index), matches!(place, Place::Shared(_)));
                prop_assert_eq!(not_own.ballooned.contains(index), place == Place::Ballooned);
            }
            for index in 0..PAGES + 100 {
                prop_assert_eq!(table.place(index), model.get(&index).copied().unwrap_or(Place::Own));
            }
            let shared: Vec<u64> = model.iter().filter(|(_, place)| **place != Place::Ballooned)
                .map(|(&index, _)| index).collect();
            prop_assert_eq!(table.shared(), shared.len() as u64);
            prop_assert_eq!(table.ballooned(), ballooned(&model));
            let in_runs: Vec<u64> = table.shared_runs(0..PAGES).into_iter().flatten().collect();
            prop_assert_eq!(&in_runs, &shared);
            let without_frames = table.blocks.iter().filter(|block| block.frames.is_none()).count();
            let with_frames = shared.chunk_by(|one, other| one / 512 == other / 512).count();
            prop_assert_eq!(without_frames + with_frames, table.blocks.len());
            let hulls: Vec<u64> = table.with_ballooned().into_iter().flatten()
                .filter(|&index| table.place(index) == Place::Ballooned).collect();
            prop_assert_eq!(hulls.len() as u64, table.ballooned());
        }
    }
}
