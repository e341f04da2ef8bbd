//! A wake-up between threads, and between the kernel and a thread: it counts, nothing is lost, and
//! many signals before a look are one.

use rustix::fd::{AsFd, BorrowedFd};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An event descriptor; clones are the same one.
#[derive(Clone, Debug)]
pub struct Event(Arc<EventFd>);

impl Event {
    /// One that is not signalled.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK)?)))
    }

    /// Wakes whoever waits.
    pub fn signal(&self) {
        let signalled = self.0.write(1);
        // It fails only with 2^64 - 1 signals unseen, and then the sleeper is woken as well.
        debug_assert!(signalled.is_ok(), "{signalled:?}");
    }

    /// Forgets what was signalled. True if something was.
    pub fn drain(&self) -> bool {
        self.0.read().is_ok()
    }

    /// The descriptor as KVM takes it.
    #[must_use]
    pub fn descriptor(&self) -> &EventFd {
        &self.0
    }
}

impl AsFd for Event {
    #[expect(
        unsafe_code,
        reason = "vmm-sys-util's descriptor does not say that it can be borrowed"
    )]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed, because `self` owns it.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
