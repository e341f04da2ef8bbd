//! What a guest says of its memory: a second witness beside what its touches show, and the limit below
//! which its balloon must not push it.
//!
//! A guest's word is a claim. It can make the policy leave its own balloon alone, never lower what others
//! get beyond what it holds already, and never change its active set: **touches win**. Where the two
//! contradict each other, that is worth saying to whoever administers the VM.

use crate::working_set::{ActiveSet, Source};
use page::PageCount;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Figures that a guest's balloon driver reported, as pages. Nothing in them is believed unchecked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestFigures {
    /// What the VM held when they came, by the host's record.
    pub held: PageCount,
    /// The most that it held from the figures before until then: a guest has made its figures at some
    /// moment between. Where this is not said, what it held when they came.
    pub most_held: PageCount,
    /// Memory that nothing uses.
    pub free: Option<PageCount>,
    /// Memory that programs could have without swapping.
    pub available: Option<PageCount>,
    /// Memory that holds copies of files.
    pub caches: Option<PageCount>,
    /// How often an allocation had to wait for reclaim, since the report before.
    pub stalls: Option<u64>,
}

/// How a guest's word compares with what it touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// It says nothing, or its touches are not known.
    Silent,
    /// It says that more is free or available than it holds.
    Senseless,
    /// Both can be true.
    Agrees,
    /// It touches more pages than it says are in use at all.
    SaysIdler {
        /// By so many.
        by: PageCount,
    },
    /// It says that it cannot do without more pages than it touches: memory that its programs hold and
    /// leave alone, or a lie.
    SaysBusier {
        /// By so many.
        by: PageCount,
    },
}

/// What the figures of two moments may differ by: a part of what is held.
const TOLERANCE_DIVISOR: u64 = 64;

/// A balloon leaves a guest this part of its size available, within the two bounds: the guest's own
/// reserves, below which it swaps or kills.
const CUSHION_DIVISOR: u64 = 32;
const LEAST_CUSHION: PageCount = PageCount::from_mebibytes(8);
const MOST_CUSHION: PageCount = PageCount::from_mebibytes(256);

impl GuestFigures {
    /// Compares with what the VM's touches show.
    #[must_use]
    pub fn witness(&self, active: Option<&ActiveSet>) -> Witness {
        let Some(active) = active.filter(|active| active.source == Source::Touches) else {
            return Witness::Silent;
        };
        if self.free.is_none() && self.available.is_none() {
            return Witness::Silent;
        }
        // No accusation may rest on a balloon that inflated after the guest had looked.
        let most_held = self.most_held.max(self.held);
        if self.free > Some(most_held) || self.available > Some(most_held) {
            return Witness::Senseless;
        }
        let tolerance = PageCount(self.held.0 / TOLERANCE_DIVISOR);
        let excess = |more: PageCount, less: PageCount| {
            let by = more.saturating_sub(less);
            (by > tolerance).then_some(by)
        };
        let in_use = self.free.map(|free| most_held - free);
        if let Some(by) = in_use.and_then(|in_use| excess(active.low, in_use)) {
            return Witness::SaysIdler { by };
        }
        let needed = self
            .available
            .map(|available| self.held.saturating_sub(available));
        if let Some(by) = needed.and_then(|needed| excess(needed, active.high)) {
            return Witness::SaysBusier { by };
        }
        Witness::Agrees
    }

    /// What a guest of this size must keep, by its own word, to stay off its swap and its out-of-memory
    /// killer: all that is not available, and a cushion. Nothing if it does not say.
    #[must_use]
    pub fn needs(&self, size: PageCount) -> PageCount {
        let Some(available) = self.available else {
            return PageCount::ZERO;
        };
        let spare = available.saturating_sub(cushion(size));
        self.held.saturating_sub(spare).min(size)
    }

    /// Whether the guest had to wait for memory since it reported before.
    #[must_use]
    pub fn has_stalled(&self) -> bool {
        self.stalls.is_some_and(|stalls| stalls > 0)
    }
}

fn cushion(size: PageCount) -> PageCount {
    PageCount(size.0 / CUSHION_DIVISOR).clamp(LEAST_CUSHION, MOST_CUSHION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn figures(free: u64, available: u64) -> GuestFigures {
        GuestFigures {
            held: PageCount(10_000),
            free: Some(PageCount(free)),
            available: Some(PageCount(available)),
            ..GuestFigures::default()
        }
    }

    fn touches(low: u64, high: u64) -> ActiveSet {
        ActiveSet {
            pages: PageCount(low.midpoint(high)),
            low: PageCount(low),
            high: PageCount(high),
            ..ActiveSet::default()
        }
    }

    #[test]
    fn a_guest_that_touches_what_lies_between_its_need_and_its_use_agrees() {
        assert_eq!(
            figures(2000, 7000).witness(Some(&touches(3000, 5000))),
            Witness::Agrees
        );
        assert_eq!(figures(2000, 7000).witness(None), Witness::Silent);
        assert_eq!(
            GuestFigures::default().witness(Some(&touches(1, 2))),
            Witness::Silent
        );
    }

    #[test]
    fn a_guest_that_touches_more_than_it_uses_says_too_little() {
        let by = PageCount(2000);
        assert_eq!(
            figures(9000, 9000).witness(Some(&touches(3000, 5000))),
            Witness::SaysIdler { by }
        );
    }

    #[test]
    fn a_guest_that_needs_more_than_it_touches_says_more_than_it_does() {
        let by = PageCount(4000);
        assert_eq!(
            figures(500, 1000).witness(Some(&touches(3000, 5000))),
            Witness::SaysBusier { by }
        );
    }

    #[test]
    fn a_guest_with_more_free_than_it_holds_makes_no_sense() {
        assert_eq!(
            figures(10_001, 0).witness(Some(&touches(0, 9))),
            Witness::Senseless
        );
    }

    #[test]
    fn what_was_true_before_the_balloon_inflated_makes_sense() {
        let touches = touches(2000, 9000);
        let figures = GuestFigures {
            most_held: PageCount(14_000),
            ..figures(11_000, 12_000)
        };
        assert_eq!(figures.witness(Some(&touches)), Witness::Agrees);
        let beyond = GuestFigures {
            available: Some(PageCount(14_001)),
            ..figures
        };
        assert_eq!(beyond.witness(Some(&touches)), Witness::Senseless);
    }

    #[test]
    fn a_guest_keeps_what_it_needs_and_a_cushion() {
        let size = PageCount::from_mebibytes(512);
        let cushion = PageCount::from_mebibytes(16);
        assert_eq!(figures(0, 8000).needs(size), PageCount(2000) + cushion);
        assert_eq!(figures(0, 100).needs(size), PageCount(10_000));
        assert_eq!(GuestFigures::default().needs(size), PageCount::ZERO);
    }

    proptest! {
        /// Whatever it says, a guest claims no more than it held.
        #[test]
        fn a_guest_cannot_need_more_than_it_holds(
            held: u64, most_held: u64, free: Option<u64>, available: Option<u64>, low: u64, high: u64, size: u64
        ) {
            let held = PageCount(held);
            let (free, available) = (free.map(PageCount), available.map(PageCount));
            let most_held = PageCount(most_held);
            let figures = GuestFigures { held, most_held, free, available, ..GuestFigures::default() };
            prop_assert!(figures.needs(PageCount(size)) <= held.min(PageCount(size)));
            let touches = ActiveSet { low: PageCount(low), high: PageCount(high), ..ActiveSet::default() };
            if let Witness::SaysBusier { by } | Witness::SaysIdler { by } = figures.witness(Some(&touches)) {
                prop_assert!(by > PageCount::ZERO);
            }
        }
    }
}
