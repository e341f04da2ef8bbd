//! A set of a guest's pages, a bit for each page of its memory file.

/// Words of a stretch at most: the pages of 256 MiB.
const WORDS_IN_STRETCH: usize = 1024;

/// Pages by their index in the memory file.
#[derive(Clone, Debug)]
pub(super) struct PageSet {
    words: Vec<u64>,
    count: u64,
}

impl PageSet {
    /// An empty set of pages `0..size`.
    pub(super) fn new(size: u64) -> Self {
        let words = usize::try_from(size.div_ceil(64)).expect("a guest's pages are countable here");
        Self {
            words: vec![0; words],
            count: 0,
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// Adds pages; how many of them were not in it yet.
    pub(super) fn insert_range(&mut self, start: u64, count: u64) -> u64 {
        let mut added = 0;
        for_each_word(start, count, |word, mask| {
            let before = self.words[word];
            self.words[word] = before | mask;
            added += u64::from((mask & !before).count_ones());
        });
        self.count += added;
        added
    }

    /// Takes pages out; how many of them were in it.
    pub(super) fn remove_range(&mut self, start: u64, count: u64) -> u64 {
        let mut removed = 0;
        for_each_word(start, count, |word, mask| {
            let before = self.words[word];
            self.words[word] = before & !mask;
            removed += u64::from((mask & before).count_ones());
        });
        self.count -= removed;
        removed
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok();
        let word = word.and_then(|word| self.words.get(word));
        word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// Where the set's pages are, roughly, as `(start, count)`, lowest first: stretches of limited
    /// length, and fewer of them than pages however scattered the set is. They may end after it.
    pub(super) fn stretches(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let blocks = self.words.chunks(WORDS_IN_STRETCH).enumerate();
        blocks.flat_map(|(block, words)| {
            let first = block * WORDS_IN_STRETCH;
            let runs = words.chunk_by(|left, right| (*left == 0) == (*right == 0));
            runs.scan(first, |next, run| {
                let start = *next as u64 * 64;
                *next += run.len();
                Some((run[0] != 0).then_some((start, run.len() as u64 * 64)))
            })
            .flatten()
        })
    }
}

/// Calls `act` with each word that the pages touch and the bits of the pages in it.
fn for_each_word(start: u64, count: u64, mut act: impl FnMut(usize, u64)) {
    let end = start + count;
    let mut at = start;
    while at < end {
        let bits = (64 - at % 64).min(end - at);
        let mask = u64::MAX >> (64 - bits) << (at % 64);
        act(
            usize::try_from(at / 64).expect("inside the set's words"),
            mask,
        );
        at += bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_page_set_behaves_like_a_set(
            steps in prop::collection::vec((any::<bool>(), 0u64..300, 0u64..100), 0..40)
        ) {
            let (mut set, mut model) = (PageSet::new(400), BTreeSet::new());
            for (insert, start, count) in steps {
                let pages = start..start + count;
                if insert {
                    let added = pages.filter(|page| model.insert(*page)).count();
                    prop_assert_eq!(set.insert_range(start, count), added as u64);
                } else {
                    let removed = pages.filter(|page| model.remove(page)).count();
                    prop_assert_eq!(set.remove_range(start, count), removed as u64);
                }
                prop_assert_eq!(set.count(), model.len() as u64);
                let stretches = set.stretches().flat_map(|(start, count)| start..start + count);
                let listed: Vec<u64> = stretches.filter(|page| set.contains(*page)).collect();
                prop_assert_eq!(listed, model.iter().copied().collect::<Vec<_>>());
            }
        }
    }

    /// Who looks at each stretch makes a call for it, and keeps what it learns about its pages.
    #[test]
    fn a_scattered_set_is_in_few_short_stretches() {
        let size = 1 << 20;
        let mut set = PageSet::new(size);
        assert_eq!(set.stretches().count(), 0);
        (0..size / 2).for_each(|index| assert_eq!(set.insert_range(index * 2, 1), 1));
        let stretches: Vec<_> = set.stretches().collect();
        assert_eq!(stretches.len(), 16);
        assert!(stretches.iter().all(|(_, count)| *count <= 1 << 16));
    }
}
