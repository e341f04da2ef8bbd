//! The host's end of the connection to a VM process, for a single-threaded runtime.

use crate::protocol::{Channel, ChannelError, Received, ToVm};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::unix::AsyncFd;

/// A connection on which nothing blocks.
#[derive(Debug)]
pub(super) struct Link(AsyncFd<Channel>);

impl Link {
    #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
    pub(super) fn new(channel: Channel) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&channel, true)?;
        // SAFETY: the channel owns one descriptor, the same from its making to its drop, and moves
        // into the registration here, which is dropped before it.
        Ok(Self(unsafe { AsyncFd::register(channel) }?))
    }

    /// Sends at once or not at all: a VM process that takes no messages must not hold up the host.
    pub(super) fn send(&self, message: &ToVm) -> Result<(), ChannelError> {
        self.0.get_ref().send(message, &[])
    }

    /// As [`Self::send`], with a descriptor.
    pub(super) fn send_with(
        &self,
        message: &ToVm,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), ChannelError> {
        self.0.get_ref().send(message, &[descriptor])
    }

    /// The next message.
    pub(super) async fn receive<T: DeserializeOwned>(&self) -> Result<Received<T>, ChannelError> {
        loop {
            let mut ready = self
                .0
                .readable()
                .await
                .map_err(|_runtime_gone| ChannelError::Closed)?;
            match self.0.get_ref().receive() {
                Err(ChannelError::Socket(Errno::AGAIN)) => ready.clear_ready(),
                other => return other,
            }
        }
    }
}
