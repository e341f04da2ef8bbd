//! What is to be done about a block, in the order in which it is to be done.

pub(crate) mod layout;
pub(crate) mod spans;

use crate::block::{Block, Page, PageSet};
use crate::content::ContentHash;
use crate::frames::Frame;

/// Names a request until it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What one scanned block leads to. First the host fills the frames, then agents carry out the
/// requests, in any order. Each request is settled once, also if it was never sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockPlan {
    /// Frames to fill before anything is mapped.
    pub fills: Vec<Fill>,
    /// The scanned block's request and those of the blocks that hold its pages' equals.
    pub requests: Vec<Request>,
    /// Blocks to look at next, rather than within a pass: so many of their pages have got a frame by this
    /// plan or those before that it pays to come for them. Until somebody comes, the frames save nothing.
    pub next: Vec<Block>,
}

/// Copy the page into the frame, then hash the copy: the guest may have written since it was hashed.
/// If the hash is not this one any more, call [`crate::Sharing::fill_failed`]. The requests may be sent
/// all the same: a page that does not equal the frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Where the content is.
    pub page: Page,
    /// Where it goes.
    pub frame: Frame,
    /// What it was when it was seen.
    pub hash: ContentHash,
}

/// What an agent is asked to do with one block of its VM, under write protection, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// To settle it with.
    pub ticket: Ticket,
    /// Which block.
    pub block: Block,
    /// Broken pages that may equal the frame below them again: compare, and drop the private copy.
    /// No mapping changes. (Vectored: 0.7 µs a page.)
    pub drops: PageSet,
    /// Pages that may be zero: check, give the page back. A broken one gets the memory file mapped again.
    pub zeros: PageSet,
    /// Mappings of the store, each one call.
    pub spans: Vec<Span>,
    /// Broken pages to bring back into the memory file, each run one call. They lie at the edge of a
    /// mapping, so that no area is added.
    pub rehomes: PageSet,
}

/// `count` pages from index `start` of the block on, to be mapped from `frame` on in one call. With
/// `copied` empty it is a plain run, with 512 pages a window mapped whole. If any page of it has been
/// compressed or swapped out since, the agent leaves that page alone and maps what is around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first page's index in the block.
    pub start: usize,
    /// How many pages.
    pub count: usize,
    /// The first page's frame.
    pub frame: Frame,
    /// Pages between equal ones that differ from their frame, or whose frame holds nothing: their
    /// content is copied into the mapping before the guest sees it. A page outside this set that proves
    /// different is either copied in too or, at the agent's choice, left out with the span mapped in
    /// parts.
    pub copied: PageSet,
}

impl Span {
    /// The frame that lies at a page of the span.
    #[must_use]
    pub fn frame_at(&self, index: usize) -> Frame {
        self.frame.after(index - self.start)
    }

    /// The pages that are to show their frame.
    pub fn shared(&self) -> impl Iterator<Item = (usize, Frame)> {
        (self.start..self.start + self.count)
            .filter(|&index| !self.copied.contains(index))
            .map(|index| (index, self.frame_at(index)))
    }
}

impl Request {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.drops.is_empty()
            && self.zeros.is_empty()
            && self.spans.is_empty()
            && self.rehomes.is_empty()
    }
}

/// What an agent did. A page in no set was left as it was, for another reason than its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Done as asked: it shows the frame, is punched, or is back in the memory file.
    pub done: PageSet,
    /// Now an anonymous page over the frame that the span has there.
    pub copied: PageSet,
    /// Pages that did not hold what was expected (and may be in `copied` too).
    pub differed: PageSet,
}
