//! Each page of each guest's memory in this process, and who is there. What nothing keeps apart ends the process.

use super::{Deed, LockOf};
use crate::memory::ram::{GAP_END, GAP_START};
use lockset::{Page, Protections, Race, Visit};
use page::{GfnRange, PAGE_SIZE};
use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::panic::Location;
use std::process::exit;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A guest's memory.
struct Watched {
    addresses: Range<u64>,
    pages: Mutex<Vec<Page>>,
}

/// All of this process.
static WATCHED: RwLock<Vec<Arc<Watched>>> = RwLock::new(Vec::new());
static THREADS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static NUMBER: u32 = THREADS.fetch_add(1, Ordering::Relaxed);
    /// What this thread has that has nothing to do with a page.
    static HAS: Cell<Protections> = const { Cell::new(Protections::empty()) };
}

fn has(changed: Protections, has_it: bool) {
    HAS.with(|has| {
        let mut now = has.get();
        now.set(changed, has_it);
        has.set(now);
    });
}

/// From here on guest memory is at these addresses.
pub(crate) fn memory_is_at(addresses: &Range<u64>) {
    let count = usize::try_from((addresses.end - addresses.start) / PAGE_SIZE);
    let pages = vec![Page::default(); count.expect("it is mapped")];
    let mut watched = WATCHED.write().unwrap_or_else(PoisonError::into_inner);
    watched.push(Arc::new(Watched {
        addresses: addresses.clone(),
        pages: Mutex::new(pages),
    }));
}

/// No longer.
pub(crate) fn memory_leaves(start: u64) {
    let mut watched = WATCHED.write().unwrap_or_else(PoisonError::into_inner);
    watched.retain(|memory| memory.addresses.start != start);
}

/// This thread is a guest's agent.
pub(crate) fn i_am_the_agent() {
    has(Protections::AGENT, true);
}

/// Something is done with the pages at these addresses. Others than a guest's are nobody's business.
#[track_caller]
pub(crate) fn told(deed: Deed, addresses: &Range<u64>) {
    let visit = Visit {
        thread: NUMBER.with(|number| *number),
        has: HAS.with(Cell::get),
        place: Location::caller(),
    };
    let watched = WATCHED.read().unwrap_or_else(PoisonError::into_inner);
    let memory = watched
        .iter()
        .find(|memory| memory.addresses.contains(&addresses.start));
    let Some(memory) = memory.map(Arc::clone) else {
        return;
    };
    drop(watched);
    let page = |address: u64| {
        let page = (address - memory.addresses.start) / PAGE_SIZE;
        usize::try_from(page).expect("it is mapped")
    };
    let mut pages = memory.pages.lock().unwrap_or_else(PoisonError::into_inner);
    let end = page(addresses.end.next_multiple_of(PAGE_SIZE)).min(pages.len());
    for index in page(addresses.start)..end {
        if let Err(race) = tell(&mut pages[index], deed, visit) {
            end_by(index as u64, &race);
        }
    }
}

/// The same of what a guest has at an address.
#[track_caller]
pub(crate) fn told_in(deed: Deed, memory: &GuestMemoryMmap, start: GuestAddress, bytes: u64) {
    let Ok(address) = memory.get_host_address(start) else {
        return;
    };
    let address = address as u64;
    told(deed, &(address..address.saturating_add(bytes)));
}

/// The same of what a guest names.
#[track_caller]
pub(crate) fn told_of(deed: Deed, memory: &GuestMemoryMmap, ranges: &[GfnRange]) {
    for range in ranges {
        let start = GuestAddress(range.start.0 * PAGE_SIZE);
        told_in(deed, memory, start, range.count.bytes());
    }
}

fn tell(page: &mut Page, deed: Deed, visit: Visit) -> Result<(), Race> {
    match deed {
        Deed::Opened => page.opened(visit),
        Deed::Fenced { keeps_all } => page.fenced(visit, keeps_all),
        Deed::GivenUp => page.given_up(visit),
        Deed::Answered => page.answered(visit),
        Deed::NotKept => page.not_kept(),
        Deed::Unfenced => page.unfenced(visit)?,
        Deed::Protected => page.protected(visit)?,
        Deed::Lifted => page.lifted(visit)?,
        Deed::Registered { holes_wait } => page.registered(visit, holes_wait)?,
        Deed::Unregistered => page.unregistered(visit)?,
        Deed::LookedAt => page.looked_at(visit)?,
        Deed::OfDevice { waits } => page.written_by_device(visit, waits)?,
        Deed::TakenOut => page.taken_out(visit)?,
        Deed::Punched => page.punched(visit)?,
        Deed::Made { is_protected } => page.made(visit, is_protected)?,
        Deed::Kept => page.kept(visit)?,
        Deed::Forgotten => page.forgotten(visit)?,
        Deed::MappedFromStore => page.mapped_from_store(visit)?,
        Deed::MappedHome => page.mapped_home(visit)?,
        Deed::WrittenHome => page.written_home(visit)?,
        Deed::Dropped => page.copy_dropped(visit)?,
    }
    Ok(())
}

/// The other thread may be about to spoil the page: nothing is unwound.
fn end_by(index: u64, race: &Race) -> ! {
    let gfn = match index.checked_sub(GAP_START.0) {
        Some(above) => GAP_END.0 + above,
        None => index,
    };
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    eprintln!("lockset: nothing keeps '{name}' apart from others at page {gfn:#x}: {race}");
    exit(1)
}

/// A mutex of which is known who has it.
pub(crate) struct Known<T> {
    mutex: Mutex<T>,
    lock: Protections,
}

impl<T> fmt::Debug for Known<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

pub(crate) fn known<T>(lock: LockOf, value: T) -> Known<T> {
    Known {
        mutex: Mutex::new(value),
        lock: match lock {
            LockOf::Log => Protections::LOG,
            LockOf::Fence => Protections::FENCE_LOCK,
        },
    }
}

/// Whoever has it.
pub(crate) struct KnownGuard<'a, T> {
    guard: MutexGuard<'a, T>,
    lock: Protections,
}

impl<T> Deref for KnownGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for KnownGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for KnownGuard<'_, T> {
    fn drop(&mut self) {
        has(self.lock, false);
    }
}

/// What can be locked, known or not.
pub(crate) trait Lockable {
    type Guard<'a>
    where
        Self: 'a;

    fn take(&self) -> Self::Guard<'_>;
}

impl<T> Lockable for Mutex<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;

    fn take(&self) -> MutexGuard<'_, T> {
        crate::lock::lock(self)
    }
}

impl<T> Lockable for Known<T> {
    type Guard<'a>
        = KnownGuard<'a, T>
    where
        T: 'a;

    fn take(&self) -> KnownGuard<'_, T> {
        let guard = crate::lock::lock(&self.mutex);
        has(self.lock, true);
        KnownGuard {
            guard,
            lock: self.lock,
        }
    }
}

pub(crate) fn lock<L: Lockable>(mutex: &L) -> L::Guard<'_> {
    mutex.take()
}
