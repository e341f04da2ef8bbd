//! How fast to scan: pages a second for each VM and for the host, and a share of a core.
//!
//! Each limit is a bucket that fills with time and is emptied by work. Work may overdraw it, for a
//! block is scanned whole; then it is waited for. Time is what the caller says it is.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

const NS_PER_S: u128 = 1_000_000_000;
/// What fills up while nothing is done: enough to ride out a pause, not to storm after a long one.
const BURST: Duration = Duration::from_secs(1);

/// How fast to scan. ESXi goes over a VM once an hour, at up to 1024 pages a second (ESX.md, "Page
/// sharing"). A scan that reads only what was written since the last is cheap enough for a pass every
/// five minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateSettings {
    /// Every page of a VM is to be seen once in this time, as far as the limits allow.
    pub pass_s: u64,
    /// The most pages a second of one VM.
    pub vm_pages_per_s: u64,
    /// The most pages a second in all.
    pub host_pages_per_s: u64,
    /// The most time on a core, in thousandths.
    pub core_share_permille: u64,
    /// How many times faster while memory is short. The share of a core stays.
    pub short_factor: u64,
}

impl Default for RateSettings {
    fn default() -> Self {
        Self {
            pass_s: 300,
            vm_pages_per_s: 4096,
            host_pages_per_s: 16_384,
            core_share_permille: 250,
            short_factor: 8,
        }
    }
}

impl RateSettings {
    /// Pages a second for a VM of this size.
    pub(crate) fn vm_rate(&self, pages: u64) -> u64 {
        let steady = pages.div_ceil(self.pass_s.max(1));
        steady.min(self.vm_pages_per_s).max(1)
    }
}

/// Fills with `rate` a second, up to what a second brings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: u64,
    /// In 10^-9 of a unit, so that no fraction is lost; below zero while overdrawn.
    level: i128,
    filled_at: Duration,
}

impl Bucket {
    pub(crate) fn new(rate: u64, now: Duration) -> Self {
        Self {
            rate,
            level: 0,
            filled_at: now,
        }
    }

    /// Goes on with another rate from now on.
    pub(crate) fn set_rate(&mut self, rate: u64, now: Duration) {
        self.fill(now);
        self.rate = rate;
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    /// A clock that goes back fills nothing.
    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled_at).as_nanos();
        let most = u128::from(self.rate) * BURST.as_nanos();
        let filled = passed
            .saturating_mul(u128::from(self.rate))
            .min(most.saturating_mul(1 << 20));
        let filled = i128::try_from(filled).unwrap_or(i128::MAX / 2);
        let most = i128::try_from(most).unwrap_or(i128::MAX / 2);
        self.level = (self.level + filled).min(most);
        self.filled_at = self.filled_at.max(now);
    }

    pub(crate) fn spend(&mut self, units: u64, now: Duration) {
        self.fill(now);
        self.level -= i128::from(units) * NS_PER_S.cast_signed();
    }

    /// When it is not overdrawn any more: now, or later.
    pub(crate) fn ready_at(&mut self, now: Duration) -> Duration {
        self.fill(now);
        let debt = (-self.level).max(0).cast_unsigned();
        let wait = debt.div_ceil(u128::from(self.rate.max(1)));
        now + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However the work is cut up: over any stretch no more than the rate, one burst and one piece.
        #[test]
        fn a_bucket_keeps_its_rate(
            rate in 1u64..5000, pieces in prop::collection::vec((1u64..600, 0u64..2_000_000_000), 1..60)
        ) {
            let start = Duration::from_secs(5);
            let (mut now, mut spent) = (start, 0);
            let mut bucket = Bucket::new(rate, now);
            for (piece, pause) in pieces {
                now = bucket.ready_at(now + Duration::from_nanos(pause));
                bucket.spend(piece, now);
                spent += piece;
                let allowed = (now - start).as_nanos() * u128::from(rate) / NS_PER_S;
                prop_assert!(u128::from(spent - piece) <= allowed + u128::from(rate) + 1);
            }
        }
    }

    #[test]
    fn the_default_is_a_pass_in_five_minutes_and_at_most_4096_pages_a_second() {
        let settings = RateSettings::default();
        assert_eq!(settings.vm_rate(300 * 100), 100);
        assert_eq!(settings.vm_rate(1 << 30), 4096);
    }

    #[test]
    fn a_clock_that_goes_back_is_borne() {
        let mut bucket = Bucket::new(10, Duration::from_secs(100));
        bucket.spend(10, Duration::from_secs(50));
        assert_eq!(
            bucket.ready_at(Duration::from_secs(50)),
            Duration::from_secs(51)
        );
        assert_eq!(
            bucket.ready_at(Duration::from_secs(102)),
            Duration::from_secs(102)
        );
    }
}
