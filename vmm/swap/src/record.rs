//! One page in the log: a header, the page's bytes compressed and encrypted, a tag over both.
//!
//! ```text
//!  0       6            12       14     15         16              16 + length
//!  ├── gfn ┼ generation ┼ length ┼ kind ┼ reserved ┼ body, sealed ──┼ tag, 16 ──┤
//! ```
//! Numbers are little-endian. `length` is the body's, from 1 to 4096. The reserved byte is zero.
//! The header is what the tag vouches for besides the body (associated data), and the generation is the nonce. Where
//! a record lies is no part of it, so it may be moved as it is.

use page::{Gfn, PAGE_BYTES};

/// Bytes before the body.
pub const HEADER_BYTES: usize = 16;
/// Bytes after it: AES-GCM's whole tag.
pub const TAG_BYTES: usize = 16;
/// What a record takes beside its body.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// The longest record: a page that is stored as it is.
pub const MOST_RECORD_BYTES: usize = PAGE_BYTES + OVERHEAD_BYTES;

/// Gfns and generations have 48 bits.
pub(crate) const MOST_NUMBER: u64 = (1 << 48) - 1;

/// How often anything was sealed before, by the same key. No two records of a log have the same, and the later of two of a
/// page has the higher: it is a record's nonce, its version and its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// How a body holds its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Compressed, as an LZ4 block.
    Lz4,
    /// As it is: it did not shrink enough.
    Plain,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Lz4 => 1,
            Self::Plain => 2,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Lz4),
            2 => Some(Self::Plain),
            _ => None,
        }
    }
}

/// What a record says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Whose contents it has.
    pub gfn: Gfn,
    /// When it was sealed.
    pub generation: Generation,
    /// Bytes of the body.
    pub length: u16,
    /// How to read the body.
    pub kind: Kind,
}

impl RecordHeader {
    /// Bytes of the whole record.
    #[must_use]
    pub const fn record_bytes(self) -> usize {
        OVERHEAD_BYTES + self.length as usize
    }

    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..6].copy_from_slice(&self.gfn.0.to_le_bytes()[..6]);
        bytes[6..12].copy_from_slice(&self.generation.0.to_le_bytes()[..6]);
        bytes[12..14].copy_from_slice(&self.length.to_le_bytes());
        bytes[14] = self.kind.code();
        bytes
    }

    /// Reads the header at the start of `bytes`. It is what the bytes say, and not yet what the tag vouches for. None if
    /// no record begins like that.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let length = u16::from_le_bytes([header[12], header[13]]);
        let is_length = (1..=PAGE_BYTES).contains(&usize::from(length));
        let kind = Kind::from_code(header[14]).filter(|_| is_length && header[15] == 0)?;
        Some(Self {
            gfn: Gfn(number(&header[..6])),
            generation: Generation(number(&header[6..12])),
            length,
            kind,
        })
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_reads_back_as_it_was_written(
            gfn in 0..=MOST_NUMBER, generation in 0..=MOST_NUMBER, length in 1u16..=4096, is_plain: bool
        ) {
            let header = RecordHeader {
                gfn: Gfn(gfn),
                generation: Generation(generation),
                length,
                kind: if is_plain { Kind::Plain } else { Kind::Lz4 },
            };
            prop_assert_eq!(RecordHeader::decode(&header.encode()), Some(header));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            if let Some(header) = RecordHeader::decode(&bytes) {
                prop_assert_eq!(&header.encode()[..], &bytes[..HEADER_BYTES]);
            }
        }
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(RecordHeader::decode(&[0; HEADER_BYTES]), None);
    }
}
