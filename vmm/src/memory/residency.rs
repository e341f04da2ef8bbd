//! Which pages of a mapping the kernel holds in memory.
#![expect(unsafe_code, reason = "mincore has no safe wrapper")]

use page::PAGE_SIZE;
use rustix::io::Errno;
use vm_memory::VolatileSlice;

/// For each page of a page-aligned slice whether its memory file holds it. Looking allocates none.
pub(super) fn of(slice: &VolatileSlice<'_>) -> Result<Vec<bool>, Errno> {
    const RESIDENT: u8 = 1;
    let page_bytes = usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX);
    let mut states = vec![0u8; slice.len().div_ceil(page_bytes)];
    let start = slice.ptr_guard_mut();
    // SAFETY: the slice is mapped for as long as it lives, and `states` has a byte for each of its
    // pages.
    let result = unsafe { libc::mincore(start.as_ptr().cast(), slice.len(), states.as_mut_ptr()) };
    if result != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    Ok(states
        .into_iter()
        .map(|state| state & RESIDENT != 0)
        .collect())
}
