//! Keeps writers out of a stretch of guest memory while the agent works on it.
//!
//! Most of the time all memory is registered with the tracker, so that the host can ask the kernel what
//! was written. A stretch is registered with the guard for as long as a step takes. The kernel forgets then
//! what was written in it, so the fence asks before ([`Fence::written`]) and arms it again behind
//! ([`Fence::arm`]).

use crate::memory::MemoryError;
use crate::memory::areas::AreaList;
use crate::memory::doors::{Deed, told};
use crate::memory::mapping::Addresses;
use crate::memory::pagemap::{Pagemap, Touch};
use crate::memory::ram::GuestRam;
use crate::memory::swap::{KeptOut, Swap};
use crate::memory::userfault::{Protection, Userfault};
use page::PAGE_BYTES;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// The userfaultfds, the pagemap and the list of areas of this process: it opens none of them later.
#[derive(Debug)]
pub(crate) struct Fence {
    guard: Userfault,
    tracker: Userfault,
    pagemap: Pagemap,
    areas: AreaList,
    /// For memory of which pages may be out, until that begins.
    pager: Option<Userfault>,
    /// Of memory of which pages may be out: in the place of both.
    swap: Option<Arc<Swap>>,
}

impl Fence {
    /// Registers all of a guest's memory with the tracker.
    pub(crate) fn new(ram: &GuestRam) -> Result<Self, MemoryError> {
        Self::with(ram, None)
    }

    /// The same, of memory of which pages may be out.
    pub(crate) fn with_pager(ram: &GuestRam) -> Result<Self, MemoryError> {
        Self::with(ram, Some(Userfault::pager()?))
    }

    fn with(ram: &GuestRam, pager: Option<Userfault>) -> Result<Self, MemoryError> {
        let fence = Self {
            guard: Userfault::guard()?,
            tracker: Userfault::tracker()?,
            pagemap: Pagemap::open(std::process::id())?,
            areas: AreaList::open()?,
            pager,
            swap: None,
        };
        for region in ram.memory().iter() {
            let start = region.as_ptr() as u64;
            fence.tracker.register(start..start + region.len())?;
        }
        Ok(fence)
    }

    /// What the pager is to hold.
    ///
    /// # Errors
    /// When none was opened before, and the kernel gives none now.
    pub(super) fn take_pager(&mut self) -> Result<Userfault, MemoryError> {
        self.pager.take().map_or_else(Userfault::pager, Ok)
    }

    /// The memory areas of this process, in the words of the kernel; none where it does not tell.
    pub(super) fn areas(&self) -> String {
        self.areas.read().unwrap_or_default()
    }

    /// Calls `found` with what was written, or is not watched, since the host armed it. At most 512 pages.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn written(
        &self,
        addresses: &Addresses,
        found: impl FnMut(Addresses),
    ) -> Result<(), MemoryError> {
        self.pagemap.written(addresses.clone(), found)
    }

    /// Arms what is watched again: from here on a write is noticed.
    ///
    /// # Errors
    /// When a part is not watched.
    pub(super) fn arm(&self, addresses: &Addresses) -> Result<(), MemoryError> {
        self.pagemap.arm(addresses.clone())
    }

    /// From here on nobody writes to these addresses until [`Self::lower`]; readers go on, but for those who are kept out of
    /// holes. Of memory that is not guarded nobody is: what is made of a hole there holds zeros, as the hole did.
    ///
    /// # Errors
    /// When the process has no memory areas left to split. Nothing has changed then.
    pub(super) fn raise(&self, addresses: &Addresses, out: KeptOut) -> Result<(), MemoryError> {
        if let Some(swap) = &self.swap {
            return swap.raise(addresses, std::slice::from_ref(addresses), out);
        }
        self.tracker.unregister(addresses.clone())?;
        let keeps_all = out == KeptOut::All;
        told(Deed::Fenced { keeps_all }, addresses);
        let guarded = self
            .guard
            .register(addresses.clone())
            .and_then(|()| self.guard.protect(addresses.clone(), Protection::Protected));
        if guarded.is_err() {
            self.lower(addresses);
        }
        guarded
    }

    /// Lets writers in again, whatever is mapped there by now. Returns how many had waited.
    ///
    /// # Panics
    /// If they cannot be let in: a guest must not wait for ever.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn lower(&self, addresses: &Addresses) -> u64 {
        if let Some(swap) = &self.swap {
            swap.lower(addresses, std::slice::from_ref(addresses));
            return 0;
        }
        let waited = self.count_waiting();
        let let_go = self
            .guard
            .unregister(addresses.clone())
            .or_else(|_| self.guard.protect(addresses.clone(), Protection::Lifted));
        if let Err(error) = let_go {
            tracing::debug!("protection stays where it never was: {error}");
        }
        told(Deed::Unfenced, addresses);
        self.track(addresses);
        self.guard
            .wake(addresses.clone())
            .expect("page-aligned addresses");
        waited
    }

    /// Does something that the kernel refuses with memory that is watched. What is written meanwhile, and what was
    /// not before, counts as written. Of memory that is guarded none may be out or a hole.
    ///
    /// # Errors
    /// When the process has no memory areas left to split. Nothing was done then.
    pub(super) fn unwatched<T>(
        &self,
        addresses: &Addresses,
        act: impl FnOnce() -> T,
    ) -> Result<T, MemoryError> {
        if let Some(swap) = &self.swap {
            return swap.unguarded(addresses, act);
        }
        self.tracker.unregister(addresses.clone())?;
        let done = act();
        self.track(addresses);
        Ok(done)
    }

    /// From now on pages of all memory may be out, once it was guarded by `guard`.
    ///
    /// # Errors
    /// When the kernel refuses: then nothing may be.
    pub(super) fn guard_all(
        &mut self,
        all: &Addresses,
        swap: &Arc<Swap>,
        guard: impl FnOnce(&Self) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        self.tracker.unregister(all.clone())?;
        self.swap = Some(Arc::clone(swap));
        let guarded = guard(self);
        if guarded.is_err() {
            self.let_all_go(all)?;
        }
        guarded
    }

    /// Guards memory that is home, if anything is guarded.
    ///
    /// # Errors
    /// When the process has no memory areas left to split.
    pub(super) fn guard(&self, addresses: &Addresses) -> Result<(), MemoryError> {
        let swap = self.swap.as_ref();
        swap.map_or(Ok(()), |swap| swap.guard(addresses))
    }

    /// Guards what is mapped from the store, if anything is guarded.
    ///
    /// # Errors
    /// When the process has no memory areas left to split.
    pub(super) fn guard_shared(&self, addresses: &Addresses) -> Result<(), MemoryError> {
        let swap = self.swap.as_ref();
        swap.map_or(Ok(()), |swap| swap.guard_writers(addresses))
    }

    /// Nothing is out any more, nor will be.
    ///
    /// # Errors
    /// When the kernel refuses: then all stays as it was.
    pub(super) fn let_all_go(&mut self, all: &Addresses) -> Result<(), MemoryError> {
        if let Some(swap) = &self.swap {
            swap.let_go(all)?;
        }
        self.swap = None;
        self.track(all);
        Ok(())
    }

    /// Whether pages may be out.
    pub(super) fn is_guarded(&self) -> bool {
        self.swap.is_some()
    }

    /// Which of these pages are out.
    pub(super) fn out(&self, pages: Range<u64>) -> Vec<u64> {
        let swap = self.swap.as_ref();
        swap.map_or_else(Vec::new, |swap| swap.out_among(pages))
    }

    /// These pages hold something else from here on, or lie elsewhere: what is kept of them is worth nothing.
    pub(super) fn forget(&self, pages: impl Iterator<Item = u64>) {
        if let Some(swap) = &self.swap {
            swap.forget(pages);
        }
    }

    /// Calls `found` with what is mapped of a block.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn present(
        &self,
        block: &Addresses,
        found: impl FnMut(Addresses),
    ) -> Result<(), MemoryError> {
        self.pagemap.present(block.clone(), found)
    }

    /// Whether a block is mapped as one large page.
    pub(super) fn is_large(&self, block: &Addresses) -> bool {
        self.pagemap.is_large(block.clone()).unwrap_or(false)
    }

    /// Whether anything of a block is mapped.
    pub(super) fn is_any_present(&self, block: &Addresses) -> bool {
        self.pagemap.is_any_present(block.clone()).unwrap_or(true)
    }

    /// Whether and how a page was touched since its mapping was dropped; none where the kernel does not tell.
    pub(super) fn touch(&self, address: u64) -> Option<Touch> {
        self.pagemap.touch(address).ok().flatten()
    }

    /// Has the tracker watch over memory that was mapped anew. What it does not watch counts as
    /// written, so a failure costs time and nothing else.
    pub(super) fn track(&self, addresses: &Addresses) {
        let watched = match &self.swap {
            Some(swap) => swap.guard(addresses),
            None => self.tracker.register(addresses.clone()),
        };
        if let Err(error) = watched {
            tracing::debug!("not tracked: {error}");
        }
    }

    /// Makes a stretch of private mappings that nobody uses yet fit for [`Self::copy_into`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn adopt(&self, addresses: &Addresses) -> Result<(), MemoryError> {
        self.guard.register(addresses.clone())
    }

    /// Puts a copy at a page of an adopted mapping, over whatever the file has there.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn copy_into(&self, address: u64, content: &[u8; PAGE_BYTES]) -> Result<(), Errno> {
        self.guard.copy(address, content)
    }

    /// Takes the kernel's messages about writers that wait; they go on waiting.
    pub(super) fn count_waiting(&self) -> u64 {
        let mut waiting = Vec::new();
        while let Ok(true) = self.guard.take_faults(&mut waiting) {}
        waiting.len() as u64
    }
}

/// Readable when a writer waits.
impl AsFd for Fence {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.guard.as_fd()
    }
}
