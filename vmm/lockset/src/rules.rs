//! What keeps two threads apart at a page, and what those who come unseen would have: the rules, in one place.

use bitflags::bitflags;
use std::fmt;

bitflags! {
    /// What keeps others away from a page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Protections: u8 {
        /// The page is protected, and whoever raised the fence around it is the one who comes: a write of the guest, or of a
        /// device through the guest's mapping, waits in the kernel. They have it too, for they never write while another has it.
        const WRITERS_WAIT = 1 << 0;
        /// No other makes a page there: the fence keeps everybody out, or it is the pager who has the fence's lock and has seen
        /// that it does not.
        const NONE_COMES = 1 << 1;
        /// Whoever touches a hole there waits for the pager. Only ever missed: nobody has it for himself.
        const HOLES_WAIT = 1 << 2;
        /// The log's lock.
        const LOG = 1 << 3;
        /// The guest has given the page up and waits for the answer.
        const GIVEN_UP = 1 << 4;
        /// It is the agent, and there is one.
        const AGENT = 1 << 5;
        /// The fence's lock. It keeps nobody from a page by itself: see `NONE_COMES`.
        const FENCE_LOCK = 1 << 6;
    }
}

impl fmt::Display for Protections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.iter_names().map(|(name, _)| name);
        write!(f, "{{{}}}", words.collect::<Vec<_>>().join(" "))
    }
}

/// What of a page is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// What its guest sees there.
    Content,
    /// Whether there is a page of machine memory, and which.
    Backing,
    /// What the log has of it.
    Record,
}

/// Who may come at any moment without being seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unseen {
    /// The guest's processors, and devices through its mapping.
    Guest,
    /// The guest, which may touch anything of what it has given up, and does not mind what becomes of it.
    GuestThatGaveUp,
    /// The pager: whoever touches a hole has it come.
    Pager,
    /// The pager, at a page that is nobody's.
    PagerOfGivenUp,
    /// The kernel, which fills holes with zeros where nobody has asked to hear of them, and the pager, which does the same with
    /// the last that it has heard of. That loses nothing, as long as no page is out.
    Kernel,
    /// Nobody, for a frame is there: it is the agent's to change.
    Nobody,
    /// Whoever has the log: the agent, the pager, the keeper.
    Log,
    /// The guest, at a page whose record is worth something only as long as it hears of writes.
    GuestUnheard,
}

/// One rule: what they have when they come.
pub(crate) const fn candidates(unseen: Unseen) -> Protections {
    match unseen {
        // Its writes wait for the fence. What it gave up it does not rely on.
        Unseen::Guest => Protections::WRITERS_WAIT.union(Protections::GIVEN_UP),
        // A fence would do as well.
        Unseen::GuestThatGaveUp => Protections::GIVEN_UP.union(Protections::WRITERS_WAIT),
        // It asks under the fence's lock whether it may come.
        Unseen::Pager => Protections::NONE_COMES,
        // What it makes there are zeros, which may be punched or stay.
        Unseen::PagerOfGivenUp => Protections::NONE_COMES.union(Protections::GIVEN_UP),
        // One thread changes what is mapped. A page that comes meanwhile holds zeros, as the hole did.
        Unseen::Kernel => Protections::AGENT.union(Protections::NONE_COMES),
        // What the pager made there would hide the frame.
        Unseen::Nobody => Protections::AGENT,
        // All of them take its lock.
        Unseen::Log => Protections::LOG,
        // It has nothing: it writes, and the record is not what the page is.
        Unseen::GuestUnheard => Protections::empty(),
    }
}
