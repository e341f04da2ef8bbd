//! Where other hosts come: one that is to go on where the last one ended.
//!
//! The last host has bound the socket in a folder of its own, so nobody comes who may not. Who comes says first which host
//! of its place it is: one that was there before has nothing to say any more, even if it comes to life again.

use crate::vm::error::VmError;
use protocol::page_sharing::SharingSocket;
use protocol::{Channel, Received, ToVm};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{SocketFlags, accept_with, listen};

/// Hosts that wait to be heard, while this process hangs.
const BACKLOG: i32 = 4096;

/// The way in for another host.
#[derive(Debug)]
pub(super) struct Door {
    listener: OwnedFd,
    /// Which host is obeyed.
    epoch: u64,
    /// Who has come, and has said nothing yet.
    guest: Option<Channel>,
}

/// What another host brings.
#[derive(Debug)]
pub(super) struct NewHost {
    pub(super) channel: Channel,
    pub(super) scanner: SharingSocket,
    pub(super) console: OwnedFd,
    /// For what this process prints as errors.
    pub(super) errors: OwnedFd,
}

impl Door {
    /// At a socket that is bound. That this process listens tells who comes which process it is.
    pub(super) fn open(listener: OwnedFd) -> Result<Self, VmError> {
        listen(&listener, BACKLOG).map_err(VmError::Listen)?;
        Ok(Self {
            listener,
            epoch: 0,
            guest: None,
        })
    }

    /// Readable when somebody comes.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Who has come and not spoken yet: readable when it does.
    pub(super) fn guest(&self) -> Option<&Channel> {
        self.guest.as_ref()
    }

    /// Lets the next one in, in the place of one who has not spoken.
    pub(super) fn let_in(&mut self) {
        match accept_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok(socket) => self.guest = Some(Channel::from(socket)),
            Err(error) => tracing::debug!("nobody came: {error}"),
        }
    }

    /// What who came has to say. None as long as it says nothing, and if it is not to be obeyed: then it is gone.
    pub(super) fn hear(&mut self) -> Option<NewHost> {
        let channel = self.guest.take()?;
        if !channel.is_readable().ok()? {
            self.guest = Some(channel);
            return None;
        }
        let Received {
            message: ToVm::TakeOver { epoch, speaks },
            descriptors,
        } = channel.receive().ok()?
        else {
            return None;
        };
        let [scanner, console, errors] = <[OwnedFd; 3]>::try_from(descriptors).ok()?;
        if epoch <= self.epoch {
            tracing::debug!("host {epoch} comes after host {}", self.epoch);
            return None;
        }
        self.epoch = epoch;
        channel.speak_to(speaks);
        Some(NewHost {
            channel,
            scanner: scanner.into(),
            console,
            errors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::ChannelError;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, socket_with};

    fn new_socket() -> OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn who_comes_is_obeyed_if_it_is_a_later_host() {
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddrUnix::new(folder.path().join("door")).unwrap();
        let listener = new_socket();
        bind(&listener, &address).unwrap();
        let mut door = Door::open(listener).unwrap();
        let come = || {
            let socket = new_socket();
            connect(&socket, &address).unwrap();
            Channel::to_a_stranger(socket)
        };
        let brought = tempfile::tempfile().unwrap();
        let all = [brought.as_fd(); 3];
        let take_over = |epoch| ToVm::TakeOver {
            epoch,
            speaks: protocol::VERSION,
        };
        let heard = |door: &mut Door| {
            door.let_in();
            door.hear()
        };

        let host = come();
        assert!(heard(&mut door).is_none() && door.guest().is_some());
        host.send(&take_over(2), &all).unwrap();
        let new = door.hear().unwrap();
        new.channel.send(&ToVm::Stop, &[]).unwrap();
        assert_eq!(host.hear::<ToVm>().unwrap(), ToVm::Stop);

        for (message, brought) in [
            (take_over(2), &all[..]),
            (take_over(1), &all[..]),
            (take_over(3), &all[..2]),
            (ToVm::Stop, &all[..]),
        ] {
            let host = come();
            host.send(&message, brought).unwrap();
            assert!(heard(&mut door).is_none() && door.guest().is_none());
            assert!(matches!(host.hear::<ToVm>(), Err(ChannelError::Closed)));
        }
        let host = come();
        host.send(&take_over(3), &all).unwrap();
        assert!(heard(&mut door).is_some());
    }
}
