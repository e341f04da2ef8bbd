//! Disks, as the embedded guest uses them: blocks of one page each, several requests at a time, and a
//! buffer cache over them.
//!
//! ```text
//!   workload ──block──▶ Buffers ──▶ Cache      which block is in which place; pure
//!                          │──────▶ Requests   what is under way, and for how long
//!                          ▼           │
//!                     frames held      ▼
//!                                   Disk       the driver, or a test's fake
//! ```
//!
//! What stays true: a block read is what was written to it last. A buffer is lent to the disk or
//! used, never both. A buffer whose contents the disk does not have is given to nobody.

pub mod buffers;
pub mod cache;
#[cfg(test)]
pub(crate) mod fake;
pub mod requests;
#[cfg(test)]
mod tests;
pub mod wire;

use core::fmt;

use crate::Gfn;

/// The number of a block: 4 KiB of the disk.
pub type Block = u32;

/// Blocks of one request at most.
pub const RUN_BLOCKS: usize = 16;
/// Requests under way at most. With header and status each, they fit in a queue of 128 descriptors.
pub const REQUESTS_MAX: usize = 7;

/// What the disk is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Read blocks into frames.
    Read,
    /// Write blocks from frames.
    Write,
    /// Make safe what was written.
    Flush,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
        })
    }
}

/// A request of adjacent blocks, each with its frame.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its name, below [`REQUESTS_MAX`].
    pub tag: usize,
    /// What is to be done.
    pub action: Action,
    /// The first block.
    pub first: Block,
    /// The frames, [`RUN_BLOCKS`] at most; none to flush.
    pub gfns: &'a [Gfn],
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Its name.
    pub tag: usize,
    /// Whether it was done.
    pub result: Result<(), DiskError>,
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DiskError {
    /// The disk says that it failed.
    Failed,
    /// The disk does not do such a thing.
    Unsupported,
    /// The disk broke the protocol, and nothing more is asked of it.
    Broken,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "input/output error",
            Self::Unsupported => "unsupported by the disk",
            Self::Broken => "the disk broke the protocol",
        })
    }
}

/// A disk that works while its user does other things.
#[expect(unsafe_code, reason = "frames are lent by number")]
pub trait Disk {
    /// Its size.
    fn block_count(&self) -> u32;

    /// Whether it can only be read.
    fn is_read_only(&self) -> bool;

    /// Begins a request. There is always room for one whose tag is not in use.
    ///
    /// # Safety
    /// The frames are RAM that nobody uses until the request is answered; one that is written from
    /// may be read.
    unsafe fn start(&mut self, request: &Request<'_>);

    /// The next answer that there is. Its tag is free again.
    fn take_answer(&mut self) -> Option<Answer>;
}
