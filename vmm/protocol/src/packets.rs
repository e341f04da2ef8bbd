//! Packets with descriptors, between two processes: a socket that keeps each packet whole and in order
//! (SOCK_SEQPACKET).

use super::ChannelError;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;

/// Descriptors that one packet may carry.
const MOST_DESCRIPTORS: usize = 4;

/// Two connected ends, closed on exec.
pub(super) fn pair(flags: SocketFlags) -> Result<(OwnedFd, OwnedFd), ChannelError> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Sends a packet with up to [`MOST_DESCRIPTORS`] descriptors.
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), ChannelError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "{} descriptors in one packet", descriptors.len());
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
    match sent {
        Ok(_) => Ok(()),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(ChannelError::Closed),
        Err(error) => Err(error.into()),
    }
}

/// The next packet's length and descriptors, from one who is trusted with sending some; from others
/// [`super::take_bytes`] takes them. A packet of which something was cut off is an error.
pub(super) fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), ChannelError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let seen = recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let seen = match seen {
        Ok(seen) => seen,
        Err(Errno::CONNRESET) => return Err(ChannelError::Closed),
        Err(error) => return Err(error.into()),
    };
    let descriptors = ancillary.drain().flat_map(descriptors_in).collect();
    if seen.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ChannelError::Descriptors);
    }
    if seen.bytes == 0 {
        return Err(ChannelError::Closed);
    }
    if seen.flags.contains(ReturnFlags::TRUNC) {
        return Err(ChannelError::TooLarge(seen.bytes));
    }
    Ok((seen.bytes, descriptors))
}

fn descriptors_in(message: RecvAncillaryMessage<'_>) -> Vec<OwnedFd> {
    match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_comes_whole_or_not_at_all() {
        let (one, other) = pair(SocketFlags::NONBLOCK).unwrap();
        let mut bytes = [0; 8];
        send(&one, b"one", &[one.as_fd(), other.as_fd()]).unwrap();
        let (length, descriptors) = receive(&other, &mut bytes).unwrap();
        assert_eq!((&bytes[..length], descriptors.len()), (&b"one"[..], 2));
        drop(descriptors);

        send(&one, b"much too long", &[]).unwrap();
        let cut = receive(&other, &mut bytes);
        assert!(matches!(cut, Err(ChannelError::TooLarge(8))));

        let nothing = receive(&other, &mut bytes);
        assert!(matches!(nothing, Err(ChannelError::Socket(Errno::AGAIN))));
        drop(one);
        let end = receive(&other, &mut bytes);
        assert!(matches!(end, Err(ChannelError::Closed)));
    }

    #[test]
    fn descriptors_that_were_cut_off_are_seen() {
        let (one, other) = pair(SocketFlags::NONBLOCK).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let nine = [one.as_fd(); 9];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&nine)));
        sendmsg(
            &one,
            &[IoSlice::new(b"one")],
            &mut ancillary,
            SendFlags::empty(),
        )
        .unwrap();
        let cut = receive(&other, &mut [0; 8]);
        assert!(matches!(cut, Err(ChannelError::Descriptors)));
    }
}
