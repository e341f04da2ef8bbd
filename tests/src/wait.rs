//! Waiting for what will come, on a machine that may be slow.

use std::env;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Says how many times slower than usual the machine is.
pub const SLOWNESS_VARIABLE: &str = "BALLONET_TEST_SLOWNESS";
const POLL: Duration = Duration::from_millis(30);

/// How long anything may take on this machine.
#[must_use]
pub fn patience() -> Duration {
    let slowness = env::var(SLOWNESS_VARIABLE).ok();
    PATIENCE * slowness.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Looks again and again until there is something to see.
///
/// # Panics
/// If it does not come.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    let patience = patience();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(
            begin.elapsed() < patience,
            "waited {} s in vain: {what}",
            patience.as_secs()
        );
        sleep(POLL);
    }
}

/// Looks again and again until something is so.
///
/// # Panics
/// If it does not become so.
pub fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    wait_for(what, || look().then_some(()));
}
