//! What is to be done next: segments written, and cleaned. First it is decided, from what is; then done.

use super::Log;
use super::clean::Victim;
use super::segments::{Segment, State, Stream};
use super::write::WriteOrder;
use crate::index::Place;
use crate::reservation::{CLEAN_AT, CLEANING_SLOTS, gain_is_worth_it, payload};
use page::Gfn;

/// A segment of the pool is written as it stands if more of it is needed: three bytes would have to be copied for one won.
const MOST_COMPACTED: (usize, usize) = (3, 4);
/// Writing begins when so little of the pool is left, so that pages need not wait for the disk.
const POOL_AHEAD_DIVISOR: usize = 16;
/// At rest so much of the pool's memory holds needed records. It can for segments from 64 KiB on: see
/// [`gain_is_worth_it`].
const NEEDED_AT_REST: (usize, usize) = (9, 10);
/// At rest a file's segment is cleaned if no more of it is needed: it costs little then, and may never be dead by itself.
const MOST_CLEANED_AT_REST: (usize, usize) = (1, 2);
/// At rest cleaning goes on until one slot of so many is free.
const FREE_AT_REST_DIVISOR: usize = 8;
/// Blocks of the index that are rid of entries without a segment whenever there is work.
const BLOCKS_SWEPT: usize = 4;

/// How urgent work must be to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Only what pages may soon have to wait for.
    Now,
    /// Also what can be done while nothing else is.
    Idle,
}

/// What the log wants to have done.
#[derive(Debug)]
pub enum Work {
    /// Write a segment, and tell.
    Write(WriteOrder),
    /// Clean one.
    Clean(Victim),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Write(u32),
    Clean(u32),
    /// Give up a segment of which nothing is needed, with what is kept in it.
    Drop(u32),
    /// Append no more to it, so that it can be cleaned.
    Close(Stream),
}

impl Log {
    /// What to do next, if there is something. Several writes may go on at once; one segment is cleaned at a time. Where
    /// few slots are free every segment of the file is looked at, some 6 ns each.
    pub fn next_work(&mut self, when: When) -> Option<Work> {
        self.sweep();
        loop {
            match self.plan(when)? {
                Plan::Write(id) => return Some(Work::Write(self.order_write(id))),
                Plan::Clean(id) => return Some(Work::Clean(self.take_victim(id))),
                Plan::Drop(id) => self.drop_kept(id),
                Plan::Close(stream) => self.close(stream),
            }
        }
    }

    /// Whether there is something to do.
    #[must_use]
    pub fn has_work(&self, when: When) -> bool {
        self.plan(when).is_some()
    }

    pub(super) fn plan(&self, when: When) -> Option<Plan> {
        self.plan_file_bound()
            .or_else(|| self.plan_for_slots())
            .or_else(|| self.plan_for_memory())
            .or_else(|| (when == When::Idle).then(|| self.plan_at_rest()).flatten())
    }

    /// What memory wins nothing by goes to the file.
    fn plan_file_bound(&self) -> Option<Plan> {
        let waits = |segment: &Segment| {
            segment.is_full_in_memory()
                && segment.stream.is_for_file()
                && self.may_write(segment.stream)
        };
        let mut memory = self.segments.memory();
        let (id, _) = memory.find(|&(id, segment)| waits(segment) && !self.is_victim(id))?;
        Some(Plan::Write(id))
    }

    /// The last slots are the cleaner's: what it frees is more than what it fills, but later.
    fn may_write(&self, stream: Stream) -> bool {
        let kept_free = match stream {
            Stream::Young | Stream::Old => 0,
            Stream::Compressed | Stream::Plain | Stream::Compacted => CLEANING_SLOTS,
        };
        self.slots.ready() > kept_free
    }

    fn plan_for_slots(&self) -> Option<Plan> {
        if !self.has_file() || self.slots.available() > CLEAN_AT {
            return None;
        }
        let in_file = || self.segments.iter().filter(|(_, it)| it.is_in_file());
        self.droppable(in_file())
            .or_else(|| self.best_victim(in_file(), self.config.segment_bytes))
    }

    fn plan_for_memory(&self) -> Option<Plan> {
        let most = self.most_without_cleaners();
        let ahead = 1 + self.pool_limit / POOL_AHEAD_DIVISOR;
        let leaving = |(_, it): &(u32, &Segment)| matches!(it.state, State::Writing(..));
        let leaving = self.segments.memory().filter(leaving).count();
        if self.pool_without_cleaners() + ahead <= most + leaving {
            return None;
        }
        let full = || self.full_in_memory();
        self.droppable(full())
            .or_else(|| self.best_victim(full(), self.part_of_payload(MOST_COMPACTED)))
            .or_else(|| self.coldest_to_write())
            .or_else(|| self.any_victim())
            .or_else(|| self.open_to_clean())
    }

    fn coldest_to_write(&self) -> Option<Plan> {
        let free = |(id, segment): &(u32, &Segment)| {
            self.may_write(segment.stream) && !self.is_victim(*id)
        };
        let coldest = self
            .full_in_memory()
            .filter(free)
            .min_by_key(|(_, it)| it.youngest);
        coldest.map(|(id, _)| Plan::Write(id))
    }

    /// Where nothing can be written: whatever brings anything.
    fn any_victim(&self) -> Option<Plan> {
        let all = self.segments.iter();
        let movable = all.filter(|(_, it)| it.is_full_in_memory() || it.is_in_file());
        self.best_victim(movable, self.config.segment_bytes)
    }

    /// The cleaner takes nothing that is appended to. Where much of that is dead, and nothing else brings anything, it may.
    fn open_to_clean(&self) -> Option<Plan> {
        let dead = |it: &Segment| it.appended - it.needed.bytes as usize;
        let payload = payload(self.config.segment_bytes);
        let is_worth_it = |it: &Segment| {
            let is_open = matches!(it.state, State::Open(_));
            is_open && gain_is_worth_it(payload - dead(it), self.config.segment_bytes)
        };
        let (_, open) = self.segments.memory().find(|(_, it)| is_worth_it(it))?;
        self.has_memory_to_clean()
            .then_some(Plan::Close(open.stream))
    }

    fn plan_at_rest(&self) -> Option<Plan> {
        self.plan_pool_at_rest()
            .or_else(|| self.plan_file_at_rest())
    }

    fn plan_pool_at_rest(&self) -> Option<Plan> {
        let (part, whole) = NEEDED_AT_REST;
        let is_sparse = |needed: usize, held: usize| needed * whole < held * part;
        let sums = |(needed, held), (_, it): (u32, &Segment)| {
            (needed + it.needed.bytes as usize, held + it.appended)
        };
        let (needed, held) = self.segments.memory().fold((0, 0), sums);
        if !is_sparse(needed, held) {
            return None;
        }
        let sparse = |it: &Segment| is_sparse(it.needed.bytes as usize, it.appended);
        let is_open = |it: &Segment| matches!(it.state, State::Open(_));
        let mut memory = self.segments.memory();
        let open = memory.find(|(_, it)| is_open(it) && sparse(it));
        self.droppable(self.full_in_memory())
            .or_else(|| open.map(|(_, it)| Plan::Close(it.stream)))
            .or_else(|| self.best_victim(self.full_in_memory(), self.config.segment_bytes))
    }

    fn plan_file_at_rest(&self) -> Option<Plan> {
        let enough = self.slots.total() as usize / FREE_AT_REST_DIVISOR;
        if !self.has_file() || self.slots.available() >= enough {
            return None;
        }
        let in_file = self.segments.iter().filter(|(_, it)| it.is_in_file());
        self.best_victim(in_file, self.part_of_payload(MOST_CLEANED_AT_REST))
    }

    fn full_in_memory(&self) -> impl Iterator<Item = (u32, &Segment)> {
        self.segments
            .memory()
            .filter(|(_, it)| it.is_full_in_memory())
    }

    fn droppable<'a>(&self, mut of: impl Iterator<Item = (u32, &'a Segment)>) -> Option<Plan> {
        let (id, _) = of.find(|&(id, it)| it.has_only_kept() && !self.is_victim(id))?;
        Some(Plan::Drop(id))
    }

    /// The segment that the policy likes best, of those that have no more than `most` needed bytes.
    fn best_victim<'a>(
        &self,
        of: impl Iterator<Item = (u32, &'a Segment)>,
        most: usize,
    ) -> Option<Plan> {
        if self.is_cleaning() || !self.has_memory_to_clean() {
            return None;
        }
        let is_fit = |(_, it): &(u32, &Segment)| {
            it.is_worth_cleaning(self.config.segment_bytes) && it.needed.bytes as usize <= most
        };
        let best = of
            .filter(is_fit)
            .map(|(id, it)| (id, self.worth(it)))
            .max_by(|(_, a), (_, b)| a.total_cmp(b));
        best.map(|(id, _)| Plan::Clean(id))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "segments have less than 2^52 bytes"
    )]
    fn worth(&self, segment: &Segment) -> f64 {
        let payload = payload(self.config.segment_bytes);
        let utilisation = f64::from(segment.needed.bytes) / payload as f64;
        let age = self.now.0 - segment.youngest.0;
        self.config.policy.worth(utilisation, age)
    }

    /// What is moved from one segment may open two: of compressed pages and others, or of young ones and old.
    fn has_memory_to_clean(&self) -> bool {
        self.segments.in_memory().len() + 2 <= self.config.pool_segments
    }

    fn part_of_payload(&self, (part, whole): (usize, usize)) -> usize {
        payload(self.config.segment_bytes) * part / whole
    }

    /// Takes entries that refer to dropped segments out of a few blocks, so that they do not pile up.
    fn sweep(&mut self) {
        if self.segments.dropped() == 0 {
            return;
        }
        for _ in 0..BLOCKS_SWEPT {
            let block = self.sweep % self.index.blocks();
            self.sweep = block + 1;
            let entries = self.index.block(block);
            let dropped: Vec<Gfn> = entries
                .filter_map(|(gfn, entry)| self.is_dropped(entry.place()?).then_some(gfn))
                .collect();
            dropped.into_iter().for_each(|gfn| self.forget(gfn));
        }
    }

    /// Whether a kept record was given up, though its entry is still there.
    pub(super) fn is_dropped(&self, place: Place) -> bool {
        matches!(self.segments.get(place.segment).state, State::Dropped)
    }
}
