//! What keeps a page whole, step by step, so that each step can be left out: as `memory/left_out` in the VM process, with those
//! steps besides that only another order of threads shows to be needed.

use crate::chance::below;
use shuttle::thread;
use std::cell::Cell;

/// How often others may run, at most, between two things that are one in the VM process.
const LONGEST_PAUSE: u64 = 64;

/// A step without which a page is lost, or shown as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Who touches a hole of memory that is guarded waits for the pager.
    HolesWait,
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
    /// The fence is there for the pager before writers wait: nobody is let in whom the agent has just kept out.
    FencedFirst,
    /// The pager lets nobody write behind the fence,
    FencedWait,
    /// and none is raised between its look and what it lifts,
    LiftedUnderFence,
    /// or between its look and the page that it makes.
    MadeUnderFence,
    /// What the agent lets writers into has not come back protected meanwhile.
    LoweredUnderFence,
    /// What was read is put in place only if nothing newer went out since.
    BroughtIsNewest,
    /// That a page is out no more, and the page: nobody sees one without the other.
    BroughtUnderLog,
    /// A page is made of nothing only while it cannot go out.
    ZeroedUnderLog,
    /// What is there still, for the agent is about to punch it, stays out.
    ThereStaysOut,
    /// What a guest gives up is forgotten before it is punched: it does not come back in between.
    ForgottenFirst,
    /// Only what is as it was read from the guest's disk is left to that,
    LeftAsRead,
    /// and what was read there again is put in place only if it is out as that still.
    OnDiskStill,
}

thread_local! {
    // All threads of a schedule are one to the operating system.
    static LEFT_OUT: Cell<Option<Step>> = const { Cell::new(None) };
}

/// Whether a step is left out.
pub(crate) fn is_left_out(step: Step) -> bool {
    LEFT_OUT.get() == Some(step)
}

/// From now on, on this thread.
pub(crate) fn leave_out(step: Option<Step>) {
    LEFT_OUT.set(step);
}

/// What is held, unless it is to be let go too early.
pub(crate) fn held<T>(guard: T, step: Step) -> Option<T> {
    if !is_left_out(step) {
        return Some(guard);
    }
    drop(guard);
    pause();
    None
}

/// Time for others.
pub(crate) fn pause() {
    (0..below(LONGEST_PAUSE)).for_each(|_| thread::yield_now());
}
