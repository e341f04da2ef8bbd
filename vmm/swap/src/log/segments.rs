//! The log's segments: how far each is filled, what of it is needed, and where it is.

use crate::index::MOST_SEGMENTS;
use crate::record::Generation;
use crate::reservation::gain_is_worth_it;
use crate::segment::{Buffer, SegmentBytes};
use crate::slots::{Pin, Slot};
use std::sync::Arc;

/// What is appended together: pages that will die together, as far as one can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// From the caller, compressed: for the pool, until it is full and these are its oldest.
    Compressed,
    /// From the caller or from the pool, as they are: memory would win nothing by holding them, so they go to the file as
    /// soon as they fill a segment. Without a file they stay.
    Plain,
    /// What the cleaner moves together within the pool.
    Compacted,
    /// What it moves from the file to the file, less old than all pages that are out are many: may soon die.
    Young,
    /// What is older than that.
    Old,
}

pub(super) const STREAMS: [Stream; 5] = [
    Stream::Compressed,
    Stream::Plain,
    Stream::Compacted,
    Stream::Young,
    Stream::Old,
];

impl Stream {
    pub(super) fn is_cleaners(self) -> bool {
        matches!(self, Self::Compacted | Self::Young | Self::Old)
    }

    pub(super) fn is_for_file(self) -> bool {
        matches!(self, Self::Plain | Self::Young | Self::Old)
    }
}

/// A number of records, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes: u32,
    pub(super) records: u32,
}

impl Amount {
    pub(super) fn add(&mut self, length: u16) {
        self.bytes += u32::from(length);
        self.records += 1;
    }

    pub(super) fn subtract(&mut self, length: u16) {
        self.bytes -= u32::from(length);
        self.records -= 1;
    }
}

/// Where a segment is in its life.
#[derive(Debug)]
pub(super) enum State {
    Open(Buffer),
    Full(SegmentBytes),
    /// Still read from memory.
    Writing(SegmentBytes, Slot),
    File(Slot, Pin),
    /// Only entries that say nothing any more refer to it.
    Dropped,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) stream: Stream,
    pub(super) state: State,
    pub(super) needed: Amount,
    pub(super) kept: Amount,
    /// Bytes of all records, dead ones too.
    pub(super) appended: usize,
    /// Of the youngest record: the segment's age (Rosenblum and Ousterhout 1992, section 3.5).
    pub(super) youngest: Generation,
    /// Its slot could not be read as a whole: the cleaner leaves it alone.
    pub(super) is_unreadable: bool,
}

impl Segment {
    pub(super) fn is_full_in_memory(&self) -> bool {
        matches!(self.state, State::Full(_))
    }

    pub(super) fn is_in_file(&self) -> bool {
        matches!(self.state, State::File(..))
    }

    /// What can be read without the disk.
    pub(super) fn memory(&self) -> Option<&[u8]> {
        match &self.state {
            State::Open(buffer) => Some(buffer.as_slice()),
            State::Full(bytes) | State::Writing(bytes, _) => Some(bytes),
            State::File(..) | State::Dropped => None,
        }
    }

    pub(super) fn has_only_kept(&self) -> bool {
        self.needed.records == 0 && (self.is_full_in_memory() || self.is_in_file())
    }

    /// Whether the cleaner could win something.
    pub(super) fn is_worth_cleaning(&self, segment_bytes: usize) -> bool {
        !self.is_unreadable && gain_is_worth_it(self.needed.bytes as usize, segment_bytes)
    }
}

#[derive(Debug)]
pub(super) struct Segments {
    segment_bytes: usize,
    all: Vec<Option<Segment>>,
    free_ids: Vec<u32>,
    /// Open, full or being written.
    in_memory: Vec<u32>,
    open: [Option<u32>; STREAMS.len()],
    /// How many were ever opened.
    opened: u64,
    dropped: usize,
}

impl Segments {
    pub(super) fn new(segment_bytes: usize) -> Self {
        Self {
            segment_bytes,
            all: Vec::new(),
            free_ids: Vec::new(),
            in_memory: Vec::new(),
            open: [None; STREAMS.len()],
            opened: 0,
            dropped: 0,
        }
    }

    pub(super) fn find(&self, id: u32) -> Option<&Segment> {
        self.all.get(id as usize)?.as_ref()
    }

    /// # Panics
    /// If there is none: the index refers to none that is not there.
    pub(super) fn get(&self, id: u32) -> &Segment {
        self.find(id).expect("a segment that is referred to")
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut Segment {
        self.all[id as usize]
            .as_mut()
            .expect("a segment that is referred to")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Segment)> {
        let all = (0..).zip(&self.all);
        all.filter_map(|(id, segment)| Some((id, segment.as_ref()?)))
    }

    pub(super) fn in_memory(&self) -> &[u32] {
        &self.in_memory
    }

    pub(super) fn memory(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.in_memory.iter().map(|&id| (id, self.get(id)))
    }

    pub(super) fn dropped(&self) -> usize {
        self.dropped
    }

    pub(super) fn open(&self, stream: Stream) -> Option<u32> {
        self.open[stream as usize]
    }

    pub(super) fn open_has_room(&self, stream: Stream, bytes: usize) -> bool {
        self.open(stream).is_some_and(
            |id| matches!(&self.get(id).state, State::Open(buffer) if buffer.has_room(bytes)),
        )
    }

    /// Whether there is a name for another one.
    pub(super) fn can_open(&self) -> bool {
        !self.free_ids.is_empty() || self.all.len() < MOST_SEGMENTS as usize
    }

    pub(super) fn open_another(&mut self, stream: Stream) {
        assert_eq!(self.open(stream), None, "{stream:?} has an open segment");
        let number = self.opened;
        self.opened += 1;
        let segment = Segment {
            number,
            stream,
            state: State::Open(Buffer::new(self.segment_bytes, number)),
            needed: Amount::default(),
            kept: Amount::default(),
            appended: 0,
            youngest: Generation(0),
            is_unreadable: false,
        };
        let id = self.free_ids.pop().unwrap_or_else(|| {
            self.all.push(None);
            u32::try_from(self.all.len() - 1).expect("segments are limited")
        });
        self.all[id as usize] = Some(segment);
        self.in_memory.push(id);
        self.open[stream as usize] = Some(id);
    }

    /// Nothing is appended to the stream's open segment any more, if it has one.
    pub(super) fn close(&mut self, stream: Stream) -> Option<u32> {
        let id = self.open[stream as usize].take()?;
        let segment = self.get_mut(id);
        let state = std::mem::replace(&mut segment.state, State::Dropped);
        let State::Open(buffer) = state else {
            unreachable!("{state:?} is open");
        };
        segment.state = State::Full(SegmentBytes(Arc::new(buffer)));
        Some(id)
    }

    /// Appends to the stream's open segment, which has room. Returns which and where.
    pub(super) fn append(
        &mut self,
        stream: Stream,
        record: &[u8],
        generation: Generation,
    ) -> (u32, u32) {
        let id = self.open(stream).expect("a segment was opened");
        let segment = self.get_mut(id);
        let State::Open(buffer) = &mut segment.state else {
            unreachable!("segment {id} is open");
        };
        let offset = buffer.append(record);
        segment.appended = buffer.record_bytes();
        segment.youngest = segment.youngest.max(generation);
        (id, offset)
    }

    pub(super) fn replace_state(&mut self, id: u32, state: State) -> State {
        let is_in_memory = matches!(state, State::Open(_) | State::Full(_) | State::Writing(..));
        self.dropped += usize::from(matches!(state, State::Dropped));
        let old = std::mem::replace(&mut self.get_mut(id).state, state);
        if !is_in_memory {
            self.in_memory.retain(|&other| other != id);
        }
        old
    }

    /// Forgets one, and gives its name to the next.
    pub(super) fn remove(&mut self, id: u32) -> State {
        let segment = self.all[id as usize].take();
        self.free_ids.push(id);
        self.in_memory.retain(|&other| other != id);
        let state = segment.expect("a segment that is there").state;
        self.dropped -= usize::from(matches!(state, State::Dropped));
        state
    }
}
