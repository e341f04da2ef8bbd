//! The card on a tap of this machine's kernel, in a network of the test's own.
//!
//! Needs root, `/dev/net/tun` and iproute2's `ip`, and fails with the reason where one is missing.
#![expect(
    unsafe_code,
    reason = "networks of one's own and packet sockets are reached through libc alone"
)]

use super::*;
use crate::virtio::Device;
use crate::virtio::net::{Tap, TapError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::net::netdevice;
use std::process::Command;

/// Kinds of Ethernet frames: one that nobody else sends, and IPv4.
const EXPERIMENT: u16 = 0x88b5;
const IPV4: u16 = 0x0800;

/// Moves this thread into a network of its own, in which nothing is yet.
fn enter_own_network() {
    // SAFETY: takes no address, and changes nothing but which network this thread sees.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "a network of its own needs root: {error}");
    // Where it can be: a kernel without IPv6 sends nothing of its own either.
    drop(std::fs::write(
        "/proc/sys/net/ipv6/conf/default/disable_ipv6",
        "1",
    ));
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).output();
    let done = done.unwrap_or_else(|error| panic!("iproute2's `ip` is needed: {error}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {words}: {said}");
}

/// A tap in a new network, up. It is opened first: one that is up with nobody at it has no carrier, and
/// when somebody comes, its kernel begins to send a while later and drops without a word until then.
fn tap0() -> Tap {
    enter_own_network();
    ip("tuntap add tap0 mode tap");
    let tap = open("tap0").unwrap_or_else(|error| panic!("{error}"));
    ip("link set tap0 up");
    tap
}

fn open(name: &str) -> Result<Tap, TapError> {
    Tap::open(&name.parse().unwrap())
}

/// A card on the tap of a new network, and the network's side of it for frames of one kind.
fn card_on_a_tap(features: u64, kind: u16) -> (Card<Tap>, PacketSocket) {
    let tap = tap0();
    let socket = PacketSocket::on("tap0", kind);
    (Card::started(spec(), tap, features), socket)
}

/// What a program on the machine sees of the interface. Each packet has the header of virtio, in the
/// short form that such sockets have.
struct PacketSocket(OwnedFd);

const SOCKET_HEADER_BYTES: usize = 10;

impl PacketSocket {
    fn on(interface: &str, kind: u16) -> Self {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: takes no address.
        let socket = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: it was just opened, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let index = netdevice::name_to_index(&socket, interface).unwrap();
        let on = 1i32;
        // SAFETY: the option is an int, which is what the address and the length name.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                4,
            )
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
            sll_protocol: kind.to_be(),
            sll_ifindex: index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: address and length name the structure that the family says.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        Self(socket)
    }

    fn send(&self, header: NetHeader, frame: &[u8]) {
        let packet = [&header.to_bytes()[..SOCKET_HEADER_BYTES], frame].concat();
        assert_eq!(rustix::io::write(&self.0, &packet), Ok(packet.len()));
    }

    /// The next frame and its header.
    fn receive(&self) -> (NetHeader, Vec<u8>) {
        wait_for_input(&self.0);
        let mut packet = vec![0; 70_000];
        let len = rustix::io::read(&self.0, &mut packet).unwrap();
        let mut header = [0; HEADER_BYTES];
        header[..SOCKET_HEADER_BYTES].copy_from_slice(&packet[..SOCKET_HEADER_BYTES]);
        (
            NetHeader::from_bytes(&header),
            packet[SOCKET_HEADER_BYTES..len].to_vec(),
        )
    }
}

/// What was sent is there at once; the limit is for a test that fails.
fn wait_for_input(descriptor: impl AsFd) {
    let limit = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let mut sources = [PollFd::new(&descriptor, PollFlags::IN)];
    assert_eq!(poll(&mut sources, Some(&limit)), Ok(1), "nothing came");
}

/// An IPv4 frame of TCP with `content` bytes, whose TCP checksum is still to be made.
fn tcp_frame(content: usize) -> Vec<u8> {
    let mut bytes = frame(12);
    bytes.extend(IPV4.to_be_bytes());
    let total = u16::try_from(20 + 20 + content).unwrap().to_be_bytes();
    let mut ip = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 6, 0, 0];
    ip.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    bytes.extend(&ip);
    let mut tcp = vec![
        0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ];
    // What the checksum begins with: addresses, protocol and length.
    let pseudo = [
        &ip[12..20],
        &[0, 6],
        &u16::try_from(20 + content).unwrap().to_be_bytes(),
    ]
    .concat();
    tcp[16..18].copy_from_slice(&(!checksum(&pseudo)).to_be_bytes());
    bytes.extend(&tcp);
    bytes.extend((0..content).map(|index| u8::try_from(index % 253).unwrap()));
    bytes
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// The header of such a frame, to be cut into segments of 1,448 bytes.
fn tcp_header() -> NetHeader {
    NetHeader {
        flags: HEADER_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        header_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        buffers: 0,
    }
}

/// Serves until buffers have come back to the guest.
fn serve_until_received(card: &mut Card<Tap>) -> Vec<(u32, u32)> {
    loop {
        card.serve();
        let returned = card.returned(RECEIVE);
        if !returned.is_empty() {
            return returned;
        }
        wait_for_input(&card.driver.transport.device().port);
    }
}

/// The next packet of a kind that the guest receives, and how many buffers it lies in. The kernel may
/// send others of its own before it.
fn receive(card: &mut Card<Tap>, kind: u16) -> (usize, Vec<u8>) {
    loop {
        let returned = serve_until_received(card);
        let mut left = &returned[..];
        while let Some(first) = left.first() {
            let start = card.filled(std::slice::from_ref(first));
            let header = NetHeader::from_bytes(start.first_chunk().unwrap());
            let (packet, others) = left.split_at(header.buffers.into());
            if start[24..26] == kind.to_be_bytes() {
                return (packet.len(), card.filled(packet));
            }
            left = others;
        }
    }
}

#[test]
fn a_frame_of_the_guest_comes_out_of_the_tap() {
    let (mut card, socket) = card_on_a_tap(ALL, EXPERIMENT);
    card.offer_packet(NetHeader::default(), &frame(1400));
    card.serve();
    assert_eq!(card.counters().sent_packets, 1, "{:?}", card.counters());
    let (header, bytes) = socket.receive();
    assert_eq!(bytes, frame(1400));
    assert_eq!(header.gso_type, GSO_NONE);
}

#[test]
fn a_frame_that_is_sent_to_the_tap_comes_to_the_guest_over_several_buffers() {
    let (mut card, socket) = card_on_a_tap(ALL, EXPERIMENT);
    card.offer_buffers(0, 20, 500);
    socket.send(NetHeader::default(), &frame(1400));
    let (buffers, bytes) = receive(&mut card, EXPERIMENT);
    assert_eq!(buffers, 3);
    assert_eq!(bytes[10..12], [3, 0]);
    assert_eq!(bytes[12..], frame(1400));
}

#[test]
fn a_whole_tcp_segment_passes_in_both_directions_without_being_cut() {
    let (mut card, socket) = card_on_a_tap(ALL, IPV4);
    let segment = tcp_frame(60_000);
    card.offer_packet(tcp_header(), &segment);
    card.serve();
    assert_eq!(card.counters().sent_packets, 1, "{:?}", card.counters());
    let (header, bytes) = socket.receive();
    assert_eq!((header.gso_type, header.gso_size), (GSO_TCPV4, 1448));
    assert_eq!(header.flags, HEADER_NEEDS_CSUM);
    assert_eq!(bytes, segment);

    card.offer_buffers(40, 40, 1600);
    socket.send(tcp_header(), &segment);
    let (buffers, bytes) = receive(&mut card, IPV4);
    let header = NetHeader::from_bytes(bytes.first_chunk().unwrap());
    assert_eq!(buffers, (12 + segment.len()).div_ceil(1600));
    assert_eq!((header.gso_type, header.gso_size), (GSO_TCPV4, 1448));
    assert_eq!((header.csum_start, header.csum_offset), (34, 16));
    assert_eq!(bytes[12..], segment);
}

#[test]
fn the_kernel_cuts_and_sums_for_a_driver_that_does_not() {
    let features = ALL & !F_GUEST_CSUM & !F_GUEST_TSO4;
    let (mut card, socket) = card_on_a_tap(features, IPV4);
    card.offer_buffers(0, 20, 1600);
    socket.send(tcp_header(), &tcp_frame(5 * 1448));
    let mut content = 0;
    while content < 5 * 1448 {
        for one in serve_until_received(&mut card) {
            let bytes = card.filled(&[one]);
            if bytes[24..26] != IPV4.to_be_bytes() {
                continue;
            }
            assert_eq!(bytes[..10], [0; 10], "nothing is left to do");
            let tcp = &bytes[12 + 34..];
            let length = u16::try_from(tcp.len()).unwrap().to_be_bytes();
            let pseudo = [&bytes[12 + 26..12 + 34], &[0, 6], &length].concat();
            assert_eq!(checksum(&[&pseudo, tcp].concat()), 0, "the sum is right");
            content += tcp.len() - 20;
        }
    }
    assert_eq!(content, 5 * 1448);
}

#[test]
fn what_a_tap_that_is_down_does_not_take_is_counted() {
    let (mut card, _socket) = card_on_a_tap(ALL, EXPERIMENT);
    ip("link set tap0 down");
    card.offer_packet(NetHeader::default(), &frame(100));
    assert_eq!(card.serve()[1], Wait::Notice);
    assert_eq!(card.returned(TRANSMIT), [(0, 0)]);
    assert_eq!(card.counters().sent_refused, 1);
}

#[test]
fn a_tap_that_is_deleted_is_a_link_that_is_down() {
    let (mut card, _socket) = card_on_a_tap(ALL, EXPERIMENT);
    card.offer_buffers(0, 4, 1600);
    card.serve();
    card.driver.interrupt.acknowledge(u32::MAX);
    ip("link delete tap0");
    while card.serve()[0] != Wait::TapGone {}
    let mut status = [0xff; 2];
    card.driver.transport.read(0x106, &mut status);
    assert_eq!(status, [0, 0]);
    assert_eq!(card.driver.interrupt.status() & 2, 2, "the guest is told");
    assert_eq!(card.serve()[0], Wait::TapGone, "and the tap is left alone");
    card.start(ALL);
    card.offer_packet(NetHeader::default(), &frame(100));
    card.serve();
    assert_eq!(card.counters().sent_refused, 1);
}

#[test]
fn a_tap_belongs_to_one_card_at_a_time_and_is_free_again_after() {
    let tap = tap0();
    assert!(matches!(open("tap0"), Err(TapError::Busy(_))));
    assert_eq!(tap.mtu(), Some(1500));
    drop(tap);
    ip("link set tap0 mtu 9000");
    assert_eq!(open("tap0").unwrap().mtu(), Some(9000));
}

#[test]
fn what_is_not_there_or_no_tap_is_refused_and_not_made() {
    enter_own_network();
    let error = open("tap7").unwrap_err();
    assert!(matches!(error, TapError::Missing(_)), "{error}");
    assert!(error.to_string().contains("ip tuntap add tap7 mode tap"));
    assert!(
        matches!(open("tap7"), Err(TapError::Missing(_))),
        "none was made"
    );
    assert!(matches!(open("lo"), Err(TapError::NoTap(_))));
    ip("tuntap add tun7 mode tun");
    assert!(matches!(open("tun7"), Err(TapError::NoTap(_))));
    ip("tuntap add tap8 mode tap multi_queue");
    assert!(matches!(open("tap8"), Err(TapError::NoTap(_))));
}

#[test]
fn a_card_offers_what_the_tap_can_do() {
    let (card, _socket) = card_on_a_tap(ALL, EXPERIMENT);
    let net = card.driver.transport.device();
    assert_eq!(net.features() & OFFERED, OFFERED);
    for offloads in [0, 1, 3, 7, 0xf] {
        assert_eq!(net.port.set_offloads(offloads), Ok(()), "{offloads:#x}");
    }
}
