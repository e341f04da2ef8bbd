//! What is done with a guest's pages is told here, at the few doors through which all of it goes: so a build for tests can
//! check that whoever comes is kept apart from who else may (the `lockset` crate says how). Other builds hear nothing, and have
//! nothing of it.
//!
//! What its processors do nobody sees. What keeps them out is seen: the fence, and who raised it.

#[cfg(not(feature = "lockset"))]
mod absent;
#[cfg(feature = "lockset")]
mod checked;

#[cfg(not(feature = "lockset"))]
pub(crate) use absent::*;
#[cfg(feature = "lockset")]
pub(crate) use checked::*;

/// Something is done with pages. The order counts: what lets others in is told before it is done, what keeps them out or makes a
/// page after.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(feature = "lockset"),
    allow(dead_code, reason = "nobody listens there")
)]
pub(crate) enum Deed {
    /// Their guest may run from here on.
    Opened,
    /// The fence goes up around them, for all who come or for writers.
    Fenced { keeps_all: bool },
    /// The fence is about to go down.
    Unfenced,
    /// Writers wait from here on,
    Protected,
    /// or are about to wait no longer.
    Lifted,
    /// Who touches a hole waits from here on, or does not.
    Registered { holes_wait: bool },
    /// Nobody is about to wait any more.
    Unregistered,
    /// Their guest gives them up, and waits for the answer,
    GivenUp,
    /// which it is about to have.
    Answered,
    /// What they hold is looked at, to be acted upon.
    LookedAt,
    /// A device is about to write to them or to read them, as the guest would or without waiting for any fence.
    OfDevice { waits: bool },
    /// The log has them.
    TakenOut,
    /// They are about to be freed in the memory file.
    Punched,
    /// Pages were made of holes.
    Made { is_protected: bool },
    /// What the log has of them is kept,
    Kept,
    /// or worth nothing any more.
    Forgotten,
    /// The log keeps nothing of them; it may have let go of it by itself.
    NotKept,
    /// A frame is about to be mapped over them,
    MappedFromStore,
    /// or the memory file.
    MappedHome,
    /// Their page in the memory file is about to be written.
    WrittenHome,
    /// Their mappings are about to be dropped, with what a guest wrote over a frame.
    Dropped,
}

/// A lock that keeps threads apart at pages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LockOf {
    /// Of the log.
    Log,
    /// Of what is fenced.
    Fence,
}
