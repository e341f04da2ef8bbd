//! What is freed goes back to the kernel.
#![expect(unsafe_code, reason = "the C library's allocator is set by a call")]

use std::ffi::c_int;

/// Allocations from so many bytes on are mappings of their own. The C library would raise that to the size of the largest one
/// that was freed, and keep every segment of a log from then on.
const OWN_MAPPING_FROM: c_int = 128 << 10;

/// Has large allocations of this process go back to the kernel when they are freed.
pub(super) fn give_back_what_is_freed() {
    // SAFETY: the call changes how memory is got from now on, and no memory that there is.
    let done = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_FROM) };
    if done == 0 {
        tracing::debug!("freed segments may stay in memory");
    }
}
