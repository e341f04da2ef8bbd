//! The log itself: what its parts have in common. Each part is a file of what may be done with it.
//!
//! A record goes into an open segment of a *stream*; full, the segment waits in memory, and is written to a slot of the
//! file as it stands. A record is *needed* while its page is nowhere else, *kept* while the page is in guest memory and has
//! not been written since, and dead after that. A segment in which nothing is needed can be dropped whole, with what is kept in it.

mod append;
mod audit;
mod clean;
mod measure;
mod pages;
mod segments;
mod work;
mod write;

pub use append::Refused;
pub use audit::Disagreement;
pub use clean::{CleanJob, Cleaning, Victim};
pub use pages::{FileRange, Found, Located, Source, Stored};
pub use work::{When, Work};
pub use write::{AfterFailure, WriteOrder};

use crate::cleaner::CleaningPolicy;
use crate::figures::Totals;
use crate::index::{Entry, Index, MOST_SEGMENTS};
use crate::record::Generation;
use crate::reservation::{LEAST_SEGMENT_BYTES, reserved_slots};
use crate::slots::Slots;
use page::{PAGE_BYTES, PAGE_SIZE, PageCount};
use segments::{STREAMS, Segments, State};
use std::sync::Weak;
use thiserror::Error;

/// Segments of the pool that only the cleaner opens: one for each of its three streams, and two that it may close before they are
/// written.
const CLEANING_SEGMENTS: usize = 5;
/// These, two that pages are appended to, and one that is written.
pub const LEAST_POOL_SEGMENTS: usize = CLEANING_SEGMENTS + 3;
/// Bytes that a VM's pool may always have, be the VM small: three blocks of 2 MiB. Of a large page all goes out or nothing, and
/// the next must find room while it is written.
pub const LEAST_POOL_BYTES: usize = 6 << 20;
/// A VM's pool is this part of its size by default.
pub const POOL_DIVISOR: usize = 4;
const LARGE_SEGMENT: usize = 1 << 20;
/// A pool of this size has several large segments beside those of the cleaner.
const LARGE_POOL: usize = 5 * LEAST_POOL_SEGMENTS * LARGE_SEGMENT;
const SMALL_SEGMENT: usize = 256 << 10;
/// What an offset in the index can say.
const MOST_SEGMENT_BYTES: usize = 1 << 21;

/// What a log is made for.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The VM's size: gfns are below it.
    pub pages: PageCount,
    /// Of every segment, in memory and in the file: a multiple of 4 KiB, for direct writes.
    pub segment_bytes: usize,
    /// Segments that may be in memory at once.
    pub pool_segments: usize,
    /// Segments that the file has room for, from its start on; 0 where there is no file. See
    /// [`reserved_slots`].
    pub file_slots: u32,
    /// Which segments are cleaned first.
    pub policy: CleaningPolicy,
}

impl Config {
    /// The defaults for a VM of `size` whose file has so many slots; 0 for none. The pool is a quarter of the size, but at least
    /// [`LEAST_POOL_BYTES`]. (ESX's compression cache is a tenth, `Mem.MemZipMaxPct`, and zram half of the machine's memory, as its
    /// documentation advises; `experiment run density` shows what a quarter is for.) Segments are of 1 MiB, which a disk takes in
    /// one go; of a small VM of 256 KiB, so that its pool has several.
    #[must_use]
    pub fn of_vm(size: PageCount, file_slots: u32) -> Self {
        let bytes = usize::try_from(size.0 * PAGE_SIZE).expect("a VM fits this machine");
        let pool = bytes / POOL_DIVISOR;
        let segment_bytes = if pool < LARGE_POOL {
            SMALL_SEGMENT
        } else {
            LARGE_SEGMENT
        };
        Self {
            pages: size,
            segment_bytes,
            pool_segments: pool.max(LEAST_POOL_BYTES) / segment_bytes,
            file_slots,
            policy: CleaningPolicy::CostBenefit,
        }
    }

    /// The same with a file in which so many pages always have room: the VM's size less its min. See [`reserved_slots`].
    #[must_use]
    pub fn with_file_for(self, may_be_out: PageCount) -> Self {
        Self {
            file_slots: reserved_slots(may_be_out, self.segment_bytes),
            ..self
        }
    }

    /// How large the swap file must be.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        u64::from(self.file_slots) * self.segment_bytes as u64
    }
}

/// Why there is no such log.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it, with the values")]
pub enum InvalidConfig {
    #[error(
        "swap segments of {0} bytes: give a multiple of 4 KiB from {LEAST_SEGMENT_BYTES} to {MOST_SEGMENT_BYTES}"
    )]
    SegmentBytes(usize),
    #[error("a compressed pool of {0} segments: give it at least {LEAST_POOL_SEGMENTS}")]
    PoolSegments(usize),
    #[error("a pool of {0} and a swap file of {1} segments: together at most {most}", most = MOST_SEGMENTS / 2)]
    TooManySegments(usize, u32),
}

/// A VM's log.
#[derive(Debug)]
pub struct Log {
    config: Config,
    /// Segments that the pool may have now, of those that it may ever have.
    pool_limit: usize,
    index: Index,
    segments: Segments,
    slots: Slots,
    /// The newest generation that was appended: what age is counted from.
    now: Generation,
    /// Pages in records that are needed.
    needed_records: u64,
    filled_pages: u64,
    disk_pages: u64,
    /// Writes that were handed out and not reported.
    writes: usize,
    /// Alive while a segment is being cleaned.
    job: Weak<()>,
    /// Which that is.
    victim: u32,
    /// The next block to be rid of entries whose segment was dropped.
    sweep: usize,
    totals: Totals,
}

impl Log {
    /// An empty one.
    ///
    /// # Errors
    /// When the log could not work like that.
    pub fn new(config: Config) -> Result<Self, InvalidConfig> {
        let Config {
            segment_bytes,
            pool_segments,
            file_slots,
            ..
        } = config;
        let is_size = (LEAST_SEGMENT_BYTES..=MOST_SEGMENT_BYTES).contains(&segment_bytes);
        if !is_size || !segment_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(InvalidConfig::SegmentBytes(segment_bytes));
        }
        if pool_segments < LEAST_POOL_SEGMENTS {
            return Err(InvalidConfig::PoolSegments(pool_segments));
        }
        if pool_segments.saturating_add(file_slots as usize) > MOST_SEGMENTS as usize / 2 {
            return Err(InvalidConfig::TooManySegments(pool_segments, file_slots));
        }
        Ok(Self {
            config,
            index: Index::new(config.pages),
            segments: Segments::new(segment_bytes),
            pool_limit: pool_segments,
            slots: Slots::new(file_slots),
            now: Generation(0),
            needed_records: 0,
            filled_pages: 0,
            disk_pages: 0,
            writes: 0,
            job: Weak::new(),
            victim: 0,
            sweep: 0,
            totals: Totals::default(),
        })
    }

    /// From now on the pool takes no more than this for pages that go out: no fewer segments than it must have, and no more than
    /// it was made for. What is above goes to the file as work is done.
    pub fn limit_pool(&mut self, bytes: u64) {
        let segments = usize::try_from(bytes).unwrap_or(usize::MAX) / self.config.segment_bytes;
        self.pool_limit = segments.clamp(LEAST_POOL_SEGMENTS, self.config.pool_segments);
    }

    /// What it was made for.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn has_file(&self) -> bool {
        self.slots.retired() < self.slots.total() as usize
    }

    fn is_cleaning(&self) -> bool {
        self.job.strong_count() > 0
    }

    /// Segments in memory but for those that the cleaner appends to.
    fn pool_without_cleaners(&self) -> usize {
        let open = STREAMS.iter().filter(|stream| stream.is_cleaners());
        let open = open.filter(|&&stream| self.segments.open(stream).is_some());
        self.segments.in_memory().len() - open.count()
    }

    /// An entry is no longer in the index: what it meant is no longer needed, or kept.
    fn release(&mut self, entry: Entry) {
        match entry {
            Entry::Filled(_) => self.filled_pages -= 1,
            Entry::OnDisk(_) => self.disk_pages -= 1,
            Entry::Needed(place) => {
                self.needed_records -= 1;
                self.segments
                    .get_mut(place.segment)
                    .needed
                    .subtract(place.length);
                self.close_if_dead(place.segment);
            }
            Entry::Kept(place) => {
                self.segments
                    .get_mut(place.segment)
                    .kept
                    .subtract(place.length);
                self.close_if_dead(place.segment);
            }
        }
    }

    /// A segment that nothing in the index refers to is gone, unless it is appended to or written.
    fn close_if_dead(&mut self, id: u32) {
        let segment = self.segments.get(id);
        let is_dead = segment.needed.records == 0 && segment.kept.records == 0;
        if is_dead && !matches!(segment.state, State::Open(_) | State::Writing(..)) {
            let state = self.segments.remove(id);
            self.free(state);
        }
    }

    /// Gives up what is kept in a segment of which nothing is needed, and the segment. Entries of kept records go on
    /// referring to it; they say nothing any more, and go one by one.
    fn drop_kept(&mut self, id: u32) {
        let segment = self.segments.get(id);
        assert_eq!(segment.needed.records, 0, "records of segment {id} needed");
        self.totals.dropped_kept += u64::from(segment.kept.records);
        let state = self.segments.replace_state(id, State::Dropped);
        self.free(state);
        self.close_if_dead(id);
    }

    fn free(&mut self, state: State) {
        if let State::File(slot, pin) = state {
            self.slots.give_back_once_unpinned(slot, pin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: PageCount = PageCount(1 << 18);

    #[test]
    fn by_default_a_log_works_for_any_vm() {
        for pages in [1, 4096, 1 << 14, 1 << 18, 1 << 26] {
            let size = PageCount(pages);
            Log::new(Config::of_vm(size, 0)).unwrap();
            Log::new(Config::of_vm(size, 0).with_file_for(size)).unwrap();
        }
    }

    #[test]
    fn by_default_the_pool_is_a_quarter_of_the_vm_and_the_file_a_fifth_larger_than_what_may_be_out()
    {
        let config = Config::of_vm(GIB, 0).with_file_for(PageCount(GIB.0 / 2));
        assert_eq!(config.pool_segments * config.segment_bytes, 256 << 20);
        assert_eq!(config.file_bytes(), 608 << 20);
        let small = Config::of_vm(PageCount(GIB.0 / 16), 0);
        assert_eq!(small.pool_segments * small.segment_bytes, 64 << 18);
    }

    #[test]
    fn a_log_that_could_not_work_is_not_made() {
        let valid = Config::of_vm(GIB, 1000);
        let refused = |config| Log::new(config).unwrap_err();
        for segment_bytes in [0, 4096, (1 << 20) + 1, 4 << 20] {
            let config = Config {
                segment_bytes,
                ..valid
            };
            assert_eq!(refused(config), InvalidConfig::SegmentBytes(segment_bytes));
        }
        let config = Config {
            pool_segments: 7,
            ..valid
        };
        assert_eq!(refused(config), InvalidConfig::PoolSegments(7));
        let config = Config {
            file_slots: u32::MAX,
            ..valid
        };
        assert_eq!(
            refused(config),
            InvalidConfig::TooManySegments(valid.pool_segments, u32::MAX)
        );
    }
}
