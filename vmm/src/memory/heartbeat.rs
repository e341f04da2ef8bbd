//! Whether a thread goes on for which the guest, or other threads, wait.
//!
//! A VM of which one thread hangs is half a VM: its guest stands still and its process goes on. So a thread that others need
//! says what it begins, and who waits for it ends the process if nothing else begins for long. What it waits for itself is
//! never long: not the host, not a disk, not the guest.

use crate::lock::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often it is looked at most.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many times it was found at the same step before it is given up: a minute in which this process ran, for one that is
/// stopped does not look either.
const MOST_LOOKS: u32 = 60;

#[derive(Clone, Copy, Debug)]
struct Step {
    number: u64,
    /// None while it waits for something to do.
    what: Option<&'static str>,
}

/// What a thread is at.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    thread: &'static str,
    step: Mutex<Step>,
}

impl Heartbeat {
    pub(crate) const fn new(thread: &'static str) -> Self {
        let step = Step {
            number: 0,
            what: None,
        };
        Self {
            thread,
            step: Mutex::new(step),
        }
    }

    /// It begins another step.
    pub(crate) fn begin(&self, what: &'static str) {
        self.set(Some(what));
    }

    /// It waits until there is something to do.
    pub(crate) fn rest(&self) {
        self.set(None);
    }

    fn set(&self, what: Option<&'static str>) {
        let mut step = lock(&self.step);
        let number = step.number + 1;
        *step = Step { number, what };
    }
}

/// How long somebody has waited for a thread.
#[derive(Debug)]
pub(crate) struct Patience {
    step: u64,
    looks: u32,
    looked: Instant,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self {
            step: 0,
            looks: 0,
            looked: Instant::now(),
        }
    }

    /// Looks whether it goes on, if it is time to.
    ///
    /// # Panics
    /// If it does not: that ends the process, and says why.
    pub(crate) fn look(&mut self, heartbeat: &Heartbeat) {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            self.note(heartbeat);
        }
    }

    fn note(&mut self, heartbeat: &Heartbeat) {
        let step = *lock(&heartbeat.step);
        self.looks = match step.number == self.step {
            true => self.looks + 1,
            false => 0,
        };
        self.step = step.number;
        if let Some(what) = step.what {
            assert!(
                self.looks < MOST_LOOKS,
                "the {} hangs: it has been {what} for a minute, which takes moments",
                heartbeat.thread
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_goes_on_or_has_nothing_to_do_is_waited_for() {
        let (heartbeat, mut patience) = (Heartbeat::new("agent"), Patience::new());
        for _ in 0..3 {
            heartbeat.begin("counting pages");
            (0..MOST_LOOKS).for_each(|_| patience.note(&heartbeat));
        }
        heartbeat.rest();
        (0..3 * MOST_LOOKS).for_each(|_| patience.note(&heartbeat));
    }

    #[test]
    #[should_panic(expected = "the agent hangs: it has been counting pages for a minute")]
    fn one_that_stays_at_one_step_ends_the_process() {
        let (heartbeat, mut patience) = (Heartbeat::new("agent"), Patience::new());
        heartbeat.begin("counting pages");
        (0..=MOST_LOOKS).for_each(|_| patience.note(&heartbeat));
    }

    #[test]
    fn who_looks_often_looks_no_more_than_once_a_second() {
        let (heartbeat, mut patience) = (Heartbeat::new("agent"), Patience::new());
        heartbeat.begin("counting pages");
        (0..3 * MOST_LOOKS).for_each(|_| patience.look(&heartbeat));
    }
}
