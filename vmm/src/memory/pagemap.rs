//! What the kernel knows of a process's pages: which were written since they were last armed, and which
//! are anonymous (PAGEMAP_SCAN, Linux 6.7).
//!
//! A page is armed by write protection of the tracking kind (see `userfault`). Whatever was not armed
//! counts as written, so nothing written is ever missed.
#![expect(
    unsafe_code,
    reason = "PAGEMAP_SCAN is an ioctl on raw structures, and has no wrapper"
)]

use crate::memory::MemoryError;
use linux_raw_sys::general::{
    PAGE_IS_FILE, PAGE_IS_HUGE, PAGE_IS_PRESENT, PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC,
    PM_SCAN_WP_MATCHING, page_region, pm_scan_arg,
};
use page::PAGE_SIZE;
use rustix::ioctl::opcode;
use sharing::BLOCK_PAGES;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// All that is asked of one that is open.
pub(crate) const IOCTL: u32 = SCAN;
const SCAN: u32 = opcode::read_write::<pm_scan_arg>(b'f', 16);
const IS_WRITTEN: u64 = PAGE_IS_WRITTEN as u64;
const IS_FILE: u64 = PAGE_IS_FILE as u64;
const IS_PRESENT: u64 = PAGE_IS_PRESENT as u64;
const IS_HUGE: u64 = PAGE_IS_HUGE as u64;
const WRITE_PROTECT: u64 = PM_SCAN_WP_MATCHING as u64;
/// Fail if any of it is not watched by a tracker.
const ALL_WATCHED: u64 = PM_SCAN_CHECK_WPASYNC as u64;
const NO_REGION: page_region = page_region {
    start: 0,
    end: 0,
    categories: 0,
};
/// For what was written. Exactly these masks: the kernel has a fast path for them.
const WRITTEN: pm_scan_arg = pm_scan_arg {
    size: size_of::<pm_scan_arg>() as u64,
    flags: 0,
    start: 0,
    end: 0,
    walk_end: 0,
    vec: 0,
    vec_len: 0,
    max_pages: 0,
    category_inverted: 0,
    category_mask: IS_WRITTEN,
    category_anyof_mask: 0,
    return_mask: IS_WRITTEN,
};
/// How a page was touched since its mapping was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touch {
    /// It was read, and not written since it was armed.
    Read,
    /// It was written, or was not armed.
    Written,
}

/// The pages of one process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// Of a process that this one may trace.
    ///
    /// # Errors
    /// When it is not there, or not ours to look at.
    pub fn open(pid: u32) -> Result<Self, MemoryError> {
        let file = File::open(format!("/proc/{pid}/pagemap")).map_err(MemoryError::ReadPagemap)?;
        Ok(Self { file })
    }

    /// Calls `found` with each run of addresses that was written since it was armed. At most 512 pages.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn written(
        &self,
        addresses: Range<u64>,
        found: impl FnMut(Range<u64>),
    ) -> Result<(), MemoryError> {
        self.scan(WRITTEN, addresses, found)
    }

    /// As [`Self::written`], and arms what it finds: what is written from now on is found the next time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn arm_written(
        &self,
        addresses: Range<u64>,
        found: impl FnMut(Range<u64>),
    ) -> Result<(), MemoryError> {
        let query = pm_scan_arg {
            flags: WRITE_PROTECT,
            ..WRITTEN
        };
        self.scan(query, addresses, found)
    }

    /// Arms all that is not armed.
    ///
    /// # Errors
    /// When the kernel refuses, or a part is not watched.
    pub fn arm(&self, addresses: Range<u64>) -> Result<(), MemoryError> {
        let mut query = pm_scan_arg {
            flags: WRITE_PROTECT | ALL_WATCHED,
            ..WRITTEN
        };
        self.fill(&mut query, addresses, &mut []).map(drop)
    }

    /// Calls `found` with each run of addresses that has anonymous pages in memory. At most 512 pages.
    ///
    /// Pages that the kernel has swapped out are not found: an armed page that nobody has touched looks
    /// like one of them, and to take that for a guest's copy would free the frame that it shows.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn anonymous(
        &self,
        addresses: Range<u64>,
        found: impl FnMut(Range<u64>),
    ) -> Result<(), MemoryError> {
        let query = pm_scan_arg {
            category_inverted: IS_FILE,
            category_mask: IS_FILE,
            category_anyof_mask: IS_PRESENT,
            return_mask: IS_PRESENT,
            ..WRITTEN
        };
        self.scan(query, addresses, found)
    }

    /// Whether a block is mapped as one large page.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn is_large(&self, block: Range<u64>) -> Result<bool, MemoryError> {
        self.has_any(block, IS_HUGE)
    }

    /// Calls `found` with each run of addresses that is mapped. At most 512 pages.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn present(
        &self,
        addresses: Range<u64>,
        found: impl FnMut(Range<u64>),
    ) -> Result<(), MemoryError> {
        let query = pm_scan_arg {
            category_mask: IS_PRESENT,
            return_mask: IS_PRESENT,
            ..WRITTEN
        };
        self.scan(query, addresses, found)
    }

    /// Whether anything of a block is mapped.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn is_any_present(&self, block: Range<u64>) -> Result<bool, MemoryError> {
        self.has_any(block, IS_PRESENT)
    }

    fn has_any(&self, addresses: Range<u64>, category: u64) -> Result<bool, MemoryError> {
        let mut query = pm_scan_arg {
            category_mask: category,
            return_mask: category,
            ..WRITTEN
        };
        Ok(self.fill(&mut query, addresses, &mut [NO_REGION])? > 0)
    }

    /// Whether and how the page at `address` was touched since its mapping was dropped: a touch maps it
    /// again, and arming does not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn touch(&self, address: u64) -> Result<Option<Touch>, MemoryError> {
        let mut query = pm_scan_arg {
            category_mask: IS_PRESENT,
            return_mask: IS_PRESENT | IS_WRITTEN,
            ..WRITTEN
        };
        let mut regions = [NO_REGION];
        let count = self.fill(&mut query, address..address + PAGE_SIZE, &mut regions)?;
        let is_written = regions[0].categories & IS_WRITTEN != 0;
        Ok((count > 0).then_some(match is_written {
            true => Touch::Written,
            false => Touch::Read,
        }))
    }

    fn scan(
        &self,
        mut query: pm_scan_arg,
        addresses: Range<u64>,
        mut found: impl FnMut(Range<u64>),
    ) -> Result<(), MemoryError> {
        // As many as a block can have.
        let mut regions = [NO_REGION; BLOCK_PAGES];
        let count = self.fill(&mut query, addresses, &mut regions)?;
        for region in &regions[..count.min(BLOCK_PAGES)] {
            found(region.start..region.end);
        }
        Ok(())
    }

    /// Returns how many regions were found.
    fn fill(
        &self,
        query: &mut pm_scan_arg,
        addresses: Range<u64>,
        regions: &mut [page_region],
    ) -> Result<usize, MemoryError> {
        query.start = addresses.start;
        query.end = addresses.end;
        query.vec = regions.as_mut_ptr() as u64;
        query.vec_len = regions.len() as u64;
        let file = self.file.as_raw_fd();
        // SAFETY: SCAN takes a `pm_scan_arg`, whose vector is `regions` with the length it says. Nothing
        // else is written to; arming changes no content.
        let found = unsafe { libc::ioctl(file, SCAN.into(), std::ptr::from_mut(query)) };
        usize::try_from(found)
            .map_err(|_negative| MemoryError::ReadPagemap(io::Error::last_os_error()))
    }
}
