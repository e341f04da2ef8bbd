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
use page::PAGE_SIZE;
use rustix::ioctl::opcode;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// The kernel's `struct page_region`: a run of pages in the same categories, by address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// The kernel's `struct pm_scan_arg`, from include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const SCAN: u32 = opcode::read_write::<ScanArgument>(b'f', 16);
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// Fail if any of it is not watched by a tracker.
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
/// Regions taken in one call: as many as a block of 512 pages can have.
const REGIONS: usize = 512;

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
        // Exactly these masks: the kernel has a fast path for them.
        let query = ScanArgument {
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..ScanArgument::default()
        };
        self.scan(query, addresses, found)
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
        let query = ScanArgument {
            flags: PM_SCAN_WP_MATCHING,
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..ScanArgument::default()
        };
        self.scan(query, addresses, found)
    }

    /// Arms all that is not armed.
    ///
    /// # Errors
    /// When the kernel refuses, or a part is not watched.
    pub fn arm(&self, addresses: Range<u64>) -> Result<(), MemoryError> {
        let mut query = ScanArgument {
            flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..ScanArgument::default()
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
        let query = ScanArgument {
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_PRESENT,
            ..ScanArgument::default()
        };
        self.scan(query, addresses, found)
    }

    /// Whether and how the page at `address` was touched since its mapping was dropped: a touch maps it
    /// again, and arming does not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn touch(&self, address: u64) -> Result<Option<Touch>, MemoryError> {
        let mut query = ScanArgument {
            category_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_WRITTEN,
            ..ScanArgument::default()
        };
        let mut regions = [PageRegion::default()];
        let count = self.fill(&mut query, address..address + PAGE_SIZE, &mut regions)?;
        let is_written = regions[0].categories & PAGE_IS_WRITTEN != 0;
        Ok((count > 0).then_some(match is_written {
            true => Touch::Written,
            false => Touch::Read,
        }))
    }

    fn scan(
        &self,
        mut query: ScanArgument,
        addresses: Range<u64>,
        mut found: impl FnMut(Range<u64>),
    ) -> Result<(), MemoryError> {
        let mut regions = [PageRegion::default(); REGIONS];
        let count = self.fill(&mut query, addresses, &mut regions)?;
        for region in &regions[..count.min(REGIONS)] {
            found(region.start..region.end);
        }
        Ok(())
    }

    /// Returns how many regions were found.
    fn fill(
        &self,
        query: &mut ScanArgument,
        addresses: Range<u64>,
        regions: &mut [PageRegion],
    ) -> Result<usize, MemoryError> {
        query.size = size_of::<ScanArgument>() as u64;
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
