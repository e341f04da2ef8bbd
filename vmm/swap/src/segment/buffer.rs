//! The bytes of a segment in memory.

use super::{SEGMENT_HEADER_BYTES, SegmentHeader};
use std::ops::Deref;
use std::sync::Arc;

/// What direct I/O wants of an address, on any disk.
const ALIGNMENT: usize = 4096;

/// A segment that is appended to. It begins at a multiple of 4 KiB, so that it can be written as it lies. What is not used yet
/// is not touched, so the kernel need not back it.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Has room for all, so it never moves.
    bytes: Vec<u8>,
    /// Where the segment begins in it.
    start: usize,
    size: usize,
}

impl Buffer {
    pub(crate) fn new(size: usize, number: u64) -> Self {
        let mut bytes: Vec<u8> = Vec::with_capacity(size + ALIGNMENT);
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT, "bytes can be aligned to {ALIGNMENT}");
        bytes.resize(start, 0);
        let header = SegmentHeader {
            size: u32::try_from(size).expect("a log's segments are checked to be small"),
            number,
        };
        bytes.extend_from_slice(&header.encode());
        Self { bytes, start, size }
    }

    fn used(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        bytes <= self.size - self.used()
    }

    /// Returns where it begins.
    ///
    /// # Panics
    /// If there is no room.
    pub(crate) fn append(&mut self, record: &[u8]) -> u32 {
        let offset = self.used();
        assert!(
            self.has_room(record.len()),
            "{} bytes after {offset} of {}",
            record.len(),
            self.size
        );
        self.bytes.extend_from_slice(record);
        u32::try_from(offset).expect("segments are small")
    }

    /// What is there so far.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// What records take.
    pub(crate) fn record_bytes(&self) -> usize {
        self.used() - SEGMENT_HEADER_BYTES
    }

    /// The whole segment, with zeros where nothing was appended.
    pub(crate) fn close(mut self) -> SegmentBytes {
        self.bytes.resize(self.start + self.size, 0);
        SegmentBytes(Arc::new(self))
    }
}

/// The bytes of a whole segment, which begin at a multiple of 4 KiB. They change no more.
#[derive(Clone, Debug)]
pub struct SegmentBytes(Arc<Buffer>);

impl Deref for SegmentBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}
