//! How long the guest stood still: the time that passed between what it had to do and its doing it.

/// The longest time, so far, in which a guest with something to do did nothing else.
///
/// Its event loop tells when a turn begins and when it rests. A turn is short by itself, so one that took long was held up:
/// by memory that did not come, by its virtual machine, or by a machine that had other work.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// From when on it has something to do; `u64::MAX` if that is when an interrupt comes.
    due_us: u64,
    longest_us: u64,
}

impl Pauses {
    /// None so far, for a guest that goes on at once.
    #[must_use]
    pub const fn new(now_us: u64) -> Self {
        Self {
            due_us: now_us,
            longest_us: 0,
        }
    }

    /// A turn of the event loop begins.
    pub fn turn(&mut self, now_us: u64) {
        let paused_us = now_us.saturating_sub(self.due_us);
        self.longest_us = self.longest_us.max(paused_us);
        self.due_us = now_us;
    }

    /// It has nothing to do until then, or until an interrupt comes.
    pub fn rest(&mut self, now_us: u64, until_us: Option<u64>) {
        self.turn(now_us);
        self.due_us = until_us.unwrap_or(u64::MAX);
    }

    /// The longest since this was asked before, in microseconds.
    pub fn take_longest_us(&mut self) -> u64 {
        core::mem::take(&mut self.longest_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_turn_and_a_late_waking_are_pauses_and_rest_is_none() {
        let mut pauses = Pauses::new(1000);
        pauses.turn(1700);
        pauses.turn(1900);
        assert_eq!(pauses.take_longest_us(), 700);
        // Woken early, and then when it wanted.
        pauses.rest(2000, Some(50_000));
        pauses.turn(40_000);
        pauses.rest(40_100, Some(50_000));
        pauses.turn(50_003);
        pauses.rest(50_010, None);
        pauses.turn(900_000);
        assert_eq!(pauses.take_longest_us(), 100);
        pauses.rest(900_010, Some(900_020));
        pauses.turn(1_000_020);
        assert_eq!(pauses.take_longest_us(), 100_000);
        assert_eq!(pauses.take_longest_us(), 0);
    }
}
