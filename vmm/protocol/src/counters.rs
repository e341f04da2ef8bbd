//! What a VM's devices and its agent count, and what its guest says of its own memory.

use page::PageCount;
use serde::{Deserialize, Serialize};
use std::time::Duration;
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
    /// Pages that went out and were left to the guest's own disks, which it can only read,
    pub left_to_disks: u64,
    /// and those that came back from there.
    pub disk_in: u64,
    /// Pages that a guest touched for the first time, or after it had given them up.
    pub zero_in: u64,
    /// Pages that came back though nobody had touched them: they lay beside another, or there was room for all. And those that
    /// were made for a guest that touches one after another.
    pub unasked_in: u64,
    /// Writes to the swap file that failed.
    pub write_errors: u64,
    /// How often the log took no page.
    pub refused: u64,
    /// Touches that wait for room now.
    pub waiting: u64,
    /// How long touches waited for their pages, in microseconds, all together.
    pub waited_us: u64,
    /// Whether the VM keeps within the limit that it heard of last: not where the kernel refuses to tell of touches.
    pub keeps_limit: bool,
    /// For how long touches found no room longer than they should, in microseconds,
    pub stalled_us: u64,
    /// and whether one does now.
    pub is_stalled: bool,
    /// Pages compressed into records.
    pub zipped: u64,
    /// Pages that came back from records in memory, neighbours among them.
    pub unzipped: u64,
    /// Bytes read from the swap file for pages that came back.
    pub read_bytes: u64,
    /// Bytes written to it,
    pub written_bytes: u64,
    /// those of them that had been there before,
    pub rewritten_bytes: u64,
    /// and what the cleaner read of it.
    pub cleaned_bytes: u64,
    /// What the pool takes of memory now, in bytes,
    pub pool_bytes: u64,
    /// what of that are records of pages that are out,
    pub pool_used_bytes: u64,
    /// and what it may take.
    pub pool_limit_bytes: u64,
    /// What the swap file's segments hold, in bytes, dead records too,
    pub file_bytes: u64,
    /// and what of that are records of pages that are out.
    pub file_used_bytes: u64,
    /// Touches by how long they waited for a page that lay in memory,
    pub pool_waits: Latencies,
    /// and for one that lay in the file or on a disk of the guest.
    pub file_waits: Latencies,
}

/// Buckets of [`Latencies`].
pub const LATENCY_BUCKETS: usize = 24;

/// Waits by how long they took. Those in bucket `n` took less than 2^n microseconds and no less than half of that; what took
/// longer than all is in the last, which is 4 to 8 seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Latencies {
    /// How many each has.
    pub counts: [u64; LATENCY_BUCKETS],
    /// How long they took together, in microseconds.
    pub sum_us: u64,
}

impl Latencies {
    /// One more.
    pub fn add(&mut self, wait: Duration) {
        let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.counts[bucket.min(LATENCY_BUCKETS - 1)] += 1;
        self.sum_us = self.sum_us.saturating_add(micros);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Each bucket's upper bound in seconds, and how many are in it.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = (0..).map(|n: u32| Duration::from_micros(1 << n).as_secs_f64());
        bounds.zip(self.counts)
    }

    /// Below what so many thousandths of them lie, in microseconds: the upper bound of the bucket in which they end. None
    /// without any.
    #[must_use]
    pub fn quantile_us(&self, permille: u64) -> Option<u64> {
        let count = u128::from(self.count());
        let wanted = (count * u128::from(permille)).div_ceil(1000).max(1);
        let mut sum = 0;
        let bucket = self.counts.iter().position(|&n| {
            sum += u128::from(n);
            sum >= wanted
        })?;
        Some(1 << bucket)
    }
}

impl SwapCounters {
    /// Bytes moved to and from the disk for each byte that was new in the swap file: 1 where nothing had to be cleaned. None if
    /// nothing was written. (Rosenblum and Ousterhout 1992, section 3.4.)
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
    pub fn write_cost(&self) -> Option<f64> {
        let moved = self.cleaned_bytes as f64 + self.written_bytes as f64;
        match self.written_bytes.saturating_sub(self.rewritten_bytes) {
            0 => None,
            new => Some(moved / new as f64),
        }
    }

    /// Pages that came back, however.
    #[must_use]
    pub fn came_back(&self) -> u64 {
        let ways = [
            self.stored_in,
            self.filled_in,
            self.disk_in,
            self.unasked_in,
        ];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_in_the_bucket_that_holds_it_and_quantiles_are_its_upper_bound() {
        let mut waits = Latencies::default();
        assert_eq!(waits.quantile_us(500), None);
        for micros in [0, 1, 3, 4, 1000, 1 << 40] {
            waits.add(Duration::from_micros(micros));
        }
        let filled = |n: usize| waits.counts[n];
        assert_eq!([0, 1, 2, 3, 10, 23].map(filled), [1; 6]);
        assert_eq!(waits.count(), 6);
        assert_eq!(waits.quantile_us(500), Some(4));
        assert_eq!(waits.quantile_us(800), Some(1024));
        let bounds: Vec<f64> = waits.buckets().map(|(bound, _)| bound).collect();
        assert_eq!((bounds[0], bounds[10]), (1e-6, 1024e-6));
    }

    #[test]
    fn where_nothing_is_cleaned_a_byte_is_written_once() {
        let mut swap = SwapCounters::default();
        assert_eq!(swap.write_cost(), None);
        swap.written_bytes = 100;
        assert_eq!(swap.write_cost(), Some(1.0));
        (swap.written_bytes, swap.rewritten_bytes, swap.cleaned_bytes) = (150, 50, 100);
        assert_eq!(swap.write_cost(), Some(2.5));
    }
}
