//! Which pages the kernel holds in memory. Looking allocates none.
#![expect(unsafe_code, reason = "mincore has no safe wrapper")]

use page::PAGE_SIZE;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr;
use vm_memory::VolatileSlice;

const RESIDENT: u8 = 1;

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn mincore(start: *mut c_void, states: &mut [u8]) -> Result<(), Errno> {
    let length = states.len() * size(PAGE_SIZE);
    // SAFETY: `states` has a byte for each page; nothing else is written to. The kernel refuses
    // addresses where nothing is mapped.
    match unsafe { libc::mincore(start, length, states.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

/// For each page of a page-aligned slice whether its memory file holds it.
pub(super) fn of(slice: &VolatileSlice<'_>) -> Result<Vec<bool>, Errno> {
    let mut states = vec![0u8; slice.len().div_ceil(size(PAGE_SIZE))];
    mincore(slice.ptr_guard_mut().as_ptr().cast(), &mut states)?;
    Ok(states
        .into_iter()
        .map(|state| state & RESIDENT != 0)
        .collect())
}

/// A memory file mapped for questions only: none of its pages is ever touched through it, so it has
/// no page tables and a page given up is no dearer for it.
#[derive(Debug)]
pub struct FileResidency {
    start: *mut c_void,
    pages: u64,
}

// SAFETY: the mapping belongs to the process, and nothing is read or written through it.
unsafe impl Send for FileResidency {}

impl FileResidency {
    /// Of a file of `pages` pages.
    ///
    /// # Errors
    /// When the kernel refuses the mapping.
    pub fn new(file: impl AsFd, pages: u64) -> Result<Self, Errno> {
        let length = size(pages * PAGE_SIZE);
        // SAFETY: the kernel chooses a place where nothing is.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                0,
            )
        }?;
        Ok(Self { start, pages })
    }

    /// Calls `found` for each page of a range that the file holds.
    ///
    /// # Errors
    /// When the kernel does not tell.
    ///
    /// # Panics
    /// If the range reaches out of the file.
    pub fn for_each(&self, range: Range<u64>, mut found: impl FnMut(u64)) -> Result<(), Errno> {
        assert!(range.end <= self.pages, "{range:?} of {} pages", self.pages);
        let mut states = vec![0u8; size(range.end - range.start)];
        mincore(
            self.start.wrapping_byte_add(size(range.start * PAGE_SIZE)),
            &mut states,
        )?;
        let held = (range.start..).zip(states);
        held.filter(|&(_, state)| state & RESIDENT != 0)
            .for_each(|(page, _)| found(page));
        Ok(())
    }
}

impl Drop for FileResidency {
    fn drop(&mut self) {
        // SAFETY: nothing was ever given out that points into the mapping that `new` made.
        let unmapped = unsafe { munmap(self.start, size(self.pages * PAGE_SIZE)) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
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
