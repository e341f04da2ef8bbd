//! The store: the frames of one trust domain's shared pages, a memory file each.
//!
//! Frames are numbered across all domains, and a frame lies at its own number in its domain's file; the
//! rest of the file are holes. So no translation is needed, and a VM process has the descriptor of its
//! own domain's file alone, opened for reading: it can neither change what another VM sees nor learn
//! what other domains share.

use crate::memory::MemoryError;
use crate::memory::areas::FileId;
use crate::memory::ram::{allocated_pages, check_memory, punch, sealed_memory_file};
use page::{PAGE_BYTES, PAGE_SIZE, PageCount};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sharing::{Frame, FrameRange};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// The host's side: it alone writes.
#[derive(Debug)]
pub struct Store {
    file: File,
}

impl Store {
    /// The store that another host made, from a descriptor to read it that one of its VM processes has.
    ///
    /// # Errors
    /// When the kernel does not let this process write it.
    pub fn taken_over(file: &File) -> Result<Self, MemoryError> {
        // Whoever may write it says so for a moment: its mode is for those who may not.
        let may_write = rustix::fs::fchmod(file, Mode::RUSR | Mode::WUSR);
        let opened = may_write.and_then(|()| open_anew(file, OFlags::RDWR));
        rustix::fs::fchmod(file, Mode::RUSR).map_err(MemoryError::Store)?;
        let store = Self {
            file: File::from(opened.map_err(MemoryError::Store)?),
        };
        let checked = check_memory(&store.file, store.frames()? * PAGE_SIZE);
        checked.map_err(|_other| MemoryError::ForeignStore)?;
        Ok(store)
    }

    /// How many frames it has room for.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn frames(&self) -> Result<u64, MemoryError> {
        let stat = rustix::fs::fstat(&self.file).map_err(MemoryError::Store)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0) / PAGE_SIZE)
    }

    /// Reads neighbouring frames. One that holds nothing reads as zeros.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self, frame: Frame, pages: &mut [u8]) -> Result<(), Errno> {
        read_all(&self.file, pages, u64::from(frame.0) * PAGE_SIZE)
    }

    /// Frees all frames but those of `kept`, which lie in their order.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn punch_all_but(&self, kept: &[FrameRange]) -> Result<(), Errno> {
        let end = self.frames().map_err(|_unknown| Errno::IO)?;
        let mut next = 0;
        for range in kept {
            let start = u64::from(range.start.0);
            punch_frames(&self.file, next..start)?;
            next = start + u64::from(range.count);
        }
        punch_frames(&self.file, next..end)
    }

    /// An empty store of up to `frames` frames.
    ///
    /// # Errors
    /// When the kernel refuses the file.
    pub fn new(frames: u64) -> Result<Self, MemoryError> {
        let file = sealed_memory_file("ballonet-store", frames * PAGE_SIZE);
        let file = file.map_err(MemoryError::Store)?;
        // Whoever has the descriptor below cannot open the file anew for writing; root can, but VM processes of a host
        // of root's are users of their own.
        rustix::fs::fchmod(&file, Mode::RUSR).map_err(MemoryError::Store)?;
        Ok(Self { file })
    }

    /// A descriptor for a VM process: it can be read and mapped, not written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_only(&self) -> Result<OwnedFd, MemoryError> {
        open_anew(&self.file, OFlags::RDONLY).map_err(MemoryError::Store)
    }

    /// The file's numbers in the kernel, by which its mappings are known in `/proc/PID/maps`.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn file_id(&self) -> Result<FileId, MemoryError> {
        FileId::of(&self.file).map_err(MemoryError::Store)
    }

    /// Frames that hold something, as the kernel counts them.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn allocated(&self) -> Result<PageCount, MemoryError> {
        allocated_pages(&self.file).map_err(MemoryError::Store)
    }

    /// Writes whole pages into neighbouring frames, from `frame` on.
    ///
    /// # Errors
    /// When there is no memory; some of the frames may have been written then.
    pub fn fill(&self, frame: Frame, pages: &[u8]) -> Result<(), Errno> {
        write_all(&self.file, pages, u64::from(frame.0) * PAGE_SIZE)
    }

    /// Frees frames; nobody maps them any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn punch(&self, range: FrameRange) -> Result<(), Errno> {
        let start = u64::from(range.start.0);
        punch_frames(&self.file, start..start + u64::from(range.count))
    }
}

/// Opens a file that is open already once more, by other flags.
fn open_anew(file: &File, flags: OFlags) -> Result<OwnedFd, Errno> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(own, flags | OFlags::CLOEXEC, Mode::empty())
}

fn punch_frames(file: &File, frames: Range<u64>) -> Result<(), Errno> {
    match frames.is_empty() {
        true => Ok(()),
        false => {
            let bytes = (frames.end - frames.start) * PAGE_SIZE;
            punch(file, frames.start * PAGE_SIZE, bytes)
        }
    }
}

/// A VM process's side.
#[derive(Debug)]
pub(super) struct StoreView {
    file: File,
    frames: u64,
}

impl StoreView {
    /// None if the file is smaller than it should be: a mapping behind its end would kill the guest.
    pub(super) fn new(file: OwnedFd, frames: u64) -> Option<Self> {
        let file = File::from(file);
        // Not by the standard library: it asks by a call that takes paths, which a jailed process has not.
        let size = u64::try_from(rustix::fs::fstat(&file).ok()?.st_size).ok()?;
        let is_whole = size >= frames.saturating_mul(PAGE_SIZE);
        is_whole.then_some(Self { file, frames })
    }

    pub(super) fn holds(&self, frame: Frame, count: usize) -> bool {
        u64::from(frame.0) + count as u64 <= self.frames
    }

    /// Reads neighbouring frames. A frame that holds nothing reads as zeros, and still holds nothing.
    pub(super) fn read(&self, frame: Frame, pages: &mut [u8]) -> Result<(), Errno> {
        read_all(&self.file, pages, u64::from(frame.0) * PAGE_SIZE)
    }
}

impl AsFd for StoreView {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads from a memory file; holes read as zeros and stay holes.
///
/// # Errors
/// When the kernel refuses, or the file ends before.
pub fn read_all(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), Errno> {
    let read = file.read_exact_at(bytes, offset);
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NODATA))
}

/// Writes to a memory file.
///
/// # Errors
/// When there is no memory; a part may have been written.
pub fn write_all(file: &File, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    let written = file.write_all_at(bytes, offset);
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOSPC))
}

/// Whether a page holds nothing but zeros.
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    page.chunks(PAGE_BYTES)
        .all(|chunk| *chunk == ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_vm_can_read_a_store_and_not_write_it() {
        let store = Store::new(1024).unwrap();
        store.fill(Frame(7), &[9; PAGE_BYTES]).unwrap();
        assert_eq!(store.allocated().unwrap(), PageCount(1));
        let view = StoreView::new(store.read_only().unwrap(), 1024).unwrap();
        let mut pages = [1; 2 * PAGE_BYTES];
        view.read(Frame(6), &mut pages).unwrap();
        assert!(is_zero(&pages[..PAGE_BYTES]) && pages[PAGE_BYTES..] == [9; PAGE_BYTES]);
        assert_eq!(
            store.allocated().unwrap(),
            PageCount(1),
            "reading a hole leaves a hole"
        );
        assert!(write_all(&view.file, &[1], 0).is_err());
        assert!(rustix::fs::ftruncate(view.as_fd(), 0).is_err());
        assert!(view.holds(Frame(1020), 4) && !view.holds(Frame(1020), 5));
        let range = FrameRange {
            start: Frame(7),
            count: 1,
        };
        store.punch(range).unwrap();
        assert_eq!(store.allocated().unwrap(), PageCount(0));
    }

    #[test]
    fn another_host_goes_on_with_a_store_and_keeps_what_is_shown() {
        let (before, range) = (Store::new(1024).unwrap(), |start, count| FrameRange {
            start: Frame(start),
            count,
        });
        for frame in [0, 7, 8, 9, 600, 1023] {
            before.fill(Frame(frame), &[9; PAGE_BYTES]).unwrap();
        }
        let of_a_vm = File::from(before.read_only().unwrap());
        drop(before);
        let store = Store::taken_over(&of_a_vm).unwrap();
        assert_eq!(store.frames().unwrap(), 1024);
        store.punch_all_but(&[range(7, 2), range(600, 1)]).unwrap();
        assert_eq!(store.allocated().unwrap(), PageCount(3));
        let mut page = [0; PAGE_BYTES];
        store.read(Frame(8), &mut page).unwrap();
        assert_eq!(page, [9; PAGE_BYTES]);
        store.fill(Frame(9), &page).unwrap();
        store.punch_all_but(&[]).unwrap();
        assert_eq!(store.allocated().unwrap(), PageCount::ZERO);
        assert!(write_all(&of_a_vm, &[1], 0).is_err());
        let mode = of_a_vm.metadata().unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o400);
    }

    #[test]
    fn a_store_that_is_too_small_is_refused() {
        let store = Store::new(8).unwrap();
        let file = store.read_only().unwrap();
        assert!(StoreView::new(file, 9).is_none());
    }
}
