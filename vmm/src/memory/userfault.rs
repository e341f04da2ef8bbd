//! The kernel's userfaultfd: who holds it decides what happens when a guest writes to a protected
//! page, and until it has decided the writer waits in the kernel.
#![expect(
    unsafe_code,
    reason = "userfaultfd is reached by ioctls on raw structures"
)]

use crate::memory::MemoryError;
use linux_raw_sys::general::{
    UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    UFFD_PAGEFAULT_FLAG_WP, uffd_msg, uffdio_api, uffdio_range, uffdio_register,
    uffdio_writeprotect,
};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

// Modes that the raw bindings leave out, from the kernel's include/uapi/linux/userfaultfd.h.
const API: u64 = 0xaa;
const REGISTER_MODE_WRITE_PROTECT: u64 = 1 << 1;
const WRITE_PROTECT_ON: u64 = 1 << 0;

const IOCTL_API: u32 = opcode::read_write::<uffdio_api>(0xaa, 0x3f);
const IOCTL_REGISTER: u32 = opcode::read_write::<uffdio_register>(0xaa, 0x00);
const IOCTL_WRITE_PROTECT: u32 = opcode::read_write::<uffdio_writeprotect>(0xaa, 0x06);

/// A writer that waits: it wrote to a page under write protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WriteProtectFault {
    /// The address in this process that was written.
    pub(super) address: u64,
}

/// Whether pages of a range may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protection {
    /// Writers wait.
    Protected,
    /// Writers go on, those that wait too.
    Lifted,
}

/// A userfaultfd of this process.
#[derive(Debug)]
pub(super) struct Userfault {
    fd: OwnedFd,
}

impl Userfault {
    /// Opens one that can write-protect memory files.
    ///
    /// # Errors
    /// When the kernel has none or does not let this user have it.
    pub(super) fn open() -> Result<Self, MemoryError> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: the descriptor is used on this process's own guest memory only, as `register` says.
        let fd = unsafe { rustix::mm::userfaultfd(flags) }.map_err(MemoryError::OpenUserfault)?;
        let mut api = uffdio_api {
            api: API,
            features: u64::from(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM),
            ioctls: 0,
        };
        // SAFETY: IOCTL_API takes a `uffdio_api`, which outlives the call.
        let update = unsafe { Updater::<IOCTL_API, uffdio_api>::new(&mut api) };
        // SAFETY: the ioctl writes nothing but that structure.
        unsafe { ioctl(&fd, update) }.map_err(MemoryError::OpenUserfault)?;
        Ok(Self { fd })
    }

    /// From now on write protection can be set on `bytes` bytes of memory from `start`.
    ///
    /// # Errors
    /// When the range is not page-aligned memory of this process.
    pub(super) fn register(&self, start: u64, bytes: u64) -> Result<(), MemoryError> {
        let mut request = uffdio_register {
            range: uffdio_range { start, len: bytes },
            mode: REGISTER_MODE_WRITE_PROTECT,
            ioctls: 0,
        };
        // SAFETY: IOCTL_REGISTER takes a `uffdio_register`, which outlives the call.
        let update = unsafe { Updater::<IOCTL_REGISTER, uffdio_register>::new(&mut request) };
        // SAFETY: registering changes no memory; faults wait until the holder of `self` answers.
        unsafe { ioctl(&self.fd, update) }.map_err(MemoryError::RegisterUserfault)
    }

    /// Sets or lifts write protection on registered memory.
    ///
    /// # Errors
    /// When the range is not registered.
    pub(super) fn protect(
        &self,
        start: u64,
        bytes: u64,
        protection: Protection,
    ) -> Result<(), MemoryError> {
        let mut request = uffdio_writeprotect {
            range: uffdio_range { start, len: bytes },
            mode: match protection {
                Protection::Protected => WRITE_PROTECT_ON,
                Protection::Lifted => 0,
            },
        };
        // SAFETY: IOCTL_WRITE_PROTECT takes a `uffdio_writeprotect`, which outlives the call.
        let update =
            unsafe { Updater::<IOCTL_WRITE_PROTECT, uffdio_writeprotect>::new(&mut request) };
        // SAFETY: protection changes no content; the kernel refuses ranges that are not registered.
        unsafe { ioctl(&self.fd, update) }.map_err(MemoryError::WriteProtect)
    }

    /// The next writer that waits, if one does.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub(super) fn next_fault(&self) -> Result<Option<WriteProtectFault>, MemoryError> {
        let mut message = [0u8; size_of::<uffd_msg>()];
        match rustix::io::read(&self.fd, &mut message) {
            Ok(_) => Ok(decode(&message)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(MemoryError::ReadUserfault(error)),
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The layout of `struct uffd_msg`: the event at 0, flags at 8, the address at 16.
fn decode(message: &[u8; size_of::<uffd_msg>()]) -> Option<WriteProtectFault> {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    let write_protect = u64::from(UFFD_PAGEFAULT_FLAG_WP);
    let matches = u32::from(message[0]) == UFFD_EVENT_PAGEFAULT && word(8) & write_protect != 0;
    matches.then(|| WriteProtectFault { address: word(16) })
}
