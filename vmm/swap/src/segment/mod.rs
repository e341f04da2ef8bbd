//! Segments: what the log is made of, in memory and in the file, byte for byte the same.
//!
//! ```text
//!  0 ─────────── 8 ───────── 12 ───────── 16 ──────── 24 ─── 64 ──────────────────────────────── size
//!    "BLLNTLOG"    version     size          number     zeros  record, record, …, record, zeros
//! ```
//! Numbers are little-endian. `version` is 1; another one may mean anything after it. `size` is the segment's, in bytes.
//! `number` counts the segments that the log ever opened. Records follow each other without a gap; where no header of a
//! record stands, the records end. Nothing but the records' tags is vouched for: a header is a place to begin.

mod buffer;

pub(crate) use buffer::Buffer;
pub use buffer::SegmentBytes;

use crate::record::{HEADER_BYTES, RecordHeader};
use thiserror::Error;

const MAGIC: [u8; 8] = *b"BLLNTLOG";
/// Of the format of segments and records.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes before the first record.
pub const SEGMENT_HEADER_BYTES: usize = 64;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Bytes of the segment.
    pub size: u32,
    /// How many segments were opened before it.
    pub number: u64,
}

/// Why bytes are no segment.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it, with the values")]
pub enum NotASegment {
    #[error("no segment of a swap log begins here")]
    NoMagic,
    #[error("segment of format {0}: this program reads format {FORMAT_VERSION}")]
    OtherVersion(u32),
    #[error("segment {number} has {size} bytes: {found} are here")]
    OtherSize {
        number: u64,
        size: u32,
        found: usize,
    },
}

impl SegmentHeader {
    pub(crate) fn encode(self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    fn decode(segment: &[u8]) -> Result<Self, NotASegment> {
        let header: &[u8; SEGMENT_HEADER_BYTES] =
            segment.first_chunk().ok_or(NotASegment::NoMagic)?;
        if header[..8] != MAGIC {
            return Err(NotASegment::NoMagic);
        }
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        if word(8) != FORMAT_VERSION {
            return Err(NotASegment::OtherVersion(word(8)));
        }
        let number = u64::from(word(16)) | u64::from(word(20)) << 32;
        let size = word(12);
        if size as usize != segment.len() {
            let found = segment.len();
            return Err(NotASegment::OtherSize {
                number,
                size,
                found,
            });
        }
        Ok(Self { size, number })
    }
}

/// Reads a whole segment without an index: what it is, and its records.
///
/// # Errors
/// When the bytes are no segment, whole and of this format.
pub fn walk(segment: &[u8]) -> Result<(SegmentHeader, Records<'_>), NotASegment> {
    let header = SegmentHeader::decode(segment)?;
    Ok((header, Records::of(segment)))
}

/// The records of a segment in order, with where each begins and all its bytes. They say what they are, and that is all
/// that is known: [`Sealer::open`](crate::Sealer::open) tells whether it is true.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    segment: &'a [u8],
    offset: usize,
}

impl<'a> Records<'a> {
    /// Whatever stands in the segment's header.
    pub(crate) fn of(segment: &'a [u8]) -> Self {
        Self {
            segment,
            offset: SEGMENT_HEADER_BYTES,
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (usize, RecordHeader, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.segment.get(self.offset..)?;
        let header = RecordHeader::decode(rest.get(..HEADER_BYTES)?)?;
        let record = rest.get(..header.record_bytes())?;
        let offset = self.offset;
        self.offset += record.len();
        Some((offset, header, record))
    }
}

#[cfg(test)]
mod tests;
