//! How much of a VM a balloon may take, and how fast.

use crate::state::BalloonPace;
use page::PageCount;
use serde::{Deserialize, Serialize};

/// The largest part of a VM that its balloon may take, in percent (ESX.md, Ballooning).
pub const BALLOON_LIMIT_PERCENT: u64 = 65;

/// How balloons may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonSettings {
    /// The largest part of a VM that its balloon takes.
    pub limit_percent: u64,
    /// How fast it inflates: 64 MiB a second by default, a small part of what a guest can do.
    pub pages_per_s: u64,
    /// How many times faster while memory is short: with 8, about what 4 KiB pages allow.
    pub fast_factor: u64,
}

impl Default for BalloonSettings {
    fn default() -> Self {
        Self {
            limit_percent: BALLOON_LIMIT_PERCENT,
            pages_per_s: PageCount::from_mebibytes(64).0,
            fast_factor: 8,
        }
    }
}

impl BalloonSettings {
    /// What is left of a VM when its balloon has taken the most it may.
    #[must_use]
    pub fn least_left(&self, size: PageCount) -> PageCount {
        let percent_left = 100u64.saturating_sub(self.limit_percent);
        let left = (u128::from(size.0) * u128::from(percent_left)).div_ceil(100);
        PageCount(u64::try_from(left).unwrap_or(size.0))
    }
}

/// How balloons are used in this plan: in a snapshot that lacks it, they follow targets at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonRound {
    /// How they may be used.
    pub settings: BalloonSettings,
    /// Since the last plan that was carried out.
    pub elapsed_ms: u64,
}

impl BalloonRound {
    /// What a balloon may take in this round.
    pub(crate) fn step(&self, pace: BalloonPace) -> PageCount {
        let factor = match pace {
            BalloonPace::Gentle => 1,
            BalloonPace::Fast => self.settings.fast_factor,
        };
        let per_s = self.settings.pages_per_s.saturating_mul(factor);
        PageCount(per_s.saturating_mul(self.elapsed_ms) / 1000)
    }
}
