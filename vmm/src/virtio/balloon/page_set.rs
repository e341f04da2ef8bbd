//! A set of a guest's pages, a bit for each page of its memory file.

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

    /// The runs of pages in the set, as `(start, count)`, lowest first.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.find(from, false)?;
            let end = self
                .find(start, true)
                .unwrap_or(self.words.len() as u64 * 64);
            from = end;
            Some((start, end - start))
        })
    }

    /// The first page from `from` on that is in the set, or, with `absent`, that is not.
    fn find(&self, from: u64, absent: bool) -> Option<u64> {
        let flip = if absent { u64::MAX } else { 0 };
        let first = usize::try_from(from / 64).ok()?;
        let mut mask = u64::MAX << (from % 64);
        for (index, word) in self.words.iter().enumerate().skip(first) {
            let bits = (word ^ flip) & mask;
            if bits != 0 {
                return Some(index as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
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
                let listed: Vec<u64> = set.runs().flat_map(|(start, count)| start..start + count).collect();
                prop_assert_eq!(listed, model.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
