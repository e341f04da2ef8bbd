//! What keeps guest memory whole while pages go out and come back or are shared, step by step, so that tests can leave out one
//! step and see that it is missed. Outside of tests nothing is ever left out.
//!
//! A build with the feature `lockset` leaves out the step that `BALLONET_LOCKSET_FAULT` names, and tells which page nothing
//! keeps safe then (`doors`).

/// A step without which a page is lost, or shown as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
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
    /// A block of which nothing is missing goes out as a whole, for the kernel may have made it large.
    WholeIsLarge,
    // For those below two threads would have to meet in a moment: only the check of locks misses them.
    /// Who writes waits while the agent compares a page.
    SharedBehindFence,
    /// The pager makes no page of a block that goes out as a whole,
    BlockIsClosed,
    /// or is compared.
    SharedIsClosed,
    /// What the log says of a page does not change while the pager puts it into memory,
    ComesUnderLog,
    /// nor does the agent begin to keep it out.
    AdmissionIsHeld,
    /// The pager lets nobody write whom the agent keeps out.
    FenceIsHeeded,
    /// A guest that gives pages up has no answer before they are free.
    AnswerComesLast,
    /// A request names no page twice, for what was mapped from the store is protected no more.
    NamedOnce,
    /// What a guest wrote over a frame is not dropped to see whether it is touched.
    SharedIsNotSampled,
    /// Direct access goes to a buffer, for it waits for no fence.
    ThroughBuffer,
}

/// Whether a step is left out.
#[cfg(not(any(test, feature = "lockset")))]
pub(crate) const fn is_left_out(_: Step) -> bool {
    false
}

/// Whether a step is left out.
#[cfg(all(not(test), feature = "lockset"))]
pub(crate) use named::is_left_out;

#[cfg(test)]
pub(crate) use tests::is_left_out;
#[cfg(test)]
pub(super) use tests::is_missed;

#[cfg(feature = "lockset")]
mod named {
    use super::Step;
    use std::sync::OnceLock;

    /// Whether the environment names a step.
    pub(crate) fn is_left_out(step: Step) -> bool {
        static NAMED: OnceLock<Option<String>> = OnceLock::new();
        let named = NAMED.get_or_init(|| std::env::var("BALLONET_LOCKSET_FAULT").ok());
        let is_step = |name: &str| name == format!("{step:?}");
        named.as_deref().is_some_and(is_step)
    }
}

#[cfg(test)]
mod tests {
    use super::Step;
    use libc::{c_int, c_void, siginfo_t};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::time::{Duration, Instant};
    use vmm_sys_util::signal::register_signal_handler;

    const PATIENCE: Duration = Duration::from_secs(120);

    static LEFT_OUT: AtomicU8 = AtomicU8::new(0);

    pub(crate) fn is_left_out(step: Step) -> bool {
        #[cfg(feature = "lockset")]
        if super::named::is_left_out(step) {
            return true;
        }
        LEFT_OUT.load(Ordering::Relaxed) == step as u8
    }

    /// Without the step, what `holds` asserts does not hold for long.
    pub(in crate::memory) fn is_missed(step: Step, mut holds: impl FnMut()) {
        if cfg!(feature = "lockset") {
            // It would end this process long before: see `seeded_faults`.
            return;
        }
        let mode = std::env::var("NEXTEST_EXECUTION_MODE");
        let is_alone = mode.is_ok_and(|mode| mode == "process-per-test");
        assert!(is_alone, "run this with cargo nextest, alone in a process");
        register_signal_handler(libc::SIGBUS, on_bus_error).unwrap();
        LEFT_OUT.store(step as u8, Ordering::Relaxed);
        let begin = Instant::now();
        while catch_unwind(AssertUnwindSafe(&mut holds)).is_ok() {
            assert!(begin.elapsed() < PATIENCE, "nobody misses {step:?}");
        }
        println!("{step:?} is missed after {:?}", begin.elapsed());
    }

    /// A touch of what should be there and is not: it is missed as well, and nothing in this process can be gone on with.
    #[expect(unsafe_code, reason = "no destructor may run any more")]
    extern "C" fn on_bus_error(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: it may be called in a signal handler, and ends all threads at once.
        unsafe { libc::_exit(0) }
    }
}
