//! Compares the table of pages with the kernel: what is mapped over each page, what the memory file holds beneath,
//! and which blocks are large.
//!
//! Only the agent changes these, so nothing can be late here. What the guest may do at any moment is left out: that it
//! touches a page that it has given up is found and put right by the next count, and is no fault.

use super::Agent;
use super::balloon::place_in_block;
use crate::memory::areas::Area;
use crate::memory::doors::{Deed, told};
use crate::memory::pages::runs;
use crate::memory::ram::punch;
use crate::memory::residency::FileResidency;
use page::{PAGE_BYTES, PAGE_SIZE, PageCount};
use protocol::page_sharing::TableCheck;
use rustix::io::Errno;
use sharing::{BLOCK_PAGES, Frame, PageSet};
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;

impl Agent {
    /// Compares all pages.
    pub(super) fn check_table(&mut self) -> TableCheck {
        self.remove_hidden_or_tell();
        let maps = self.fence.areas();
        let size = self.ram.layout().size().0;
        let mapped = mapped_frames(&self.ram.addresses(0..size), &maps);
        // Of the file: what is mapped over it hides it.
        let residency = FileResidency::new(self.ram.file(), size).ok();
        let mut check = TableCheck::default();
        for number in 0..size.div_ceil(BLOCK_PAGES as u64) {
            let pages = self.pages_of_block(number);
            let is_large = self.fence.is_large(&self.ram.addresses(pages.clone()));
            if is_large {
                check.large += PageCount(pages.end - pages.start);
            }
            // Where the kernel does not tell, nothing is said.
            let residency = residency.as_ref();
            let held = residency.and_then(|residency| held(residency, pages.clone()).ok());
            let held = held.unwrap_or(PageSet::EMPTY);
            for page in pages {
                let frame = self.sharer.pages.frame(page);
                let is_held = held.contains(place_in_block(page));
                let is_as_mapped = mapped.get(&page).copied() == frame;
                let is_nowhere_else = frame.is_none() || !(is_held || is_large);
                if !(is_as_mapped && is_nowhere_else) {
                    check.wrong += PageCount(1);
                    check.first_wrong.get_or_insert(page);
                }
            }
        }
        check
    }

    /// Frees what lies in the memory file under frames, where nobody sees it: the kernel makes large pages of a block
    /// that it had begun with before a page of it was shared, and fills what is a hole by then.
    pub(super) fn remove_hidden_or_tell(&mut self) {
        if self.sharer.pages.shared() > 0
            && let Err(error) = self.remove_hidden()
        {
            tracing::debug!("what lies under frames is not looked for: {error}");
        }
    }

    fn remove_hidden(&mut self) -> Result<(), Errno> {
        let file = self.ram.file();
        let residency = FileResidency::new(file, self.ram.layout().size().0)?;
        for (number, frames) in self.sharer.pages.with_frames() {
            let pages = self.pages_of_block(number);
            let held = held(&residency, pages.clone())?;
            let is_hidden = |page: &u64| {
                let place = place_in_block(*page);
                held.contains(place) && frames.contains(place)
            };
            // Anything else would be somebody's: that is for an audit to tell.
            let is_zero = |page: &u64| {
                let mut bytes = [0; PAGE_BYTES];
                let read = file.read_exact_at(&mut bytes, page * PAGE_SIZE);
                read.is_ok() && bytes == [0; PAGE_BYTES]
            };
            for run in runs(pages.filter(is_hidden).filter(is_zero)) {
                told(Deed::Punched, &self.ram.addresses(run.clone()));
                let length = (run.end - run.start) * PAGE_SIZE;
                punch(file, run.start * PAGE_SIZE, length)?;
            }
        }
        Ok(())
    }

    /// The last block may have fewer than others.
    fn pages_of_block(&self, number: u64) -> Range<u64> {
        let start = number * BLOCK_PAGES as u64;
        start..(start + BLOCK_PAGES as u64).min(self.ram.layout().size().0)
    }
}

/// What the memory file holds of a block's pages.
fn held(residency: &FileResidency, pages: Range<u64>) -> Result<PageSet, Errno> {
    let mut held = PageSet::EMPTY;
    residency.for_each(pages, |page| held.insert(place_in_block(page)))?;
    Ok(held)
}

/// By page, what of the store is mapped there: the guest's own memory is mapped shared, and nothing else of it is.
fn mapped_frames(ram: &Range<u64>, maps: &str) -> BTreeMap<u64, Frame> {
    let areas = maps.lines().filter_map(Area::parse);
    let private = areas.filter(|area| area.is_private && ram.contains(&area.addresses.start));
    let mut frames = BTreeMap::new();
    for area in private {
        for (address, frame) in area.pages() {
            let page = (address - ram.start) / PAGE_SIZE;
            frames.insert(page, Frame(u32::try_from(frame).unwrap_or(u32::MAX)));
        }
    }
    frames
}
