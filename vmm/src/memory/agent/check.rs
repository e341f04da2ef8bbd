//! Compares the table of pages with the kernel: what is mapped over each page, what the memory file holds beneath,
//! and which blocks are large.
//!
//! Only the agent changes these, so nothing can be late here. What the guest may do at any moment is left out: that it
//! touches a page that it has given up is found and put right by the next count, and is no fault.

use super::Agent;
use super::fence::Fence;
use super::share::Sharer;
use crate::memory::areas::Area;
use crate::memory::pages::{Place, runs};
use crate::memory::ram::{GuestRam, punch};
use crate::memory::residency::FileResidency;
use page::{PAGE_BYTES, PAGE_SIZE, PageCount};
use protocol::page_sharing::TableCheck;
use rustix::io::Errno;
use sharing::{BLOCK_PAGES, Frame, PageSet};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

impl Agent {
    /// Compares all pages.
    pub(super) fn check_table(&mut self) -> TableCheck {
        self.remove_hidden_or_tell();
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        check(&self.ram, &self.sharer, &self.fence, &maps)
    }
}

impl Agent {
    /// Frees what lies in the memory file under frames, where nobody sees it: the kernel makes large pages of a block
    /// that it had begun with before a page of it was shared, and fills what is a hole by then.
    pub(super) fn remove_hidden_or_tell(&mut self) {
        if let Err(error) = self.remove_hidden() {
            tracing::debug!("what lies under frames is not looked for: {error}");
        }
    }

    fn remove_hidden(&mut self) -> Result<(), Errno> {
        let (file, size) = (self.ram.file(), self.ram.layout().size().0);
        let residency = FileResidency::new(file, size)?;
        let mut hidden = Vec::new();
        for (number, frames) in self.sharer.pages.with_frames() {
            let start = number * BLOCK_PAGES as u64;
            residency.for_each(start..(start + BLOCK_PAGES as u64).min(size), |page| {
                if frames.contains(place(page)) {
                    hidden.push(page);
                }
            })?;
        }
        // Anything else would be somebody's: that is for an audit to tell.
        hidden.retain(|&page| {
            let mut bytes = [0; PAGE_BYTES];
            let read = file.read_exact_at(&mut bytes, page * PAGE_SIZE);
            read.is_ok() && bytes == [0; PAGE_BYTES]
        });
        for run in runs(hidden.into_iter()) {
            let length = (run.end - run.start) * PAGE_SIZE;
            punch(file, run.start * PAGE_SIZE, length)?;
        }
        Ok(())
    }
}

fn check(ram: &GuestRam, sharer: &Sharer, fence: &Fence, maps: &str) -> TableCheck {
    let size = ram.layout().size().0;
    let mapped = mapped_frames(&ram.addresses(0..size), maps);
    // Of the file: what is mapped over it hides it.
    let residency = FileResidency::new(ram.file(), size).ok();
    let mut check = TableCheck::default();
    for start in (0..size).step_by(BLOCK_PAGES) {
        let pages = start..(start + BLOCK_PAGES as u64).min(size);
        let is_large = fence.is_large(&ram.addresses(pages.clone()));
        if is_large {
            check.large += PageCount(pages.end - pages.start);
        }
        let mut held = PageSet::EMPTY;
        let mut hold = |page: u64| held.insert(place(page));
        // Where the kernel does not tell, nothing is said.
        if let Some(Err(error)) = residency
            .as_ref()
            .map(|residency| residency.for_each(pages.clone(), &mut hold))
        {
            tracing::debug!("what the memory file holds is not checked: {error}");
        }
        for page in pages {
            let frame = match sharer.pages.place(page) {
                Place::Shared(frame) => Some(frame),
                Place::Own | Place::Ballooned => None,
            };
            let is_held = held.contains(place(page));
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

/// Of a page in its block.
fn place(page: u64) -> usize {
    usize::try_from(page).unwrap_or(0) % BLOCK_PAGES
}

/// By page, what of the store is mapped there: the guest's own memory is mapped shared, and nothing else of it is.
fn mapped_frames(ram: &std::ops::Range<u64>, maps: &str) -> BTreeMap<u64, Frame> {
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
