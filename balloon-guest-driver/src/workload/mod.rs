//! Workloads: what the embedded guest does with its memory.
//!
//! One runs at a time, in slices of bounded length, beside the balloon. A workload of size `max`
//! is what the guest's free memory is to an operating system: it takes what there is, and gives
//! it up, the frames taken last first, when the balloon wants it ([`Workload::give_up`]). A
//! workload of a fixed size needs its memory and gives up none.

mod breaker;
mod cloner;
mod content;
mod dbench;
mod histogram;
mod latencies;
mod pace;
pub mod spec;
#[cfg(test)]
pub(crate) mod tests;
mod tile;
mod toucher;
mod verifier;
mod zipf;

use core::fmt;

use self::breaker::Breaker;
pub use self::breaker::{BreakFigures, Done, Order, OrderError};
use self::cloner::Cloner;
use self::dbench::{Dbench, Failure as DbenchFailure};
pub use self::dbench::{Files, NoFiles, WrongBlock};
pub use self::latencies::Latencies;
use self::spec::{Action, DbenchSpec, Size, Spec, TileSpec};
use self::tile::Tile;
use self::toucher::Toucher;
use self::verifier::Verifier;
pub use self::verifier::WrongPage;
use crate::Gfn;
use crate::disk::Disk;
use crate::disk::buffers::{Buffers, FailedRequest};
use crate::disk::cache::Cache;
use crate::disk::requests::{Requests, Service};
use crate::frames::Frames;
use crate::held::{Held, Slot};
use crate::page::Memory;
use crate::pool::Lead;
use crate::set::FrameSet;

/// Frames that a workload of size `max` leaves free.
const RESERVE: u32 = 256;
/// Frames obtained or released at a time.
const CHUNK: usize = 256;

/// What workloads have done since boot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Whole pages checked.
    pub checks: u64,
    /// Pages that were not as written.
    pub errors: u64,
    /// Pages that held somebody else's data when they were obtained.
    pub leaks: u64,
    /// Touches of a `toucher`.
    pub touches: u64,
    /// Those of them that wrote.
    pub touches_written: u64,
    /// Pages rewritten by `clone` and `verify`.
    pub rewritten: u64,
    /// Pages broken by a `breaker`.
    pub breaks: u64,
    /// How it went when all pages were broken last.
    pub last_break: BreakFigures,
    /// Operations that the clients of `dbench` have finished.
    pub operations: u64,
    /// Bytes of files that they read.
    pub read_bytes: u64,
    /// Bytes of files that they wrote.
    pub written_bytes: u64,
    /// Blocks of files that were in memory when they were to be read.
    pub hits: u64,
    /// Blocks of files that were read from the disk.
    pub misses: u64,
    /// Requests that the disk failed.
    pub disk_errors: u64,
    /// How long the operations took, from when a client had one to do.
    pub operation_time: Latencies,
    /// Transactions of a `tile`.
    pub transactions: u64,
    /// How long they took.
    pub transaction_time: Latencies,
}

/// What stopped a workload. Shown as a line for the console.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// A page that is not what it must be.
    Page(WrongPage),
    /// A block of a file that is not what it must be.
    Block(WrongBlock),
    /// The disk failed a request.
    Disk(FailedRequest),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(wrong) => wrong.fmt(f),
            Self::Block(wrong) => wrong.fmt(f),
            Self::Disk(failed) => failed.fmt(f),
        }
    }
}

/// What a workload needs for files on a disk.
#[derive(Debug)]
pub struct FileSystem<'a> {
    cache: Cache<'a>,
    files: Files<'a>,
    requests: Requests,
}

impl<'a> FileSystem<'a> {
    /// Files in as many blocks as the cache has room for.
    #[must_use]
    pub const fn new(cache: Cache<'a>, files: Files<'a>) -> Self {
        Self {
            cache,
            files,
            requests: Requests::new(Service::AT_ONCE),
        }
    }

    /// Room for no files: there is no disk.
    #[must_use]
    pub const fn none() -> Self {
        Self::new(Cache::new(&mut [], &mut []), Files::new(&mut [], &mut []))
    }

    /// With what it works on, for one step.
    fn open<'s, M>(
        &'s mut self,
        held: &'s Held<'a>,
        memory: &'s mut M,
        disk: &'s mut dyn Disk,
    ) -> (Buffers<'s, 'a, M>, &'s mut Files<'a>) {
        let buffers = Buffers {
            cache: &mut self.cache,
            requests: &mut self.requests,
            held,
            memory,
            disk,
            now_us: 0,
        };
        (buffers, &mut self.files)
    }
}

/// When a workload wants to go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rest {
    /// At once.
    No,
    /// At this time, in microseconds.
    Until(u64),
    /// When something else has changed.
    Asleep,
}

impl From<Option<u64>> for Rest {
    /// From a time that may be at once or never (`u64::MAX`).
    fn from(wake_at_us: Option<u64>) -> Self {
        match wake_at_us {
            None => Self::No,
            Some(u64::MAX) => Self::Asleep,
            Some(time) => Self::Until(time),
        }
    }
}

/// The length of time that a step may take, the clock for it, and who helps.
#[expect(
    missing_debug_implementations,
    reason = "it is little more than a function"
)]
pub struct Slice<'c> {
    clock_ns: &'c dyn Fn() -> u64,
    now_ns: u64,
    end_ns: u64,
    lead: Option<&'c Lead<'c>>,
}

impl<'c> Slice<'c> {
    /// A slice from now on.
    #[must_use]
    pub fn new(clock_ns: &'c dyn Fn() -> u64, length_us: u64) -> Self {
        let now_ns = clock_ns();
        Self {
            clock_ns,
            now_ns,
            end_ns: now_ns + length_us * 1000,
            lead: None,
        }
    }

    /// The same with other processors to help.
    #[must_use]
    pub fn helped_by(self, lead: &'c Lead<'c>) -> Self {
        Self {
            lead: Some(lead),
            ..self
        }
    }

    /// The time when the clock was last looked at.
    const fn now_us(&self) -> u64 {
        self.now_ns / 1000
    }

    /// What may take half of the rest of it.
    fn half(&self) -> Self {
        let end_ns = self.now_ns + self.end_ns.saturating_sub(self.now_ns) / 2;
        Self { end_ns, ..*self }
    }

    /// Looks at the clock, which shows nanoseconds.
    fn look(&mut self) -> u64 {
        self.now_ns = (self.clock_ns)();
        self.now_ns
    }

    /// Looks at the clock.
    fn is_over(&mut self) -> bool {
        self.look() >= self.end_ns
    }
}

// There is one, and no heap to put what is large on.
#[derive(Debug)]
enum Running {
    Idle,
    Touch(Toucher),
    Clone(Cloner),
    Verify(Verifier),
    Break(Breaker),
    Dbench(Dbench),
    Tile(Tile),
    /// Found a wrong page. What it holds stays as it is, for a person to look at.
    Failed,
}

impl Running {
    /// What it does with files.
    const fn files(&mut self) -> Option<&mut Dbench> {
        match self {
            Self::Dbench(dbench) => Some(dbench),
            Self::Tile(tile) => tile.files.as_mut(),
            _ => None,
        }
    }
}

/// The workload that runs, and the frames that it holds.
#[derive(Debug)]
pub struct Workload<'a> {
    guest: u32,
    spec: Spec,
    running: Running,
    /// What starts when all frames of the one before are released.
    next: Option<Spec>,
    /// What a breaker does next.
    order: Option<Order>,
    held: Held<'a>,
    /// What a tile has of its own; then `held` is its cache.
    own: Held<'a>,
    /// Free frames with contents from a workload other than `verify`, of which it must not
    /// think that they came from another guest.
    other_contents: FrameSet<'a>,
    /// A `verify` has written contents that are common to all guests.
    has_written_common: bool,
    file_system: FileSystem<'a>,
    counters: Counters,
    failure: Option<Failure>,
}

impl<'a> Workload<'a> {
    /// No workload yet. `guest` names this guest in what is written to pages; `other_contents` is
    /// an empty set with room for every frame; `file_system` has room for a buffer for each, if there
    /// is a disk. `held` and `own` hold nothing yet.
    #[must_use]
    pub const fn new(
        guest: u32,
        held: Held<'a>,
        own: Held<'a>,
        other_contents: FrameSet<'a>,
        file_system: FileSystem<'a>,
    ) -> Self {
        Self {
            guest,
            spec: Spec::IDLE,
            running: Running::Idle,
            next: None,
            order: None,
            held,
            own,
            other_contents,
            has_written_common: false,
            file_system,
            counters: Counters {
                checks: 0,
                errors: 0,
                leaks: 0,
                touches: 0,
                touches_written: 0,
                rewritten: 0,
                breaks: 0,
                last_break: BreakFigures {
                    writes: 0,
                    p50_ns: 0,
                    p99_ns: 0,
                    max_ns: 0,
                    total_us: 0,
                    elapsed_us: 0,
                },
                operations: 0,
                read_bytes: 0,
                written_bytes: 0,
                hits: 0,
                misses: 0,
                disk_errors: 0,
                operation_time: Latencies::NONE,
                transactions: 0,
                transaction_time: Latencies::NONE,
            },
            failure: None,
        }
    }

    /// Runs another workload from now on. The frames of the one before are released first.
    ///
    /// # Errors
    /// If it needs files that the disk cannot have; then what runs goes on.
    pub fn start(&mut self, spec: Spec, disk: Option<&dyn Disk>) -> Result<(), NoFiles> {
        if let Some(spec) = spec.action.files() {
            dbench::blocks_for(spec, disk, self.file_system.cache.block_limit())?;
        }
        self.next = Some(spec);
        self.order = None;
        Ok(())
    }

    /// Tells the breaker that runs, or is about to, what to do when it has its pages and has done
    /// what it was told before.
    ///
    /// # Errors
    /// If the workload is no breaker or takes no order now.
    pub const fn tell(&mut self, order: Order) -> Result<(), OrderError> {
        match self.spec().action {
            Action::Break(spec) if spec.repeat => Err(OrderError::Loops),
            Action::Break(_) if self.order.is_some() => Err(OrderError::Busy),
            Action::Break(_) => {
                self.order = Some(order);
                Ok(())
            }
            _ => Err(OrderError::NoBreaker),
        }
    }

    /// The workload that runs or is about to.
    #[must_use]
    pub const fn spec(&self) -> Spec {
        match self.next {
            Some(next) => next,
            None => self.spec,
        }
    }

    /// What was done since boot.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Pages held.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held.count() + self.own.count()
    }

    /// Pages that [`give_up`](Self::give_up) would give.
    #[must_use]
    pub fn would_give_up(&self) -> u32 {
        if self.gives_up() {
            self.held.count()
        } else {
            0
        }
    }

    /// What stopped the workload; told once.
    pub const fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// What the breaker has done as it was told; told once.
    pub const fn take_done(&mut self) -> Option<Done> {
        match &mut self.running {
            Running::Break(breaker) => breaker.take_done(),
            _ => None,
        }
    }

    /// Frames that a workload of fixed size lacks and the allocator does not have.
    #[must_use]
    pub fn lacks(&self, frames: &Frames<'_>) -> u32 {
        match (self.spec.size, &self.running) {
            (_, Running::Failed) | (Size::Max, _) => 0,
            (Size::Pages(_), _) if self.next.is_some() => 0,
            (Size::Pages(_), Running::Tile(tile)) => tile
                .wanted()
                .min(frames.total())
                .saturating_sub(self.own.count())
                .saturating_sub(frames.free_count())
                .saturating_sub(self.would_give_up()),
            (Size::Pages(pages), _) => pages
                .min(frames.total())
                .saturating_sub(self.held.count())
                .saturating_sub(frames.free_count()),
        }
    }

    /// Goes on until the slice is over or nothing is to be done. The disk is always the same.
    pub fn step(
        &mut self,
        frames: &mut Frames<'_>,
        memory: &mut impl Memory,
        mut disk: Option<&mut (dyn Disk + 'static)>,
        slice: &mut Slice<'_>,
    ) -> Rest {
        if let Some(next) = self.next {
            if self.turn_into(next, slice.now_us()) {
                return Rest::No;
            }
            if let Some(wake_at_us) = self.wind_up(memory, disk.as_deref_mut(), slice) {
                return Rest::from(Some(wake_at_us));
            }
            let keeps_frames = self.keeps_frames_for(next);
            if !keeps_frames {
                self.release(frames, memory, slice);
            }
            if keeps_frames || self.held() == 0 {
                self.begin(next, disk.as_deref(), slice.now_us());
            }
            return Rest::No;
        }
        // New pages may be slow to come; those that are held are used meanwhile.
        let breathed = self.breathe(frames, memory, &mut slice.half());
        let grew = self.grow(frames, memory, &mut slice.half()) || breathed;
        let held = self.held();
        if !grew {
            self.pass_order_on(slice);
        }
        let wake_at_us = self.act(memory, disk, slice);
        match wake_at_us {
            _ if grew => Rest::No,
            _ if held == 0 => Rest::Asleep,
            wake_at_us => Rest::from(wake_at_us),
        }
    }

    /// Has a tile go on as one with the same pages and files, if it can.
    fn turn_into(&mut self, next: Spec, now_us: u64) -> bool {
        let (Running::Tile(tile), Action::Tile(spec)) = (&mut self.running, next.action) else {
            return false;
        };
        let can = next.size == self.spec.size && tile.turn_into(spec, now_us);
        if can {
            self.spec = next;
            self.next = None;
        }
        can
    }

    /// A toucher that becomes one of the same size needs the frames that it has.
    fn keeps_frames_for(&self, next: Spec) -> bool {
        let is_toucher = matches!(self.running, Running::Touch(_));
        is_toucher && matches!(next.action, Action::Touch(_)) && next.size == self.spec.size
    }

    fn begin(&mut self, spec: Spec, disk: Option<&dyn Disk>, now_us: u64) {
        self.spec = spec;
        self.next = None;
        self.running = match spec.action {
            Action::Idle => Running::Idle,
            Action::Touch(spec) => Running::Touch(Toucher::new(spec, self.guest, now_us)),
            Action::Clone(spec) => Running::Clone(Cloner::new(spec, self.guest, now_us)),
            Action::Verify(spec) => {
                self.has_written_common |= spec.common > 0;
                let writes_common = self.has_written_common;
                Running::Verify(Verifier::new(spec, self.guest, writes_common, now_us))
            }
            Action::Break(spec) => Running::Break(Breaker::new(spec, self.guest)),
            Action::Dbench(spec) => match self.begin_dbench(spec, disk, now_us) {
                Some(dbench) => Running::Dbench(dbench),
                None => Running::Idle,
            },
            Action::Tile(tile) => self.begin_tile(tile, disk, now_us),
        };
    }

    fn begin_tile(&mut self, tile: TileSpec, disk: Option<&dyn Disk>, now_us: u64) -> Running {
        let files = self.spec.action.files();
        let files = files.and_then(|files| self.begin_dbench(files, disk, now_us));
        let pages = match self.spec.size {
            Size::Max => u32::MAX,
            Size::Pages(pages) => pages,
        };
        let room = u32::try_from(self.own.room()).unwrap_or(u32::MAX);
        Running::Tile(Tile::new(tile, pages.min(room), self.guest, files, now_us))
    }

    /// `None` if its disk does not do.
    fn begin_dbench(
        &mut self,
        spec: DbenchSpec,
        disk: Option<&dyn Disk>,
        now_us: u64,
    ) -> Option<Dbench> {
        let limit = self.file_system.cache.block_limit();
        // `start` has looked at the same disk.
        let blocks = dbench::blocks_for(spec, disk, limit).ok()?;
        let dbench = Dbench::new(spec, self.guest, blocks, now_us);
        self.file_system.cache.clear(blocks);
        self.file_system.files.clear(blocks);
        self.file_system.requests.set_service(dbench.service());
        Some(dbench)
    }

    /// Has what runs bring its files home, before its frames are released. `None` when that is done.
    fn wind_up(
        &mut self,
        memory: &mut impl Memory,
        disk: Option<&mut (dyn Disk + 'static)>,
        slice: &mut Slice<'_>,
    ) -> Option<u64> {
        let (Some(dbench), Some(disk)) = (self.running.files(), disk) else {
            return None;
        };
        let (mut io, _) = self.file_system.open(&self.held, memory, disk);
        match dbench.wind_up(&mut io, slice) {
            Ok(Some(wake_at_us)) => Some(wake_at_us),
            Ok(None) => {
                self.file_system.cache.forget_all();
                None
            }
            Err(failure) => {
                self.fail_dbench(failure);
                Some(0)
            }
        }
    }

    /// Has a breaker that does nothing begin with what it was told or tells itself.
    fn pass_order_on(&mut self, slice: &mut Slice<'_>) {
        if let Running::Break(breaker) = &mut self.running
            && breaker.is_resting()
            && let Some(order) = self.order.take().or(breaker.own_order())
        {
            breaker.begin(order, self.held.count(), slice);
        }
    }

    fn act(
        &mut self,
        memory: &mut impl Memory,
        disk: Option<&mut (dyn Disk + 'static)>,
        slice: &mut Slice<'_>,
    ) -> Option<u64> {
        let Self {
            held,
            own,
            counters,
            ..
        } = self;
        match &mut self.running {
            Running::Tile(tile) => {
                let of_memory = match tile.step(own, memory, counters, &mut slice.half()) {
                    Ok(wake_at_us) => wake_at_us,
                    Err(wrong) => {
                        self.fail(wrong);
                        return None;
                    }
                };
                let (Some(files), Some(disk)) = (&mut tile.files, disk) else {
                    return of_memory;
                };
                let (mut io, all) = self.file_system.open(held, memory, disk);
                match files.step(&mut io, all, counters, slice) {
                    // At once, if one of them wants that, or at the earlier of both.
                    Ok(of_files) => of_files.min(of_memory),
                    Err(failure) => {
                        self.fail_dbench(failure);
                        None
                    }
                }
            }
            Running::Dbench(dbench) => {
                let Some(disk) = disk else {
                    return Some(u64::MAX);
                };
                let (mut io, files) = self.file_system.open(held, memory, disk);
                match dbench.step(&mut io, files, counters, slice) {
                    Ok(wake_at_us) => wake_at_us,
                    Err(failure) => {
                        self.fail_dbench(failure);
                        None
                    }
                }
            }
            Running::Idle | Running::Failed => Some(u64::MAX),
            Running::Touch(toucher) => toucher.step(held, memory, counters, slice),
            Running::Clone(cloner) => cloner.step(held, memory, counters, slice),
            Running::Break(breaker) => breaker.step(held, memory, counters, slice),
            Running::Verify(verifier) => match verifier.step(held, memory, counters, slice) {
                Ok(wake_at_us) => wake_at_us,
                Err(wrong) => {
                    self.fail(wrong);
                    Some(u64::MAX)
                }
            },
        }
    }

    fn fail(&mut self, wrong: WrongPage) {
        match wrong.expected_version {
            Some(_) => self.counters.errors += 1,
            None => self.counters.leaks += 1,
        }
        self.failure = Some(Failure::Page(wrong));
        match &mut self.running {
            // The disk may have some of its pages.
            Running::Tile(tile) => tile.stop(),
            running => *running = Running::Failed,
        }
    }

    /// It knows itself that it has failed, and takes back what the disk still has.
    fn fail_dbench(&mut self, failure: DbenchFailure) {
        self.failure = Some(match failure {
            DbenchFailure::Wrong(wrong) => {
                self.counters.errors += 1;
                Failure::Block(wrong)
            }
            DbenchFailure::Disk(failed) => {
                self.counters.disk_errors += 1;
                Failure::Disk(failed)
            }
        });
    }

    /// Gives a tile's own memory the size that it should have now. True if it changed.
    fn breathe(
        &mut self,
        frames: &mut Frames<'_>,
        memory: &mut impl Memory,
        slice: &mut Slice<'_>,
    ) -> bool {
        let mut changed = false;
        loop {
            let Running::Tile(tile) = &mut self.running else {
                return changed;
            };
            if tile.has_failed() {
                return changed;
            }
            tile.look_at_time(slice.now_us());
            let (wanted, count) = (tile.wanted(), self.own.count());
            let mut gfns = [0; CHUNK];
            let chunk = &mut gfns[..CHUNK.min(wanted.abs_diff(count) as usize)];
            let moved = match wanted < count {
                true => self.shrink_own(frames, memory, chunk),
                false => self.grow_own(frames, memory, chunk),
            };
            if moved == 0 {
                return changed;
            }
            changed = true;
            if slice.is_over() {
                return changed;
            }
        }
    }

    /// Frees as many pages of a tile's own as `gfns` has room for. Returns how many.
    fn shrink_own(
        &mut self,
        frames: &mut Frames<'_>,
        memory: &mut impl Memory,
        gfns: &mut [Gfn],
    ) -> usize {
        let mut freed = 0;
        while freed < gfns.len()
            && let Some(gfn) = self.retire_own(memory)
        {
            gfns[freed] = gfn;
            freed += 1;
        }
        frames.give_back(&gfns[..freed]);
        freed
    }

    /// Makes as many frames a tile's own as `gfns` has room for: free ones, or else those of its cache. Returns how many.
    fn grow_own(
        &mut self,
        frames: &mut Frames<'_>,
        memory: &mut impl Memory,
        gfns: &mut [Gfn],
    ) -> usize {
        let mut obtained = frames.allocate(gfns);
        while obtained < gfns.len()
            && let Some(gfn) = self.retire(memory)
        {
            gfns[obtained] = gfn;
            obtained += 1;
        }
        let Running::Tile(tile) = &self.running else {
            return 0;
        };
        for &gfn in &gfns[..obtained] {
            let slot = Slot { gfn, version: 0 };
            tile.write(self.own.count(), slot, memory.page(gfn));
            self.own.push(slot);
        }
        obtained
    }

    /// Lets go of the last frame that is a tile's own. `None` if there is none, or it was found to be wrong.
    fn retire_own(&mut self, memory: &mut impl Memory) -> Option<Gfn> {
        let slot = self.own.pop()?;
        if let Running::Tile(tile) = &self.running
            && !tile.has_failed()
            && let Err(wrong) = tile.check(self.own.count(), slot, memory.page(slot.gfn))
        {
            self.own.push(slot);
            self.fail(wrong);
            return None;
        }
        self.other_contents.insert(slot.gfn);
        Some(slot.gfn)
    }

    /// Obtains frames that the workload should have and there are. True if there may be more.
    fn grow(
        &mut self,
        frames: &mut Frames<'_>,
        memory: &mut impl Memory,
        slice: &mut Slice<'_>,
    ) -> bool {
        loop {
            let mut gfns = [0; CHUNK];
            let count = self.may_obtain(frames).min(CHUNK);
            let obtained = frames.allocate(&mut gfns[..count]);
            for (n, &gfn) in gfns[..obtained].iter().enumerate() {
                if let Err(wrong) = self.adopt(gfn, memory) {
                    self.fail(wrong);
                    frames.give_back(&gfns[n + 1..obtained]);
                    return false;
                }
            }
            if obtained == 0 || slice.is_over() {
                return obtained > 0;
            }
        }
    }

    fn may_obtain(&self, frames: &Frames<'_>) -> usize {
        let count = match (self.spec.size, &self.running) {
            (_, Running::Failed) => 0,
            (_, Running::Tile(tile)) if self.own.count() < tile.wanted() => 0,
            (_, Running::Tile(tile)) => frames
                .free_count()
                .saturating_sub(RESERVE)
                .min(tile.wanted_for_files().saturating_sub(self.held.count())),
            (Size::Max, _) => frames.free_count().saturating_sub(RESERVE),
            (Size::Pages(pages), _) => pages.saturating_sub(self.held.count()),
        };
        self.held.room().min(count as usize)
    }

    /// Makes a frame just obtained one of the workload's.
    fn adopt(&mut self, gfn: Gfn, memory: &mut impl Memory) -> Result<(), WrongPage> {
        let page = memory.page(gfn);
        let mut slot = Slot { gfn, version: 0 };
        let mut result = Ok(());
        match &self.running {
            Running::Idle | Running::Failed => {}
            // It is written when a block needs it.
            Running::Dbench(_) | Running::Tile(_) => self.file_system.cache.add_place(),
            // A working set is in use from the start.
            Running::Touch(_) => page[0] = u64::from(gfn),
            Running::Clone(cloner) => cloner.write(self.held.count(), 0, page),
            Running::Break(breaker) => breaker.fill(self.held.count(), page),
            Running::Verify(verifier) => {
                match verifier.adopt(gfn, page, self.other_contents.remove(gfn)) {
                    Ok(adopted) => slot = adopted,
                    // Held all the same, so that nobody else gets it.
                    Err(wrong) => result = Err(wrong),
                }
            }
        }
        self.held.push(slot);
        result
    }

    /// Whether frames are given up for the balloon.
    fn gives_up(&self) -> bool {
        let yields = self.spec.size == Size::Max
            || matches!(self.running, Running::Tile(_))
            || self.next.is_some();
        yields
            && match &self.running {
                Running::Tile(tile) => !tile.has_failed() || self.next.is_some(),
                Running::Failed => false,
                Running::Dbench(dbench) => !dbench.has_failed() || self.next.is_some(),
                _ => true,
            }
    }

    /// Gives frames up for the balloon, those that lie highest first, each checked once more if
    /// the workload checks. A cache may have to write some back first, which its next step does.
    /// Returns how many.
    pub fn give_up(&mut self, out: &mut [Gfn], memory: &mut impl Memory) -> usize {
        if !self.gives_up() {
            return 0;
        }
        let mut count = 0;
        while count < out.len()
            && let Some(gfn) = self.retire(memory)
        {
            out[count] = gfn;
            count += 1;
        }
        count
    }

    /// Lets go of the frame held last. `None` if there is none, or it was found to be wrong.
    fn retire(&mut self, memory: &mut impl Memory) -> Option<Gfn> {
        if let Running::Dbench(_) | Running::Tile(_) = self.running {
            self.vacate_last_place(memory)?;
        }
        let slot = self.held.pop()?;
        match &self.running {
            Running::Verify(verifier) => {
                self.counters.checks += 1;
                if let Err(wrong) = verifier.check(slot, memory.page(slot.gfn)) {
                    self.held.push(slot);
                    self.fail(wrong);
                    return None;
                }
            }
            Running::Idle => {}
            Running::Touch(_)
            | Running::Clone(_)
            | Running::Break(_)
            | Running::Dbench(_)
            | Running::Tile(_)
            | Running::Failed => {
                self.other_contents.insert(slot.gfn);
            }
        }
        Some(slot.gfn)
    }

    /// Has the cache do without its last place. `None` if it cannot now.
    fn vacate_last_place(&mut self, memory: &mut impl Memory) -> Option<()> {
        let given = self.file_system.cache.give_up()?;
        if let Some(place) = given.moves_to {
            let page = *memory.page(self.held.gfn(given.place));
            *memory.page(self.held.gfn(place)) = page;
        }
        Some(())
    }

    /// Gives frames back to the allocator until none is held or the slice is over.
    fn release(
        &mut self,
        frames: &mut Frames<'_>,
        memory: &mut impl Memory,
        slice: &mut Slice<'_>,
    ) {
        while self.held() > 0 && !slice.is_over() {
            let mut gfns = [0; CHUNK];
            let mut count = 0;
            while count < CHUNK
                && let Some(gfn) = self.retire_own(memory).or_else(|| self.retire(memory))
            {
                gfns[count] = gfn;
                count += 1;
            }
            frames.give_back(&gfns[..count]);
        }
    }
}
