//! Runs of neighbouring pages: one system call serves a run, so runs are what the agent works on.

use crate::{Gfn, PageCount};
use serde::{Deserialize, Serialize};

/// `count` neighbouring pages from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GfnRange {
    /// The first page.
    pub start: Gfn,
    /// How many pages; never zero where this crate makes the range.
    pub count: PageCount,
}

impl GfnRange {
    /// The first page after the range.
    #[must_use]
    pub const fn end(self) -> Gfn {
        Gfn(self.start.0 + self.count.0)
    }

    /// Each page of the range, in order.
    pub fn pages(self) -> impl Iterator<Item = Gfn> {
        (self.start.0..self.end().0).map(Gfn)
    }
}

/// Sorts pages, drops repeated ones and joins neighbours. `gfns` is left sorted and without
/// repeats; the ranges together hold exactly its pages.
pub fn join_into_ranges(gfns: &mut Vec<Gfn>) -> Vec<GfnRange> {
    gfns.sort_unstable();
    gfns.dedup();
    let mut ranges: Vec<GfnRange> = Vec::new();
    for &gfn in gfns.iter() {
        match ranges.last_mut() {
            Some(last) if last.end() == gfn => last.count.0 += 1,
            _ => ranges.push(GfnRange {
                start: gfn,
                count: PageCount(1),
            }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hold_each_page_once_and_do_not_touch(pages in prop::collection::vec(0u64..200, 0..300)) {
            let model: BTreeSet<u64> = pages.iter().copied().collect();
            let ranges = join_into_ranges(&mut pages.iter().map(|&page| Gfn(page)).collect());
            let joined: Vec<u64> = ranges.iter().flat_map(|range| range.pages()).map(|gfn| gfn.0).collect();
            prop_assert_eq!(joined, model.into_iter().collect::<Vec<_>>());
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end() < pair[1].start, "neighbours were not joined");
            }
        }
    }
}
