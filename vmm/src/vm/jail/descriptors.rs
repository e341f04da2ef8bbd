//! What a VM process was never meant to have: descriptors that its host had from whoever started it, and handed on
//! because they were not marked to be closed.
#![expect(
    unsafe_code,
    reason = "descriptors are closed that nobody in this process owns"
)]

use std::ffi::{c_long, c_uint};

/// Behind standard input, output and errors.
const FIRST: c_uint = 3;

/// Closes what was inherited but for the first three. Called before the process opens anything.
pub fn close_inherited() {
    let (last, flags) = (c_uint::MAX, 0);
    // SAFETY: nothing of this process is open yet, so these descriptors are nobody's.
    let closed: c_long = unsafe { libc::syscall(libc::SYS_close_range, FIRST, last, flags) };
    if closed != 0 {
        // Before Linux 5.9. They stay open, and of no use to a guest that knows of none.
        tracing::debug!("inherited descriptors stay open");
    }
}
