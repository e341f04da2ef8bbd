//! Messages over a socket that keeps packets whole and in order (SOCK_SEQPACKET).

use super::{VERSION, packets, take_bytes};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, RawFd};
use thiserror::Error;

/// Largest message in bytes.
const LARGEST: usize = 64 << 10;

/// Why a message could not be sent or understood.
#[derive(Debug, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ChannelError {
    #[error("the other side has gone")]
    Closed,
    #[error("the socket failed")]
    Socket(#[from] Errno),
    #[error("a message of {0} bytes is above the limit of {LARGEST}")]
    TooLarge(usize),
    #[error(
        "the other side speaks version {theirs} of the protocol, this one version {VERSION}: use one version of ballonet for both"
    )]
    Version { theirs: u32 },
    #[error("not a message of this protocol")]
    Garbage(#[source] serde_json::Error),
    #[error("not a message between scanner and agent")]
    NotUnderstood,
    #[error("descriptors that nobody asked for")]
    Descriptors,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    message: T,
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// The bytes of a packet for `message`.
///
/// # Errors
/// When it is larger than a packet may be.
fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ChannelError> {
    let envelope = Envelope {
        version: VERSION,
        message,
    };
    let bytes = serde_json::to_vec(&envelope).map_err(ChannelError::Garbage)?;
    match bytes.len() {
        0..=LARGEST => Ok(bytes),
        length => Err(ChannelError::TooLarge(length)),
    }
}

/// The message in a packet.
///
/// # Errors
/// When it is of another version, or no message. The version is looked at first, so that a newer
/// peer is named as such and not as garbage.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ChannelError> {
    let envelope: Envelope<serde_json::Value> =
        serde_json::from_slice(bytes).map_err(ChannelError::Garbage)?;
    if envelope.version != VERSION {
        return Err(ChannelError::Version {
            theirs: envelope.version,
        });
    }
    serde_json::from_value(envelope.message).map_err(ChannelError::Garbage)
}

/// One end of the connection between a host and a VM process.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two connected ends.
    ///
    /// # Errors
    /// When the kernel gives no sockets.
    pub fn pair() -> Result<(Self, Self), ChannelError> {
        let (one, other) = packets::pair(SocketFlags::empty())?;
        Ok((Self::from(one), Self::from(other)))
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// `Socket(Errno::AGAIN)` when the other side does not take messages and the socket does not
    /// block; the message is then not sent.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        packets::send(&self.socket, &encode(message)?, descriptors)
    }

    /// The next message, of one who is not to send descriptors.
    ///
    /// # Errors
    /// `Descriptors` when it does, now and from then on: see [`take_bytes`]. `Socket(Errno::AGAIN)` when there
    /// is none and the socket does not block.
    pub fn hear<T: DeserializeOwned>(&self) -> Result<T, ChannelError> {
        let mut bytes = vec![0; LARGEST];
        let length = take_bytes(&self.socket, &mut bytes)?;
        decode(&bytes[..length])
    }

    /// The next message, with the descriptors of one who is trusted.
    ///
    /// # Errors
    /// `Socket(Errno::AGAIN)` when there is none and the socket does not block.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Received<T>, ChannelError> {
        let mut bytes = vec![0; LARGEST];
        let (length, descriptors) = packets::receive(&self.socket, &mut bytes)?;
        Ok(Received {
            message: decode(&bytes[..length])?,
            descriptors,
        })
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ToVm;
    use proptest::prelude::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (host, vm) = Channel::pair().unwrap();
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        host.send(&ToVm::Describe, &[file.as_fd()]).unwrap();
        let received: Received<ToVm> = vm.receive().unwrap();
        assert_eq!(received.message, ToVm::Describe);
        assert_eq!(received.descriptors.len(), 1);
        drop(host);
        assert!(matches!(vm.receive::<ToVm>(), Err(ChannelError::Closed)));
    }

    #[test]
    fn another_version_is_named_before_its_message_is_looked_at() {
        let packet = br#"{"version": 4, "message": "something new"}"#;
        assert!(matches!(
            decode::<ToVm>(packet),
            Err(ChannelError::Version { theirs: 4 })
        ));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<ToVm>(&bytes).is_err());
        }
    }
}
