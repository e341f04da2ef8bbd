//! What the virtio standard fixes for network devices (virtio 1.2, section 5.1).

/// A network device's number.
pub(super) const DEVICE_TYPE: u32 = 1;

/// Feature: the driver may leave checksums to the device.
pub(super) const F_CSUM: u64 = 1 << 0;
/// Feature: the device may leave checksums to the driver.
pub(super) const F_GUEST_CSUM: u64 = 1 << 1;
/// Feature: the device says how long packets may be.
pub(super) const F_MTU: u64 = 1 << 3;
/// Feature: the device has an address.
pub(super) const F_MAC: u64 = 1 << 5;
/// Feature: the driver takes TCP segments of IPv4 that are still whole.
pub(super) const F_GUEST_TSO4: u64 = 1 << 7;
/// Feature: the driver takes TCP segments of IPv6 that are still whole.
pub(super) const F_GUEST_TSO6: u64 = 1 << 8;
/// Feature: the driver takes whole TCP segments with congestion marks.
pub(super) const F_GUEST_ECN: u64 = 1 << 9;
/// Feature: the device takes whole TCP segments of IPv4.
pub(super) const F_HOST_TSO4: u64 = 1 << 11;
/// Feature: the device takes whole TCP segments of IPv6.
pub(super) const F_HOST_TSO6: u64 = 1 << 12;
/// Feature: the device takes whole TCP segments with congestion marks.
pub(super) const F_HOST_ECN: u64 = 1 << 13;
/// Feature: a received packet may lie in several buffers.
pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
/// Feature: the device says whether its link is up.
pub(super) const F_STATUS: u64 = 1 << 16;
/// Feature of the queues: each side says from which index on it wants to be told.
pub(super) const F_EVENT_IDX: u64 = 1 << 29;

/// Bit of the status: the link is up.
pub(super) const STATUS_LINK_UP: u16 = 1;

/// Bytes of the header before each packet.
pub(super) const HEADER_BYTES: usize = 12;
/// Header flag: the checksum is still to be made.
pub(super) const HEADER_NEEDS_CSUM: u8 = 1;
/// Header flag: the checksum has been found right.
pub(super) const HEADER_DATA_VALID: u8 = 2;
/// Header kind: nothing is left to be cut.
pub(super) const GSO_NONE: u8 = 0;
/// Header kind: TCP over IPv4, to be cut into segments.
pub(super) const GSO_TCPV4: u8 = 1;
/// Header kind: TCP over IPv6, to be cut into segments.
pub(super) const GSO_TCPV6: u8 = 4;
/// Header kind, added to another: with congestion marks.
pub(super) const GSO_ECN: u8 = 0x80;

/// Bytes of an Ethernet header, the least that a frame has.
pub(super) const ETHERNET_BYTES: usize = 14;
/// Bytes of the longest frame (section 5.1.6.3): all that IP can say, and an Ethernet header.
pub(super) const LONGEST_FRAME: usize = 65_536 + ETHERNET_BYTES;
