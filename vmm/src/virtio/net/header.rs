//! The header before each packet: what is left to do with it (virtio 1.2, section 5.1.6).
//!
//! One that comes from the guest tells the kernel where to write a checksum and how to cut the
//! packet. It is a claim: [`NetHeader::check`] is the only way from there to the tap.

use super::features::Agreed;
use super::wire::*;

/// A header's fields. Of the kernel, or of a guest: then a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NetHeader {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    pub(super) header_len: u16,
    pub(super) gso_size: u16,
    pub(super) csum_start: u16,
    pub(super) csum_offset: u16,
    /// Buffers that a received packet lies in; of no meaning elsewhere.
    pub(super) buffers: u16,
}

/// The header asks for what was not agreed on, or points outside its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadHeader;

impl NetHeader {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: short(2),
            gso_size: short(4),
            csum_start: short(6),
            csum_offset: short(8),
            buffers: short(10),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let shorts = [
            self.header_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.buffers,
        ];
        for (place, short) in bytes[2..].chunks_exact_mut(2).zip(shorts) {
            place.copy_from_slice(&short.to_le_bytes());
        }
        bytes
    }

    /// What the kernel is told of a frame of `frame_len` bytes that the guest sends with this
    /// header. Only what it needs is passed on.
    pub(super) fn check(self, frame_len: usize, agreed: Agreed) -> Result<Self, BadHeader> {
        let mut checked = Self::default();
        if self.flags & HEADER_NEEDS_CSUM != 0 {
            self.check_checksum(frame_len, agreed)?;
            checked.flags = HEADER_NEEDS_CSUM;
            (checked.csum_start, checked.csum_offset) = (self.csum_start, self.csum_offset);
        }
        if self.gso_type != GSO_NONE {
            self.check_segmentation(frame_len, agreed)?;
            checked.gso_type = self.gso_type;
            checked.gso_size = self.gso_size;
            checked.header_len = self.header_len;
        }
        Ok(checked)
    }

    fn check_checksum(self, frame_len: usize, agreed: Agreed) -> Result<(), BadHeader> {
        let start = usize::from(self.csum_start);
        let end = start + usize::from(self.csum_offset) + 2;
        let inside = start >= ETHERNET_BYTES && end <= frame_len;
        (agreed.has(F_CSUM) && inside)
            .then_some(())
            .ok_or(BadHeader)
    }

    fn check_segmentation(self, frame_len: usize, agreed: Agreed) -> Result<(), BadHeader> {
        let feature = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => F_HOST_TSO4,
            GSO_TCPV6 => F_HOST_TSO6,
            _ => return Err(BadHeader),
        };
        let marks = self.gso_type & GSO_ECN != 0;
        // The length of the headers is a hint, and Linux fills in what lies in its first buffer;
        // where it is given, it is part of the frame.
        let header_len = usize::from(self.header_len);
        let possible = agreed.has(feature)
            && (!marks || agreed.has(F_HOST_ECN))
            && self.flags & HEADER_NEEDS_CSUM != 0
            && self.gso_size > 0
            && (header_len == 0 || (ETHERNET_BYTES..=frame_len).contains(&header_len));
        possible.then_some(()).ok_or(BadHeader)
    }

    /// What the guest is told of a frame that the kernel hands over with this header, once it lies
    /// in `buffers` buffers. None if the driver did not agree to finish such a frame: it was queued
    /// while another driver had.
    pub(super) fn for_guest(self, agreed: Agreed) -> Option<Self> {
        let mut told = self;
        if !agreed.has(F_GUEST_CSUM) {
            told.flags &= !HEADER_DATA_VALID;
        }
        let feature = match self.gso_type & !GSO_ECN {
            GSO_NONE => F_GUEST_CSUM,
            GSO_TCPV4 => F_GUEST_TSO4,
            GSO_TCPV6 => F_GUEST_TSO6,
            _ => return None,
        };
        let plain = told.flags == 0 && self.gso_type == GSO_NONE;
        let marks = self.gso_type & GSO_ECN != 0;
        let wanted = plain || agreed.has(feature) && (!marks || agreed.has(F_GUEST_ECN));
        wanted.then_some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::super::features::OFFERED;
    use super::*;
    use proptest::prelude::*;

    fn all() -> Agreed {
        Agreed::of(OFFERED)
    }

    /// What Linux sends for a TCP segment of IPv4 in a frame of 4,000 bytes.
    fn segment() -> NetHeader {
        NetHeader {
            flags: HEADER_NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            header_len: 66,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            buffers: 0,
        }
    }

    fn any_header() -> impl Strategy<Value = NetHeader> {
        // Mostly near what matters.
        let near = || prop_oneof![0u16..80, 3990u16..4010, any::<u16>()];
        let kind = prop_oneof![
            Just(0u8),
            Just(1),
            Just(4),
            Just(0x81),
            Just(0x84),
            any::<u8>()
        ];
        (0u8..8, kind, near(), near(), near(), near(), any::<u16>()).prop_map(
            |(flags, gso_type, header_len, gso_size, csum_start, csum_offset, buffers)| NetHeader {
                flags,
                gso_type,
                header_len,
                gso_size,
                csum_start,
                csum_offset,
                buffers,
            },
        )
    }

    proptest! {
        #[test]
        fn a_header_is_the_same_after_a_way_through_bytes(header in any_header()) {
            prop_assert_eq!(NetHeader::from_bytes(&header.to_bytes()), header);
        }

        /// Whatever a guest claims, the kernel is told of places inside the frame and of work that
        /// was agreed on.
        #[test]
        fn what_passes_the_check_points_inside_its_frame(
            header in any_header(),
            frame_len in 14usize..4096,
            accepted in 0u64..1 << 14,
        ) {
            let agreed = Agreed::of(accepted);
            let Ok(checked) = header.check(frame_len, agreed) else { return Ok(()) };
            prop_assert!(checked.flags & !HEADER_NEEDS_CSUM == 0);
            if checked.flags != 0 {
                prop_assert!(agreed.has(F_CSUM));
                let end = u64::from(checked.csum_start) + u64::from(checked.csum_offset) + 2;
                prop_assert!(end <= frame_len as u64);
            }
            match checked.gso_type {
                0 => prop_assert_eq!((checked.gso_size, checked.header_len), (0, 0)),
                1 => prop_assert!(agreed.has(F_HOST_TSO4)),
                4 => prop_assert!(agreed.has(F_HOST_TSO6)),
                0x81 | 0x84 => prop_assert!(agreed.has(F_HOST_ECN)),
                other => prop_assert!(false, "kind {other}"),
            }
            prop_assert!(checked.gso_type == 0 || checked.gso_size > 0 && checked.flags != 0);
            prop_assert!(usize::from(checked.header_len) <= frame_len);
        }

        #[test]
        fn a_driver_that_accepted_no_offload_gets_plain_frames_only(header in any_header()) {
            let plain = header.flags & !HEADER_DATA_VALID == 0 && header.gso_type == GSO_NONE;
            let told = header.for_guest(Agreed::of(0));
            prop_assert_eq!(told.is_some(), plain);
            prop_assert!(told.is_none_or(|told| told.flags == 0));
        }
    }

    #[test]
    fn what_linux_sends_passes() {
        let plain = NetHeader::default();
        assert_eq!(plain.check(14, Agreed::of(0)), Ok(plain));
        assert_eq!(segment().check(4000, all()), Ok(segment()));
        let checksum = NetHeader {
            flags: HEADER_NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 16,
            ..plain
        };
        assert_eq!(checksum.check(52, all()), Ok(checksum));
        assert_eq!(checksum.check(51, all()), Err(BadHeader), "one byte short");
    }

    #[test]
    fn a_segment_without_checksum_size_or_agreement_is_refused() {
        let cases = [
            NetHeader {
                flags: 0,
                ..segment()
            },
            NetHeader {
                gso_size: 0,
                ..segment()
            },
            NetHeader {
                gso_type: 3,
                ..segment()
            },
            NetHeader {
                gso_type: GSO_ECN,
                ..segment()
            },
            NetHeader {
                header_len: 4001,
                ..segment()
            },
            NetHeader {
                header_len: 13,
                ..segment()
            },
            NetHeader {
                csum_start: 13,
                ..segment()
            },
            NetHeader {
                csum_start: u16::MAX,
                csum_offset: u16::MAX,
                ..segment()
            },
        ];
        for header in cases {
            assert_eq!(header.check(4000, all()), Err(BadHeader), "{header:?}");
        }
        let without = Agreed::of(OFFERED & !F_HOST_TSO4);
        assert_eq!(segment().check(4000, without), Err(BadHeader));
    }
}
