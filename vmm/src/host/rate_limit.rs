//! How much of a VM's talk is taken in: some at once, and then so much in a time.
//!
//! What a VM says beyond that stays in its socket until it is full, so whoever floods waits itself, and what
//! the host spends on it is bounded.

use std::time::{Duration, Instant};

/// What one VM may say (the generic cell rate algorithm).
#[derive(Clone, Copy, Debug)]
pub(super) struct RateLimit {
    /// The time that pays for one piece.
    each: Duration,
    /// The time that can be owed.
    credit: Duration,
    paid_until: Instant,
}

impl RateLimit {
    /// `at_once` pieces and one more after each time.
    pub(super) fn new(at_once: u32, each: Duration) -> Self {
        Self {
            each,
            credit: each * at_once,
            paid_until: Instant::now(),
        }
    }

    /// So much was taken in. More than is left may be, and is waited for.
    pub(super) fn charge(&mut self, pieces: u32, now: Instant) {
        let from = self.paid_until.max(now);
        self.paid_until = from + self.each.saturating_mul(pieces);
    }

    /// When the next piece may be taken in: at once, if that is no later than now.
    pub(super) fn next(&self) -> Instant {
        self.paid_until
            .checked_sub(self.credit)
            .unwrap_or(self.paid_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EACH: Duration = Duration::from_millis(10);
    const AT_ONCE: u32 = 16;

    #[test]
    fn a_few_come_at_once_and_then_one_after_the_other() {
        let mut limit = RateLimit::new(AT_ONCE, EACH);
        let begin = Instant::now();
        for _ in 0..AT_ONCE {
            assert!(limit.next() <= begin);
            limit.charge(1, begin);
        }
        limit.charge(1, begin);
        assert_eq!(limit.next(), begin + EACH);
        limit.charge(3, begin + EACH);
        assert_eq!(limit.next(), begin + 4 * EACH);
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_is_taken_in_than_that_pays_for(
            costs in prop::collection::vec((0u64..50, 1u32..40), 1..200)
        ) {
            let mut limit = RateLimit::new(AT_ONCE, EACH);
            let begin = Instant::now();
            let (mut now, mut taken) = (begin, 0);
            for (wait_ms, pieces) in costs {
                now = (now + Duration::from_millis(wait_ms)).max(limit.next());
                limit.charge(pieces, now);
                // One may go beyond; the next one waits.
                let paid = AT_ONCE + u32::try_from((now - begin).as_millis() / EACH.as_millis()).unwrap();
                prop_assert!(taken <= paid, "{} of {} at {:?}", taken, paid, now - begin);
                taken += pieces;
            }
        }
    }
}
