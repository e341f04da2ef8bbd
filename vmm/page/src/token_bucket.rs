//! A bound on how much is done in a second: a bucket that fills with time and is emptied by work.
//!
//! Work may overdraw it, and what it takes too much the next work waits for. So no piece is cut or starved
//! by its size, and over any time no more is done than the rate allows, the burst, and one piece. Time is
//! what the caller says it is.

use std::time::Duration;

const NANOS: i128 = 1_000_000_000;

/// Fills with `rate` units a second, up to `burst` of them.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    rate: u64,
    burst: u64,
    /// In 10^-9 of a unit, so that no fraction is lost; below zero while overdrawn.
    level: i128,
    filled_at: Duration,
}

impl TokenBucket {
    /// An empty one that holds what a second brings.
    #[must_use]
    pub const fn new(rate: u64, now: Duration) -> Self {
        Self {
            rate,
            burst: rate,
            level: 0,
            filled_at: now,
        }
    }

    /// A full one.
    #[must_use]
    pub fn full(rate: u64, burst: u64) -> Self {
        Self {
            rate,
            burst,
            level: i128::from(burst) * NANOS,
            filled_at: Duration::ZERO,
        }
    }

    /// Goes on with another rate, and what that brings in a second, from now on.
    pub fn set_rate(&mut self, rate: u64, now: Duration) {
        self.fill(now);
        (self.rate, self.burst) = (rate, rate);
    }

    /// Units a second.
    #[must_use]
    pub const fn rate(&self) -> u64 {
        self.rate
    }

    /// A clock that goes back fills nothing.
    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled_at).as_nanos();
        let gain = i128::try_from(passed.saturating_mul(self.rate.into())).unwrap_or(i128::MAX);
        let most = i128::from(self.burst) * NANOS;
        self.level = self.level.saturating_add(gain).min(most);
        self.filled_at = self.filled_at.max(now);
    }

    /// So much is done.
    pub fn spend(&mut self, units: u64, now: Duration) {
        self.fill(now);
        self.level = self.level.saturating_sub(i128::from(units) * NANOS);
    }

    /// When it is not overdrawn any more: now, or later.
    pub fn ready_at(&mut self, now: Duration) -> Duration {
        self.fill(now);
        let debt = self.level.min(0).unsigned_abs();
        let wait = debt.div_ceil(self.rate.max(1).into());
        now.saturating_add(Duration::from_nanos(
            u64::try_from(wait).unwrap_or(u64::MAX),
        ))
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
            let mut bucket = TokenBucket::new(rate, now);
            for (piece, pause) in pieces {
                now = bucket.ready_at(now + Duration::from_nanos(pause));
                bucket.spend(piece, now);
                spent += piece;
                let allowed = (now - start).as_nanos() * u128::from(rate) / NANOS.unsigned_abs();
                prop_assert!(u128::from(spent - piece) <= allowed + u128::from(rate) + 1);
            }
        }
    }

    #[test]
    fn a_clock_that_goes_back_is_borne() {
        let mut bucket = TokenBucket::new(10, Duration::from_secs(100));
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
