//! What the guest gives up and takes back, and where all of its pages are.

use super::large::Reason;
use super::{Agent, GivenBack};
use crate::memory::MemoryError;
use crate::memory::pages::Place;
use crate::memory::ram::GuestRam;
use page::{Gfn, GfnRange, PageCount, PageStates};
use protocol::page_sharing::FromAgent;
use std::ops::Range;
use std::sync::atomic::Ordering;

impl Agent {
    /// Pages that the kernel does not free stay in the memory file. They are in the balloon for all that, until
    /// they are looked for there.
    pub(super) fn inflate(&mut self, ranges: &[GfnRange]) -> PageCount {
        for &range in ranges {
            self.break_blocks_of(&indexes(&self.ram, range), Reason::Balloon);
        }
        self.give_back(ranges);
        let inflate = |&range| self.sharer.pages.inflate(indexes(&self.ram, range));
        let added = ranges.iter().map(inflate).sum();
        self.balloon_changed();
        PageCount(added)
    }

    pub(super) fn deflate(&mut self, ranges: &[GfnRange]) -> PageCount {
        let deflate = |&range| self.sharer.pages.deflate(indexes(&self.ram, range));
        let removed = ranges.iter().map(deflate).sum();
        self.balloon_changed();
        PageCount(removed)
    }

    pub(super) fn give_back(&mut self, ranges: &[GfnRange]) -> GivenBack {
        let mut result = GivenBack::default();
        for &range in ranges {
            self.unmap(range);
            match self.ram.punch(range) {
                Ok(()) => result.freed += range.count,
                Err(_) => result.refused += range.count,
            }
        }
        self.counters
            .given_back
            .fetch_add(result.freed.0, Ordering::Relaxed);
        self.counters
            .refused
            .fetch_add(result.refused.0, Ordering::Relaxed);
        result
    }

    /// Takes the store's mappings away from pages that are given up, and says so.
    fn unmap(&mut self, range: GfnRange) {
        let runs = self.sharer.unmap(indexes(&self.ram, range), &self.fence);
        for run in runs {
            self.unsent.push_back(FromAgent::Unmapped(GfnRange {
                start: Gfn(run.start),
                count: PageCount(run.end - run.start),
            }));
        }
        self.publish();
    }

    /// The guest goes on while pages are counted. What it touched of its balloon since it was last
    /// looked at is counted as private only.
    pub(super) fn count(&mut self, recount: bool) -> Result<PageStates, MemoryError> {
        let size = self.ram.layout().size();
        let mut private = self.ram.allocated()?;
        let pages = &self.sharer.pages;
        if recount || private.0 + pages.shared() + pages.ballooned() > size.0 {
            self.remove_popped()?;
            private = self.ram.allocated()?;
        }
        let pages = &self.sharer.pages;
        let shared = PageCount(pages.shared());
        let private = private.min(size - shared);
        let ballooned = PageCount(pages.ballooned()).min(size - shared - private);
        Ok(PageStates {
            empty: size - shared - private - ballooned,
            private,
            shared,
            ballooned,
            ..PageStates::default()
        })
    }

    /// Takes pages out of the balloon that the guest uses all the same.
    fn remove_popped(&mut self) -> Result<(), MemoryError> {
        for hull in self.sharer.pages.with_ballooned() {
            let count = hull.end - hull.start;
            let pieces = self.ram.layout().pieces_of_file(hull.start, count);
            for piece in pieces {
                let held = self.ram.residency(piece)?;
                for (index, is_held) in indexes(&self.ram, piece).zip(held) {
                    if is_held && self.sharer.pages.place(index) == Place::Ballooned {
                        self.sharer.popped += self.sharer.pages.deflate(index..index + 1);
                    }
                }
            }
        }
        self.publish();
        Ok(())
    }
}

/// By place in the memory file.
fn indexes(ram: &GuestRam, range: GfnRange) -> Range<u64> {
    let start = ram.layout().file_index(range.start);
    start..start + range.count.0
}
