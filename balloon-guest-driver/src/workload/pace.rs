//! Doing so many things a second, in few and short wake-ups.

/// Work is let gather for so long, so that a slow workload does not wake the guest each time.
const GATHER_US: u64 = 10_000;
/// What cannot be done in time is forgotten beyond this, rather than done in a burst later.
const BACKLOG_US: u64 = 100_000;
const SECOND_US: u64 = 1_000_000;

/// The pace of a workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    rate: u64,
    since_us: u64,
    done: u64,
}

impl Pace {
    /// `rate` things a second; 0 for as many as possible.
    pub(super) const fn new(rate: u64, now_us: u64) -> Self {
        Self {
            rate,
            since_us: now_us,
            done: 0,
        }
    }

    /// The rate changes from now on.
    pub(super) const fn set_rate(&mut self, rate: u64, now_us: u64) {
        if rate != self.rate {
            *self = Self::new(rate, now_us);
        }
    }

    /// How many things should be done now.
    pub(super) fn due(&mut self, now_us: u64) -> u64 {
        if self.rate == 0 {
            return u64::MAX;
        }
        let elapsed_us = now_us.saturating_sub(self.since_us);
        let due = (self.rate * elapsed_us / SECOND_US).saturating_sub(self.done);
        if due > (self.rate * BACKLOG_US / SECOND_US).max(1) || elapsed_us > 60 * SECOND_US {
            // Start counting anew, owing what is due but for the backlog that is too old.
            let owed_us = BACKLOG_US
                .max(SECOND_US / self.rate)
                .min(due * SECOND_US / self.rate);
            *self = Self::new(self.rate, now_us.saturating_sub(owed_us));
            return self.rate * owed_us / SECOND_US;
        }
        due
    }

    /// So many things were done.
    pub(super) const fn note_done(&mut self, count: u64) {
        self.done = self.done.wrapping_add(count);
    }

    /// When enough will have gathered to wake up for; `None` for at once.
    pub(super) fn wake_at_us(&self, now_us: u64) -> Option<u64> {
        if self.rate == 0 {
            return None;
        }
        let next_us = self.since_us + (self.done + 1) * SECOND_US / self.rate + 1;
        (next_us > now_us).then(|| next_us.max(now_us + GATHER_US))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_a_long_time_the_rate_is_kept() {
        for rate in [1, 7, 1000, 20_000, 1_000_000] {
            let mut pace = Pace::new(rate, 0);
            let (mut now, mut total) = (0, 0);
            while now < 200 * SECOND_US {
                let due = pace.due(now);
                pace.note_done(due);
                total += due;
                now = pace.wake_at_us(now).unwrap_or(now + 1);
            }
            let (least, most) = (rate * 200 * 98 / 100 - 2, rate * 200 * 102 / 100 + 2);
            assert!(
                (least..=most).contains(&total),
                "{rate}/s: {total} in 200 s"
            );
        }
    }

    #[test]
    fn what_could_not_be_done_in_time_makes_no_burst() {
        let mut pace = Pace::new(1000, 0);
        assert_eq!(pace.due(30 * SECOND_US), 100);
    }

    #[test]
    fn wake_ups_are_few() {
        let mut pace = Pace::new(1_000_000, 0);
        pace.note_done(1);
        assert!(pace.wake_at_us(1).unwrap() >= GATHER_US);
    }
}
