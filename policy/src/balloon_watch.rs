//! Whether a balloon follows what its VM is asked to hold, judged by what the VM holds from round to round.

use page::PageCount;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rounds without progress after which a balloon is given up for now.
pub const STUCK_ROUNDS: u32 = 5;

/// Progress is at least this part of what is missing: a page a round is none.
const PROGRESS_DIVISOR: u64 = 64;

/// How a balloon follows. The host keeps one for each VM, and records it with the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonWatch {
    /// What the VM was last asked to hold.
    pub asked: PageCount,
    /// The least that it held since it was last seen to make progress.
    lowest: PageCount,
    /// Rounds since then in which it held more than it was asked to.
    rounds_still: u32,
}

/// What a balloon's watch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BalloonHealth {
    /// The VM holds no more than it was asked to.
    Settled,
    /// It holds more, and less than before.
    Following,
    /// It holds more, and has for some rounds: no driver, no will, or no memory that it could give up.
    Stuck,
}

impl BalloonWatch {
    /// A round in which the VM was asked to hold `asked` and is found to hold `held`.
    #[must_use]
    pub fn observe(self, asked: PageCount, held: PageCount) -> Self {
        let start = Self {
            asked,
            lowest: held,
            rounds_still: 0,
        };
        // That it is asked for less still is no excuse, or one who is asked for a little less each
        // round would never be found out.
        let was_settled = self.lowest <= self.asked;
        if held <= asked || was_settled {
            return start;
        }
        let missing = self.lowest.saturating_sub(asked);
        let progress = (missing.0 / PROGRESS_DIVISOR).max(1);
        if held.0 <= self.lowest.0.saturating_sub(progress) {
            return start;
        }
        Self {
            asked,
            lowest: self.lowest,
            rounds_still: self.rounds_still.saturating_add(1),
        }
    }

    /// What to make of it.
    #[must_use]
    pub fn health(self) -> BalloonHealth {
        match self {
            Self { rounds_still, .. } if rounds_still >= STUCK_ROUNDS => BalloonHealth::Stuck,
            Self { asked, lowest, .. } if lowest > asked => BalloonHealth::Following,
            _ => BalloonHealth::Settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_balloon_without_progress_is_stuck_and_one_that_moves_again_is_not() {
        let mut watch = BalloonWatch::default();
        let mut health = |asked, held| {
            watch = watch.observe(PageCount(asked), PageCount(held));
            watch.health()
        };
        assert_eq!(health(1000, 1000), BalloonHealth::Settled);
        for _ in 0..STUCK_ROUNDS {
            assert_eq!(health(500, 1000), BalloonHealth::Following);
        }
        assert_eq!(health(500, 1000), BalloonHealth::Stuck);
        assert_eq!(
            health(500, 999),
            BalloonHealth::Stuck,
            "a page is no progress"
        );
        assert_eq!(health(500, 900), BalloonHealth::Following);
        assert_eq!(health(500, 500), BalloonHealth::Settled);
    }

    #[test]
    fn one_who_is_asked_for_less_each_round_is_found_out_too() {
        let mut watch = BalloonWatch::default();
        for round in 0..10 {
            watch = watch.observe(PageCount(1000 - round * 10), PageCount(1000));
        }
        assert_eq!(watch.health(), BalloonHealth::Stuck);
    }

    proptest! {
        /// However a guest drags its feet: if it holds more than asked for long, either it gets on or
        /// it is found out.
        #[test]
        fn a_slow_balloon_arrives_or_is_stuck(
            held in 10_000u64..100_000, steps in prop::collection::vec(0u64..200, 400)
        ) {
            let (mut watch, mut now, mut was_stuck) = (BalloonWatch::default(), held, false);
            watch = watch.observe(PageCount(now), PageCount(now));
            for step in steps {
                now = now.saturating_sub(step).max(1000);
                watch = watch.observe(PageCount(1000), PageCount(now));
                was_stuck |= watch.health() == BalloonHealth::Stuck;
            }
            prop_assert!(was_stuck || now < held / 2);
        }
    }
}
