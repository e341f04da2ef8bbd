//! How long things took: their number in buckets whose width grows with the value, so that any
//! span fits in little memory and a percentile is wrong by 3 % at most.

use core::fmt;

/// Bits of a value that tell one bucket from the next: 32 buckets for each doubling.
const PRECISION: u32 = 5;
/// Greater values count as the greatest: 2^36 ns are 69 s.
const BITS: u32 = 36;
const BUCKETS: usize = ((BITS - PRECISION + 1) << PRECISION) as usize;

/// Nanoseconds, counted.
pub(super) struct Histogram {
    buckets: [u32; BUCKETS],
    count: u64,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self {
            buckets: [0; BUCKETS],
            count: 0,
            total: 0,
            max: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.buckets.fill(0);
        (self.count, self.total, self.max) = (0, 0, 0);
    }

    pub(super) fn record(&mut self, value: u64) {
        let bucket = &mut self.buckets[bucket_of(value)];
        *bucket = bucket.saturating_add(1);
        self.count += 1;
        self.total = self.total.saturating_add(value);
        self.max = self.max.max(value);
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all values.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    pub(super) const fn max(&self) -> u64 {
        self.max
    }

    /// What `percent` of the values do not exceed, rounded up by its bucket's width; 0 of nothing.
    pub(super) fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.count * percent).div_ceil(100).max(1);
        let mut below = 0;
        let bucket = self.buckets.iter().position(|&count| {
            below += u64::from(count);
            below >= rank
        });
        bucket.map_or(0, |bucket| last_of(bucket).min(self.max))
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

/// Values below 2^(PRECISION + 1) have a bucket each; beyond, the first bits after the highest say
/// which of its doubling.
#[expect(
    clippy::cast_possible_truncation,
    reason = "below the number of buckets"
)]
fn bucket_of(value: u64) -> usize {
    let value = value.min((1 << BITS) - 1);
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(PRECISION + 1);
    ((u64::from(shift) << PRECISION) + (value >> shift)) as usize
}

/// The greatest value in a bucket.
const fn last_of(bucket: usize) -> u64 {
    let shift = (bucket >> PRECISION).saturating_sub(1);
    let first = (bucket - (shift << PRECISION)) as u64;
    ((first + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    proptest! {
        #[test]
        fn a_percentile_is_that_of_the_sorted_values_but_for_3_percent(
            mut values in prop::collection::vec(prop_oneof![0_u64..100, 0..1_u64 << 36], 1..300),
            percent in 1_u64..=100,
        ) {
            let mut histogram = Histogram::new();
            values.iter().for_each(|&value| histogram.record(value));
            values.sort_unstable();
            let rank = (values.len() as u64 * percent).div_ceil(100);
            let exact = values[usize::try_from(rank).unwrap() - 1];
            let found = histogram.percentile(percent);
            prop_assert!(found >= exact && found <= exact + exact / 32, "{found} for {exact}");
            prop_assert_eq!(histogram.max(), values[values.len() - 1]);
            prop_assert_eq!(histogram.total(), values.iter().sum::<u64>());
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gap() {
        let firsts: Vec<u64> = (1..BUCKETS).map(|bucket| last_of(bucket - 1) + 1).collect();
        for (bucket, &first) in (1..).zip(&firsts) {
            assert_eq!(
                (bucket_of(first), bucket_of(first - 1)),
                (bucket, bucket - 1)
            );
        }
        assert_eq!(last_of(BUCKETS - 1), (1 << BITS) - 1);
    }

    #[test]
    fn any_value_has_a_bucket_and_nothing_has_percentiles_of_zero() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.percentile(50), 0);
        histogram.record(u64::MAX);
        histogram.record(u64::MAX);
        assert_eq!((histogram.max(), histogram.total()), (u64::MAX, u64::MAX));
        histogram.clear();
        assert_eq!((histogram.count(), histogram.percentile(99)), (0, 0));
    }
}
