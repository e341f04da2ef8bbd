//! Reads what a guest put into a queue, within limits, copying out before looking.

use super::wire::{PFN_BYTES, STATISTIC_BYTES};
use crate::memory::ram::{ClaimedGfn, RamLayout};
pub(super) use crate::virtio::chain::{BrokenChain, Chain};
use page::{Gfn, GfnRange, PAGE_SIZE, PageCount};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestMemoryMmap};

/// Frame numbers that one chain may carry: as many as 256 MiB have pages, where Linux sends 256.
/// Each may cost a system call. The rest is passed over.
pub(super) const MOST_PFNS_IN_CHAIN: usize = 1 << 16;
/// Frame numbers handed on together, which bounds the memory that they take here.
const PFNS_IN_BATCH: usize = COPY_BYTES / PFN_BYTES;
/// Bytes copied out of the guest at a time.
const COPY_BYTES: usize = 64 << 10;
/// Statistics that one buffer may carry; the standard has ten, newer drivers some more.
const MOST_STATISTICS: usize = 64;

/// What a chain held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Pages of the guest, each as often as it was listed.
    pub(super) listed: u64,
    /// Frame numbers that name no RAM.
    pub(super) outside: u64,
    /// Buffers that could not be read or are of a kind that has no place here.
    pub(super) malformed: u64,
}

/// Hands the frame numbers of an inflate or deflate chain to `take`, some at a time.
pub(super) fn read_pfns(
    chain: Chain<'_>,
    layout: RamLayout,
    take: impl FnMut(&mut Vec<Gfn>),
) -> Tally {
    let mut reader = PfnReader {
        memory: chain.memory(),
        layout,
        left: MOST_PFNS_IN_CHAIN,
        batch: Vec::new(),
        tally: Tally::default(),
        take,
    };
    for descriptor in chain {
        let read = descriptor.ok().and_then(|buffer| reader.read(buffer));
        if read.is_none() {
            reader.tally.malformed += 1;
        }
    }
    reader.hand_on();
    reader.tally
}

struct PfnReader<'a, F> {
    memory: &'a GuestMemoryMmap,
    layout: RamLayout,
    /// Frame numbers that the chain may still carry.
    left: usize,
    batch: Vec<Gfn>,
    tally: Tally,
    take: F,
}

impl<F: FnMut(&mut Vec<Gfn>)> PfnReader<'_, F> {
    /// `None` where the buffer has no place here or does not lie in the guest's memory.
    fn read(&mut self, buffer: Descriptor) -> Option<()> {
        let count = buffer.len() as usize / PFN_BYTES;
        if buffer.is_write_only() || count == 0 {
            return None;
        }
        self.left = self.left.checked_sub(count)?;
        let bytes = count * PFN_BYTES;
        let mut copy = vec![0; bytes.min(COPY_BYTES)];
        for done in (0..bytes).step_by(COPY_BYTES) {
            let part = &mut copy[..(bytes - done).min(COPY_BYTES)];
            let address = buffer.addr().checked_add(done as u64)?;
            self.memory.read_slice(part, address).ok()?;
            self.check(part);
        }
        Some(())
    }

    fn check(&mut self, part: &[u8]) {
        for pfn in part.as_chunks::<PFN_BYTES>().0 {
            let claim = ClaimedGfn(u32::from_le_bytes(*pfn).into());
            match self.layout.check(claim) {
                Some(gfn) => self.batch.push(gfn),
                None => self.tally.outside += 1,
            }
        }
        if self.batch.len() >= PFNS_IN_BATCH {
            self.hand_on();
        }
    }

    fn hand_on(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.tally.listed += self.batch.len() as u64;
        (self.take)(&mut self.batch);
        self.batch.clear();
    }
}

/// The free memory that a chain of the reporting queue describes: each of its buffers is some.
pub(super) fn read_reported(chain: Chain<'_>, layout: RamLayout) -> (Vec<GfnRange>, Tally) {
    let mut ranges = Vec::new();
    let mut tally = Tally::default();
    for descriptor in chain {
        let buffer = descriptor.ok();
        match buffer.and_then(|buffer| reported_range(buffer, layout)) {
            Some(range) => ranges.push(range),
            None => tally.malformed += 1,
        }
    }
    let ranges = join_ranges(ranges);
    tally.listed = ranges.iter().map(|range| range.count.0).sum();
    (ranges, tally)
}

/// The whole pages of a buffer, if all of them are RAM.
fn reported_range(descriptor: Descriptor, layout: RamLayout) -> Option<GfnRange> {
    let (start, bytes) = (descriptor.addr().0, u64::from(descriptor.len()));
    let whole = descriptor.is_write_only()
        && bytes > 0
        && start.is_multiple_of(PAGE_SIZE)
        && bytes.is_multiple_of(PAGE_SIZE);
    if !whole {
        return None;
    }
    let (first, count) = (start / PAGE_SIZE, bytes / PAGE_SIZE);
    let start = layout.check(ClaimedGfn(first))?;
    let last = layout.check(ClaimedGfn(first.checked_add(count - 1)?))?;
    // Both ends in the same piece of RAM: no page between is outside.
    (layout.file_index(last) - layout.file_index(start) == count - 1).then_some(GfnRange {
        start,
        count: PageCount(count),
    })
}

/// Sorts ranges and joins those that touch or overlap.
fn join_ranges(mut ranges: Vec<GfnRange>) -> Vec<GfnRange> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<GfnRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end() => {
                let end = last.end().max(range.end());
                last.count = PageCount(end.0 - last.start.0);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// The bytes of a buffer of the statistics queue, as many as are looked at. An error where the
/// chain is broken or a buffer of it is not one that the guest wrote.
pub(super) fn read_statistics(chain: Chain<'_>) -> Result<Vec<u8>, BrokenChain> {
    let memory = chain.memory();
    let mut bytes = Vec::new();
    for descriptor in chain {
        let buffer = descriptor?;
        let most = MOST_STATISTICS * STATISTIC_BYTES - bytes.len();
        let mut part = vec![0; (buffer.len() as usize).min(most)];
        if buffer.is_write_only() || memory.read_slice(&mut part, buffer.addr()).is_err() {
            return Err(BrokenChain);
        }
        bytes.extend(part);
    }
    Ok(bytes)
}
