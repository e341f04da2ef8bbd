//! How full the balloon should be: decides, touches nothing.
//!
//! The device's target is followed, except after the guest ran out of memory: then the balloon
//! stays as low as it was made, for a hold-off time, and is inflated again only by what is really
//! available. Otherwise the balloon would at once take back what the guest has just won.

/// How long the balloon stays where running out of memory put it.
const HOLD_OFF_US: u64 = 3_000_000;
/// Pages that are left over when the balloon is inflated again.
const LEFT_OVER: u32 = 1024;
/// The fewest pages that running out of memory takes from the balloon.
const RELIEF_MIN: u32 = 256;

/// What to do now, in pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    Inflate(u32),
    Deflate(u32),
    Hold,
}

/// A completed move of the balloon to a new target.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// Pages moved.
    pub pages: u32,
    /// From first seeing the new target to having reached it, in microseconds.
    pub us: u64,
}

#[derive(Clone, Copy, Debug)]
struct Ceiling {
    pages: u32,
    until_us: u64,
}

#[derive(Clone, Copy, Debug)]
struct Move {
    from: u32,
    since_us: u64,
}

#[derive(Debug, Default)]
pub(super) struct Level {
    target: u32,
    ceiling: Option<Ceiling>,
    moving: Option<Move>,
    last_change: Change,
}

impl Level {
    pub(super) const fn target(&self) -> u32 {
        self.target
    }

    pub(super) const fn last_change(&self) -> Change {
        self.last_change
    }

    /// The device wants `target` pages; `actual` are in.
    pub(super) fn set_target(&mut self, target: u32, actual: u32, now_us: u64) {
        if target == self.target {
            return;
        }
        self.target = target;
        self.moving = Some(Move {
            from: actual,
            since_us: now_us,
        });
        self.note_actual(actual, now_us);
    }

    /// Ends the move when the target is reached.
    pub(super) fn note_actual(&mut self, actual: u32, now_us: u64) {
        if let Some(start) = self.moving
            && actual == self.target
        {
            let pages = start.from.abs_diff(actual);
            self.last_change = Change {
                pages,
                us: now_us.saturating_sub(start.since_us),
            };
            self.moving = None;
        }
    }

    /// The guest is out of memory and wants `pages` of the `coming` that are in or on their way
    /// in. Returns how many it gets.
    pub(super) fn relieve(&mut self, pages: u32, coming: u32, now_us: u64) -> u32 {
        let from = self.goal().min(coming);
        let relief = pages.max(RELIEF_MIN).min(from);
        self.ceiling = Some(Ceiling {
            pages: from - relief,
            until_us: now_us + HOLD_OFF_US,
        });
        relief
    }

    /// What to do when `coming` pages are in or on their way in, and `available` could go in.
    pub(super) fn step(&mut self, coming: u32, available: u32, now_us: u64) -> Step {
        self.lift_ceiling(coming, available, now_us);
        let goal = self.goal();
        if goal > coming {
            Step::Inflate(goal - coming)
        } else if goal < coming {
            Step::Deflate(coming - goal)
        } else {
            Step::Hold
        }
    }

    fn goal(&self) -> u32 {
        self.ceiling
            .map_or(self.target, |ceiling| self.target.min(ceiling.pages))
    }

    fn lift_ceiling(&mut self, coming: u32, available: u32, now_us: u64) {
        let Some(ceiling) = &mut self.ceiling else {
            return;
        };
        if now_us < ceiling.until_us {
            return;
        }
        let possible = coming.saturating_add(available.saturating_sub(LEFT_OVER));
        if possible >= self.target {
            self.ceiling = None;
        } else {
            ceiling.pages = ceiling.pages.max(possible);
        }
    }

    /// When the ceiling may first be lifted, if it is still held.
    pub(super) fn wake_at_us(&self, now_us: u64) -> Option<u64> {
        self.ceiling
            .map(|ceiling| ceiling.until_us)
            .filter(|&until| until > now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_balloon_follows_its_target_both_ways() {
        let mut level = Level::default();
        level.set_target(1000, 0, 0);
        assert_eq!(level.step(0, 5000, 0), Step::Inflate(1000));
        assert_eq!(level.step(1000, 5000, 0), Step::Hold);
        level.set_target(300, 1000, 0);
        assert_eq!(level.step(1000, 0, 0), Step::Deflate(700));
    }

    #[test]
    fn after_running_out_of_memory_only_free_pages_go_in_again_and_later() {
        let mut level = Level::default();
        level.set_target(10_000, 0, 0);
        assert_eq!(level.relieve(1, 10_000, 0), RELIEF_MIN);
        assert_eq!(level.step(10_000, 0, 1), Step::Deflate(RELIEF_MIN));
        assert_eq!(
            level.step(10_000 - RELIEF_MIN, 5000, HOLD_OFF_US - 1),
            Step::Hold
        );
        assert_eq!(
            level.step(10_000 - RELIEF_MIN, 100, HOLD_OFF_US),
            Step::Hold
        );
        assert_eq!(
            level.step(10_000 - RELIEF_MIN, LEFT_OVER + 56, HOLD_OFF_US),
            Step::Inflate(56)
        );
        assert_eq!(
            level.step(10_000 - 200, 100_000, HOLD_OFF_US),
            Step::Inflate(200)
        );
        assert_eq!(level.wake_at_us(HOLD_OFF_US), None);
    }

    #[test]
    fn an_empty_balloon_relieves_nobody() {
        assert_eq!(Level::default().relieve(256, 0, 0), 0);
    }

    #[test]
    fn a_move_is_timed_from_the_new_target_to_its_reaching() {
        let mut level = Level::default();
        level.set_target(500, 100, 1_000);
        level.note_actual(300, 2_000);
        assert_eq!(level.last_change(), Change::default());
        level.note_actual(500, 3_500);
        assert_eq!(
            level.last_change(),
            Change {
                pages: 400,
                us: 2_500
            }
        );
    }
}
