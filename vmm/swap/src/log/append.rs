//! Pages go out.

use super::segments::Stream;
use super::{CLEANING_SEGMENTS, Log, When};
use crate::disk_page::DiskPage;
use crate::index::{Entry, Place};
use crate::record::{Generation, Kind};
use crate::seal::{Record, Sealed};
use page::Gfn;
use thiserror::Error;

/// Why a page was not appended. It is as if it had not been tried.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// There will be room once what [`Log::next_work`] handed out is reported, or has been asked for and done. Then append
    /// again.
    #[error("the swap log has no room until work on it is done")]
    Wait,
    /// There is no room, and nothing would make any: the file is missing, too small or broken.
    #[error("the swap log is full")]
    Full,
}

/// Who opens a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opener {
    Caller,
    Cleaner,
}

impl Log {
    /// A page is out from here on, with these contents. What the log had of it before is dead.
    ///
    /// # Errors
    /// When there is no room; a page of one repeated word needs none.
    ///
    /// # Panics
    /// If the VM has no such page, or the log has later contents of it.
    pub fn append(&mut self, sealed: &Sealed) -> Result<(), Refused> {
        match sealed {
            Sealed::Filled(gfn, word) => {
                self.filled_pages += 1;
                self.totals.filled_pages += 1;
                self.replace(*gfn, Entry::Filled(*word));
            }
            Sealed::Record(record) => self.append_record(record)?,
        }
        Ok(())
    }

    /// A page is out from here on, and nothing is stored: a disk of the guest has it. What the log had of it before is dead.
    ///
    /// # Panics
    /// If the VM has no such page.
    pub fn leave_to_disk(&mut self, gfn: Gfn, page: DiskPage) {
        self.disk_pages += 1;
        self.totals.disk_pages += 1;
        self.replace(gfn, Entry::OnDisk(page));
    }

    fn append_record(&mut self, record: &Record) -> Result<(), Refused> {
        let header = record.header;
        self.check_newer(header.gfn, header.generation);
        let stream = match header.kind {
            Kind::Lz4 => Stream::Compressed,
            Kind::Plain => Stream::Plain,
        };
        if !self.make_room(stream, record.bytes.len(), Opener::Caller) {
            return Err(self.refusal());
        }
        self.now = self.now.max(header.generation);
        self.totals.appended.add(record.bytes.len());
        self.put(stream, (header.gfn, header.generation), &record.bytes);
        Ok(())
    }

    fn check_newer(&self, gfn: Gfn, generation: Generation) {
        if let Some(place) = self.index.get(gfn).and_then(Entry::place) {
            assert!(
                place.generation < generation,
                "page {:#x}: generation {} after {}",
                gfn.0,
                generation.0,
                place.generation.0
            );
        }
    }

    fn refusal(&self) -> Refused {
        let is_under_way = self.writes > 0 || self.is_cleaning() || self.slots.waiting() > 0;
        if is_under_way || self.has_work(When::Now) {
            Refused::Wait
        } else {
            Refused::Full
        }
    }

    /// Sees to it that the stream's open segment has room, if it may.
    pub(super) fn make_room(&mut self, stream: Stream, bytes: usize, opener: Opener) -> bool {
        if self.segments.open_has_room(stream, bytes) {
            return true;
        }
        if !self.may_open(opener) {
            return false;
        }
        self.close(stream);
        self.segments.open_another(stream);
        true
    }

    /// Nothing is appended to the stream's segment any more.
    pub(super) fn close(&mut self, stream: Stream) {
        if let Some(closed) = self.segments.close(stream) {
            self.close_if_dead(closed);
        }
    }

    fn may_open(&self, opener: Opener) -> bool {
        self.has_memory(opener) && self.segments.can_open()
    }

    fn has_memory(&self, opener: Opener) -> bool {
        match opener {
            Opener::Caller => self.pool_without_cleaners() < self.most_without_cleaners(),
            Opener::Cleaner => self.segments.in_memory().len() < self.config.pool_segments,
        }
    }

    pub(super) fn most_without_cleaners(&self) -> usize {
        self.pool_limit - CLEANING_SEGMENTS
    }

    /// Appends a record to the open segment of a stream, which has room, and says so in the index.
    pub(super) fn put(
        &mut self,
        stream: Stream,
        (gfn, generation): (Gfn, Generation),
        record: &[u8],
    ) {
        let (segment, offset) = self.segments.append(stream, record, generation);
        let length = u16::try_from(record.len()).expect("no record is longer than 4,128 bytes");
        self.segments.get_mut(segment).needed.add(length);
        self.needed_records += 1;
        let place = Place {
            segment,
            offset,
            length,
            generation,
        };
        self.replace(gfn, Entry::Needed(place));
    }

    fn replace(&mut self, gfn: Gfn, entry: Entry) {
        if let Some(old) = self.index.set(gfn, entry) {
            self.release(old);
        }
    }
}
