//! Makes a touch of a sampled page visible: drops its mapping, so that the next touch maps it again.
//!
//! ESX counts the faults that follow. Here nobody waits for a fault: **whether a page is mapped again is
//! read from the page tables** (PAGEMAP_SCAN), by the host, now and then. The alternative was to register
//! memory for minor faults and to resolve each with UFFDIO_CONTINUE. It was not taken:
//!
//! * a touch would cost the guest a round trip through this thread, 73 µs where KVM was measured, and a
//!   fault that the kernel resolves itself costs 4;
//! * an area is registered with one userfaultfd at a time, and the tracker and the guard (`fence`) take
//!   turns with all of them already. Minor faults would need the one with pages that *wait*, for whole
//!   periods, on memory that the tracker must watch;
//! * a fault that nobody answers stops a guest. A look that fails costs a sample.
//!
//! What makes it exact:
//!
//! * The kernel maps the neighbours of a page that is read (fault-around), but not where memory is
//!   registered for write protection, and all memory is. A test reads a page and looks at its neighbours.
//! * Writes are told from reads by the tracker. The host arms sampled pages after they were dropped; arming
//!   is kept for a page that is not mapped, and does not look like a touch.
//! * The agent reads guest memory through the guest's own mapping, and its fence forgets what was armed. So
//!   the host leaves out the sampled pages of each block about which it asks the agent anything. Requests
//!   are carried out in the order in which they were sent, so none from before the sample disturbs it.
//!
//! * A page of a block that is mapped as one large page would be mapped again with its neighbours. It is armed at
//!   once (`large`): where an armed page is, the kernel maps page by page.
//!
//! **Pages mapped from the store are not sampled.** What a guest wrote over them lives in the mapping alone,
//! and to drop that would lose it. Only this thread knows for sure which pages those are, so it looks again
//! whatever the host believes; nobody else changes what it sees between that and the drop.

use super::share::Sharer;
use crate::memory::mapping::{Addresses, drop_mappings};
use crate::memory::ram::GuestRam;
use sharing::PageSet;

/// Drops the mappings of those pages that are private, and says which those were.
pub(super) fn drop_mappings_of(ram: &GuestRam, sharer: &Sharer, pages: &[u32]) -> PageSet {
    let private = |&(_, page): &(usize, &u32)| sharer.is_private(u64::from(*page));
    let (places, stretches): (Vec<usize>, Vec<Addresses>) = pages
        .iter()
        .enumerate()
        .filter(private)
        .map(|(place, &page)| (place, ram.addresses(page.into()..u64::from(page) + 1)))
        .unzip();
    let dropped = drop_mappings(&stretches);
    places[..dropped].iter().copied().collect()
}
