//! What a guest says about its own memory. All of it is its word only.

use super::wire::STATISTIC_BYTES;
use protocol::GuestStatistics;

/// Reads a list of statistics as it lies in the guest's buffer. Unknown tags and a cut last
/// entry are passed over.
pub(super) fn parse(buffer: &[u8]) -> GuestStatistics {
    let mut statistics = GuestStatistics::default();
    for entry in buffer.chunks_exact(STATISTIC_BYTES) {
        let (tag, value) = entry.split_at(2);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(value);
        if let Some(field) = field(&mut statistics, u16::from_le_bytes([tag[0], tag[1]])) {
            *field = Some(u64::from_le_bytes(bytes));
        }
    }
    statistics
}

fn field(statistics: &mut GuestStatistics, tag: u16) -> Option<&mut Option<u64>> {
    Some(match tag {
        0 => &mut statistics.swap_in,
        1 => &mut statistics.swap_out,
        2 => &mut statistics.major_faults,
        3 => &mut statistics.minor_faults,
        4 => &mut statistics.free,
        5 => &mut statistics.total,
        6 => &mut statistics.available,
        7 => &mut statistics.caches,
        8 => &mut statistics.huge_page_allocations,
        9 => &mut statistics.huge_page_failures,
        10 => &mut statistics.oom_kills,
        11 => &mut statistics.allocation_stalls,
        12 => &mut statistics.background_scanned,
        13 => &mut statistics.direct_scanned,
        14 => &mut statistics.background_reclaimed,
        15 => &mut statistics.direct_reclaimed,
        _ => return None,
    })
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
        let figures = parse(&buffer);
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
        let statistics = parse(&buffer);
        assert_eq!(statistics.free, Some(4096));
        assert_eq!(statistics.available, Some(8192));
        assert_eq!(statistics.total, None);
    }
}
