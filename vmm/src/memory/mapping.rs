//! Puts other memory in the place of a guest's pages: the store's, or the VM's own memory file again.
//!
//! A mapping is replaced at once: whoever touches the page sees what was there or what is there now,
//! never a hole. What these functions rely on, and cannot check, is that both hold the same, so that
//! the guest does not notice; the agent compares under write protection before it calls them.
#![expect(
    unsafe_code,
    reason = "replacing mappings under a guest is what this is for"
)]

use crate::memory::doors::{Deed, memory_is_at, memory_leaves, told};
use page::{PAGE_BYTES, PAGE_SIZE};
use rustix::fd::AsFd;
use rustix::fd::AsRawFd;
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed, munmap,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use sharing::BLOCK_PAGES;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr;

pub(super) const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE_BYTES;

/// Memory that may be made part of the guest's RAM, by address: this process's mapping of it.
pub(super) type Addresses = Range<u64>;

fn length(addresses: &Addresses) -> usize {
    usize::try_from(addresses.end - addresses.start).expect("a part of this process's memory")
}

fn pointer(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(usize::try_from(address).expect("an address of this process"))
}

/// Maps frames of the store in the place of guest pages; the guest's writes to them make copies.
#[cfg_attr(feature = "lockset", track_caller)]
pub(super) fn map_store(
    addresses: &Addresses,
    store: impl AsFd,
    first_frame: u64,
) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    told(Deed::MappedFromStore, addresses);
    map_over(addresses, flags, store, first_frame * PAGE_SIZE)
}

/// Maps the VM's own memory file in the place of guest pages.
#[cfg_attr(feature = "lockset", track_caller)]
pub(super) fn map_memory_file(
    addresses: &Addresses,
    file: impl AsFd,
    first_page: u64,
) -> Result<(), Errno> {
    // Without the reservation, as guest memory was mapped at first: then the areas become one again.
    let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
    told(Deed::MappedHome, addresses);
    map_over(addresses, flags, file, first_page * PAGE_SIZE)
}

fn map_over(
    addresses: &Addresses,
    flags: MapFlags,
    file: impl AsFd,
    offset: u64,
) -> Result<(), Errno> {
    let (start, length) = (pointer(addresses.start), length(addresses));
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the addresses are guest RAM, which stays mapped for the guest and is reached through
    // volatile accesses alone; the new mapping is as long and as accessible as the old one.
    unsafe { mmap(start, length, access, flags, file, offset) }.map(drop)
}

/// For each of so many mapped pages whether it is in memory.
pub(super) fn mincore(
    start: *mut c_void,
    pages: usize,
) -> Result<impl Iterator<Item = bool>, Errno> {
    const RESIDENT: u8 = 1;
    let mut states = vec![0u8; pages];
    // SAFETY: `states` has a byte for each page; nothing else is written to. The kernel refuses
    // addresses where nothing is mapped.
    match unsafe { libc::mincore(start, pages * PAGE_BYTES, states.as_mut_ptr()) } {
        0 => Ok(states.into_iter().map(|state| state & RESIDENT != 0)),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

/// Whether all of it is mapped. A replacement that failed half-way may have left a hole.
pub(super) fn is_mapped(addresses: &Addresses) -> bool {
    mincore(pointer(addresses.start), length(addresses) / PAGE_BYTES).is_ok()
}

/// Drops what a guest wrote over mapped frames, so that the frames show again.
#[cfg_attr(feature = "lockset", track_caller)]
pub(super) fn drop_copies(addresses: &Addresses) -> Result<(), Errno> {
    told(Deed::Dropped, addresses);
    let (start, length) = (pointer(addresses.start), length(addresses));
    // SAFETY: as in `map_over`: what shows afterwards was compared with what is dropped.
    unsafe { madvise(start, length, Advice::LinuxDontNeed) }
}

/// From now on a first touch of a block of these makes all of it. Mapping the memory file anew takes that back.
pub(super) fn advise_large(blocks: &Addresses) -> Result<(), Errno> {
    let (start, length) = (pointer(blocks.start), length(blocks));
    // SAFETY: no content changes, nor what is mapped; how much a touch allocates is for the caller to reckon.
    unsafe { madvise(start, length, Advice::LinuxHugepage) }
}

/// Makes a block of a memory file one large page, with what it holds. What of it was a hole is filled with zeros.
pub(super) fn collapse(block: &Addresses) -> Result<(), Errno> {
    #[cfg(test)]
    if let Some(errno) = refused::collapse_at(block.start) {
        return Err(errno);
    }
    let (start, length) = (pointer(block.start), length(block));
    // SAFETY: content stays as it is, in another page; holes read as zeros before and after.
    match unsafe { libc::madvise(start, length, libc::MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

/// Calls that fail as a kernel's do that is short of something, for tests of what follows.
#[cfg(test)]
pub(super) mod refused {
    use super::{Addresses, Errno};
    use std::sync::{Mutex, PoisonError};

    static COLLAPSES: Mutex<Vec<(Addresses, Errno)>> = Mutex::new(Vec::new());

    /// From now on no block at these addresses is collapsed; none is refused any more where there is no error.
    pub(in crate::memory) fn collapses(addresses: &Addresses, errno: Option<Errno>) {
        let mut refused = COLLAPSES.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|(others, _)| others != addresses);
        refused.extend(errno.map(|errno| (addresses.clone(), errno)));
    }

    pub(super) fn collapse_at(address: u64) -> Option<Errno> {
        let refused = COLLAPSES.lock().unwrap_or_else(PoisonError::into_inner);
        let here = refused.iter().find(|(there, _)| there.contains(&address));
        here.map(|&(_, errno)| errno)
    }
}

/// Drops the mappings of stretches of the VM's own memory file. The file keeps its pages, and the next
/// touch maps them again. Returns how many stretches, from the first on, were dropped.
///
/// Of a mapping of the store this would drop what a guest wrote over it.
#[cfg_attr(feature = "lockset", track_caller)]
pub(super) fn drop_mappings(stretches: &[Addresses]) -> usize {
    for addresses in stretches {
        told(Deed::Dropped, addresses);
    }
    // One call, and one interruption of the other cores, where the kernel takes a list (Linux 6.13).
    let at_once = drop_listed(stretches).unwrap_or(0);
    let one_by_one = stretches[at_once..].iter().take_while(|addresses| {
        let (start, length) = (pointer(addresses.start), length(addresses));
        // SAFETY: the mapping is shared, so the guest finds in the file what was dropped here.
        unsafe { madvise(start, length, Advice::LinuxDontNeed) }.is_ok()
    });
    at_once + one_by_one.count()
}

fn drop_listed(stretches: &[Addresses]) -> Result<usize, Errno> {
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    let list: Vec<libc::iovec> = stretches
        .iter()
        .map(|addresses| libc::iovec {
            iov_base: pointer(addresses.start),
            iov_len: length(addresses),
        })
        .collect();
    let (fd, advice) = (process.as_raw_fd(), libc::MADV_DONTNEED);
    let (first, count) = (list.as_ptr(), list.len());
    // SAFETY: as in `drop_mappings`; the list outlives the call, which only reads it.
    let bytes = unsafe { libc::syscall(libc::SYS_process_madvise, fd, first, count, advice, 0) };
    let bytes = usize::try_from(bytes).map_err(|_negative| Errno::INVAL)?;
    Ok(whole_stretches(stretches, bytes))
}

/// How many stretches, from the first on, so many bytes cover.
fn whole_stretches(stretches: &[Addresses], bytes: usize) -> usize {
    let mut left = bytes;
    let whole = stretches.iter().take_while(|addresses| {
        let rest = left.checked_sub(length(addresses));
        left = rest.unwrap_or(0);
        rest.is_some()
    });
    whole.count()
}

/// A part of this process's addresses that nobody else uses.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) start: *mut c_void,
    /// Where the first block in it begins. From there on it has as much as was asked for.
    pub(super) first_block: *mut c_void,
    pub(super) length: usize,
}

/// Reserves room for `length` bytes from a block's boundary on.
pub(super) fn reserve(length: usize) -> Result<Reserved, Errno> {
    let length = length + BLOCK_BYTES;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: the kernel chooses a place where nothing is.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), flags) }?;
    let to_block = start.addr().next_multiple_of(BLOCK_BYTES) - start.addr();
    Ok(Reserved {
        start,
        first_block: start.wrapping_byte_add(to_block),
        length,
    })
}

/// A guest's memory, where its VM process has it: mapped so that its blocks are blocks here too.
///
/// The place is never used for anything else. Who still has an address in it when this is gone, as a device's thread
/// that has not heard of the end yet, finds zeros there and no memory of others.
#[derive(Debug)]
pub(super) struct Place {
    start: *mut c_void,
    length: usize,
}

// SAFETY: it stands for a place in the process, which no thread owns more than another.
unsafe impl Send for Place {}
// SAFETY: as above; what is there is reached by volatile accesses alone.
unsafe impl Sync for Place {}

impl Place {
    /// Maps a memory file of `length` bytes, for reading and writing.
    pub(super) fn of(file: impl AsFd, length: usize) -> Result<Self, Errno> {
        let start = reserve(length)?.first_block;
        let place = Self { start, length };
        let addresses = place.start as u64..place.start as u64 + length as u64;
        map_memory_file(&addresses, file, 0)?;
        memory_is_at(&addresses);
        Ok(place)
    }

    pub(super) fn start(&self) -> *mut c_void {
        self.start
    }

    #[cfg(test)]
    pub(super) fn touch(&self, byte: usize) {
        assert!(byte < self.length, "byte {byte} of {}", self.length);
        // SAFETY: the assert keeps it inside what `of` mapped, which nobody else uses in a test.
        unsafe {
            self.start
                .wrapping_byte_add(byte)
                .cast::<u8>()
                .write_volatile(1)
        };
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        memory_leaves(self.start as u64);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: all of it was reserved by `of`, and what is there is reached by volatile accesses alone.
        let emptied = unsafe { mmap_anonymous(self.start, self.length, access, flags) };
        debug_assert!(emptied.is_ok(), "{emptied:?}");
    }
}

/// A part of a file mapped where nothing else is, until it is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) start: *mut c_void,
    pub(super) length: usize,
}

impl Mapping {
    pub(super) fn new(
        length: usize,
        access: ProtFlags,
        flags: MapFlags,
        file: impl AsFd,
        offset: u64,
    ) -> Result<Self, Errno> {
        let flags = flags | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a place where nothing is.
        let start = unsafe { mmap(ptr::null_mut(), length, access, flags, file, offset) }?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the mapping that `new` made.
        let unmapped = unsafe { munmap(self.start, self.length) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Frames mapped aside, to be changed before a guest sees them.
#[derive(Debug)]
pub(super) struct Window(Mapping);

impl Window {
    /// Maps `pages` frames somewhere.
    pub(super) fn new(pages: usize, store: impl AsFd, first_frame: u64) -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let (length, offset) = (pages * PAGE_BYTES, first_frame * PAGE_SIZE);
        Mapping::new(length, access, MapFlags::PRIVATE, store, offset).map(Self)
    }

    /// Where it is mapped while it is aside.
    pub(super) fn addresses(&self) -> Addresses {
        let start = self.0.start as u64;
        start..start + self.0.length as u64
    }

    /// Puts it in the place of as many guest pages.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn move_to(self, addresses: &Addresses) -> Result<(), (Self, Errno)> {
        let size = self.0.length;
        assert_eq!(length(addresses), size, "another size");
        told(Deed::MappedFromStore, addresses);
        let (start, target) = (self.0.start, pointer(addresses.start));
        // SAFETY: as in `map_over`; the window was prepared to hold what the guest pages hold.
        match unsafe { mremap_fixed(start, size, size, MremapFlags::MAYMOVE, target) } {
            Ok(_) => {
                std::mem::forget(self);
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// Reads a page, for repairs.
    pub(super) fn read(&self, index: usize, content: &mut [u8; PAGE_BYTES]) {
        let pages = self.0.length / PAGE_BYTES;
        assert!(index < pages, "page {index} of {pages}");
        // SAFETY: the assert keeps the page inside the mapping that `new` made.
        let page = unsafe { self.0.start.byte_add(index * PAGE_BYTES) };
        // SAFETY: nobody writes to the mapping meanwhile; `content` lies elsewhere.
        unsafe { ptr::copy_nonoverlapping(page.cast(), content.as_mut_ptr(), PAGE_BYTES) };
    }
}
