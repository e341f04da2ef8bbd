//! The host's end of the connection to a VM process, for a single-threaded runtime.

use crate::host::drop_elsewhere::DropElsewhere;
use protocol::{Channel, ChannelError, FromVm, Received, ToVm};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::io;
use tokio::io::unix::AsyncFd;

/// A connection on which nothing blocks, nor does its end.
#[derive(Debug)]
pub(in crate::host) struct Link(DropElsewhere<AsyncFd<Channel>>);

impl Link {
    #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
    pub(in crate::host) fn new(channel: Channel) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&channel, true)?;
        // SAFETY: the channel owns one descriptor, the same from its making to its drop, and moves
        // into the registration here, which is dropped before it.
        let registered = unsafe { AsyncFd::register(channel) }?;
        Ok(Self(registered.into()))
    }

    /// Sends at once or not at all: a VM process that takes no messages must not hold up the host.
    pub(super) fn send(&self, message: &ToVm) -> Result<(), ChannelError> {
        self.0.get_ref().send(message, &[])
    }

    /// As [`Self::send`], with a descriptor.
    pub(super) fn send_with(
        &self,
        message: &ToVm,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.0.get_ref().send(message, descriptors)
    }

    /// The next message.
    pub(super) async fn hear(&self) -> Result<FromVm, ChannelError> {
        self.when_readable(Channel::hear).await
    }

    /// The next message, if there is one already.
    pub(super) fn hear_now(&self) -> Result<FromVm, ChannelError> {
        self.0.get_ref().hear()
    }

    /// The first message, with its descriptors: the guest does not run yet, so nobody but this program can
    /// have sent it.
    pub(super) async fn hear_first(&self) -> Result<Received<FromVm>, ChannelError> {
        self.when_readable(Channel::receive).await
    }

    async fn when_readable<T>(
        &self,
        read: impl Fn(&Channel) -> Result<T, ChannelError>,
    ) -> Result<T, ChannelError> {
        loop {
            let mut ready = self
                .0
                .readable()
                .await
                .map_err(|_runtime_gone| ChannelError::Closed)?;
            match read(self.0.get_ref()) {
                Err(ChannelError::Socket(Errno::AGAIN)) => ready.clear_ready(),
                other => return other,
            }
        }
    }
}
