//! Which pages the kernel holds in memory. Looking allocates none.
#![expect(
    unsafe_code,
    reason = "a mapping that nobody reads through may go to another thread"
)]

use super::mapping::{Mapping, mincore};
use page::{PAGE_BYTES, PAGE_SIZE};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::ops::Range;
use vm_memory::VolatileSlice;

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// For each page of a page-aligned slice whether its memory file holds it.
pub(super) fn of(slice: &VolatileSlice<'_>) -> Result<Vec<bool>, Errno> {
    let start = slice.ptr_guard_mut().as_ptr().cast();
    Ok(mincore(start, slice.len().div_ceil(PAGE_BYTES))?.collect())
}

/// A memory file mapped for questions only: none of its pages is ever touched through it, so it has
/// no page tables and a page given up is no dearer for it.
#[derive(Debug)]
pub struct FileResidency(Mapping);

// SAFETY: the mapping belongs to the process, and nothing is read or written through it.
unsafe impl Send for FileResidency {}

impl FileResidency {
    /// Of a file of `pages` pages.
    ///
    /// # Errors
    /// When the kernel refuses the mapping.
    pub fn new(file: impl AsFd, pages: u64) -> Result<Self, Errno> {
        let length = size(pages * PAGE_SIZE);
        Mapping::new(length, ProtFlags::READ, MapFlags::SHARED, file, 0).map(Self)
    }

    /// Calls `found` for each page of a range that the file holds.
    ///
    /// # Errors
    /// When the kernel does not tell.
    ///
    /// # Panics
    /// If the range reaches out of the file.
    pub fn for_each(&self, range: Range<u64>, found: impl FnMut(u64)) -> Result<(), Errno> {
        let pages = (self.0.length / PAGE_BYTES) as u64;
        assert!(range.end <= pages, "{range:?} of {pages} pages");
        let start = self
            .0
            .start
            .wrapping_byte_add(size(range.start * PAGE_SIZE));
        let held = mincore(start, size(range.end - range.start))?;
        let held = range.zip(held).filter(|&(_, is_held)| is_held);
        held.map(|(page, _)| page).for_each(found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ram::{GuestRam, allocated_pages};
    use page::PageCount;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn pages_that_were_written_are_there_and_looking_makes_no_others() {
        let ram = GuestRam::new(PageCount(64)).unwrap();
        let residency = FileResidency::new(ram.file(), 64).unwrap();
        for page in [3, 4, 40] {
            let address = GuestAddress(page * PAGE_SIZE);
            ram.memory().write_obj(1u8, address).unwrap();
        }
        let mut found = Vec::new();
        residency.for_each(2..60, |page| found.push(page)).unwrap();
        assert_eq!(found, [3, 4, 40]);
        assert_eq!(allocated_pages(ram.file()).unwrap(), PageCount(3));
    }
}
