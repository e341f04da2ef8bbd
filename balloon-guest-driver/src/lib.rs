#![no_std]
//! What runs inside a guest: a virtio balloon driver, and the parts of the embedded guest that
//! need no bare machine.
//!
//! The driver ([`Balloon`]) gives memory of its guest to the host and takes it back when the host
//! says so. It works for any kernel that can say which pages are free ([`PageAllocator`]), over
//! any virtio transport. It never blocks: the kernel's event loop calls [`Balloon::poll`].
//!
//! The embedded guest (the image is built in `guest/`) adds a page allocator ([`frames`]),
//! workloads ([`workload`]) on the frames that they hold ([`held`]) with contents that can be
//! checked ([`page`]), a buffer cache ([`disk`]), work on many processors ([`pool`]) and a console
//! ([`console`]). They are here rather than in the image so that tests can run them on an
//! ordinary machine.
//!
//! A frame is in exactly one place: free in [`frames::Frames`], held by the workload, in the
//! balloon, or on its way between the driver and the device. Nothing in this crate touches the
//! contents of a free frame, for the first touch is what costs the host a page.

#[cfg(test)]
extern crate std;

pub mod balloon;
pub mod command_line;
pub mod console;
pub mod disk;
pub mod frames;
pub mod held;
pub mod page;
pub mod pauses;
pub mod pool;
pub mod random;
pub mod report;
pub mod set;
pub mod size;
pub mod wire;
pub mod workload;

pub use balloon::{Balloon, PageAllocator};

/// A guest frame number: which 4 KiB page of guest-physical memory. The wire has 32 bits for it.
pub type Gfn = u32;

/// Bytes in a page, the unit of the balloon.
pub const PAGE_SIZE: u64 = 4096;
/// Frames in a block, the unit of free page reporting: 2 MiB, the size of a large page.
pub const BLOCK_FRAMES: u32 = 512;
