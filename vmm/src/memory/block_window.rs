//! Reads blocks of a VM's memory file without copying them: through a mapping that is there while a block is read.
//!
//! The file is another process's, which may be hostile, and changes all the time. Three things must not happen:
//!
//! * **A hole is filled by reading.** Memory would be taken that nobody accounts for. So the mapping is registered with
//!   a userfaultfd that refuses holes: a read of one raises SIGBUS. That is no check before the read; it holds
//!   for pages that are punched meanwhile, too.
//! * **The reader dies.** A hole, a file that was cut off, and a page that the machine has lost each raise SIGBUS. If that
//!   is in the window that the thread itself reads, zeros are put in the place of the whole window, the
//!   read goes on, and what it gave is thrown away. Every other SIGBUS does what it did before.
//! * **Memory lives longer.** A mapping keeps the file, and one that refuses holes keeps the kernel from making
//!   a large page of a block that has some. So a window lasts as long as one block is read.
//!
//! Others write to the memory while it is read. A Rust reference to it would be undefined behaviour; there is none. It is
//! read by volatile loads alone, from a mapping that is no Rust allocation, for which the language says that they do what
//! the machine does. What they give may be half old and half new: it is for whoever reads to bear that.
#![expect(
    unsafe_code,
    reason = "memory that others write to and take away is reached by raw pointers and a signal handler"
)]

use crate::memory::MemoryError;
use crate::memory::mapping::{BLOCK_BYTES, Reserved, reserve};
use crate::memory::userfault::Userfault;
use page::{PAGE_BYTES, PAGE_SIZE};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use sharing::BLOCK_PAGES;
use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_prefetch};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize, compiler_fence};
use std::sync::{Once, OnceLock};

/// Bytes that are read at once.
pub const STRIPE_BYTES: usize = 64;
/// What is read at once.
pub type Stripe = [u64; STRIPE_BYTES / 8];
/// So many of them are a page.
pub const PAGE_STRIPES: usize = PAGE_BYTES / STRIPE_BYTES;
/// So far ahead memory is asked for. Cores do so by themselves within 4 KiB only; with this, reading takes little
/// more than half as long.
const PREFETCH_BYTES: usize = PAGE_BYTES;

/// Opens windows.
#[derive(Debug)]
pub struct BlockWindows {
    refuser: Userfault,
}

impl BlockWindows {
    /// # Errors
    /// When the kernel cannot refuse to fill holes.
    pub fn new() -> Result<Self, MemoryError> {
        let refuser = Userfault::refuser()?;
        catch_bus_errors();
        Ok(Self { refuser })
    }

    /// Maps pages of one block of a memory file.
    ///
    /// # Errors
    /// When the file cannot be mapped, or was not opened for writing as well, without which holes cannot be refused.
    ///
    /// # Panics
    /// If they are not pages of one block, from its first on, or this thread has another window.
    pub fn open(&self, file: impl AsFd, pages: Range<u64>) -> Result<BlockWindow<'_>, MemoryError> {
        let count = pages.end - pages.start;
        let is_block = pages.start.is_multiple_of(BLOCK_PAGES as u64);
        assert!(
            is_block && count <= BLOCK_PAGES as u64,
            "no block: {pages:?}"
        );
        let is_reading = READING.with(|reading| !reading.addresses().is_empty());
        assert!(!is_reading, "a thread has one window");
        let window = BlockWindow::map(file, pages).map_err(MemoryError::MapRam)?;
        self.refuser.register_holes(window.addresses())?;
        READING.with(|reading| reading.begin(window.start.expose_provenance()..window.end()));
        Ok(window)
    }
}

/// A block of a memory file, mapped to be read by this thread.
#[derive(Debug)]
pub struct BlockWindow<'a> {
    reserved: Reserved,
    start: *mut c_void,
    pages: usize,
    of: PhantomData<&'a BlockWindows>,
}

impl BlockWindow<'_> {
    fn map(file: impl AsFd, pages: Range<u64>) -> Result<Self, Errno> {
        let reserved = reserve(BLOCK_BYTES)?;
        let window = Self {
            start: reserved.first_block,
            reserved,
            pages: usize::try_from(pages.end - pages.start).unwrap_or(BLOCK_PAGES),
            of: PhantomData,
        };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        let (length, offset) = (window.pages * PAGE_BYTES, pages.start * PAGE_SIZE);
        // SAFETY: it lies in what was reserved above, which nobody else knows.
        unsafe { mmap(window.start, length, ProtFlags::READ, flags, file, offset) }?;
        Ok(window)
    }

    fn end(&self) -> usize {
        self.start.addr() + self.pages * PAGE_BYTES
    }

    fn addresses(&self) -> Range<u64> {
        self.start.addr() as u64..self.end() as u64
    }

    /// What `look` makes of a page, by its place in the block. None if the page could not be read, as a hole cannot:
    /// then no page of this window can be read any more.
    ///
    /// # Panics
    /// If the window has no such page.
    pub fn read<T>(&self, place: usize, look: impl FnOnce(&MappedPage<'_>) -> T) -> Option<T> {
        assert!(place < self.pages, "page {place} of {}", self.pages);
        let page = MappedPage {
            start: self.start.wrapping_byte_add(place * PAGE_BYTES).cast(),
            of: PhantomData,
        };
        let found = look(&page);
        // The handler may have run in `look`, on this thread.
        compiler_fence(SeqCst);
        let is_lost = READING.with(|reading| reading.is_lost.load(Relaxed));
        (!is_lost).then_some(found)
    }
}

impl Drop for BlockWindow<'_> {
    fn drop(&mut self) {
        READING.with(Reading::end);
        // SAFETY: nobody else knows what `map` reserved and mapped.
        let unmapped = unsafe { munmap(self.reserved.start, self.reserved.length) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// A page that others write to meanwhile.
#[derive(Debug)]
pub struct MappedPage<'a> {
    start: *const u8,
    of: PhantomData<&'a BlockWindow<'a>>,
}

impl MappedPage<'_> {
    /// What is in a 64th of it now.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline]
    #[must_use]
    pub fn stripe(&self, index: usize) -> Stripe {
        assert!(index < PAGE_STRIPES, "stripe {index} of {PAGE_STRIPES}");
        let start = self.start.wrapping_add(index * STRIPE_BYTES);
        let ahead = start.wrapping_add(PREFETCH_BYTES);
        // SAFETY: to prefetch from where nothing is does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        let parts: [__m128i; 4] = std::array::from_fn(|part| {
            let place = start.cast::<__m128i>().wrapping_add(part);
            // SAFETY: the assert keeps it inside a page of the window that `of` keeps mapped, and pages are aligned to
            // more than 16 bytes. If the page is gone, the handler below puts another there. That others write to it
            // meanwhile, a volatile load outside of all Rust allocations allows.
            unsafe { place.read_volatile() }
        });
        // SAFETY: both are 64 bytes of which any will do; x86-64 has the lowest first.
        unsafe { std::mem::transmute::<[__m128i; 4], Stripe>(parts) }
    }
}

/// What this thread reads. The signal handler, which runs on the thread that met the fault, looks at it.
struct Reading {
    start: AtomicUsize,
    /// The same as `start` while nothing is read.
    end: AtomicUsize,
    is_lost: AtomicBool,
}

thread_local! {
    // Made when the thread is, and dropped by nobody: a signal handler may reach it at any time.
    static READING: Reading = const {
        Reading {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            is_lost: AtomicBool::new(false),
        }
    };
}

impl Reading {
    fn addresses(&self) -> Range<usize> {
        self.start.load(Relaxed)..self.end.load(Relaxed)
    }

    fn begin(&self, addresses: Range<usize>) {
        self.is_lost.store(false, Relaxed);
        self.start.store(addresses.start, Relaxed);
        self.end.store(addresses.end, Relaxed);
        compiler_fence(SeqCst);
    }

    fn end(&self) {
        compiler_fence(SeqCst);
        self.end.store(self.start.load(Relaxed), Relaxed);
    }

    /// Puts zeros in the place of the window, if that is where the fault was. For signal handlers: it makes one system
    /// call and takes no lock.
    fn lose(&self, address: usize) -> bool {
        let window = self.addresses();
        if !window.contains(&address) {
            return false;
        }
        let start = ptr::with_exposed_provenance_mut(window.start);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let length = window.end - window.start;
        // SAFETY: it replaces the window and nothing else, which is read by volatile loads alone.
        let zeros = unsafe { mmap_anonymous(start, length, ProtFlags::READ, flags) };
        self.is_lost.store(true, Relaxed);
        zeros.is_ok()
    }
}

/// What was to be done about SIGBUS before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Has the handler run from now on.
fn catch_bus_errors() {
    static CAUGHT: Once = Once::new();
    CAUGHT.call_once(|| {
        PREVIOUS.get_or_init(|| exchange_action(None));
        let mut action = default_action();
        action.sa_sigaction = on_bus_error as *const () as usize;
        // On the thread's other stack, if it has one: what was there before may be about a stack that has run over.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        exchange_action(Some(&action));
    });
}

fn default_action() -> libc::sigaction {
    // SAFETY: all of it zero is SIG_DFL, no flags and no signals blocked.
    unsafe { std::mem::zeroed() }
}

/// What was to be done about SIGBUS before. For signal handlers, too.
fn exchange_action(new: Option<&libc::sigaction>) -> libc::sigaction {
    let mut old = default_action();
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both are actions that outlive the call, or none; a handler among them is `on_bus_error`.
    let result = unsafe { libc::sigaction(libc::SIGBUS, new, &mut old) };
    debug_assert_eq!(result, 0, "SIGBUS can be caught");
    old
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives what it knows of the signal, to read while the handler runs.
    let about = unsafe { &*info };
    if about.si_code <= 0 {
        end_by(signal);
        return;
    }
    let is_fault = matches!(about.si_code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR);
    // SAFETY: a SIGBUS that the kernel raised has an address.
    let address = unsafe { about.si_addr() }.addr();
    if !is_fault || !READING.with(|reading| reading.lose(address)) {
        pass_on(signal, info, context);
    }
}

/// For a SIGBUS that somebody has sent: what is to be done about one by default.
fn end_by(signal: c_int) {
    exchange_action(Some(&default_action()));
    // SAFETY: raising a signal touches no memory. It comes when the handler has returned.
    unsafe { libc::raise(signal) };
}

/// For a fault that is none of the window's: what was to be done about it before. By default the access is tried again,
/// and its fault ends the process.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
    let previous = PREVIOUS.get();
    let takes_info = |action: &&libc::sigaction| action.sa_flags & libc::SA_SIGINFO != 0;
    match previous.filter(takes_info) {
        Some(action) => {
            let handler = ptr::with_exposed_provenance::<()>(action.sa_sigaction);
            // SAFETY: with SA_SIGINFO it is the address of such a function.
            let handler = unsafe { std::mem::transmute::<*const (), Handler>(handler) };
            handler(signal, info, context);
        }
        None => drop(exchange_action(Some(&default_action()))),
    }
}

#[cfg(test)]
mod tests;
