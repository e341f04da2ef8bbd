//! Takes what a VM process sends, when nobody asked it for descriptors.
//!
//! Whoever closes a descriptor last may have to wait for as long as its maker likes: a TCP connection lingers
//! over data that nobody takes, a file lies on a server that does not answer. The kernel closes what a packet
//! carries in the thread that takes the packet, whether it wants descriptors or not. So a packet is looked at
//! before it is taken: a look closes nothing, and tells whether there are descriptors in it. Such a packet
//! stays where it is.

use super::ChannelError;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recv, recvmsg};
use std::io::IoSliceMut;

/// The next packet, or the next bytes of a stream. The socket must have no other reader. Returns their number.
///
/// # Errors
/// `Descriptors` when some come with it: it is the same at the next call, and the socket must be closed where
/// that may take its time. `Socket(Errno::AGAIN)` when there is nothing and the socket does not block.
pub fn take_bytes(socket: impl AsFd, bytes: &mut [u8]) -> Result<usize, ChannelError> {
    let seen = recvmsg(
        &socket,
        &mut [IoSliceMut::new(bytes)],
        &mut RecvAncillaryBuffer::default(),
        RecvFlags::PEEK,
    );
    let seen = match seen {
        Ok(seen) => seen,
        Err(Errno::CONNRESET) => return Err(ChannelError::Closed),
        Err(error) => return Err(error.into()),
    };
    // There was no room for any.
    if seen.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ChannelError::Descriptors);
    }
    if seen.bytes == 0 {
        return Err(ChannelError::Closed);
    }
    let (_, taken) = recv(&socket, &mut bytes[..seen.bytes], RecvFlags::empty())?;
    if seen.flags.contains(ReturnFlags::TRUNC) {
        return Err(ChannelError::TooLarge(taken));
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::OwnedFd;
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, send, sendmsg, socketpair,
    };
    use std::io::IoSlice;
    use std::mem::MaybeUninit;

    fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
    }

    fn send_descriptor(socket: &OwnedFd, bytes: &[u8]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [socket.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let bytes = [IoSlice::new(bytes)];
        sendmsg(socket, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
    }

    #[test]
    fn bytes_are_taken_and_what_carries_descriptors_stays() {
        for kind in [SocketType::SEQPACKET, SocketType::STREAM] {
            let (vm, host) = pair(kind);
            let mut bytes = [0; 8];
            let nothing = take_bytes(&host, &mut bytes);
            assert!(matches!(nothing, Err(ChannelError::Socket(Errno::AGAIN))));
            send(&vm, b"one", SendFlags::empty()).unwrap();
            assert_eq!(take_bytes(&host, &mut bytes).unwrap(), 3);
            assert_eq!(&bytes[..3], b"one");
            send_descriptor(&vm, b"two");
            send(&vm, b"three", SendFlags::empty()).unwrap();
            for _ in 0..2 {
                let refused = take_bytes(&host, &mut bytes);
                assert!(matches!(refused, Err(ChannelError::Descriptors)));
            }
        }
    }

    #[test]
    fn a_packet_that_is_too_large_is_refused_once() {
        let (vm, host) = pair(SocketType::SEQPACKET);
        send(&vm, b"much too long", SendFlags::empty()).unwrap();
        send(&vm, b"short", SendFlags::empty()).unwrap();
        let mut bytes = [0; 8];
        let refused = take_bytes(&host, &mut bytes);
        assert!(matches!(refused, Err(ChannelError::TooLarge(8))));
        assert_eq!(take_bytes(&host, &mut bytes).unwrap(), 5);
        drop(vm);
        let end = take_bytes(&host, &mut bytes);
        assert!(matches!(end, Err(ChannelError::Closed)));
    }
}
