//! The bytes of a segment in memory.

use super::{SEGMENT_HEADER_BYTES, SegmentHeader};
use std::ops::Deref;
use std::sync::Arc;

/// What direct I/O wants of an address, on any disk.
const ALIGNMENT: usize = 4096;

/// A segment that is appended to. It begins at a multiple of 4 KiB, so that it can be written as it lies.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Zeros beyond what is used; the kernel backs them when they are written to.
    bytes: Vec<u8>,
    start: usize,
    size: usize,
    used: usize,
}

impl Buffer {
    pub(crate) fn new(size: usize, number: u64) -> Self {
        let bytes = vec![0; size + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT, "bytes can be aligned to {ALIGNMENT}");
        let mut buffer = Self {
            bytes,
            start,
            size,
            used: 0,
        };
        let size = u32::try_from(size).expect("a log's segments are checked to be small");
        buffer.push(&SegmentHeader { size, number }.encode());
        buffer
    }

    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        bytes <= self.size - self.used
    }

    /// Returns where it begins.
    ///
    /// # Panics
    /// If there is no room.
    pub(crate) fn append(&mut self, record: &[u8]) -> u32 {
        let offset = u32::try_from(self.used).expect("segments are small");
        self.push(record);
        offset
    }

    fn push(&mut self, bytes: &[u8]) {
        let at = self.start + self.used;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
        assert!(self.used <= self.size, "{} of {}", self.used, self.size);
    }

    /// All of it, with zeros where nothing is yet.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.size]
    }

    /// What records take.
    pub(crate) fn record_bytes(&self) -> usize {
        self.used - SEGMENT_HEADER_BYTES
    }
}

/// The bytes of a whole segment, which begin at a multiple of 4 KiB. They change no more.
#[derive(Clone, Debug)]
pub struct SegmentBytes(pub(crate) Arc<Buffer>);

impl Deref for SegmentBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}
