//! A set of frame numbers: a bit each, and one more level of bits that says which words have any.
//!
//! It must not live in the frames that it counts, for a free frame is never touched; so it takes
//! one bit a frame wherever its owner puts it, and scans fast.

const BITS: u32 = u64::BITS;

/// A set of numbers below a fixed limit, in storage lent by the owner.
#[derive(Debug)]
pub struct FrameSet<'a> {
    words: &'a mut [u64],
    /// Bit n is set where word n is not zero.
    summary: &'a mut [u64],
    limit: u32,
    count: u32,
}

impl<'a> FrameSet<'a> {
    /// How many words of storage a set of numbers below `limit` needs.
    #[must_use]
    pub const fn words_for(limit: u32) -> usize {
        let words = limit.div_ceil(BITS);
        (words + words.div_ceil(BITS)) as usize
    }

    /// An empty set of numbers below `limit`. Clears the storage.
    ///
    /// # Panics
    /// If the storage has fewer than [`words_for`](Self::words_for) words.
    #[must_use]
    pub fn new(storage: &'a mut [u64], limit: u32) -> Self {
        let storage = &mut storage[..Self::words_for(limit)];
        storage.fill(0);
        let (words, summary) = storage.split_at_mut(limit.div_ceil(BITS) as usize);
        Self {
            words,
            summary,
            limit,
            count: 0,
        }
    }

    /// How many numbers are in the set.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The numbers are below this.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether the number is in the set; false for numbers beyond the limit.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        number < self.limit && self.words[(number / BITS) as usize] >> (number % BITS) & 1 == 1
    }

    /// Puts a number in. False if it was in already, or is beyond the limit.
    pub fn insert(&mut self, number: u32) -> bool {
        if number >= self.limit || self.contains(number) {
            return false;
        }
        let word = number / BITS;
        self.words[word as usize] |= 1 << (number % BITS);
        self.summary[(word / BITS) as usize] |= 1 << (word % BITS);
        self.count += 1;
        true
    }

    /// Takes a number out. False if it was not in.
    pub fn remove(&mut self, number: u32) -> bool {
        if !self.contains(number) {
            return false;
        }
        self.take_bits(number / BITS, 1 << (number % BITS));
        true
    }

    fn take_bits(&mut self, word: u32, bits: u64) {
        let value = &mut self.words[word as usize];
        *value &= !bits;
        if *value == 0 {
            self.summary[(word / BITS) as usize] &= !(1 << (word % BITS));
        }
        self.count -= bits.count_ones();
    }

    /// Whether all numbers of an aligned run are in the set; `start` and `count` are multiples
    /// of 64.
    #[must_use]
    pub fn contains_run(&self, start: u32, count: u32) -> bool {
        debug_assert!(start.is_multiple_of(BITS) && count.is_multiple_of(BITS));
        let words = (start / BITS) as usize..((start + count) / BITS) as usize;
        self.words
            .get(words)
            .is_some_and(|words| words.iter().all(|&word| word == u64::MAX))
    }

    /// The lowest number in the set.
    #[must_use]
    pub fn lowest(&self) -> Option<u32> {
        let word = self.word_at_or_above(0)?;
        Some(word * BITS + self.words[word as usize].trailing_zeros())
    }

    /// Takes the lowest numbers out, ascending, as many as there are and `out` holds. Returns how
    /// many.
    pub fn take_lowest(&mut self, out: &mut [u32]) -> usize {
        let mut taken = 0;
        let mut from = 0;
        while taken < out.len()
            && let Some(word) = self.word_at_or_above(from)
        {
            taken += self.take_from_word(word, &mut out[taken..]);
            from = word;
        }
        taken
    }

    /// Takes numbers out from the top of the set, whole aligned runs of 64 first, as many as there
    /// are and `out` holds. Returns how many.
    pub fn take_highest(&mut self, out: &mut [u32]) -> usize {
        let taken = self.take_down(out, |word| word == u64::MAX);
        taken + self.take_down(&mut out[taken..], |_| true)
    }

    fn take_down(&mut self, out: &mut [u32], wanted: fn(u64) -> bool) -> usize {
        let mut taken = 0;
        let mut below = self.words.len().try_into().unwrap_or(u32::MAX);
        while taken < out.len()
            && let Some(word) = self.word_below(below)
        {
            if wanted(self.words[word as usize]) {
                taken += self.take_from_word(word, &mut out[taken..]);
            }
            below = word;
        }
        taken
    }

    fn take_from_word(&mut self, word: u32, out: &mut [u32]) -> usize {
        let mut left = self.words[word as usize];
        let mut taken = 0;
        while left != 0 && taken < out.len() {
            out[taken] = word * BITS + left.trailing_zeros();
            left &= left - 1;
            taken += 1;
        }
        self.take_bits(word, self.words[word as usize] & !left);
        taken
    }

    /// The first word from `from` on that has any bit.
    fn word_at_or_above(&self, from: u32) -> Option<u32> {
        let mut mask = u64::MAX << (from % BITS);
        for index in from / BITS..self.limit.div_ceil(BITS * BITS) {
            let bits = self.summary[index as usize] & mask;
            if bits != 0 {
                return Some(index * BITS + bits.trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }

    /// The last word before `below` that has any bit.
    fn word_below(&self, below: u32) -> Option<u32> {
        let last = below.checked_sub(1)?;
        let mut mask = u64::MAX >> (BITS - 1 - last % BITS);
        for index in (0..=last / BITS).rev() {
            let bits = self.summary[index as usize] & mask;
            if bits != 0 {
                return Some(index * BITS + BITS - 1 - bits.leading_zeros());
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: u32 = 10_000;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u32),
        Remove(u32),
        TakeLowest(usize),
        TakeHighest(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..LIMIT + 100, 1_u32..300).prop_map(|(start, count)| Step::Insert(start, count)),
            (0..LIMIT + 100).prop_map(Step::Remove),
            (0_usize..200).prop_map(Step::TakeLowest),
            (0_usize..200).prop_map(Step::TakeHighest),
        ];
        prop::collection::vec(step, 0..100)
    }
    use std::vec::Vec;

    fn take_is_right(taken: &[u32], model: &mut BTreeSet<u32>, asked: usize) {
        assert_eq!(taken.len(), asked.min(model.len()), "as many as there are");
        for number in taken {
            assert!(model.remove(number), "{number} was in the set once");
        }
    }

    proptest! {
        #[test]
        fn a_frame_set_behaves_as_a_set(steps in steps()) {
            let mut storage = vec![!0; FrameSet::words_for(LIMIT)];
            let mut set = FrameSet::new(&mut storage, LIMIT);
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Insert(start, count) => for number in start..start + count {
                        assert_eq!(set.insert(number), number < LIMIT && model.insert(number));
                    },
                    Step::Remove(number) => assert_eq!(set.remove(number), model.remove(&number)),
                    Step::TakeLowest(count) => {
                        let mut out = vec![0; count];
                        let taken = set.take_lowest(&mut out);
                        assert!(out[..taken].iter().eq(model.iter().take(taken)), "lowest first");
                        take_is_right(&out[..taken], &mut model, count);
                    }
                    Step::TakeHighest(count) => {
                        let mut out = vec![0; count];
                        let taken = set.take_highest(&mut out);
                        take_is_right(&out[..taken], &mut model, count);
                    }
                }
                assert_eq!(set.count() as usize, model.len());
                assert_eq!(set.lowest(), model.first().copied());
            }
            assert!((0..LIMIT + 100).all(|n| set.contains(n) == model.contains(&n)));
        }
    }

    #[test]
    fn whole_runs_leave_the_top_before_lone_frames() {
        let mut storage = vec![0; FrameSet::words_for(LIMIT)];
        let mut set = FrameSet::new(&mut storage, LIMIT);
        set.insert(9000);
        (64..128).for_each(|number| assert!(set.insert(number)));
        let mut out = [0; 64];
        assert_eq!(set.take_highest(&mut out), 64);
        assert!(out.iter().copied().eq(64..128));
        assert!(set.contains(9000));
    }
}
