//! What a guest says about its own memory. All of it is its word only.

use super::wire::STATISTIC_BYTES;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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

impl GuestStatistics {
    /// Reads a list of statistics as it lies in the guest's buffer. Unknown tags and a cut last
    /// entry are passed over.
    #[must_use]
    pub fn parse(buffer: &[u8]) -> Self {
        let mut statistics = Self::default();
        for entry in buffer.chunks_exact(STATISTIC_BYTES) {
            let (tag, value) = entry.split_at(2);
            let mut bytes = [0; 8];
            bytes.copy_from_slice(value);
            if let Some(field) = statistics.field(u16::from_le_bytes([tag[0], tag[1]])) {
                *field = Some(u64::from_le_bytes(bytes));
            }
        }
        statistics
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            8 => &mut self.huge_page_allocations,
            9 => &mut self.huge_page_failures,
            10 => &mut self.oom_kills,
            11 => &mut self.allocation_stalls,
            12 => &mut self.background_scanned,
            13 => &mut self.direct_scanned,
            14 => &mut self.background_reclaimed,
            15 => &mut self.direct_reclaimed,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    /// As Linux 6.12 sends them: sixteen, each with a value of its own here.
    #[test]
    fn every_tag_that_linux_knows_has_its_field() {
        let buffer: Vec<u8> = (0..16).flat_map(|tag| entry(tag, tag.into())).collect();
        let figures = GuestStatistics::parse(&buffer);
        let values = [
            figures.swap_in,
            figures.swap_out,
            figures.major_faults,
            figures.minor_faults,
            figures.free,
            figures.total,
            figures.available,
            figures.caches,
            figures.huge_page_allocations,
            figures.huge_page_failures,
            figures.oom_kills,
            figures.allocation_stalls,
            figures.background_scanned,
            figures.direct_scanned,
            figures.background_reclaimed,
            figures.direct_reclaimed,
        ];
        assert!(values.into_iter().eq((0..16).map(Some)), "{figures:?}");
    }

    #[test]
    fn unknown_tags_and_a_cut_entry_are_passed_over() {
        let mut buffer = [entry(4, 4096), entry(99, 1), entry(6, 8192)].concat();
        buffer.extend([5, 0, 1]);
        let statistics = GuestStatistics::parse(&buffer);
        assert_eq!(statistics.free, Some(4096));
        assert_eq!(statistics.available, Some(8192));
        assert_eq!(statistics.total, None);
    }
}
