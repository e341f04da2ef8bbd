//! Pages come back, are written, or go out again.

use super::segments::{Segment, State};
use super::{Entry, Log};
use crate::disk_page::DiskPage;
use crate::index::{Index, Place};
use crate::record::Generation;
use crate::slots::Pin;
use page::{Gfn, PageCount};
use std::ops::Range;

/// Where a page's contents are.
#[derive(Debug)]
pub enum Found {
    /// In the index: this word, again and again.
    Filled(u64),
    /// In a record.
    Stored(Stored),
    /// On a disk of the guest.
    OnDisk(DiskPage),
}

/// Records, and the bytes they are in.
#[derive(Debug)]
pub struct Stored {
    /// The page that was asked for first, then neighbours whose records lie beside it.
    pub records: Vec<Located>,
    /// The bytes.
    pub source: Source,
}

/// A record among bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Whose it must be.
    pub gfn: Gfn,
    /// Which it must be.
    pub generation: Generation,
    start: usize,
    length: usize,
}

impl Located {
    /// Which of the bytes it is.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.length
    }
}

/// Where the bytes of records are to be had.
#[derive(Debug)]
pub enum Source {
    /// Here: a copy, which may be opened as it is.
    Memory(Vec<u8>),
    /// In the file.
    File(FileRange),
}

/// Bytes of the swap file. They stay as they are as long as this is there: drop it once they are read.
#[derive(Debug)]
pub struct FileRange {
    /// Where they begin, in bytes from the file's start. Direct I/O wants whole sectors: read some more.
    pub position: u64,
    /// How many.
    pub length: usize,
    _pin: Pin,
}

impl FileRange {
    pub(super) fn new(position: u64, length: usize, pin: &Pin) -> Self {
        Self {
            position,
            length,
            _pin: pin.clone(),
        }
    }
}

impl Log {
    /// Where the contents of a page are that is out, and those of its neighbours that lie so near that all together are at most
    /// `together` bytes; 0 for the page alone. None if it is not out: then it is in guest memory, or nowhere.
    ///
    /// What left together lies together, so neighbours are likely wanted, and one read brings them.
    ///
    /// # Panics
    /// If the VM has no such page.
    #[must_use]
    pub fn find(&self, gfn: Gfn, together: usize) -> Option<Found> {
        match self.index.get(gfn)? {
            Entry::Filled(word) => Some(Found::Filled(word)),
            Entry::OnDisk(page) => Some(Found::OnDisk(page)),
            Entry::Needed(place) => Some(Found::Stored(self.stored(gfn, place, together))),
            Entry::Kept(_) => None,
        }
    }

    fn stored(&self, gfn: Gfn, place: Place, together: usize) -> Stored {
        let mut range = bytes_of(place);
        let mut places = vec![(gfn, place)];
        let after = (gfn.0 + 1..self.index.pages().0).map(Gfn);
        let before = (0..gfn.0).rev().map(Gfn);
        self.add_neighbours(after, together, &mut range, &mut places);
        self.add_neighbours(before, together, &mut range, &mut places);
        let located = |(gfn, place): (Gfn, Place)| Located {
            gfn,
            generation: place.generation,
            start: place.offset as usize - range.start,
            length: place.length.into(),
        };
        Stored {
            records: places.into_iter().map(located).collect(),
            source: self.source(self.segments.get(place.segment), range),
        }
    }

    fn add_neighbours(
        &self,
        gfns: impl Iterator<Item = Gfn>,
        together: usize,
        range: &mut Range<usize>,
        places: &mut Vec<(Gfn, Place)>,
    ) {
        let (first, Place { segment, .. }) = places[0];
        for gfn in gfns.take_while(|&gfn| Index::is_one_block(gfn, first)) {
            let Some(Entry::Needed(place)) = self.index.get(gfn) else {
                return;
            };
            let bytes = bytes_of(place);
            let joined = range.start.min(bytes.start)..range.end.max(bytes.end);
            if place.segment != segment || joined.len() > together {
                return;
            }
            *range = joined;
            places.push((gfn, place));
        }
    }

    fn source(&self, segment: &Segment, range: Range<usize>) -> Source {
        match &segment.state {
            State::File(slot, pin) => {
                let start = u64::from(slot.0) * self.config.segment_bytes as u64;
                let position = start + range.start as u64;
                Source::File(FileRange::new(position, range.len(), pin))
            }
            _ => {
                let memory = segment.memory().expect("nothing needed was dropped");
                Source::Memory(memory[range].to_vec())
            }
        }
    }

    /// A page that was found in a record of this generation is about to be in guest memory again, as it left: the record is kept
    /// from now on. False, and nothing done, if the page is not out any more, or was written and went out again since it was
    /// found: then what was read must not be used, and the page be looked for again.
    ///
    /// # Panics
    /// If the VM has no such page.
    #[must_use]
    pub fn bring(&mut self, gfn: Gfn, generation: Generation) -> bool {
        match self.index.get(gfn) {
            Some(Entry::Needed(place)) if place.generation == generation => {
                self.index.set(gfn, Entry::Kept(place));
                self.needed_records -= 1;
                let segment = self.segments.get_mut(place.segment);
                segment.needed.subtract(place.length);
                segment.kept.add(place.length);
                true
            }
            _ => false,
        }
    }

    /// A page that is in guest memory, and was not written since it came back, goes out as it is: its record is needed again, and
    /// nothing has to be stored. False if there is no such record any more: seal the page and append it.
    ///
    /// # Panics
    /// If the VM has no such page.
    #[must_use]
    pub fn keep_out(&mut self, gfn: Gfn) -> bool {
        let Some(Entry::Kept(place)) = self.index.get(gfn) else {
            return false;
        };
        if self.is_dropped(place) {
            return false;
        }
        let segment = self.segments.get_mut(place.segment);
        segment.kept.subtract(place.length);
        segment.needed.add(place.length);
        self.needed_records += 1;
        self.totals.kept_used += 1;
        self.index.set(gfn, Entry::Needed(place));
        true
    }

    /// What the log has of a page is worth nothing any more: it was written, or given up by the guest, or a page of one repeated
    /// word is back, or one that its disk had. Nothing is done if the log has nothing.
    ///
    /// # Panics
    /// If the VM has no such page.
    pub fn forget(&mut self, gfn: Gfn) {
        if let Some(entry) = self.index.remove(gfn) {
            self.release(entry);
        }
    }

    /// Whether the page is out in a record of this generation.
    #[must_use]
    pub fn is_out_as(&self, gfn: Gfn, generation: Generation) -> bool {
        matches!(self.index.get(gfn), Some(Entry::Needed(place)) if place.generation == generation)
    }

    /// Whether the page is out, and this page of a disk has it.
    #[must_use]
    pub fn is_on_disk(&self, gfn: Gfn, page: DiskPage) -> bool {
        self.index.get(gfn) == Some(Entry::OnDisk(page))
    }

    /// Whether there is a record of the page as it came back: it is to be told when that is written.
    ///
    /// # Panics
    /// If the VM has no such page.
    #[must_use]
    pub fn is_kept(&self, gfn: Gfn) -> bool {
        matches!(self.index.get(gfn), Some(Entry::Kept(place)) if !self.is_dropped(place))
    }

    /// The first page from this one on that is out.
    #[must_use]
    pub fn first_out(&self, from: Gfn) -> Option<Gfn> {
        self.index.first(from, is_out)
    }

    /// Pages that are out, those of one repeated word and those on the guest's disks among them.
    #[must_use]
    pub fn out(&self) -> PageCount {
        PageCount(self.needed_records + self.filled_pages + self.disk_pages)
    }

    /// Memory that segments take, in bytes: each counts whole.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        self.segments.in_memory().len() as u64 * self.config.segment_bytes as u64
    }

    /// What of that is on its way to the file, or waits for its turn, so that memory has it back soon whatever else happens.
    #[must_use]
    pub fn leaving_bytes(&self) -> u64 {
        let leaves = |segment: &Segment| match segment.state {
            State::Writing(..) => true,
            State::Full(_) => self.has_file() && segment.stream.is_for_file(),
            _ => false,
        };
        let leaving = self
            .segments
            .memory()
            .filter(|(_, segment)| leaves(segment));
        leaving.count() as u64 * self.config.segment_bytes as u64
    }

    /// Whether the page is out: not in guest memory.
    ///
    /// # Panics
    /// If the VM has no such page.
    #[must_use]
    pub fn is_out(&self, gfn: Gfn) -> bool {
        self.index.get(gfn).as_ref().is_some_and(is_out)
    }
}

fn is_out(entry: &Entry) -> bool {
    matches!(
        entry,
        Entry::Filled(_) | Entry::Needed(_) | Entry::OnDisk(_)
    )
}

fn bytes_of(place: Place) -> Range<usize> {
    let start = place.offset as usize;
    start..start + usize::from(place.length)
}
