//! What a VM's devices and its agent count, and what its guest says of its own memory.

use page::PageCount;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the guest did right and wrong, in counts since the VM started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BalloonCounters {
    /// Pages that came into the balloon.
    pub inflated: u64,
    /// Pages that left it.
    pub deflated: u64,
    /// Pages reported free.
    pub reported: u64,
    /// Pages of the balloon that the guest touched without telling.
    pub popped: u64,
    /// Frame numbers outside the guest's memory.
    pub outside: u64,
    /// Pages listed twice, or taken out that were not in.
    pub repeated: u64,
    /// Buffers that could not be read or had no place in their queue.
    pub malformed: u64,
    /// Queues that became unusable, so that the device asked for a reset.
    pub broken_queues: u64,
}

/// A guest's figures (virtio 1.2, section 5.5.6.3, and Linux' `virtio_balloon.h` from 6.12 on for
/// the last six); `None` where it gave none. Memory in bytes, the rest are counts since the guest
/// started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestStatistics {
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Faults that needed none.
    pub minor_faults: Option<u64>,
    /// Memory that nothing uses.
    pub free: Option<u64>,
    /// All memory the guest sees, less its balloon.
    pub total: Option<u64>,
    /// Memory that programs could have without swapping.
    pub available: Option<u64>,
    /// Memory that holds copies of files.
    pub caches: Option<u64>,
    /// Huge pages given to programs.
    pub huge_page_allocations: Option<u64>,
    /// Huge pages that could not be given.
    pub huge_page_failures: Option<u64>,
    /// Programs killed because memory had run out.
    pub oom_kills: Option<u64>,
    /// Allocations that had to wait until pages were reclaimed.
    pub allocation_stalls: Option<u64>,
    /// Pages looked at for reclaim in the background.
    pub background_scanned: Option<u64>,
    /// Pages looked at for reclaim by who wanted memory.
    pub direct_scanned: Option<u64>,
    /// Pages reclaimed in the background.
    pub background_reclaimed: Option<u64>,
    /// Pages reclaimed by who wanted memory.
    pub direct_reclaimed: Option<u64>,
}

/// What a guest did with its disk, in counts since the VM started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskCounters {
    /// Reads carried out.
    pub reads: u64,
    /// What they read.
    pub read_bytes: u64,
    /// Writes carried out.
    pub writes: u64,
    /// What they wrote.
    pub written_bytes: u64,
    /// Flushes carried out.
    pub flushes: u64,
    /// Requests carried out that gave sectors up.
    pub discards: u64,
    /// Requests carried out that zeroed sectors.
    pub zeroings: u64,
    /// Requests that the file failed.
    pub errors: u64,
    /// Requests beyond the disk or a limit, to write what is only to be read, or of a kind that the
    /// device or its file does not know.
    pub refused: u64,
    /// Chains that were no request.
    pub malformed: u64,
    /// Times that the queue became unusable, so that the device asked for a reset.
    pub broken_queues: u64,
}

/// How things stand with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFigures {
    /// Its size.
    pub size_bytes: u64,
    /// What the guest did with it.
    pub counters: DiskCounters,
    /// The kernel's number for the last error of its file.
    #[serde(default)]
    pub last_error: Option<i32>,
}

/// What went through a card, and what did not and why, in counts since the VM started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetCounters {
    /// Packets to the guest.
    pub received_packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub received_bytes: u64,
    /// Packets to the guest that did not fit into the buffers that it offers.
    pub received_no_room: u64,
    /// Packets to the guest that its driver did not agree to take, or that are too long.
    pub received_unwanted: u64,
    /// Packets from the guest.
    pub sent_packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub sent_bytes: u64,
    /// Packets from the guest that are longer than any may be.
    pub sent_too_long: u64,
    /// Packets from the guest whose header asks for what was not agreed on, or points outside.
    pub sent_bad_header: u64,
    /// Packets from the guest that the tap did not take: it is down or gone, or the kernel found
    /// them wrong.
    pub sent_refused: u64,
    /// Buffers that are too short, in a place without memory, or of the wrong kind.
    pub malformed: u64,
    /// Queues that became unusable, so that the device asked for a reset.
    pub broken_queues: u64,
}

/// What the agent did for page sharing since it started, and why it refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SharingCounters {
    /// Pages that show a frame or are a guest's copy over one.
    pub mapped: PageCount,
    /// Pages that were made to show a frame.
    pub shared: PageCount,
    /// Zero pages given back.
    pub zeroed: PageCount,
    /// Of those shared, the ones that only had a copy dropped.
    pub dropped: PageCount,
    /// Pages copied into a mapping, because they lay between shared ones.
    pub copied: PageCount,
    /// Pages brought back into the memory file.
    pub rehomed: PageCount,
    /// Mapping calls.
    pub mappings: u64,
    /// Pages refused because they did not hold what was expected.
    pub differed: PageCount,
    /// Pages refused because the kernel gave no more memory areas.
    pub no_areas: PageCount,
    /// Pages refused because there was no memory.
    pub no_memory: PageCount,
    /// Pages refused because they were not where the request supposed them.
    pub stale: PageCount,
}

/// A VM's large pages: blocks of 2 MiB of its memory file that one page of the machine backs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LargePageCounters {
    /// Memory that was mapped by large pages when it was last looked at.
    pub mapped: PageCount,
    /// Large pages made, by a first touch or of small ones.
    pub made: u64,
    /// Large pages broken because their guest gave up a part.
    pub broken_by_balloon: u64,
    /// Large pages broken to share a part.
    pub broken_by_sharing: u64,
    /// Large pages broken to watch pages in them.
    pub broken_by_sampling: u64,
    /// Large pages that the machine had no memory for in one piece.
    pub no_memory: u64,
    /// Large pages refused for other reasons, for a while: a page was being read or written.
    pub refused: u64,
}

/// Pages that left a VM's memory for its log, and came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwapCounters {
    /// Pages that went out.
    pub out: u64,
    /// Pages that came back from a record.
    pub stored_in: u64,
    /// Pages of one repeated word that came back.
    pub filled_in: u64,
    /// Pages that a guest touched for the first time, or after it had given them up.
    pub zero_in: u64,
    /// Pages that came back because they lay beside another.
    pub neighbours_in: u64,
    /// Writes to the swap file that failed.
    pub write_errors: u64,
    /// How often the log took no page.
    pub refused: u64,
    /// Touches that wait for room now.
    pub waiting: u64,
    /// How long touches waited for their pages, in microseconds, all together.
    pub waited_us: u64,
}

impl SwapCounters {
    /// Pages that came back, however.
    #[must_use]
    pub fn came_back(&self) -> u64 {
        let ways = [self.stored_in, self.filled_in, self.neighbours_in];
        ways.into_iter().fold(0, u64::saturating_add)
    }
}

impl LargePageCounters {
    /// Large pages broken, whatever for.
    #[must_use]
    pub fn broken(&self) -> u64 {
        let reasons = [
            self.broken_by_balloon,
            self.broken_by_sharing,
            self.broken_by_sampling,
        ];
        reasons.into_iter().fold(0, u64::saturating_add)
    }
}
