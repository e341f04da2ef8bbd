//! Memory states: how short the host is of free memory, and what each degree of that orders.
//!
//! Thresholds on free memory divide it into five states (ESX.md, Dynamic reallocation). A state gets
//! shorter at once and longer only when free memory is above the threshold by a margin: what the last
//! order freed must not end that order, or host and guests would swing between two states.
//!
//! A budget here may be a few hundred MiB, where a percentage comes to less than a guest touches between
//! two looks. So what is to be free is never less than [`LEAST_MIN_FREE`], except where that were more
//! than an eighth of all.

use page::PageCount;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

const GIB: PageCount = PageCount::from_mebibytes(1024);

/// A host keeps at least this free, or an eighth of a budget for which this is much.
pub const LEAST_MIN_FREE: PageCount = PageCount::from_mebibytes(8);
const MOST_OF_SMALL_BUDGET: u64 = 8;

/// A state is left upward when free memory is above its threshold by this part of it.
const MARGIN_DIVISOR: u64 = 8;

/// How short memory is. A later one is shorter.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum MemoryState {
    /// There is enough.
    #[default]
    High,
    /// Still enough, but page sharing should look harder.
    Clear,
    /// Balloons take what is above targets as fast as guests can bear.
    Soft,
    /// What balloons cannot take is compressed and swapped.
    Hard,
    /// And VMs above their targets whose balloons do not follow are blocked.
    Low,
}

/// What a state orders. Everything that is ordered in one state is ordered in all shorter ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Orders {
    /// Whether page sharing is to scan at its higher rate and break up large pages.
    pub share_harder: bool,
    /// How fast balloons inflate. Targets hold in every state, for memory is granted before it is
    /// touched; only the pace differs.
    pub balloon: BalloonPace,
    /// Whether what the balloon cannot take is to be compressed or swapped.
    pub compress_and_swap: bool,
    /// Whether VMs above their targets must not run until they are not.
    pub block_above_target: bool,
}

/// How fast balloons inflate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BalloonPace {
    /// So that guests hardly notice.
    #[default]
    Gentle,
    /// As fast as guests can.
    Fast,
}

/// How much of a budget is to be free, and where the states begin below that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// ESXi today: 6 % of the first 4 GiB, 4 % of the next 8, 2 % of the next 16 and 1 % of the rest;
    /// states at 100, 64, 32 and 16 % of that.
    #[default]
    Sliding,
    /// The paper's: states at 6, 4, 2 and 1 % of all memory.
    Paper,
}

/// Free memory below which each state is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "each is named for the state that begins below it"
)]
pub struct Thresholds {
    pub clear: PageCount,
    pub soft: PageCount,
    pub hard: PageCount,
    pub low: PageCount,
}

impl Thresholds {
    /// Those of a host with this budget.
    #[must_use]
    pub fn of(scale: Scale, budget: PageCount) -> Self {
        let least = LEAST_MIN_FREE.min(PageCount(budget.0 / MOST_OF_SMALL_BUDGET));
        let (clear, shorter, whole) = match scale {
            Scale::Sliding => (sliding_min_free(budget), [64, 32, 16], 100),
            Scale::Paper => (part(budget, 6, 100), [4, 2, 1], 6),
        };
        let clear = clear.max(least);
        let [soft, hard, low] = shorter.map(|share| part(clear, share, whole));
        Self {
            clear,
            soft,
            hard,
            low,
        }
    }

    /// What should not be given to anybody, so that the state is high while nothing unforeseen happens.
    #[must_use]
    pub fn keep_free(&self) -> PageCount {
        with_margin(self.clear)
    }

    /// What must be free to leave a state for the next longer one.
    fn raised(&self) -> Self {
        Self {
            clear: with_margin(self.clear),
            soft: with_margin(self.soft),
            hard: with_margin(self.hard),
            low: with_margin(self.low),
        }
    }

    fn state_at(&self, free: PageCount) -> MemoryState {
        match free {
            free if free < self.low => MemoryState::Low,
            free if free < self.hard => MemoryState::Hard,
            free if free < self.soft => MemoryState::Soft,
            free if free < self.clear => MemoryState::Clear,
            _ => MemoryState::High,
        }
    }
}

impl MemoryState {
    /// From longest to shortest.
    pub const ALL: [Self; 5] = [Self::High, Self::Clear, Self::Soft, Self::Hard, Self::Low];

    /// The state after this one when so much is free now: as short as the thresholds say at once, as
    /// long as they say with a margin, and unchanged between.
    #[must_use]
    pub fn next(self, free: PageCount, thresholds: &Thresholds) -> Self {
        let shortest = thresholds.raised().state_at(free);
        let longest = thresholds.state_at(free);
        self.clamp(longest, shortest)
    }

    /// What is to be done in this state.
    #[must_use]
    pub fn orders(self) -> Orders {
        Orders {
            share_harder: self >= Self::Clear,
            balloon: if self >= Self::Soft {
                BalloonPace::Fast
            } else {
                BalloonPace::Gentle
            },
            compress_and_swap: self >= Self::Hard,
            block_above_target: self >= Self::Low,
        }
    }
}

impl fmt::Display for MemoryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::High => "high",
            Self::Clear => "clear",
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Low => "low",
        })
    }
}

/// `share` of `whole` parts of these pages, rounded up.
fn part(pages: PageCount, share: u64, whole: u64) -> PageCount {
    let exact = (u128::from(pages.0) * u128::from(share)).div_ceil(u128::from(whole));
    PageCount(u64::try_from(exact).unwrap_or(u64::MAX))
}

fn sliding_min_free(budget: PageCount) -> PageCount {
    let (mut rest, mut sum) = (budget, PageCount::ZERO);
    for (gibibytes, percent) in [(4, 6), (8, 4), (16, 2)] {
        let piece = rest.min(PageCount(GIB.0 * gibibytes));
        sum += part(piece, percent, 100);
        rest = rest - piece;
    }
    sum + part(rest, 1, 100)
}

fn with_margin(threshold: PageCount) -> PageCount {
    let margin = threshold.0.div_ceil(MARGIN_DIVISOR);
    PageCount(threshold.0.saturating_add(margin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mebibytes(count: u64) -> PageCount {
        PageCount::from_mebibytes(count)
    }

    fn any_state() -> impl Strategy<Value = MemoryState> {
        prop::sample::select(MemoryState::ALL.to_vec())
    }

    fn any_scale() -> impl Strategy<Value = Scale> {
        prop_oneof![Just(Scale::Sliding), Just(Scale::Paper)]
    }

    /// 6 % of 4 GiB + 4 % of 8 GiB + 2 % of 16 GiB + 1 % of 72 GiB.
    #[test]
    fn a_host_of_100_gib_keeps_what_esxi_keeps() {
        let thresholds = Thresholds::of(Scale::Sliding, mebibytes(100 * 1024));
        let expected = (4 * 6 + 8 * 4 + 16 * 2 + 72) * 1024 * 256 / 100;
        assert!(thresholds.clear.0.abs_diff(expected) < 4);
        assert!(thresholds.soft.0.abs_diff(expected * 64 / 100) < 4);
        assert!(thresholds.low.0.abs_diff(expected * 16 / 100) < 4);
    }

    #[test]
    fn the_papers_states_begin_at_6_4_2_and_1_percent() {
        let thresholds = Thresholds::of(Scale::Paper, PageCount(1_000_000));
        let expected = [60_000, 40_000, 20_000, 10_000].map(PageCount);
        let Thresholds {
            clear,
            soft,
            hard,
            low,
        } = thresholds;
        assert_eq!([clear, soft, hard, low], expected);
    }

    #[test]
    fn a_small_budget_keeps_a_few_mebibytes_and_never_an_eighth() {
        let kept = |budget| Thresholds::of(Scale::Sliding, mebibytes(budget)).keep_free();
        assert_eq!(kept(100), mebibytes(9));
        assert_eq!(kept(40), PageCount(40 * 256 / 8 * 9 / 8));
        assert!(kept(300) < mebibytes(21) && kept(300) > mebibytes(18));
        assert!(kept(512) < mebibytes(35));
        assert_eq!(kept(0), PageCount::ZERO);
    }

    #[test]
    fn a_state_gets_shorter_at_once_and_longer_with_a_margin() {
        let thresholds = Thresholds {
            clear: PageCount(1000),
            soft: PageCount(640),
            hard: PageCount(320),
            low: PageCount(160),
        };
        let mut state = MemoryState::High;
        let mut after = |free| {
            state = state.next(PageCount(free), &thresholds);
            state
        };
        assert_eq!(after(1000), MemoryState::High);
        assert_eq!(after(639), MemoryState::Soft);
        assert_eq!(after(719), MemoryState::Soft);
        assert_eq!(after(720), MemoryState::Clear);
        assert_eq!(after(0), MemoryState::Low);
        assert_eq!(after(1124), MemoryState::Clear);
        assert_eq!(after(1125), MemoryState::High);
    }

    #[test]
    fn a_shorter_state_orders_all_that_a_longer_one_does() {
        let orders = MemoryState::ALL.map(|state| {
            let orders = state.orders();
            [
                orders.share_harder,
                orders.balloon == BalloonPace::Fast,
                orders.compress_and_swap,
                orders.block_above_target,
            ]
        });
        for (index, ordered) in orders.into_iter().enumerate() {
            assert_eq!(
                ordered.into_iter().filter(|&is_ordered| is_ordered).count(),
                index
            );
        }
        assert_eq!(MemoryState::Clear.orders().balloon, BalloonPace::Gentle);
    }

    proptest! {
        #[test]
        fn thresholds_fall_from_state_to_state(scale in any_scale(), budget: u64) {
            let Thresholds { clear, soft, hard, low } = Thresholds::of(scale, PageCount(budget));
            prop_assert!(clear >= soft && soft >= hard && hard >= low);
            prop_assert!(clear.0 <= budget.div_ceil(8));
        }

        /// A swing of less than the margin around any point never makes a state change twice.
        #[test]
        fn a_small_swing_changes_the_state_at_most_once(
            scale in any_scale(), state in any_state(), budget in 1u64 << 14..1 << 40, free in 0u64..2000, swings in 2usize..20
        ) {
            let thresholds = Thresholds::of(scale, PageCount(budget));
            let free = thresholds.clear.0 * free / 1000;
            let swing = thresholds.low.0 / MARGIN_DIVISOR - 1;
            let (mut now, mut changes) = (state, 0);
            for round in 0..swings as u64 {
                let next = now.next(PageCount(free + round % 2 * swing), &thresholds);
                changes += u32::from(next != now && round > 0);
                now = next;
            }
            prop_assert!(changes <= 1);
        }

        #[test]
        fn with_nothing_unforeseen_the_state_is_high(scale in any_scale(), state in any_state(), budget: u64) {
            let thresholds = Thresholds::of(scale, PageCount(budget));
            prop_assert_eq!(state.next(thresholds.keep_free(), &thresholds), MemoryState::High);
        }
    }
}
