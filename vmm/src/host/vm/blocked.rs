//! How long a VM was stopped at its limit.

use super::Vm;
use protocol::BlockedTime;

/// A VM is stopped and let run in slices of 50 ms: in less than two of them nothing is seen.
const SHORTEST_WATCHED_US: u64 = 100_000;

/// As far as it has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocked {
    /// As it said last.
    pub(super) last: BlockedTime,
    /// In the time before that, in thousandths.
    permille: u64,
}

impl Blocked {
    /// A VM may answer late, or twice in short succession: what counts is the time between its answers, not
    /// that between the host's rounds. Until there is a new one, all stays as it was.
    fn after(self, said: BlockedTime) -> Self {
        let time_us = said.at_us.saturating_sub(self.last.at_us);
        if time_us < SHORTEST_WATCHED_US {
            return self;
        }
        let us = said
            .total_us
            .saturating_sub(self.last.total_us)
            .min(time_us);
        let permille = u128::from(us) * 1000 / u128::from(time_us);
        // One that is stopped, and was not before, has said nothing of that time yet.
        let least = u64::from(said.is_now);
        Self {
            last: said,
            permille: u64::try_from(permille).unwrap_or(1000).max(least),
        }
    }
}

impl Vm {
    /// Takes in how long it was stopped. What there is to tell about it.
    pub(in crate::host) fn watch_blocked(&mut self) -> Option<String> {
        let observed = self.seen.observation.as_ref()?.blocked;
        let was_blocked = self.seen.blocked.permille > 0;
        self.seen.blocked = self.seen.blocked.after(observed);
        let permille = self.seen.blocked.permille;
        match (was_blocked, self.config.touch_limit) {
            (false, Some(limit)) if permille > 0 => Some(format!(
                "is blocked: it touches more than its limit of {}",
                limit.slow_above
            )),
            (true, _) if permille == 0 => Some("is not blocked any more".into()),
            _ => None,
        }
    }

    /// The part of its time that it was blocked before its last answer, in thousandths.
    pub(in crate::host) fn blocked_permille(&self) -> u64 {
        self.seen.blocked.permille
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host sees in a second is one time all that happened in one and a half, another nothing.
    #[test]
    fn a_vm_that_answers_late_is_as_blocked_as_it_was() {
        let said = |at_ms: u64, stopped_ms: u64| BlockedTime {
            is_now: true,
            total_us: stopped_ms * 1000,
            at_us: at_ms * 1000,
        };
        let mut blocked = Blocked::default();
        for (at_ms, stopped_ms) in [(1000, 900), (1000, 900), (2500, 2250), (2630, 2367)] {
            blocked = blocked.after(said(at_ms, stopped_ms));
            assert_eq!(blocked.permille, 900, "at {at_ms} ms");
        }
        // Nothing can be seen in 10 ms.
        assert_eq!(blocked.after(said(2640, 2367)), blocked);
        let runs = BlockedTime {
            is_now: false,
            ..said(3630, 2367)
        };
        assert_eq!(blocked.after(runs).permille, 0);
    }
}
