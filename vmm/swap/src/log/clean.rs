//! The cleaner: moves what is needed of a segment to where it is together with its like, and frees the segment.
//!
//! Records are copied as they are, sealed. What a victim's bytes say of their records is believed only where the index says
//! the same; should a disk have spoilt headers, the index is asked for all that it has there. So damage moves along with
//! its record, meets whoever opens that, and harms no other page.

use super::append::Opener;
use super::segments::{State, Stream};
use super::{Entry, FileRange, Log};
use crate::index::Place;
use crate::record::{Generation, HEADER_BYTES, Kind, OVERHEAD_BYTES, RecordHeader};
use crate::segment::{Records, SegmentBytes};
use crate::slots::Pin;
use page::Gfn;
use std::sync::Arc;

/// A segment that is to be cleaned. Dropped, it is as if it had not been picked.
#[derive(Debug)]
pub struct Victim {
    segment: u32,
    number: u64,
    from: From,
    mark: Pin,
}

#[derive(Debug)]
enum From {
    Memory(SegmentBytes),
    File(FileRange),
}

impl Victim {
    /// What of the file must be read, all of it, before there is a job; None if the segment is in memory.
    #[must_use]
    pub fn read(&self) -> Option<&FileRange> {
        match &self.from {
            From::Memory(_) => None,
            From::File(range) => Some(range),
        }
    }

    /// Sorts out the records, the oldest first. `read` is what the file has there, and empty if nothing had to be read.
    /// This needs no log, and takes some 30 µs.
    #[must_use]
    pub fn into_job(self, read: Vec<u8>) -> CleanJob {
        let is_from_file = self.read().is_some();
        let bytes = match self.from {
            From::Memory(bytes) => Bytes::Shared(bytes),
            From::File(_) => Bytes::Read(read),
        };
        let mut records: Vec<Candidate> = Records::of(bytes.as_slice())
            .map(|(offset, header, _)| Candidate::of(offset, header))
            .collect();
        records.sort_unstable_by_key(|record| record.generation);
        CleanJob {
            segment: self.segment,
            number: self.number,
            is_from_file,
            bytes,
            records,
            next: 0,
            _mark: self.mark,
        }
    }
}

/// A segment being cleaned. Dropped halfway it leaves what is moved moved, and the rest where it was.
#[derive(Debug)]
pub struct CleanJob {
    segment: u32,
    number: u64,
    is_from_file: bool,
    bytes: Bytes,
    records: Vec<Candidate>,
    next: usize,
    _mark: Pin,
}

#[derive(Debug)]
enum Bytes {
    Shared(SegmentBytes),
    Read(Vec<u8>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Read(bytes) => bytes,
        }
    }
}

/// A record that may be needed.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    gfn: Gfn,
    generation: Generation,
    offset: usize,
    length: usize,
}

impl Candidate {
    fn of(offset: usize, header: RecordHeader) -> Self {
        Self {
            gfn: header.gfn,
            generation: header.generation,
            offset,
            length: header.record_bytes(),
        }
    }

    fn at(gfn: Gfn, place: Place) -> Self {
        Self {
            gfn,
            generation: place.generation,
            offset: place.offset as usize,
            length: place.length.into(),
        }
    }
}

/// How far a job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleaning {
    /// There is more to do: call again.
    More,
    /// The segment is free. Drop the job.
    Done,
    /// The pool has no room for what is moved before a write is reported. If none is under way and the log has no other work, drop
    /// the job.
    NoRoom,
    /// What was read is not all of it. The segment stays as it is and is never cleaned; its pages may be readable one by
    /// one. Drop the job.
    Unreadable,
}

impl Log {
    pub(super) fn take_victim(&mut self, id: u32) -> Victim {
        let segment = self.segments.get(id);
        let bytes = self.config.segment_bytes;
        let from = match &segment.state {
            State::Full(bytes) => From::Memory(bytes.clone()),
            State::File(slot, pin) => {
                let position = u64::from(slot.0) * bytes as u64;
                From::File(FileRange::new(position, bytes, pin))
            }
            state => unreachable!("a victim that is {state:?}"),
        };
        let mark = Pin::default();
        self.job = Arc::downgrade(&mark);
        self.victim = id;
        Victim {
            segment: id,
            number: segment.number,
            from,
            mark,
        }
    }

    /// Whether the segment is being cleaned: then nothing else is done with it.
    pub(super) fn is_victim(&self, id: u32) -> bool {
        self.is_cleaning() && self.victim == id
    }

    /// Goes on with a job, for at most so many records: 64 take some 10 µs.
    pub fn clean(&mut self, job: &mut CleanJob, records: usize) -> Cleaning {
        for _ in 0..records {
            if !self.is_there(job) {
                return self.finish(job);
            }
            let Some(&record) = job.records.get(job.next) else {
                return self.end_pass(job);
            };
            if self.is_needed_there(job, &record) {
                let moved = self.move_record(job, &record);
                if moved != Cleaning::More {
                    return moved;
                }
            }
            job.next += 1;
        }
        Cleaning::More
    }

    /// The file could not be read.
    pub fn unreadable(&mut self, victim: Victim) {
        self.set_unreadable(victim.segment, victim.number);
    }

    fn set_unreadable(&mut self, id: u32, number: u64) {
        if self
            .segments
            .find(id)
            .is_some_and(|it| it.number == number && it.is_in_file())
        {
            self.segments.get_mut(id).is_unreadable = true;
        }
    }

    /// False once the last of its records died or was moved.
    fn is_there(&self, job: &CleanJob) -> bool {
        let segment = self.segments.find(job.segment);
        segment.is_some_and(|it| it.number == job.number && !matches!(it.state, State::Dropped))
    }

    fn is_needed_there(&self, job: &CleanJob, record: &Candidate) -> bool {
        // What stands in a header may be no gfn of this VM.
        if record.gfn.0 >= self.config.pages.0 {
            return false;
        }
        let Some(Entry::Needed(place)) = self.index.get(record.gfn) else {
            return false;
        };
        place.segment == job.segment
            && place.generation == record.generation
            && place.offset as usize == record.offset
            && usize::from(place.length) == record.length
    }

    fn move_record(&mut self, job: &CleanJob, record: &Candidate) -> Cleaning {
        let end = record.offset + record.length;
        let Some(bytes) = job.bytes.as_slice().get(record.offset..end) else {
            self.set_unreadable(job.segment, job.number);
            return Cleaning::Unreadable;
        };
        let stream = self.stream_for(job, record, bytes);
        if !self.make_room(stream, record.length, Opener::Cleaner) {
            return Cleaning::NoRoom;
        }
        let id = (record.gfn, record.generation);
        self.totals.moved(record.length, job.is_from_file);
        match header_that_lies(record, bytes) {
            None => self.put(stream, id, bytes),
            Some(header) => {
                let mended = [&header.encode()[..], &bytes[HEADER_BYTES..]].concat();
                self.put(stream, id, &mended);
            }
        }
        Cleaning::More
    }

    fn stream_for(&self, job: &CleanJob, record: &Candidate, bytes: &[u8]) -> Stream {
        let is_plain = RecordHeader::decode(bytes).is_some_and(|header| header.kind == Kind::Plain);
        let age = self.now.0 - record.generation.0;
        match (job.is_from_file, is_plain) {
            (false, false) => Stream::Compacted,
            (false, true) => Stream::Plain,
            (true, _) if age > self.needed_records => Stream::Old,
            (true, _) => Stream::Young,
        }
    }

    /// All records were looked at. One that was only kept when it was may be needed now; or headers are spoilt.
    fn end_pass(&mut self, job: &mut CleanJob) -> Cleaning {
        if self.segments.get(job.segment).needed.records == 0 {
            return self.finish(job);
        }
        let there = |entry: Entry| match entry {
            Entry::Needed(place) if place.segment == job.segment => Some(place),
            _ => None,
        };
        let all = self.index.iter();
        job.records = all
            .filter_map(|(gfn, entry)| Some(Candidate::at(gfn, there(entry)?)))
            .collect();
        job.next = 0;
        Cleaning::More
    }

    fn finish(&mut self, job: &CleanJob) -> Cleaning {
        self.totals.cleaned_segments += 1;
        if job.is_from_file {
            self.totals.read_bytes += self.config.segment_bytes as u64;
        }
        if self.is_there(job) {
            self.drop_kept(job.segment);
        }
        Cleaning::Done
    }
}

/// Where a header is not what the index says, one that is as far as it matters, so that the segment it is moved to can be
/// walked. The record's tag does not fit either.
fn header_that_lies(record: &Candidate, bytes: &[u8]) -> Option<RecordHeader> {
    let length = record.length - OVERHEAD_BYTES;
    let true_header = RecordHeader {
        gfn: record.gfn,
        generation: record.generation,
        length: u16::try_from(length).expect("no longer than a page"),
        kind: Kind::Plain,
    };
    let is_true = |found: &RecordHeader| {
        let kind = found.kind;
        *found
            == RecordHeader {
                kind,
                ..true_header
            }
    };
    let found = RecordHeader::decode(bytes);
    found.filter(is_true).is_none().then_some(true_header)
}
