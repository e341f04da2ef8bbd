//! Which guest-physical memory a kernel may use, as firmware tells it (the "e820" map).

use crate::memory::ram::RamLayout;
use page::PAGE_SIZE;

/// What a stretch of memory is (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// A stretch of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) kind: Kind,
}

/// Where firmware keeps its own data on a PC; a kernel looks for tables here and stays away.
pub(super) const FIRMWARE_START: u64 = 0x9_f000;
pub(super) const FIRMWARE_END: u64 = 0x10_0000;

/// All of RAM, for a kernel that is told where everything else is.
pub(super) fn plain(layout: RamLayout) -> Vec<Stretch> {
    let stretch = |piece: crate::memory::ram::RamPiece| Stretch {
        start: piece.pages.start.0 * PAGE_SIZE,
        bytes: piece.pages.count.bytes(),
        kind: Kind::Ram,
    };
    layout.pieces().into_iter().map(stretch).collect()
}

/// RAM as a PC has it, with the firmware's part below 1 MiB reserved.
pub(super) fn of_a_pc(layout: RamLayout) -> Vec<Stretch> {
    let mut map = Vec::new();
    for stretch in plain(layout) {
        let end = stretch.start + stretch.bytes;
        if stretch.start >= FIRMWARE_END || end <= FIRMWARE_START {
            map.push(stretch);
            continue;
        }
        map.push(Stretch {
            bytes: FIRMWARE_START - stretch.start,
            ..stretch
        });
        map.push(Stretch {
            start: FIRMWARE_START,
            bytes: FIRMWARE_END.min(end) - FIRMWARE_START,
            kind: Kind::Reserved,
        });
        if end > FIRMWARE_END {
            map.push(Stretch {
                start: FIRMWARE_END,
                bytes: end - FIRMWARE_END,
                ..stretch
            });
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use page::PageCount;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_map_of_a_pc_is_all_ram_less_the_firmwares_part(pages in 1u64..2_000_000) {
            let layout = RamLayout::new(PageCount(pages));
            let map = of_a_pc(layout);
            let total: u64 = map.iter().map(|stretch| stretch.bytes).sum();
            prop_assert_eq!(total, pages * PAGE_SIZE);
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].bytes <= pair[1].start);
            }
            for stretch in &map {
                let overlaps = stretch.start < FIRMWARE_END && stretch.start + stretch.bytes > FIRMWARE_START;
                prop_assert_eq!(overlaps, stretch.kind == Kind::Reserved);
            }
        }
    }
}
