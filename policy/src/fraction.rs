//! Fractions between none and all, as integers, and what a sample says about one.

use page::PageCount;
use serde::{Deserialize, Serialize};
use std::fmt;

const ONE: u32 = 1 << 20;
const ONE_WIDE: u128 = ONE as u128;

/// The normal distribution's two-sided 95 % quantile and its square, in parts of `ONE`.
const Z: u128 = 2_055_171;
const Z_SQUARED: u128 = 4_028_062;

/// A part of a whole, in 2^-20.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Fraction(u32);

impl Fraction {
    /// Nothing of it.
    pub const ZERO: Self = Self(0);
    /// The whole.
    pub const ONE: Self = Self(ONE);

    /// `part / whole`, to the nearest; the whole if the part is larger, nothing of nothing.
    #[must_use]
    pub fn of(part: u64, whole: u64) -> Self {
        if whole == 0 {
            return Self::ZERO;
        }
        let (part, whole) = (u128::from(part.min(whole)), u128::from(whole));
        Self::from_wide((part * ONE_WIDE + whole / 2) / whole)
    }

    /// So many percent, at most 100.
    #[must_use]
    pub fn from_percent(percent: u64) -> Self {
        Self::of(percent, 100)
    }

    /// This part of so many pages, to the nearest page.
    #[must_use]
    pub fn of_pages(self, pages: PageCount) -> PageCount {
        let part = (u128::from(pages.0) * u128::from(self.get()) + ONE_WIDE / 2) / ONE_WIDE;
        PageCount(u64::try_from(part).unwrap_or(pages.0))
    }

    /// From this one toward another by `eighths` of the way.
    pub(crate) fn toward(self, other: Self, eighths: u32) -> Self {
        let (from, to) = (u128::from(self.get()), u128::from(other.get()));
        let eighths = u128::from(eighths.min(8));
        Self::from_wide((from * (8 - eighths) + to * eighths + 4) / 8)
    }

    /// `self · (1 − self)`: the variance of a single yes or no.
    pub(crate) fn spread(self) -> Self {
        let part = u128::from(self.get());
        Self::from_wide(part * (ONE_WIDE - part) / ONE_WIDE)
    }

    pub(crate) fn permille(self) -> u64 {
        (u64::from(self.get()) * 1000 + u64::from(ONE) / 2) / u64::from(ONE)
    }

    /// A recorded number may be beyond the whole.
    pub(crate) fn get(self) -> u32 {
        self.0.min(ONE)
    }

    fn from_wide(value: u128) -> Self {
        Self(u32::try_from(value.min(ONE_WIDE)).unwrap_or(ONE))
    }
}

/// In percent.
impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", crate::tax::tenths(self.permille()))
    }
}

/// Where a fraction lies, with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "an interval's ends")]
pub struct Interval {
    pub low: Fraction,
    pub high: Fraction,
}

impl Interval {
    /// Nothing is known.
    pub const ALL: Self = Self {
        low: Fraction::ZERO,
        high: Fraction::ONE,
    };

    /// Wilson's score interval for a fraction of `found` seen in a sample of `size`:
    /// (2np + z² ∓ z·√(z² + 4np(1−p))) / 2(n + z²). Unlike p ∓ z·√(p(1−p)/n) it holds for the small
    /// samples and the fractions near none and all that are the rule here.
    #[must_use]
    pub fn wilson(found: Fraction, size: u64) -> Self {
        if size == 0 {
            return Self::ALL;
        }
        let (size, found) = (u128::from(size.min(1 << 40)), u128::from(found.get()));
        let under_root = Z_SQUARED + 4 * size * found * (ONE_WIDE - found) / ONE_WIDE;
        let root = (under_root * ONE_WIDE).isqrt();
        let reach = Z * root / ONE_WIDE;
        let middle = 2 * size * found + Z_SQUARED;
        let whole = 2 * (size * ONE_WIDE + Z_SQUARED);
        Self {
            low: Fraction::from_wide(middle.saturating_sub(reach) * ONE_WIDE / whole),
            high: Fraction::from_wide(((middle + reach) * ONE_WIDE).div_ceil(whole)),
        }
    }

    /// The least that contains both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
        }
    }

    /// Whether a fraction lies in it.
    #[must_use]
    pub fn contains(self, fraction: Fraction) -> bool {
        self.low <= fraction && fraction <= self.high
    }

    /// Whether the two have nothing in common, so that they cannot well speak of the same thing.
    #[must_use]
    pub fn is_apart_from(self, other: Self) -> bool {
        self.high < other.low || other.high < self.low
    }
}

/// How large a sample must be so that its interval reaches no further than `precision` to either side,
/// when what is sought lies in `expected`: z²·p(1−p)/precision² at the worst p there.
#[must_use]
pub(crate) fn size_for(precision: Fraction, expected: Interval) -> u64 {
    let half = Fraction(ONE / 2);
    let worst = if expected.contains(half) {
        half
    } else if expected.high < half {
        expected.high
    } else {
        expected.low
    };
    let precision = u128::from(precision.get().max(1));
    let size = Z_SQUARED * u128::from(worst.spread().get()) / (precision * precision);
    u64::try_from(size + 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn percents(interval: Interval) -> (u64, u64) {
        (interval.low.permille(), interval.high.permille())
    }

    /// Against the textbook's values.
    #[test]
    fn wilson_intervals_are_those_of_the_tables() {
        assert_eq!(
            percents(Interval::wilson(Fraction::of(50, 100), 100)),
            (404, 596)
        );
        assert_eq!(
            percents(Interval::wilson(Fraction::of(0, 100), 100)),
            (0, 37)
        );
        assert_eq!(
            percents(Interval::wilson(Fraction::of(100, 100), 100)),
            (963, 1000)
        );
        assert_eq!(
            percents(Interval::wilson(Fraction::of(1, 10), 10)),
            (18, 404)
        );
    }

    #[test]
    fn a_hundred_pages_are_enough_for_ten_points() {
        assert_eq!(size_for(Fraction::from_percent(10), Interval::ALL), 97);
        assert_eq!(size_for(Fraction::from_percent(5), Interval::ALL), 385);
        let idle = Interval::wilson(Fraction::of(2, 100), 100);
        assert!(size_for(Fraction::from_percent(5), idle) < 120);
    }

    proptest! {
        #[test]
        fn an_interval_contains_what_was_found(part in 0u64..=1000, size in 0u64..5000) {
            let found = Fraction::of(part, 1000);
            prop_assert!(Interval::wilson(found, size).contains(found));
        }

        #[test]
        fn more_samples_never_say_less(part in 0u64..=1000, size in 1u64..5000, more in 1u64..5000) {
            let found = Fraction::of(part, 1000);
            let width = |size| {
                let Interval { low, high } = Interval::wilson(found, size);
                high.get() - low.get()
            };
            prop_assert!(width(size + more) <= width(size) + 2);
        }

        #[test]
        fn a_sample_of_the_said_size_has_the_said_precision(part in 0u64..=1000, precision in 1u64..30) {
            let found = Fraction::of(part, 1000);
            let size = size_for(Fraction::from_percent(precision), Interval { low: found, high: found });
            let Interval { low, high } = Interval::wilson(found, size.max(30));
            // Wilson's is wider than p ∓ z·√(p(1−p)/n), by up to z²/2n.
            let reach = u64::from(high.get() - low.get()) * 100 / 2 / u64::from(ONE);
            prop_assert!(reach <= precision + 192 / size.max(30) + 1, "{reach} of {precision}");
        }

        #[test]
        fn senseless_numbers_do_not_panic(part: u64, whole: u64, raw: u32, size: u64, pages: u64) {
            let found = Fraction(raw);
            prop_assert!(Fraction::of(part, whole) <= Fraction::ONE);
            prop_assert!(found.of_pages(PageCount(pages)).0 <= pages);
            let interval = Interval::wilson(found, size);
            prop_assert!(interval.low <= interval.high);
            prop_assert!(size_for(found, interval) > 0);
        }
    }
}
