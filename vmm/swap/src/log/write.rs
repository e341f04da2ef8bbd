//! Segments go from memory to the file.

use super::Log;
use super::segments::{State, Stream};
use crate::segment::SegmentBytes;
use crate::slots::{Pin, Slot};

/// Write these bytes to this place, and report: [`Log::written`] or [`Log::write_failed`]. Until then they are read from
/// memory, and count as in it.
#[derive(Debug)]
#[must_use = "a segment stays in memory until its write is reported"]
pub struct WriteOrder {
    segment: u32,
    /// Where in the file.
    pub slot: Slot,
    /// Bytes from the file's start.
    pub position: u64,
    /// The whole segment.
    pub bytes: SegmentBytes,
}

/// What becomes of the slot that could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// It may be written again: the disk is slow or was full.
    Retry,
    /// Never again. What the file can hold shrinks.
    Retire,
}

impl Log {
    pub(super) fn order_write(&mut self, id: u32) -> WriteOrder {
        let slot = self.slots.take().expect("a slot that is ready");
        let segment = self.segments.get(id);
        let State::Full(bytes) = &segment.state else {
            unreachable!("segment {id} is full");
        };
        let bytes = bytes.clone();
        self.segments
            .replace_state(id, State::Writing(bytes.clone(), slot));
        self.writes += 1;
        WriteOrder {
            segment: id,
            slot,
            position: u64::from(slot.0) * self.config.segment_bytes as u64,
            bytes,
        }
    }

    /// All of it is in the file.
    pub fn written(&mut self, order: WriteOrder) {
        self.check(&order);
        self.writes -= 1;
        let stream = self.segments.get(order.segment).stream;
        let is_moved = matches!(stream, Stream::Young | Stream::Old);
        self.totals.written(order.bytes.len(), is_moved);
        self.segments
            .replace_state(order.segment, State::File(order.slot, Pin::default()));
        self.close_if_dead(order.segment);
    }

    /// It is not, or not all of it. The segment stays in memory, and nothing is lost.
    pub fn write_failed(&mut self, order: WriteOrder, after: AfterFailure) {
        self.check(&order);
        self.writes -= 1;
        self.totals.failed_writes += 1;
        match after {
            AfterFailure::Retry => self.slots.give_back(order.slot),
            AfterFailure::Retire => self.slots.retire(order.slot),
        }
        self.segments
            .replace_state(order.segment, State::Full(order.bytes));
        self.close_if_dead(order.segment);
    }

    fn check(&self, order: &WriteOrder) {
        let state = &self.segments.get(order.segment).state;
        assert!(
            matches!(state, State::Writing(_, slot) if *slot == order.slot),
            "an order of another log: {state:?}"
        );
    }
}
