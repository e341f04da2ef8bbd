//! What a page holds, as far as the scanner tells, and who may know of it.

use serde::{Deserialize, Serialize};

/// xxh3_64 of a page, seeded by the page's [`Domain`] and a secret of the host, so that no guest can
/// aim at a collision. It nominates; only a comparison of all bytes decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub u64);

/// The VMs that may share with each other: those of one trust group, or a single VM without one.
/// Never reused while the host lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Domain(pub u32);

/// What the scanner found in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeros.
    Zero,
    /// Something else.
    Hash(ContentHash),
}

/// How the scanner found a page of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not looked at, beyond the VM's end, compressed or swapped. Nothing is done about it.
    Skipped,
    /// Nothing backs it and it reads as zeros: empty or ballooned.
    Hole,
    /// A page of the VM's memory file.
    Private(Content),
    /// A page that was not read, because nobody has written to it since it was last seen: of the VM's
    /// memory file, or of a mapping of the store.
    Unchanged,
    /// The store's frame shows through.
    Shared,
    /// An anonymous page lies over the store's frame. What it holds, if it was read: the host does
    /// not see it in the memory file.
    Broken(Option<Content>),
}

impl Content {
    /// The hash of what is not zero.
    pub(crate) fn hash(self) -> Option<ContentHash> {
        match self {
            Self::Hash(hash) => Some(hash),
            Self::Zero => None,
        }
    }
}

impl Seen {
    /// The hash of a page that was read and is not zero.
    pub(crate) fn hash(self) -> Option<ContentHash> {
        match self {
            Self::Private(content) | Self::Broken(Some(content)) => content.hash(),
            _ => None,
        }
    }
}
