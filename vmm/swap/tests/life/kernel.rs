//! What the kernel does with guest memory, as far as a page's life hangs on it: the memory file, what is mapped over it, and
//! userfaultfd. Each call is done at once, for all of its pages. Addresses are page numbers.

use crate::contents::Word;
use crate::event::{Event, lock};
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use std::ops::Range;
use std::sync::Arc;

/// Why the kernel did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errno {
    /// Not now.
    Again,
    /// A page is there.
    Exist,
    /// Nothing is registered there.
    NoEnt,
}

/// Somebody waited at a page, and may have been woken since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) index: u64,
    pub(crate) kind: FaultKind,
}

/// Why.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FaultKind {
    /// To write to a page under write protection.
    Protected,
    /// To write to a page that is a hole, or to read it.
    Missing { is_write: bool },
}

/// Whether pages of a range may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    Protected,
    Lifted,
}

/// Who waits for the pager at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registered {
    Nobody,
    /// Who writes to a protected page.
    Writers,
    /// And who touches a hole.
    All,
}

struct Page {
    /// What the memory file holds, if it is no hole.
    file: Option<Word>,
    /// What is mapped in its place.
    store: Option<StoreMapping>,
    registered: Registered,
    /// Also of a hole: whoever makes a page there says anew whether it is.
    is_protected: bool,
    /// How often who waited there was woken.
    wakes: u64,
}

/// A private mapping of a frame.
#[derive(Clone, Copy)]
struct StoreMapping {
    frame: Word,
    /// What the page tables have: the frame once it was read, or what was written over it. Nothing before.
    mapped: Option<Word>,
}

struct Memory {
    pages: Vec<Page>,
    /// Not taken yet.
    faults: Vec<Fault>,
}

pub(crate) struct Kernel {
    memory: Mutex<Memory>,
    woken: Condvar,
    /// Signalled when somebody waits.
    pager: Arc<Event>,
}

impl Kernel {
    /// Of so many pages, all of them holes, of which nothing is registered.
    pub(crate) fn new(pages: u64, pager: Arc<Event>) -> Self {
        let hole = |_| Page {
            file: None,
            store: None,
            registered: Registered::Nobody,
            is_protected: false,
            wakes: 0,
        };
        Self {
            memory: Mutex::new(Memory {
                pages: (0..pages).map(hole).collect(),
                faults: Vec::new(),
            }),
            woken: Condvar::new(),
            pager,
        }
    }

    /// What a guest reads.
    pub(crate) fn read(&self, index: u64) -> Word {
        let mut memory = lock(&self.memory);
        loop {
            match memory.page(index).read() {
                Ok(word) => return word,
                Err(kind) => memory = self.wait(memory, Fault { index, kind }),
            }
        }
    }

    /// What a guest writes.
    pub(crate) fn write(&self, index: u64, word: Word) {
        let mut memory = lock(&self.memory);
        while let Err(kind) = memory.page(index).write(word) {
            memory = self.wait(memory, Fault { index, kind });
        }
    }

    /// Until somebody wakes those that wait at this page.
    fn wait<'a>(
        &'a self,
        mut memory: MutexGuard<'a, Memory>,
        fault: Fault,
    ) -> MutexGuard<'a, Memory> {
        memory.faults.push(fault);
        self.pager.signal();
        let wakes = memory.page(fault.index).wakes;
        while memory.page(fault.index).wakes == wakes {
            memory = self.woken.wait(memory).unwrap();
        }
        memory
    }

    /// Those that wait, and those that waited: a message stays when its sender is woken, as if it had been taken before.
    pub(crate) fn take_faults(&self) -> Vec<Fault> {
        std::mem::take(&mut lock(&self.memory).faults)
    }

    pub(crate) fn register(&self, pages: Range<u64>, registered: Registered) {
        let mut memory = lock(&self.memory);
        pages.for_each(|index| memory.page(index).registered = registered);
    }

    /// Lifts all protection.
    pub(crate) fn unregister(&self, pages: Range<u64>) {
        let mut memory = lock(&self.memory);
        for index in pages {
            let page = memory.page(index);
            (page.registered, page.is_protected) = (Registered::Nobody, false);
        }
    }

    /// Lifting it wakes writers.
    pub(crate) fn protect(&self, pages: Range<u64>, protection: Protection) -> Result<(), Errno> {
        let mut memory = lock(&self.memory);
        for index in pages {
            let page = memory.page(index);
            if page.registered == Registered::Nobody {
                return Err(Errno::NoEnt);
            }
            page.is_protected = protection == Protection::Protected;
            if protection == Protection::Lifted {
                self.wake_in(&mut memory, index);
            }
        }
        Ok(())
    }

    pub(crate) fn wake(&self, pages: Range<u64>) {
        let mut memory = lock(&self.memory);
        pages.for_each(|index| self.wake_in(&mut memory, index));
    }

    fn wake_in(&self, memory: &mut Memory, index: u64) {
        memory.page(index).wakes += 1;
        self.woken.notify_all();
    }

    /// Makes a page where none is, and wakes who waits for it. Over a frame that nobody has touched yet, too: the kernel looks
    /// into the page tables alone there, and it is all one to it for what the memory was registered.
    pub(crate) fn copy_as(
        &self,
        index: u64,
        word: Word,
        protection: Protection,
    ) -> Result<(), Errno> {
        let mut memory = lock(&self.memory);
        let page = memory.page(index);
        if page.registered == Registered::Nobody {
            return Err(Errno::NoEnt);
        }
        let there = match &mut page.store {
            Some(store) => &mut store.mapped,
            None => &mut page.file,
        };
        if there.is_some() {
            return Err(Errno::Exist);
        }
        *there = Some(word);
        page.is_protected = protection == Protection::Protected;
        self.wake_in(&mut memory, index);
        Ok(())
    }

    pub(crate) fn zero(&self, index: u64) -> Result<(), Errno> {
        self.copy_as(index, 0, Protection::Lifted)
    }

    pub(crate) fn punch(&self, pages: Range<u64>) {
        let mut memory = lock(&self.memory);
        pages.for_each(|index| memory.page(index).file = None);
    }

    /// Maps a frame in the place of a page. A new mapping is registered with nobody.
    pub(crate) fn map_store(&self, index: u64, frame: Word) {
        let mapped = None;
        self.map(index, Some(StoreMapping { frame, mapped }));
    }

    /// Maps the memory file again.
    pub(crate) fn map_home(&self, index: u64) {
        self.map(index, None);
    }

    fn map(&self, index: u64, store: Option<StoreMapping>) {
        let mut memory = lock(&self.memory);
        let page = memory.page(index);
        page.store = store;
        (page.registered, page.is_protected) = (Registered::Nobody, false);
    }

    /// Drops what a guest wrote over a frame.
    pub(crate) fn drop_copy(&self, index: u64) {
        let mut memory = lock(&self.memory);
        let store = memory.page(index).store.as_mut();
        store.expect("a frame is mapped").mapped = None;
    }

    /// Whether the memory file holds a page.
    pub(crate) fn is_held(&self, index: u64) -> bool {
        lock(&self.memory).page(index).file.is_some()
    }

    /// What the memory file holds: of a hole, zeros.
    pub(crate) fn read_file(&self, index: u64) -> Word {
        lock(&self.memory).page(index).file.unwrap_or(0)
    }

    pub(crate) fn write_file(&self, index: u64, word: Word) {
        lock(&self.memory).page(index).file = Some(word);
    }

    /// What the agent reads through the guest's mapping, where it may not wait.
    pub(crate) fn look(&self, index: u64) -> Word {
        let word = lock(&self.memory).page(index).read();
        word.expect("the agent does not wait for itself")
    }
}

impl Memory {
    fn page(&mut self, index: u64) -> &mut Page {
        let index = usize::try_from(index).expect("a page of the guest");
        &mut self.pages[index]
    }
}

impl Page {
    fn read(&mut self) -> Result<Word, FaultKind> {
        if let Some(store) = &mut self.store {
            return Ok(*store.mapped.get_or_insert(store.frame));
        }
        self.fill(false)
    }

    fn write(&mut self, word: Word) -> Result<(), FaultKind> {
        if self.store.is_none() {
            self.fill(true)?;
        }
        if self.is_protected && self.registered != Registered::Nobody {
            return Err(FaultKind::Protected);
        }
        match &mut self.store {
            Some(store) => store.mapped = Some(word),
            None => self.file = Some(word),
        }
        Ok(())
    }

    /// What is missing the kernel makes itself, if nobody wants to hear of it.
    fn fill(&mut self, is_write: bool) -> Result<Word, FaultKind> {
        match (self.file, self.registered) {
            (Some(word), _) => Ok(word),
            (None, Registered::All) => Err(FaultKind::Missing { is_write }),
            (None, Registered::Writers | Registered::Nobody) => Ok(*self.file.insert(0)),
        }
    }
}
