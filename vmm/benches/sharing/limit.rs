//! What the machine can do without a memory manager.

use anyhow::Result;
use ballonet::internals::GuestRam;
use ballonet::internals::read_all;
use page::PageCount;
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress};
use xxhash_rust::xxh3::xxh3_64;

/// More than the caches hold.
const MEMORY: usize = 512 << 20;
const PAGE: usize = 4096;
/// What is read with one call.
const PIECE: usize = 256 << 10;

/// Memory to hash, mapped and in a memory file.
pub(crate) struct Cold {
    mapped: Vec<u8>,
    ram: GuestRam,
}

impl Cold {
    pub(crate) fn new() -> Result<Self> {
        let bytes = (0..MEMORY).map(|place| (place >> 4).to_le_bytes()[0]);
        let mapped: Vec<u8> = bytes.collect();
        let ram = GuestRam::new(PageCount((MEMORY / PAGE) as u64))?;
        ram.memory().write_slice(&mapped, GuestAddress(0))?;
        Ok(Self { mapped, ram })
    }

    /// Nanoseconds a page of mapped memory.
    pub(crate) fn hash_mapped(&self) -> f64 {
        let begin = Instant::now();
        let sum = self
            .mapped
            .chunks(PAGE)
            .map(xxh3_64)
            .fold(0, u64::wrapping_add);
        std::hint::black_box(sum);
        per_page(begin)
    }

    /// Nanoseconds a page that is read from the memory file first.
    pub(crate) fn hash_file(&self) -> Result<f64> {
        let mut piece = vec![0; PIECE];
        let begin = Instant::now();
        let mut sum = 0u64;
        for offset in (0..MEMORY as u64).step_by(PIECE) {
            read_all(self.ram.file(), &mut piece, offset)?;
            sum = piece.chunks(PAGE).map(xxh3_64).fold(sum, u64::wrapping_add);
        }
        std::hint::black_box(sum);
        Ok(per_page(begin))
    }
}

fn per_page(begin: Instant) -> f64 {
    begin.elapsed().as_nanos() as f64 / (MEMORY / PAGE) as f64
}
