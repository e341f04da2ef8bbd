//! What sharing costs and what a page is worth, in nanoseconds, so that the two can be compared.
//!
//! Costs are the medians in PLATFORM.md ("KSM and the limits", "What mapping work costs"), taken where
//! another thread of the process runs, for a guest's vCPUs do. What a page is worth is no measurement
//! but a choice, and says so.

use crate::history::MOST_VOLATILE;
use serde::{Deserialize, Serialize};

/// One mmap over guest memory, whatever its length. Measured: 16 to 20 µs beside a running thread.
pub const MAP_NS: u64 = 16_000;
/// Per page of a share: write protection (0.11 µs in a block), comparison of two pages (2 · 0.2 µs),
/// its part of a punch (0.8 µs) and the guest's refault (4 µs under KVM).
pub const SHARE_PAGE_NS: u64 = 110 + 400 + 800 + 4_000;
/// A page copied into a window through its copy-on-write fault (2.4 µs), and read through the agent
/// rather than the memory file ever after (0.7 µs a pass, over a few passes).
pub const COPY_IN_NS: u64 = 2_400 + 1_400;
/// Copying a new frame's content: 4 KiB at 6.8 GB/s, into a fresh page of the store.
pub const FILL_NS: u64 = 600 + 1_500;
/// A guest's write to a shared page. Measured: 19 µs under KVM.
pub const BREAK_NS: u64 = 19_000;

/// What a page is worth while memory is not short. A choice: near the cost of getting a page by
/// swapping one out and, for every second one, in again from a fast disk.
pub const PAGE_WORTH_NS: u64 = 60_000;
/// How many times that while memory is short.
pub const SHORT_FACTOR: u64 = 4;

/// Below this part of its areas, in percent, a VM pays nothing for one more.
const FREE_AREAS_PERCENT: u64 = 70;
/// From this part on, no step may add an area: the VM needs the rest for its own work.
const LAST_AREAS_PERCENT: u64 = 95;
/// The price of an area just below that: what it carries elsewhere, a run of so many pages.
const DEAREST_AREA_NS: u64 = 64 * PAGE_WORTH_NS;

/// Whether the host looks for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pressure {
    /// There is memory to give.
    #[default]
    Plenty,
    /// There is not.
    Short,
}

/// A VM process's memory areas (vm.max_map_count).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// Those it has.
    pub used: u64,
    /// Those it may have.
    pub limit: u64,
}

impl Areas {
    /// The price of one area more: nothing at first, then rising with the square of what is used of the
    /// rest. None if there is none to sell.
    #[must_use]
    pub fn price_ns(self) -> Option<u64> {
        let percent_used = self.used.saturating_mul(100) / self.limit.max(1);
        if percent_used >= LAST_AREAS_PERCENT {
            return None;
        }
        let above = percent_used.saturating_sub(FREE_AREAS_PERCENT);
        let range = LAST_AREAS_PERCENT - FREE_AREAS_PERCENT;
        Some(DEAREST_AREA_NS * above * above / (range * range))
    }
}

/// What sharing a page of this restlessness brings before it costs anything: the page's worth, less
/// as it is the likelier to be broken, which also costs the guest a fault.
#[must_use]
pub fn worth_ns(pressure: Pressure, level: u8) -> u64 {
    let page = match pressure {
        Pressure::Plenty => PAGE_WORTH_NS,
        Pressure::Short => PAGE_WORTH_NS * SHORT_FACTOR,
    };
    let volatile = u64::from(level.min(MOST_VOLATILE));
    let parts = u64::from(MOST_VOLATILE) + 1;
    (page * (parts - volatile) / parts).saturating_sub(BREAK_NS * volatile / parts)
}

/// The cost of one mapping of `pages` pages that adds `areas_added` areas. None if that many are not
/// to be had.
#[must_use]
pub fn map_ns(pages: usize, areas_added: u64, areas: Areas) -> Option<u64> {
    let price = match areas_added {
        0 => 0,
        _ => areas.price_ns()? * areas_added,
    };
    Some(MAP_NS + SHARE_PAGE_NS * pages as u64 + price)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MANY: Areas = Areas {
        used: 100,
        limit: 65_530,
    };

    #[test]
    fn a_lone_page_pays_while_there_are_areas() {
        assert!(map_ns(1, 2, MANY).unwrap() < worth_ns(Pressure::Plenty, 0));
    }

    #[test]
    fn a_lone_page_does_not_pay_when_areas_are_short_but_a_run_does() {
        let short = Areas {
            used: 85,
            limit: 100,
        };
        let worth = worth_ns(Pressure::Plenty, 0);
        assert!(map_ns(1, 2, short).unwrap() > worth);
        assert!(map_ns(64, 2, short).unwrap() < 64 * worth);
        assert!(
            map_ns(1, 0, short).unwrap() < worth,
            "one that joins a run does"
        );
    }

    #[test]
    fn the_most_restless_page_does_not_pay_alone_while_there_is_memory() {
        assert!(map_ns(1, 2, MANY).unwrap() > worth_ns(Pressure::Plenty, MOST_VOLATILE));
        assert!(map_ns(1, 2, MANY).unwrap() < worth_ns(Pressure::Short, MOST_VOLATILE));
    }

    proptest! {
        #[test]
        fn an_area_gets_dearer_until_there_is_none(used in 0u64..70_000, limit in 0u64..70_000) {
            let price = Areas { used, limit }.price_ns();
            let next = Areas { used: used + 1, limit }.price_ns();
            prop_assert!(next.is_none() || next >= price);
            prop_assert!(used < limit || price.is_none());
        }
    }
}
