//! What the guest gives up and takes back, and where all of its pages are.

use super::large::Reason;
use super::{Agent, GivenBack};
use crate::memory::MemoryError;
use crate::memory::left_out::{Step, is_left_out};
use crate::memory::pages::Place;
use crate::memory::ram::GuestRam;
use page::{Gfn, GfnRange, PageCount, PageStates};
use protocol::page_sharing::{BlockRequest, FromAgent};
use sharing::{BLOCK_PAGES, PageSet, Ticket};
use std::ops::Range;
use std::sync::atomic::Ordering;

impl Agent {
    /// Pages that the kernel does not free stay in the memory file. They are in the balloon for all that, until
    /// they are looked for there.
    pub(super) fn inflate(&mut self, ranges: &[GfnRange]) -> PageCount {
        let mut broken = false;
        for &range in ranges {
            broken |= self.break_blocks_of(&indexes(&self.ram, range), Reason::Balloon);
        }
        let mut added = 0;
        for &range in ranges {
            self.unmap(range);
            // From here on the pager makes none beside one that is touched; what it has made is punched.
            added += self.sharer.pages.inflate(indexes(&self.ram, range));
        }
        self.free(ranges);
        self.balloon_changed();
        self.look_again_soon(broken);
        PageCount(added)
    }

    pub(super) fn deflate(&mut self, ranges: &[GfnRange]) -> PageCount {
        let deflate = |&range| self.sharer.pages.deflate(indexes(&self.ram, range));
        let removed = ranges.iter().map(deflate).sum();
        self.balloon_changed();
        PageCount(removed)
    }

    /// Pages that are free and may be touched again without a word. Where no touch may make more than it needs, none
    /// does so of what is a hole from now on.
    pub(super) fn report_free(&mut self, ranges: &[GfnRange]) -> GivenBack {
        if !self.may_fill() {
            for &range in ranges {
                self.break_blocks_of(&indexes(&self.ram, range), Reason::Balloon);
            }
        }
        self.give_back(ranges)
    }

    pub(super) fn give_back(&mut self, ranges: &[GfnRange]) -> GivenBack {
        ranges.iter().for_each(|&range| self.unmap(range));
        self.free(ranges)
    }

    /// Gives pages back of which none is mapped from the store.
    fn free(&self, ranges: &[GfnRange]) -> GivenBack {
        let mut result = GivenBack::default();
        for &range in ranges {
            if !is_left_out(Step::GivenUpIsForgotten) {
                self.fence.forget(indexes(&self.ram, range));
            }
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
        let (out, in_file) = self.pages_out();
        if recount || private.0 + out.0 + pages.shared() + pages.ballooned() > size.0 {
            self.remove_popped()?;
            self.remove_hidden_or_tell();
            private = self.ram.allocated()?;
        }
        let pages = &self.sharer.pages;
        let shared = PageCount(pages.shared());
        let private = private.min(size - shared);
        let out = out.min(size - shared - private);
        let swapped = in_file.min(out);
        let ballooned = PageCount(pages.ballooned()).min(size - shared - private - out);
        Ok(PageStates {
            compressed: out - swapped,
            swapped,
            empty: size - shared - private - out - ballooned,
            private,
            shared,
            ballooned,
            ..PageStates::default()
        })
    }

    /// Looks for pages of the balloon that are there all the same. What holds zeros is given back: somebody
    /// read it, or the kernel made a large page of its neighbours while it was given up. What holds anything
    /// else its guest has taken back without a word.
    pub(super) fn remove_popped(&mut self) -> Result<(), MemoryError> {
        for hull in self.sharer.pages.with_ballooned() {
            let held = self.sharer.held(hull.clone());
            let held = held.map_err(MemoryError::ReadRamUse)?;
            let is_there = |&(index, is_held): &(u64, bool)| {
                is_held && self.sharer.pages.place(index) == Place::Ballooned
            };
            let there = hull.clone().zip(held).filter(is_there);
            let there: PageSet = there.map(|(index, _)| place_in_block(index)).collect();
            if !there.is_empty() {
                self.give_back_or_pop(hull.start / BLOCK_PAGES as u64, &there);
            }
        }
        self.publish();
        Ok(())
    }

    fn give_back_or_pop(&mut self, number: u64, there: &PageSet) {
        self.may_be_large_again(number);
        let request = BlockRequest {
            ticket: Ticket(0),
            number: u32::try_from(number).expect("a VM has fewer than 2^41 pages"),
            drops: PageSet::EMPTY,
            zeros: *there,
            spans: Vec::new(),
            rehomes: PageSet::EMPTY,
        };
        let done = self.sharer.carry_out(&request, &self.fence);
        for place in there.without(&done.outcome.done).iter() {
            let index = number * BLOCK_PAGES as u64 + place as u64;
            self.sharer.popped += self.sharer.pages.deflate(index..index + 1);
        }
    }
}

pub(super) fn place_in_block(index: u64) -> usize {
    usize::try_from(index % BLOCK_PAGES as u64).expect("below 512")
}

/// By place in the memory file.
fn indexes(ram: &GuestRam, range: GfnRange) -> Range<u64> {
    let start = ram.layout().file_index(range.start);
    start..start + range.count.0
}
