//! What stands in for a tap where there is none: one end of a socket pair that keeps packets whole.

use super::FramePort;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Number of the queue for packets to the guest.
pub(super) const RECEIVE: usize = 0;
/// Number of the queue for packets from the guest.
pub(super) const TRANSMIT: usize = 1;

/// One end of a line. Reading and writing it is like reading and writing a tap.
#[derive(Debug)]
pub(super) struct LineEnd(OwnedFd);

/// Both ends of a line.
///
/// # Panics
/// When the process has no descriptors left.
pub(super) fn line() -> [LineEnd; 2] {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
    let (one, other) = pair.expect("a pair of sockets");
    [LineEnd(one), LineEnd(other)]
}

impl AsFd for LineEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FramePort for LineEnd {
    fn set_offloads(&self, _offloads: u32) -> Result<(), Errno> {
        Ok(())
    }
}
