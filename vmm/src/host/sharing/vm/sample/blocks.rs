//! What a sample of blocks and pages says of all pages.
//!
//! To watch one page of a large page costs the guest all 512: the block is mapped page by page until it is let go. To
//! watch the block as a whole costs one fault, but says only whether anything in it was touched. So of memory in large
//! pages (nearly) all blocks are watched, and only a few of them are looked into page by page. The part that was touched
//! is estimated by two factors:
//!
//! ```text
//!   touched pages / pages  =  touched blocks / blocks  ·  touched pages / pages of touched blocks
//!                             └─ nearly exact           └─ from the blocks that were looked into
//! ```
//!
//! Where whole blocks are used or idle, as is usual, the second factor is one and the product as exact as the first;
//! where little of every block is used, it is as exact as the pages of a few blocks make it. What it is worth is told by
//! its variance, in pages: **as many as a simple random sample would need to be as exact**. So what is built on such
//! samples (`working_set`) need not know of blocks.

use page::PageCount;
use policy::Sample;

/// No sample is worth more pages: the guest changes from one period to the next by more than it could tell.
const MOST_WORTH: f64 = 512.0;

/// What was seen of a VM's private pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSample {
    /// Pages that are in no large page,
    pub small: PageCount,
    /// and what became of those of them that were sampled.
    pub small_pages: Sample,
    /// Pages in large pages.
    pub large: PageCount,
    /// Blocks that are large pages,
    pub blocks: u32,
    /// those that were watched as a whole,
    pub watched: u32,
    /// and those of them in which anything was touched.
    pub touched: u32,
    /// Of the touched ones, those that were looked into, now or lately: what became of the pages sampled in each.
    pub looked_into: Vec<Sample>,
}

/// An estimated part and the variance of the estimate.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    value: f64,
    variance: f64,
}

impl Part {
    /// Of what is known of nothing.
    const UNKNOWN: Self = Self {
        value: 1.0,
        variance: 0.25,
    };

    fn of(found: u32, size: u32) -> Self {
        match size {
            0 => Self::UNKNOWN,
            _ => Self {
                value: f64::from(found) / f64::from(size),
                variance: spread(f64::from(found), f64::from(size)) / f64::from(size),
            },
        }
    }

    fn times(self, other: Self) -> Self {
        let squared = |part: f64| part * part;
        Self {
            value: self.value * other.value,
            variance: squared(self.value) * other.variance + squared(other.value) * self.variance,
        }
    }
}

/// The variance of one yes or no of which `found` of `size` were yes. Of a few that agree one more is taken to
/// differ (Laplace's rule), or they would be as good as all.
fn spread(found: f64, size: f64) -> f64 {
    let part = (found + 1.0) / (size + 2.0);
    part * (1.0 - part)
}

impl BlockSample {
    /// The simple random sample of pages that says the same, and says it as exactly.
    #[must_use]
    pub fn as_pages(&self) -> Sample {
        if self.large == PageCount::ZERO {
            return self.small_pages;
        }
        let touched = self.part(|sample| sample.touched);
        let written = self.part(|sample| sample.written);
        let sizes = self.looked_into.iter().map(|sample| sample.size);
        let seen = f64::from(sizes.sum::<u32>() + self.small_pages.size);
        let worth = spread(touched.value * seen, seen) / touched.variance;
        let size = worth.clamp(1.0, MOST_WORTH).round();
        let pages = |part: Part| whole((part.value * size).min(size));
        Sample {
            size: whole(size),
            touched: pages(touched),
            written: pages(written).min(pages(touched)),
        }
    }

    /// The part of all pages of which `found` counts those in a sample.
    fn part(&self, found: impl Fn(&Sample) -> u32) -> Part {
        let of_small = Part::of(found(&self.small_pages), self.small_pages.size);
        let of_large = self.touched_blocks().times(self.within_touched(&found));
        let small_weight = weight(self.small, self.large);
        let weighted = |weight: f64, part: Part| Part {
            value: weight * part.value,
            variance: weight * weight * part.variance,
        };
        let small = weighted(small_weight, of_small);
        let large = weighted(1.0 - small_weight, of_large);
        Part {
            value: small.value + large.value,
            // What nothing can be known of exactly has some variance all the same.
            variance: (small.variance + large.variance).max(1e-9),
        }
    }

    /// The part of the blocks in which anything was touched. It is exact if all were watched.
    fn touched_blocks(&self) -> Part {
        let of_watched = Part::of(self.touched, self.watched);
        let unwatched = f64::from(self.blocks.saturating_sub(self.watched));
        let correction = unwatched / f64::from(self.blocks.max(1));
        Part {
            variance: of_watched.variance * correction,
            ..of_watched
        }
    }

    /// The part of the pages of touched blocks. Pages of one block are alike, so what differs is reckoned between blocks
    /// (the ratio estimator of two-stage cluster sampling: Cochran, Sampling Techniques, 1977, sections 9A.3 and 10.8), or
    /// as if they were not, if that is more; so far as it speaks of blocks that were not looked into. What is left where
    /// all were are the pages that were not sampled in them.
    fn within_touched(&self, found: &impl Fn(&Sample) -> u32) -> Part {
        let blocks = || self.looked_into.iter().filter(|sample| sample.size > 0);
        let (mut pages, mut hits, mut count) = (0.0, 0.0, 0.0);
        for sample in blocks() {
            pages += f64::from(sample.size);
            hits += f64::from(found(sample));
            count += 1.0;
        }
        match (self.touched, count > 0.0) {
            (0, _) => return Part::default(),
            (_, false) => return Part::UNKNOWN,
            _ => {}
        }
        let value = hits / pages;
        let residues =
            blocks().map(|sample| f64::from(found(sample)) - value * f64::from(sample.size));
        let squares: f64 = residues.map(|residue| residue * residue).sum();
        let between = match count > 1.0 {
            true => squares / (pages * pages) * count / (count - 1.0),
            // One block says little of the others.
            false => Part::UNKNOWN.variance,
        };
        let alone = spread(hits, pages) / pages;
        let unseen = (1.0 - count / f64::from(self.touched)).max(0.0);
        let within = blocks().map(|sample| {
            let (hits, size) = (f64::from(found(sample)), f64::from(sample.size));
            hits * (size - hits) / size
        });
        let within = within.sum::<f64>() / (pages * pages);
        let of_pages_that_agree = spread(pages, pages) / pages;
        Part {
            value,
            variance: (unseen * between.max(alone) + within).max(of_pages_that_agree),
        }
    }
}

/// What part of both together the first is.
#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 pages are more than there are"
)]
fn weight(first: PageCount, second: PageCount) -> f64 {
    first.0 as f64 / (first.0 + second.0).max(1) as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between none and MOST_WORTH"
)]
fn whole(pages: f64) -> u32 {
    pages.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use page::Random;
    use policy::{Fraction, Interval};
    use proptest::prelude::*;

    const BLOCK: u64 = 512;

    /// Which pages of each block a guest touches: so many of 512.
    type Guest = Vec<u64>;

    fn truth(guest: &Guest) -> f64 {
        guest.iter().sum::<u64>() as f64 / (guest.len() as u64 * BLOCK) as f64
    }

    /// Watches all blocks, and looks into some of them by some pages each.
    fn watch(guest: &Guest, blocks: usize, pages: u32, random: &mut Random) -> BlockSample {
        let mut order: Vec<usize> = (0..guest.len()).collect();
        random.shuffle(&mut order);
        let count = u32::try_from(guest.len()).unwrap();
        let touched = guest.iter().filter(|&&pages| pages > 0).count();
        let looked_into = order
            .into_iter()
            .take(blocks)
            .filter(|&block| guest[block] > 0);
        let looked_into = looked_into.map(|block| {
            let hits = (0..pages)
                .filter(|_| random.below(BLOCK) < guest[block])
                .count();
            let hits = u32::try_from(hits).unwrap();
            Sample {
                size: pages,
                touched: hits,
                written: hits / 2,
            }
        });
        BlockSample {
            large: PageCount(guest.len() as u64 * BLOCK),
            blocks: count,
            watched: count,
            touched: u32::try_from(touched).unwrap(),
            looked_into: looked_into.collect(),
            ..BlockSample::default()
        }
    }

    fn interval(sample: Sample) -> Interval {
        let found = Fraction::of(sample.touched.into(), sample.size.into());
        Interval::wilson(found, sample.size.into())
    }

    fn part(part: Fraction) -> f64 {
        part.of_pages(PageCount(100_000)).0 as f64 / 100_000.0
    }

    /// Of so many samples of a guest, how many intervals hold the truth, in percent, and how far the estimates are from it
    /// on average, in thousandths.
    fn judge(guest: &Guest, seed: u64) -> (usize, f64) {
        const TIMES: usize = 400;
        let mut random = Random::new(seed);
        let truth = truth(guest);
        let (mut held, mut error) = (0, 0.0);
        for _ in 0..TIMES {
            let sample = watch(guest, 30, 4, &mut random).as_pages();
            let bounds = interval(sample);
            let is_held = part(bounds.low) - 0.002 <= truth && truth <= part(bounds.high) + 0.002;
            held += usize::from(is_held);
            error += (f64::from(sample.touched) / f64::from(sample.size) - truth).abs();
        }
        (held * 100 / TIMES, error / TIMES as f64 * 1000.0)
    }

    #[test]
    fn without_large_pages_it_is_the_sample_of_pages() {
        let small_pages = Sample {
            size: 97,
            touched: 13,
            written: 5,
        };
        let sample = BlockSample {
            small: PageCount(1000),
            small_pages,
            ..BlockSample::default()
        };
        assert_eq!(sample.as_pages(), small_pages);
    }

    #[test]
    fn blocks_that_nobody_touched_are_idle_for_sure() {
        let sample = watch(&vec![0; 100], 30, 4, &mut Random::new(1)).as_pages();
        assert_eq!((sample.touched, sample.written), (0, 0));
        assert!(part(interval(sample).high) < 0.01, "{sample:?}");
    }

    #[test]
    fn all_that_is_known_to_be_touched_is_what_was_looked_into() {
        let sample = watch(&vec![512; 100], 30, 4, &mut Random::new(1)).as_pages();
        assert_eq!(sample.touched, sample.size);
        assert!((100..=140).contains(&sample.size), "{sample:?}");
    }

    /// What a simple sample of 120 pages would be wrong by on average: 30 thousandths and more.
    #[test]
    fn where_blocks_are_used_whole_the_estimate_is_nearly_exact() {
        let guest: Guest = (0..400)
            .map(|block| if block < 120 { 512 } else { 0 })
            .collect();
        let (held, error) = judge(&guest, 7);
        assert!(
            held >= 94 && error < 6.0,
            "{held} % held, {error} thousandths"
        );
    }

    #[test]
    fn intervals_hold_what_they_should_however_touches_lie() {
        let mut random = Random::new(3);
        let scattered: Guest = vec![128; 400];
        let sparse: Guest = vec![8; 400];
        let uneven: Guest = (0..400).map(|_| random.below(513)).collect();
        let some: Guest = (0..400)
            .map(|block| if block % 3 == 0 { random.below(513) } else { 0 })
            .collect();
        let two_kinds: Guest = (0..400)
            .map(|block| if block % 2 == 0 { 512 } else { 32 })
            .collect();
        for (name, guest) in [
            ("scattered", scattered),
            ("sparse", sparse),
            ("uneven", uneven),
            ("some", some),
            ("two kinds", two_kinds),
        ] {
            let (held, error) = judge(&guest, 11);
            assert!(held >= 92, "{name}: {held} % held");
            // A simple sample of as many pages: 36.
            assert!(error < 80.0, "{name}: {error} thousandths on average");
        }
    }

    #[test]
    fn few_of_many_blocks_say_less() {
        let mut of_all = watch(&[512, 0, 0, 0].repeat(100), 30, 4, &mut Random::new(1));
        let exact = of_all.as_pages();
        (of_all.watched, of_all.touched) = (64, 16);
        let rough = of_all.as_pages();
        assert!(rough.size < exact.size, "{rough:?} {exact:?}");
        assert!(rough.touched.abs_diff(rough.size / 4) <= 1, "{rough:?}");
    }

    proptest! {
        /// Whatever was seen, it is a sample: no more is touched than there is, and something is said.
        #[test]
        fn it_is_always_a_sample(
            small in 0u64..1 << 40, large in 0u64..1 << 40, blocks in 0u32..1000, watched in 0u32..1000,
            touched in 0u32..1000, size in 0u32..600, found in 0u32..600,
            into in prop::collection::vec((0u32..20, 0u32..20, 0u32..20), 0..40),
        ) {
            let sample = |size: u32, touched: u32, written: u32| {
                let touched = touched.min(size);
                Sample { size, touched, written: written.min(touched) }
            };
            let watched = watched.min(blocks);
            let seen = BlockSample {
                small: PageCount(small),
                small_pages: sample(size, found, found / 2),
                large: PageCount(large),
                blocks,
                watched,
                touched: touched.min(watched),
                looked_into: into.into_iter().map(|(size, touched, written)| sample(size, touched, written)).collect(),
            };
            let pages = seen.as_pages();
            prop_assert!(pages.written <= pages.touched && pages.touched <= pages.size, "{pages:?}");
            prop_assert!(large == 0 || (1..=512).contains(&pages.size), "{pages:?}");
        }
    }
}
