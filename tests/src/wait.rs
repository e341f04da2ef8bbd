//! Waiting for what will come, on a machine that may be slow or have other work.
//!
//! How long something takes is no claim of a test. So what is waited for is given up only when nothing has
//! moved for a long time; where a figure shows that it is on its way, it may take as long as it does.

use std::cmp::Reverse;
use std::env;
use std::fmt::Debug;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long nothing may move before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Says how many times slower than usual the machine is.
pub const SLOWNESS_VARIABLE: &str = "BALLONET_TEST_SLOWNESS";
const POLL: Duration = Duration::from_millis(30);

/// How long nothing may move on this machine.
#[must_use]
pub fn patience() -> Duration {
    let slowness = env::var(SLOWNESS_VARIABLE).ok();
    PATIENCE * slowness.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Looks again and again until there is something to see, as long as what is measured until then rises.
///
/// # Panics
/// If it does not come, and nothing moves any more.
pub fn wait_while_progress<T, M: PartialOrd + Debug>(
    what: &str,
    look: impl FnMut() -> Result<T, M>,
) -> T {
    wait_with(patience(), what, look)
}

fn wait_with<T, M: PartialOrd + Debug>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, M>,
) -> T {
    let (mut furthest, mut moved) = (None, Instant::now());
    loop {
        let measure = match look() {
            Ok(seen) => return seen,
            Err(measure) => measure,
        };
        if furthest.as_ref().is_none_or(|furthest| measure > *furthest) {
            (furthest, moved) = (Some(measure), Instant::now());
        }
        assert!(
            moved.elapsed() < patience,
            "waited {} s without progress: {what}; the furthest was {furthest:?}",
            patience.as_secs()
        );
        sleep(POLL);
    }
}

/// Looks again and again until there is something to see.
///
/// # Panics
/// If it does not come.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    wait_while_progress(what, || look().ok_or(()))
}

/// Looks again and again until something is so.
///
/// # Panics
/// If it does not become so.
pub fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    wait_for(what, || look().then_some(()));
}

/// Waits until a figure is as large, as long as it rises; the figure then.
///
/// # Panics
/// If it rises no more.
pub fn wait_until_at_least(what: &str, least: u64, mut measure: impl FnMut() -> u64) -> u64 {
    wait_while_progress(what, || {
        let now = measure();
        if now >= least { Ok(now) } else { Err(now) }
    })
}

/// Waits until a figure is as small, as long as it falls; the figure then.
///
/// # Panics
/// If it falls no more.
pub fn wait_until_at_most(what: &str, most: u64, mut measure: impl FnMut() -> u64) -> u64 {
    wait_while_progress(what, || {
        let now = measure();
        if now <= most {
            Ok(now)
        } else {
            Err(Reverse(now))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn what_moves_may_take_longer_than_anybody_is_patient() {
        let mut steps = 0..10;
        let begin = Instant::now();
        wait_with(SHORT, "steps", || steps.next().map_or(Ok(()), Err));
        assert!(begin.elapsed() > 5 * SHORT);
    }

    #[test]
    #[should_panic(expected = "without progress: steps")]
    fn what_goes_to_and_fro_does_not_move() {
        let mut there = false;
        wait_with(SHORT, "steps", || {
            there = !there;
            Err::<(), _>(there)
        });
    }
}
