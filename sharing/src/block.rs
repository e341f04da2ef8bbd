//! Blocks: 2 MiB of one VM's memory file, the unit that is scanned, planned and carried out.
//!
//! Write protection, hashing and mapping are each several times cheaper for 512 neighbours at once
//! than page by page, and a window of the store has the same size, so that a block can map it whole.

use page::{Gfn, VmId};
use std::{array, fmt, iter};

/// Pages in a block, and frames in a window of the store.
pub const BLOCK_PAGES: usize = 512;
const BLOCK_PAGES_U64: u64 = 512;

/// One page of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page {
    /// Whose page.
    pub vm: VmId,
    /// Which of its pages.
    pub gfn: Gfn,
}

impl Page {
    /// The block it lies in.
    #[must_use]
    pub fn block(self) -> Block {
        let number = self.gfn.0 / BLOCK_PAGES_U64;
        Block {
            vm: self.vm,
            number: u32::try_from(number).expect("a VM has fewer than 2^41 pages"),
        }
    }

    /// Its place in its block.
    #[must_use]
    pub fn index(self) -> usize {
        usize::try_from(self.gfn.0 % BLOCK_PAGES_U64).expect("below 512")
    }
}

/// Pages `512 * number ..` of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Whose block.
    pub vm: VmId,
    /// Which of its blocks.
    pub number: u32,
}

impl Block {
    /// The page at `index` of this block.
    #[must_use]
    pub fn page(self, index: usize) -> Page {
        Page {
            vm: self.vm,
            gfn: Gfn(u64::from(self.number) * BLOCK_PAGES_U64 + index as u64),
        }
    }
}

/// A set of pages of one block, by their index in it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct PageSet([u64; BLOCK_PAGES / 64]);

impl PageSet {
    /// No pages.
    pub const EMPTY: Self = Self([0; BLOCK_PAGES / 64]);
    /// Every page of the block.
    pub const ALL: Self = Self([u64::MAX; BLOCK_PAGES / 64]);

    /// The set as bits, the first page's lowest in the first word: how it is sent.
    #[must_use]
    pub const fn words(&self) -> &[u64; BLOCK_PAGES / 64] {
        &self.0
    }

    /// The set that these bits say.
    #[must_use]
    pub const fn from_words(words: [u64; BLOCK_PAGES / 64]) -> Self {
        Self(words)
    }

    /// `count` neighbouring pages from `start` on.
    #[must_use]
    pub fn run(start: usize, count: usize) -> Self {
        let bits = |word: usize| {
            let from = start.clamp(word * 64, word * 64 + 64) - word * 64;
            let to = (start + count).clamp(word * 64, word * 64 + 64) - word * 64;
            // In twice as many bits, for a shift by all of a word's is none.
            let mask = (1u128 << to) - (1u128 << from);
            u64::try_from(mask).expect("bits of one word")
        };
        Self(array::from_fn(bits))
    }

    /// Adds a page.
    pub fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Takes a page out.
    pub fn remove(&mut self, index: usize) {
        self.0[index / 64] &= !(1 << (index % 64));
    }

    /// Whether it holds the page.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    /// How many pages it holds.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// The pages that are in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// The pages that are in this one and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// The pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        let words = self.0.into_iter().enumerate();
        words.flat_map(|(place, mut word)| {
            iter::from_fn(move || {
                let bit = word.trailing_zeros();
                word &= word.checked_sub(1)?;
                Some(place * 64 + bit as usize)
            })
        })
    }

    /// The runs of neighbouring pages, in order: (first index, count).
    #[must_use]
    pub fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for index in self.iter() {
            match runs.last_mut() {
                Some((start, count)) if *start + *count == index => *count += 1,
                _ => runs.push((index, 1)),
            }
        }
        runs
    }
}

impl FromIterator<usize> for PageSet {
    fn from_iter<I: IntoIterator<Item = usize>>(indexes: I) -> Self {
        let mut set = Self::EMPTY;
        indexes.into_iter().for_each(|index| set.insert(index));
        set
    }
}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_page_set_is_a_set_and_its_runs_hold_it(
            pages in prop::collection::btree_set(0..BLOCK_PAGES, 0..200), out in 0..BLOCK_PAGES
        ) {
            let mut set: PageSet = pages.iter().copied().collect();
            prop_assert_eq!(set.count(), pages.len());
            let in_runs: BTreeSet<usize> =
                set.runs().into_iter().flat_map(|(start, count)| start..start + count).collect();
            prop_assert_eq!(&in_runs, &pages);
            set.remove(out);
            prop_assert_eq!(set.contains(out), false);
            prop_assert_eq!(set.is_empty(), pages.iter().all(|&page| page == out));
        }

        #[test]
        fn a_run_is_the_pages_from_its_first_to_its_last(start in 0..BLOCK_PAGES, count in 0..=BLOCK_PAGES) {
            let count = count.min(BLOCK_PAGES - start);
            prop_assert_eq!(PageSet::run(start, count), (start..start + count).collect());
        }

        #[test]
        fn page_sets_are_united_and_subtracted_as_sets_are(
            one in prop::collection::btree_set(0..BLOCK_PAGES, 0..200),
            other in prop::collection::btree_set(0..BLOCK_PAGES, 0..200),
        ) {
            let set = |pages: &BTreeSet<usize>| pages.iter().copied().collect::<PageSet>();
            let pages = |set: PageSet| set.iter().collect::<BTreeSet<usize>>();
            prop_assert_eq!(pages(set(&one).union(&set(&other))), &one | &other);
            prop_assert_eq!(pages(set(&one).without(&set(&other))), &one - &other);
        }

        #[test]
        fn a_page_is_found_in_its_block(gfn in 0u64..1 << 40) {
            let page = Page { vm: VmId(7), gfn: Gfn(gfn) };
            prop_assert_eq!(page.block().page(page.index()), page);
        }
    }
}
