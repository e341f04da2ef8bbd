//! What keeps guest memory whole while pages go out and come back, step by step, so that tests can leave out one step and see
//! that it is missed. Outside of tests nothing is ever left out.

/// A step without which a page is lost, or shown as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    /// Who touches a hole of memory that is guarded waits for the pager.
    HolesWait = 1,
    /// Who writes waits while a page goes out, or is compared and mapped elsewhere.
    WritersWait,
    /// The pager makes no page where the agent keeps everybody out.
    NoneComes,
    /// What came back to be read is protected: a write to it is heard of,
    ReadComesProtected,
    /// and stays so when the agent lets writers in again,
    StaysProtected,
    /// and once it is written, its record says nothing any more.
    WrittenIsForgotten,
    /// Nothing is kept of memory in which writes are not heard of.
    LetGoIsForgotten,
    /// Nothing is kept of what a guest gives up,
    GivenUpIsForgotten,
    /// or of what lies elsewhere.
    MovedIsForgotten,
    /// A page that is out is no hole: it is not compared.
    OutIsNotCompared,
    /// The pager makes no page where a frame is shown.
    FrameStays,
    /// Only blocks of which nothing is out become large.
    LargeIsWhole,
}

/// Whether a step is left out.
#[cfg(not(test))]
pub(super) const fn is_left_out(_: Step) -> bool {
    false
}

#[cfg(test)]
pub(super) use tests::{is_left_out, is_missed};

#[cfg(test)]
mod tests {
    use super::Step;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::time::{Duration, Instant};

    const PATIENCE: Duration = Duration::from_secs(120);

    static LEFT_OUT: AtomicU8 = AtomicU8::new(0);

    pub(in crate::memory) fn is_left_out(step: Step) -> bool {
        LEFT_OUT.load(Ordering::Relaxed) == step as u8
    }

    /// Without the step, what `holds` asserts does not hold for long.
    pub(in crate::memory) fn is_missed(step: Step, mut holds: impl FnMut()) {
        let mode = std::env::var("NEXTEST_EXECUTION_MODE");
        let is_alone = mode.is_ok_and(|mode| mode == "process-per-test");
        assert!(is_alone, "run this with cargo nextest, alone in a process");
        LEFT_OUT.store(step as u8, Ordering::Relaxed);
        let begin = Instant::now();
        while catch_unwind(AssertUnwindSafe(&mut holds)).is_ok() {
            assert!(begin.elapsed() < PATIENCE, "nobody misses {step:?}");
        }
        println!("{step:?} is missed after {:?}", begin.elapsed());
    }
}
