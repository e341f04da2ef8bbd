//! What the driver needs from a kernel's page allocator.
#![expect(
    unsafe_code,
    reason = "the driver lends the allocator's blocks to the device by address"
)]

use core::ptr::NonNull;

use crate::Gfn;

/// A kernel's page allocator, as the balloon sees it.
///
/// # Safety
/// The driver hands frames to the host, which may drop what is in them, and takes the addresses
/// on trust. Frames from [`take`](Self::take) and [`isolate_block`](Self::isolate_block) must be
/// used by nobody until they come back, and [`block_memory`](Self::block_memory) must be the
/// memory of an isolated block.
pub unsafe trait PageAllocator {
    /// Takes up to `out.len()` frames for the balloon, free ones or ones that their users give up
    /// for it. Long physically contiguous runs are worth most. Returns how many; 0 if there are
    /// none to be had now.
    fn take(&mut self, out: &mut [Gfn]) -> usize;

    /// Takes frames back that were in the balloon. Their contents are lost.
    fn give_back(&mut self, gfns: &[Gfn]);

    /// Frames that are free, or that their users would give up for the balloon without harm.
    fn available_count(&self) -> u32;

    /// Blocks of 2 MiB that are free and worth telling the host of.
    fn unreported_blocks(&self) -> u32;

    /// Takes such a block out, so that nobody uses it while the host drops it; its first frame.
    fn isolate_block(&mut self) -> Option<Gfn>;

    /// Where an isolated block is in memory, all 2 MiB of it.
    fn block_memory(&self, first: Gfn) -> NonNull<[u8]>;

    /// Takes a block back that the host has heard of. Its contents are lost.
    fn return_block(&mut self, first: Gfn);

    /// Figures for the statistics queue.
    fn figures(&self) -> MemoryFigures;
}

/// The guest's memory figures, in the statistics' units.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MemoryFigures {
    /// Free pages.
    pub free_pages: u64,
    /// All pages that the guest manages, those in the balloon included.
    pub total_pages: u64,
    /// Pages that are free or would be given up without harm.
    pub available_pages: u64,
    /// Pages handed out since boot.
    pub minor_faults: u64,
}
