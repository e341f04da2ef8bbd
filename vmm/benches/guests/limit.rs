//! What the kernel can do without a guest.

use anyhow::Result;
use ballonet::internals::GuestRam;
use page::{PAGE_SIZE, PageCount};
use rustix::fs::FallocateFlags;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};

/// Frees mapped and touched memory of a memory file with one call; pages a second.
pub(crate) fn punch(bytes: u64) -> Result<f64> {
    let ram = GuestRam::new(PageCount(bytes / PAGE_SIZE))?;
    for address in (0..bytes).step_by(4096) {
        ram.memory().write_obj(1u8, GuestAddress(address))?;
    }
    let begin = Instant::now();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(ram.file(), hole, 0, bytes)?;
    Ok((bytes / PAGE_SIZE) as f64 / begin.elapsed().as_secs_f64())
}
