//! Reads what a guest put into a queue, within limits, copying out before looking.

use super::wire::{PFN_BYTES, STATISTIC_BYTES};
use crate::vm::ram::{ClaimedGfn, RamLayout};
use page::{Gfn, GfnRange, PAGE_SIZE, PageCount};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A chain of buffers in the guest's memory.
pub(super) type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// Frame numbers that one chain may carry: as many as 4 GiB have pages. The rest is passed over.
pub(super) const MOST_PFNS_IN_CHAIN: usize = 1 << 20;
/// Bytes copied out of the guest at a time.
const COPY_BYTES: usize = 64 << 10;
/// Statistics that one buffer may carry; the standard has ten, newer drivers some more.
const MOST_STATISTICS: usize = 64;

/// What a chain held.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Pages of the guest, as it listed them.
    pub(super) gfns: Vec<Gfn>,
    /// Frame numbers that name no RAM.
    pub(super) outside: u64,
    /// Buffers that could not be read or are of a kind that has no place here.
    pub(super) malformed: u64,
}

/// The frame numbers in a chain of the inflate or deflate queue.
pub(super) fn read_pfns(chain: Chain<'_>, memory: &GuestMemoryMmap, layout: RamLayout) -> Pages {
    let mut pages = Pages::default();
    let mut left = MOST_PFNS_IN_CHAIN;
    for descriptor in chain {
        let count = descriptor.len() as usize / PFN_BYTES;
        if descriptor.is_write_only() || count == 0 || count > left {
            pages.malformed += 1;
            continue;
        }
        left -= count;
        if read_descriptor(descriptor, memory, layout, &mut pages).is_none() {
            pages.malformed += 1;
        }
    }
    pages
}

/// `None` where the buffer does not lie in the guest's memory.
fn read_descriptor(
    descriptor: Descriptor,
    memory: &GuestMemoryMmap,
    layout: RamLayout,
    pages: &mut Pages,
) -> Option<()> {
    let bytes = descriptor.len() as usize / PFN_BYTES * PFN_BYTES;
    let mut copy = vec![0; bytes.min(COPY_BYTES)];
    let mut done = 0;
    while done < bytes {
        let part = &mut copy[..(bytes - done).min(COPY_BYTES)];
        let address = descriptor.addr().0.checked_add(done as u64)?;
        memory.read_slice(part, GuestAddress(address)).ok()?;
        for pfn in part.as_chunks::<PFN_BYTES>().0 {
            match layout.check(ClaimedGfn(u32::from_le_bytes(*pfn).into())) {
                Some(gfn) => pages.gfns.push(gfn),
                None => pages.outside += 1,
            }
        }
        done += part.len();
    }
    Some(())
}

/// The free memory that a chain of the reporting queue describes: each of its buffers is some.
pub(super) fn read_reported(chain: Chain<'_>, layout: RamLayout) -> (Vec<GfnRange>, Pages) {
    let mut ranges = Vec::new();
    let mut pages = Pages::default();
    for descriptor in chain {
        match reported_range(descriptor, layout) {
            Some(range) => ranges.push(range),
            None => pages.malformed += 1,
        }
    }
    (join_ranges(ranges), pages)
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

/// The bytes of a buffer of the statistics queue, as many as are looked at.
pub(super) fn read_statistics(chain: Chain<'_>, memory: &GuestMemoryMmap) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for descriptor in chain.filter(|descriptor| !descriptor.is_write_only()) {
        let most = MOST_STATISTICS * STATISTIC_BYTES - bytes.len();
        let mut part = vec![0; (descriptor.len() as usize).min(most)];
        memory.read_slice(&mut part, descriptor.addr()).ok()?;
        bytes.extend(part);
    }
    Some(bytes)
}
