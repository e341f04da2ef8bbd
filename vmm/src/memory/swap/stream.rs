//! How many pages of zeros are made at once, for a guest that touches one after another.
//!
//! A touch of a hole costs a guest some tens of microseconds: it waits for another thread. Guests use new memory in order for the
//! most part, as their allocators give it out: a program that starts, or a cache that fills, touches thousands of pages
//! one after another. So **who touches on where it touched before has more made each time**, as kernels read files ahead. Who touches
//! here and there has one made, and no memory is spent on what it does not use.
//!
//! Pure: what is touched and made is told.

/// At most so many at once: what may be made in vain at the end of a stream, 128 KiB.
const MOST: u64 = 32;
/// It goes on as long as no more than this lies between: pages that are there already, or are elsewhere.
const GAP: u64 = 32;

/// Where a guest has begun to use new memory.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The page after the last that was made.
    next: u64,
    /// How many were wanted then.
    wanted: u64,
}

impl Stream {
    /// How many pages are to be made from one on that is touched now.
    pub(super) fn wanted(&self, touched: u64) -> u64 {
        match (self.next..=self.next + GAP).contains(&touched) {
            true => (self.wanted * 2).clamp(1, MOST),
            false => 1,
        }
    }

    /// From a touched one on so many were made: what is wanted, or less where no more may be.
    pub(super) fn made(&mut self, touched: u64, made: u64) {
        *self = Self {
            wanted: self.wanted(touched),
            next: touched + made,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many are made for each touch of a hole, where all that is not touched is one.
    fn made(touches: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut stream = Stream::default();
        let mut there = std::collections::BTreeSet::new();
        let mut made = Vec::new();
        for touch in touches {
            if there.contains(&touch) {
                continue;
            }
            let wanted = stream.wanted(touch);
            there.extend(touch..touch + wanted);
            stream.made(touch, wanted);
            made.push(wanted);
        }
        made
    }

    #[test]
    fn who_touches_one_after_another_has_more_made_each_time() {
        assert_eq!(made(1000..1100), [1, 2, 4, 8, 16, 32, 32, 32]);
        let with_gaps = (0..2000).filter(|page| page % 40 < 20);
        assert!(made(with_gaps).len() < 80);
    }

    #[test]
    fn who_touches_here_and_there_has_one_made() {
        let apart = (1..100).map(|touch| touch * 1000);
        assert_eq!(made(apart), [1; 99]);
        assert_eq!(made((0..100).rev()), [1; 100], "backwards");
        let both = (0..50).flat_map(|touch| [touch, 100_000 - touch * 100]);
        assert_eq!(made(both), [1; 100], "in turns");
    }

    proptest! {
        #[test]
        fn what_is_made_in_vain_is_no_more_than_what_is_touched_and_one_stretch_more(
            touches in prop::collection::vec(0_u64..500, 0..300)
        ) {
            let touched: std::collections::BTreeSet<u64> = touches.iter().copied().collect();
            let made: u64 = made(touches.iter().copied()).iter().sum();
            let most = touched.len() as u64 * (2 * GAP);
            prop_assert!(made <= most.max(1), "{made} for {}", touched.len());
        }
    }
}
