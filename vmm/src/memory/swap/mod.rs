//! Pages that are out: compressed and sealed, in the VM's log (the `swap` crate), and nowhere else.
//!
//! Two threads move them, and each does one thing alone. **The agent takes pages out** (`agent/out`), for it alone takes pages
//! away from the guest. **The pager brings them back** ([`pager`]), for it alone makes pages in memory that is guarded. Neither
//! waits for the other longer than for a step of microseconds, under one of two locks:
//!
//! * the log's: where a page is, and that it has come or gone. The pager puts a page into memory under it, so whoever has the
//!   lock sees a page that is out, or one that is there, and nothing between.
//! * the fence's: which block the agent keeps writers out of, or everybody. What is written there waits for the agent; what is
//!   written elsewhere and waits has come back as it left, and its record is worth nothing from then on. Who has both took
//!   this one first.
//!
//! Memory of which pages may be out is *guarded*: all of it is registered with the pager's userfaultfd before the first page
//! leaves, and until the last has come back. So whoever touches a hole there waits for the pager, and it is the pager that
//! knows what the hole means. **A page is only ever taken out of the memory file while it is there, behind the fence**: a hole
//! is nothing to be taken out, though its page be on the way.
//!
//! What the guest's own disks have is left to them ([`guest_disks`]).
//!
//! A third thread does what the log wants done besides ([`keeper`]): it writes segments to the swap file, if there is one, and
//! cleans. Others read that file for the pager ([`readers`]).

mod allocator;
mod descent;
mod file;
mod guest_disks;
mod keeper;
mod pager;
mod readers;
mod stream;
#[cfg(test)]
mod tests;

use crate::event::Event;
use crate::memory::MemoryError;
use crate::memory::doors::{Deed, Known, KnownGuard, LockOf, known, lock, told};
use crate::memory::heartbeat::{Heartbeat, Patience};
use crate::memory::left_out::{Step, is_left_out};
use crate::memory::mapping::Addresses;
use crate::memory::pages::{NotOwn, runs};
use crate::memory::ram::GuestRam;
use crate::memory::userfault::{Protection, Userfault};
use descent::Descent;
use file::SwapFile;
pub(crate) use guest_disks::GuestDisks;
use page::{Gfn, PAGE_SIZE, PageCount};
use policy::shared_of_limit;
use protocol::SwapCounters;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use swap::{Config, Key, LEAST_POOL_BYTES, Log, PageBytes, Refused, Sealer};

/// What a VM may hold in any case, be its limit lower: with less a guest cannot go on, for what it needs for one step
/// would take away what it needed for the last.
pub(crate) const LEAST_HOLD: PageCount = PageCount::from_mebibytes(4);

/// Pages that are kept free beyond what is asked for when pages go out, so that those that come back find room: 1 MiB.
pub(crate) const AHEAD: i64 = 256;

/// Where nothing can leave any more, so many pages may come beyond the fewest that the VM has held: then what they were stored in
/// is free, and others can leave.
const EXCHANGED: i64 = 64;

/// The part of what a VM may hold that its pool takes at most, in percent, if that is less than its own limit.
const POOL_PERCENT: u64 = 40;

/// No limit.
const ALL: u64 = u64::MAX;

/// What agent, pager and keeper of a VM have in common. Pages are named by their place in the memory file, in the log too.
#[derive(Debug)]
pub(crate) struct Swap {
    ram: GuestRam,
    userfault: Userfault,
    log: Known<Log>,
    sealer: Sealer,
    /// Where segments go that memory has no room for.
    file: Option<Arc<SwapFile>>,
    guest_disks: Arc<GuestDisks>,
    not_own: Arc<NotOwn>,
    /// What the agent keeps others out of.
    fenced: Known<Option<Fenced>>,
    /// Whether the pager has had somebody wait for that.
    has_turned_away: AtomicBool,
    /// The thread that hears the host, if it touches guest memory: it is kept waiting by nothing that the host may change.
    hears_host: AtomicU32,
    /// Pages that the VM may hold at most, its log among them.
    hold: AtomicU64,
    /// How far it has come down to that.
    descent: Mutex<Descent>,
    /// The most room that there was beside what is needed in the log, while nothing could leave; moved with the limit.
    best_room: AtomicI64,
    /// Whether the last page that should have left found no place.
    takes_nothing: AtomicBool,
    /// Whether something was done since that may have made some.
    has_made_room: AtomicBool,
    /// Pages that are mapped from the store.
    shared: AtomicU64,
    /// Whether the last write to the file failed.
    is_writing_in_vain: AtomicBool,
    /// Wakes the agent: there is to be room for pages that come back.
    agent: Event,
    /// Wakes the pager: there may be room, or it is to end.
    pager: Event,
    /// Wakes the keeper.
    keeper: Event,
    heartbeat: Heartbeat,
    patience: Mutex<Patience>,
    counters: Mutex<SwapCounters>,
    /// What the VM ends with: a page that cannot be had again.
    lost: Mutex<Option<String>>,
    /// Wakes who listens for that.
    ending: Event,
}

/// Who is kept out of a stretch of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptOut {
    /// Those who write to pages that are there.
    Writers,
    /// And those who touch a hole: none of it becomes a page.
    All,
}

#[derive(Clone, Debug)]
struct Fenced {
    addresses: Addresses,
    out: KeptOut,
}

impl Fenced {
    fn has(fenced: Option<&Self>, address: u64) -> Option<KeptOut> {
        let fenced = fenced.filter(|fenced| fenced.addresses.contains(&address))?;
        Some(fenced.out)
    }
}

/// Why a page stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stays {
    /// The log will have room soon.
    ForNow,
    /// The log has none.
    ForGood,
}

impl Swap {
    /// Starts the pager and the keeper of a guest; the pager holds `userfault`. `agent` wakes its agent. Of so many pages the swap file always has room,
    /// if there is one. Of `disks` those are none that the guest can write.
    ///
    /// # Errors
    /// When the kernel gives no thread or random numbers.
    pub(in crate::memory) fn start(
        ram: &GuestRam,
        userfault: Userfault,
        agent: Event,
        file: Option<(File, PageCount)>,
        disks: Vec<Option<Arc<File>>>,
        not_own: Arc<NotOwn>,
    ) -> Result<Arc<Self>, MemoryError> {
        allocator::give_back_what_is_freed();
        let event = || Event::new().map_err(MemoryError::StartAgent);
        let size = ram.layout().size();
        let config = match &file {
            Some((_, may_be_out)) => Config::of_vm(size, 0).with_file_for(*may_be_out),
            None => Config::of_vm(size, 0),
        };
        let log = Log::new(config).expect("the default is a log for any VM");
        let swap = Arc::new(Self {
            ram: ram.clone(),
            userfault,
            log: known(LockOf::Log, log),
            sealer: Sealer::new(&random_key()?),
            file: file.map(|(file, _)| Arc::new(SwapFile::new(file))),
            guest_disks: Arc::new(GuestDisks::new(ram.layout(), disks)?),
            not_own,
            fenced: known(LockOf::Fence, None),
            has_turned_away: AtomicBool::new(false),
            hears_host: AtomicU32::new(0),
            hold: AtomicU64::new(ALL),
            descent: Mutex::default(),
            best_room: AtomicI64::new(i64::MIN),
            takes_nothing: AtomicBool::new(false),
            has_made_room: AtomicBool::new(false),
            shared: AtomicU64::new(0),
            is_writing_in_vain: AtomicBool::new(false),
            agent,
            pager: event()?,
            keeper: event()?,
            heartbeat: Heartbeat::new("pager"),
            patience: Mutex::new(Patience::new()),
            counters: Mutex::new(SwapCounters {
                keeps_limit: true,
                ..SwapCounters::default()
            }),
            lost: Mutex::new(None),
            ending: event()?,
        });
        pager::start(Arc::clone(&swap)).map_err(MemoryError::StartAgent)?;
        keeper::start(Arc::downgrade(&swap)).map_err(MemoryError::StartAgent)?;
        Ok(swap)
    }

    /// Pages that the VM may hold at most; any number, if none is given.
    pub(crate) fn set_hold(&self, hold: Option<PageCount>) {
        let pages = hold.map_or(ALL, |pages| pages.max(LEAST_HOLD).0);
        let mut descent = lock(&self.descent);
        let before = self.hold.swap(pages, Ordering::Relaxed);
        *descent = Descent::default();
        drop(descent);
        let best = match before {
            ALL => i64::MIN,
            _ => self
                .best_room
                .load(Ordering::Relaxed)
                .saturating_add(most(pages) - most(before)),
        };
        self.best_room.store(best, Ordering::Relaxed);
        self.guest_disks.set_limited(hold.is_some());
        // What is held is to be the guest's for the most part.
        let pool = pages.saturating_mul(PAGE_SIZE) / 100 * POOL_PERCENT;
        lock(&self.log).limit_pool(pool.max(LEAST_POOL_BYTES as u64));
        self.pager.signal();
    }

    /// This thread hears the host.
    pub(crate) fn keep_waiting_never(&self) {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        self.hears_host
            .store(thread.cast_unsigned(), Ordering::Relaxed);
    }

    /// Hears what the guest reads from its disks.
    pub(crate) fn guest_disks(&self) -> &Arc<GuestDisks> {
        &self.guest_disks
    }

    /// Whether the VM keeps within its limit.
    pub(crate) fn set_keeps_limit(&self, is_kept: bool) {
        lock(&self.counters).keeps_limit = is_kept;
    }

    /// So many pages are mapped from the store.
    pub(crate) fn set_shared(&self, pages: u64) {
        self.shared.store(pages, Ordering::Relaxed);
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.hold.load(Ordering::Relaxed) != ALL
    }

    /// How many pages the VM may still take; negative where it holds too many.
    pub(crate) fn room(&self) -> Result<i64, MemoryError> {
        self.room_beside(self.log_pages())
    }

    /// The same, if the log took so many.
    fn room_beside(&self, log: PageCount) -> Result<i64, MemoryError> {
        let hold = self.hold.load(Ordering::Relaxed);
        let shared = PageCount(self.shared.load(Ordering::Relaxed));
        let held = self.ram.allocated()? + log + shared_of_limit(PageCount(hold), shared);
        Ok(most(hold).saturating_sub(most(held.0)))
    }

    /// How many pages may come: on the way down to a limit as many as [`Descent`] says. Where the VM holds too many and none
    /// can leave, some all the same, for a guest that never runs never gives anything up either. It does not come to hold more
    /// by that: what came back is needed in the log no more.
    pub(crate) fn room_to_come(&self) -> Result<i64, MemoryError> {
        let mut descent = lock(&self.descent);
        let room = descent.may_come(self.room()?);
        drop(descent);
        if room > 0 || !self.takes_nothing.load(Ordering::Relaxed) {
            return Ok(room);
        }
        let needed = lock(&self.log).figures().memory.needed.bytes;
        let needed = self.room_beside(PageCount(needed.div_ceil(PAGE_SIZE)))?;
        let best = self
            .best_room
            .fetch_max(needed, Ordering::Relaxed)
            .max(needed);
        Ok(needed.saturating_sub(best.min(0)).saturating_add(EXCHANGED))
    }

    /// As [`Self::room`], once what is on its way to the file is there. None of that is, where the file takes nothing.
    pub(crate) fn room_soon(&self) -> Result<i64, MemoryError> {
        let leaving = match self.is_writing_in_vain.load(Ordering::Relaxed) {
            true => 0,
            false => lock(&self.log).leaving_bytes() / PAGE_SIZE,
        };
        Ok(self.room()?.saturating_add_unsigned(leaving))
    }

    /// What the log takes of memory.
    fn log_pages(&self) -> PageCount {
        PageCount(lock(&self.log).pool_bytes().div_ceil(PAGE_SIZE))
    }

    /// From now on whoever touches a hole at these addresses waits for the pager, and writers to what is protected.
    ///
    /// # Errors
    /// When the kernel refuses, or they are registered with another.
    pub(crate) fn guard(&self, addresses: &Addresses) -> Result<(), MemoryError> {
        match is_left_out(Step::HolesWait) {
            true => self.guard_writers(addresses),
            false => self.userfault.register_all(addresses.clone()),
        }
    }

    /// From now on writers to what is protected at these addresses wait for the pager. What is missing there the kernel makes:
    /// nothing of it can be out.
    ///
    /// # Errors
    /// When the kernel refuses, or they are registered with another.
    pub(crate) fn guard_writers(&self, addresses: &Addresses) -> Result<(), MemoryError> {
        self.userfault.register(addresses.clone())
    }

    /// No longer. **Nothing of it may be out.** Who waits goes on. What is written from here on nobody hears of, so nothing is
    /// kept of what came back.
    pub(crate) fn let_go(&self, addresses: &Addresses) -> Result<(), MemoryError> {
        if !is_left_out(Step::LetGoIsForgotten) {
            self.forget(self.pages_at(addresses));
        }
        self.userfault.unregister(addresses.clone())?;
        self.userfault.wake(addresses.clone())
    }

    /// Does something that the kernel refuses with memory that is guarded. **Nothing of it may be out, and none of it be a hole**;
    /// and the pager makes no page there meanwhile. Where it cannot be guarded again nobody can be kept out any more, so nothing
    /// of it goes out.
    ///
    /// # Errors
    /// When the kernel refuses. Nothing was done then.
    pub(crate) fn unguarded<T>(
        &self,
        addresses: &Addresses,
        act: impl FnOnce() -> T,
    ) -> Result<T, MemoryError> {
        self.fence(addresses.clone(), KeptOut::All);
        let done = self.let_go(addresses).map(|()| act());
        if let Err(error) = self.guard(addresses) {
            tracing::debug!("not guarded: {error}");
        }
        self.let_in(&mut lock(&self.fenced), addresses);
        done
    }

    /// From here on nobody writes to some stretches within these addresses until [`Self::lower`] with the same; who reads what is
    /// there goes on. The kernel takes the guest's mappings of all that is protected, and of nothing else.
    pub(crate) fn raise(
        &self,
        within: &Addresses,
        stretches: &[Addresses],
        out: KeptOut,
    ) -> Result<(), MemoryError> {
        self.fence(within.clone(), out);
        let protection = match is_left_out(Step::WritersWait) {
            true => Protection::Lifted,
            false => Protection::Protected,
        };
        let mut each = stretches.iter().cloned();
        let protected = each.try_for_each(|stretch| self.userfault.protect(stretch, protection));
        if protected.is_err() {
            self.lower(within, stretches);
        }
        protected
    }

    /// Lets writers in again, but for pages that came back as they left and were not written since: those go on waiting
    /// for the pager.
    ///
    /// # Panics
    /// If they cannot be let in: a guest must not wait for ever.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(crate) fn lower(&self, within: &Addresses, stretches: &[Addresses]) {
        let mut fenced = lock(&self.fenced);
        // Held all the time: what comes back meanwhile is protected, and is to stay so.
        let log = lock(&self.log);
        let pages = stretches.iter().flat_map(|stretch| self.pages_at(stretch));
        let is_let_in =
            |index: u64| !self.is_kept(&log, Gfn(index)) || is_left_out(Step::StaysProtected);
        for run in runs(pages.filter(|&index| is_let_in(index))) {
            let run = self.ram.addresses(run);
            if let Err(error) = self.userfault.protect(run, Protection::Lifted) {
                tracing::debug!("protection stays where it never was: {error}");
            }
        }
        drop(log);
        self.let_in(&mut fenced, within);
    }

    fn fence(&self, addresses: Addresses, out: KeptOut) {
        let mut fenced = lock(&self.fenced);
        let keeps_all = out == KeptOut::All;
        told(Deed::Fenced { keeps_all }, &addresses);
        *fenced = Some(Fenced { addresses, out });
    }

    /// Who was kept out goes on.
    #[cfg_attr(feature = "lockset", track_caller)]
    fn let_in(&self, fenced: &mut Option<Fenced>, addresses: &Addresses) {
        told(Deed::Unfenced, addresses);
        *fenced = None;
        if self.has_turned_away.swap(false, Ordering::Relaxed) {
            // Who touched a hole is in its queue.
            self.pager.signal();
        }
        self.userfault
            .wake(addresses.clone())
            .expect("page-aligned addresses");
    }

    /// Whether a page is there as it came back.
    fn is_kept(&self, log: &Log, gfn: Gfn) -> bool {
        let is_kept = log.is_kept(gfn);
        if !is_kept {
            told(Deed::NotKept, &self.ram.addresses(gfn.0..gfn.0 + 1));
        }
        is_kept
    }

    fn pages_at(&self, addresses: &Addresses) -> Range<u64> {
        let start = self.ram.addresses(0..0).start;
        (addresses.start - start) / PAGE_SIZE..(addresses.end - start) / PAGE_SIZE
    }

    /// A page that the memory file holds, behind the fence, is out from here on: it may be punched.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(crate) fn take_out(&self, index: u64, content: &PageBytes) -> Result<(), Stays> {
        self.log_out(index, content)?;
        told(Deed::TakenOut, &self.ram.addresses(index..index + 1));
        Ok(())
    }

    fn log_out(&self, index: u64, content: &PageBytes) -> Result<(), Stays> {
        let gfn = Gfn(index);
        if lock(&self.log).keep_out(gfn) {
            return Ok(());
        }
        if let Some(page) = self.guest_disks.find(index, content) {
            lock(&self.log).leave_to_disk(gfn, page);
            return Ok(());
        }
        let Ok(sealed) = self.sealer.seal(gfn, content) else {
            return Err(Stays::ForGood);
        };
        match lock(&self.log).append(&sealed) {
            Ok(()) => Ok(()),
            Err(Refused::Wait) => {
                self.keeper.signal();
                Err(Stays::ForNow)
            }
            Err(Refused::Full) => Err(Stays::ForGood),
        }
    }

    /// Whether there may be room in the log that was not there when this was asked last.
    pub(crate) fn has_made_room(&self) -> bool {
        self.has_made_room.swap(false, Ordering::Relaxed)
    }

    /// The guest gives up pages: what the log has of them is worth nothing.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(crate) fn forget(&self, pages: impl Iterator<Item = u64>) {
        let mut log = lock(&self.log);
        for index in pages {
            self.forget_in(&mut log, Gfn(index));
        }
    }

    #[cfg_attr(feature = "lockset", track_caller)]
    fn forget_in(&self, log: &mut Log, gfn: Gfn) {
        told(Deed::Forgotten, &self.ram.addresses(gfn.0..gfn.0 + 1));
        log.forget(gfn);
    }

    /// Those of some pages that are out.
    pub(crate) fn out_among(&self, pages: Range<u64>) -> Vec<u64> {
        let log = lock(&self.log);
        pages.filter(|&index| log.is_out(Gfn(index))).collect()
    }

    #[cfg(test)]
    pub(crate) fn answer_late(self: &Arc<Self>, index: u64) {
        pager::answer_late(self, index);
    }

    #[cfg(test)]
    pub(crate) fn is_in_file(&self, index: u64) -> bool {
        use swap::{Found, Source};
        match lock(&self.log).find(Gfn(index), 0) {
            Some(Found::Stored(stored)) => matches!(stored.source, Source::File(_)),
            _ => false,
        }
    }

    /// Pages that are out.
    pub(crate) fn out(&self) -> PageCount {
        lock(&self.log).out()
    }

    /// Of those, the ones in the file or on the guest's disks.
    pub(crate) fn in_file(&self) -> PageCount {
        let log = lock(&self.log);
        let is_all_in_memory = self.file.is_none() && self.guest_disks.is_empty();
        if is_all_in_memory || log.out() == PageCount::ZERO {
            return PageCount::ZERO;
        }
        // To count them all segments are looked at.
        let figures = log.figures();
        PageCount(figures.file.needed.records + figures.disk_pages)
    }

    /// Pages went out, so there may be room for others.
    pub(crate) fn went_out(&self, count: u64, refused: u64) {
        let mut counters = lock(&self.counters);
        counters.out += count;
        counters.refused += refused;
        drop(counters);
        self.takes_nothing
            .store(count == 0 && refused > 0, Ordering::Relaxed);
        self.pager.signal();
    }

    /// What the log holds is added up for this: some 10 ns for each of its segments and of the guest's blocks.
    pub(crate) fn counters(&self) -> SwapCounters {
        let log = lock(&self.log);
        let (figures, config, pool_bytes) = (log.figures(), *log.config(), log.pool_bytes());
        drop(log);
        let (memory, file, totals) = (figures.memory, figures.file, figures.totals);
        SwapCounters {
            left_to_disks: totals.disk_pages,
            zipped: totals.appended.records,
            written_bytes: totals.written_bytes,
            rewritten_bytes: totals.rewritten_bytes,
            cleaned_bytes: totals.read_bytes,
            pool_bytes,
            pool_used_bytes: memory.needed.bytes,
            pool_limit_bytes: (config.pool_segments * config.segment_bytes) as u64,
            file_bytes: file.bytes,
            file_used_bytes: file.needed.bytes,
            ..*lock(&self.counters)
        }
    }

    /// Looks whether the pager goes on.
    ///
    /// # Panics
    /// If it hangs.
    pub(crate) fn watch_pager(&self) {
        lock(&self.patience).look(&self.heartbeat);
    }

    /// Signalled when a page cannot be had again.
    pub(crate) fn ending(&self) -> &Event {
        &self.ending
    }

    /// Why the VM cannot go on.
    pub(crate) fn why_it_ends(&self) -> Option<String> {
        lock(&self.lost).clone()
    }

    fn lose(&self, why: String) {
        lock(&self.lost).get_or_insert(why);
        self.ending.signal();
    }

    fn is_anything_out(&self) -> bool {
        self.out() > PageCount::ZERO
    }

    /// The agent has ended.
    pub(crate) fn end(&self) {
        self.pager.signal();
    }
}

fn most(pages: u64) -> i64 {
    i64::try_from(pages).unwrap_or(i64::MAX)
}

fn random_key() -> Result<Key, MemoryError> {
    let mut key = Key([0; 32]);
    fill_at_random(&mut key.0)?;
    Ok(key)
}

/// At most 256 bytes, which the kernel gives at once.
fn fill_at_random(bytes: &mut [u8]) -> Result<(), MemoryError> {
    let length = bytes.len();
    let flags = rustix::rand::GetRandomFlags::empty();
    match rustix::rand::getrandom(bytes, flags) {
        Ok(count) if count == length => Ok(()),
        Ok(_) => Err(MemoryError::Random(rustix::io::Errno::AGAIN)),
        Err(error) => Err(MemoryError::Random(error)),
    }
}
