//! The kernel's userfaultfd: who holds it decides what happens when a guest writes to a protected
//! page. There are two kinds, and memory is registered with one at a time. The **guard** makes writers
//! wait in the kernel until they are woken. The **tracker** lets them go on, and the kernel takes the
//! protection off as it goes: what is protected still has not been written (see `pagemap`).
//!
//! Where pages may be out (see `swap`), the **pager** is in the place of both: writers to protected pages wait for it, and so does
//! whoever touches a hole.
//!
//! Another kind has nothing to do with guests: with the **refuser**, a read of a hole of a memory file fails by a
//! signal and makes no page (see `block_window`).
#![expect(
    unsafe_code,
    reason = "userfaultfd is reached by ioctls on raw structures"
)]

use crate::memory::MemoryError;
use crate::memory::doors::{Deed, told};
use linux_raw_sys::general::{
    UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_SIGBUS, UFFD_FEATURE_THREAD_ID, UFFD_FEATURE_WP_ASYNC,
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE, uffd_msg,
    uffdio_api, uffdio_copy, uffdio_range, uffdio_register, uffdio_writeprotect, uffdio_zeropage,
};
use page::PAGE_BYTES;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;
use std::ops::Range;

// Modes that the raw bindings leave out, from the kernel's include/uapi/linux/userfaultfd.h.
const API: u64 = 0xaa;
const REGISTER_MODE_MISSING: u64 = 1 << 0;
const REGISTER_MODE_WRITE_PROTECT: u64 = 1 << 1;
/// Faults of calls into the kernel are not for the holder. No right is needed for such a one.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);
const WRITE_PROTECT_FEATURES: u32 =
    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
const WRITE_PROTECT_ON: u64 = 1 << 0;
const COPY_PROTECTED: u64 = 1 << 1;

const IOCTL_API: u32 = opcode::read_write::<uffdio_api>(0xaa, 0x3f);
const IOCTL_REGISTER: u32 = opcode::read_write::<uffdio_register>(0xaa, 0x00);
const IOCTL_UNREGISTER: u32 = opcode::read::<uffdio_range>(0xaa, 0x01);
const IOCTL_WAKE: u32 = opcode::read::<uffdio_range>(0xaa, 0x02);
const IOCTL_COPY: u32 = opcode::read_write::<uffdio_copy>(0xaa, 0x03);
const IOCTL_ZERO: u32 = opcode::read_write::<uffdio_zeropage>(0xaa, 0x04);
const IOCTL_WRITE_PROTECT: u32 = opcode::read_write::<uffdio_writeprotect>(0xaa, 0x06);

/// All that is asked of one that is open.
pub(crate) const IOCTLS: &[u32] = &[
    IOCTL_REGISTER,
    IOCTL_UNREGISTER,
    IOCTL_WAKE,
    IOCTL_COPY,
    IOCTL_ZERO,
    IOCTL_WRITE_PROTECT,
];

/// What the kernel says of one that waits.
type Message = [u8; size_of::<uffd_msg>()];
/// Messages taken in one call.
const AT_ONCE: usize = 16;

/// Somebody waits at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The page's address in this process.
    pub(super) address: u64,
    pub(super) kind: FaultKind,
    /// Who, where the kernel was asked to tell.
    pub(super) thread: u32,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// To write to a page under write protection.
    Protected,
    /// To write to a page that is a hole, or to read it.
    Missing { is_write: bool },
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
    /// Opens one that makes writers to protected memory files wait.
    ///
    /// # Errors
    /// When the kernel has none or does not let this user have it.
    pub(super) fn guard() -> Result<Self, MemoryError> {
        Self::open(UserfaultfdFlags::empty(), WRITE_PROTECT_FEATURES)
    }

    /// Opens one that lets writers go on and remembers which pages were not written.
    ///
    /// # Errors
    /// When the kernel has none, is older than 6.7, or does not let this user have it.
    pub(super) fn tracker() -> Result<Self, MemoryError> {
        let features = WRITE_PROTECT_FEATURES | UFFD_FEATURE_WP_ASYNC;
        Self::open(UserfaultfdFlags::empty(), features)
    }

    /// Opens one that makes writers to protected memory files wait, and whoever touches a hole of one.
    ///
    /// # Errors
    /// When the kernel has none or does not let this user have it.
    pub(super) fn pager() -> Result<Self, MemoryError> {
        let features = WRITE_PROTECT_FEATURES | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_THREAD_ID;
        Self::open(UserfaultfdFlags::empty(), features)
    }

    /// Opens one with which a touch of a hole raises SIGBUS, and no page is made.
    ///
    /// # Errors
    /// When the kernel has none, or is older than 5.11.
    pub(super) fn refuser() -> Result<Self, MemoryError> {
        Self::open(USER_MODE_ONLY, UFFD_FEATURE_SIGBUS)
    }

    fn open(kind: UserfaultfdFlags, features: u32) -> Result<Self, MemoryError> {
        let flags = kind | UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: the descriptor is used on this process's own memory only, as `register` says.
        let fd = unsafe { rustix::mm::userfaultfd(flags) }.map_err(MemoryError::OpenUserfault)?;
        let mut api = uffdio_api {
            api: API,
            features: u64::from(features),
            ioctls: 0,
        };
        // SAFETY: IOCTL_API takes a `uffdio_api`; the ioctl writes nothing but that structure.
        match unsafe { ask::<IOCTL_API, _>(&fd, &mut api) } {
            Ok(()) => Ok(Self { fd }),
            Err(Errno::INVAL) => Err(MemoryError::OldKernel),
            Err(error) => Err(MemoryError::OpenUserfault(error)),
        }
    }

    /// From now on write protection can be set on these addresses, and nobody else can set it.
    ///
    /// # Errors
    /// When the range is not page-aligned memory of this process, or registered with another one.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn register(&self, addresses: Range<u64>) -> Result<(), MemoryError> {
        self.register_mode(addresses, REGISTER_MODE_WRITE_PROTECT)
    }

    /// From now on holes at these addresses are for the holder of this one.
    ///
    /// # Errors
    /// As [`Self::register`], and when the mapping's file was not opened for writing.
    pub(super) fn register_holes(&self, addresses: Range<u64>) -> Result<(), MemoryError> {
        self.register_mode(addresses, REGISTER_MODE_MISSING)
    }

    /// As both of these.
    ///
    /// # Errors
    /// As both of these.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn register_all(&self, addresses: Range<u64>) -> Result<(), MemoryError> {
        let mode = REGISTER_MODE_WRITE_PROTECT | REGISTER_MODE_MISSING;
        self.register_mode(addresses, mode)
    }

    #[cfg_attr(feature = "lockset", track_caller)]
    fn register_mode(&self, addresses: Range<u64>, mode: u64) -> Result<(), MemoryError> {
        let mut request = uffdio_register {
            range: range_of(addresses.clone()),
            mode,
            ioctls: 0,
        };
        // SAFETY: IOCTL_REGISTER takes a `uffdio_register`; registering changes no memory; faults wait until the
        // holder of `self` answers.
        unsafe { ask::<IOCTL_REGISTER, _>(&self.fd, &mut request) }
            .map_err(MemoryError::RegisterUserfault)?;
        let holes_wait = mode & REGISTER_MODE_MISSING != 0;
        told(Deed::Registered { holes_wait }, &addresses);
        Ok(())
    }

    /// Lifts all protection and lets go of these addresses. Writers that wait go on waiting until
    /// they are woken.
    ///
    /// # Errors
    /// When a part is registered with another one, or the process has no memory areas left.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn unregister(&self, addresses: Range<u64>) -> Result<(), MemoryError> {
        told(Deed::Unregistered, &addresses);
        let mut range = range_of(addresses);
        // SAFETY: IOCTL_UNREGISTER takes a `uffdio_range`; letting go changes no content.
        unsafe { ask::<IOCTL_UNREGISTER, _>(&self.fd, &mut range) }
            .map_err(MemoryError::RegisterUserfault)
    }

    /// Lets all writers go on that wait at these addresses.
    ///
    /// # Errors
    /// When the range is not page-aligned.
    pub(super) fn wake(&self, addresses: Range<u64>) -> Result<(), MemoryError> {
        let mut range = range_of(addresses);
        // SAFETY: IOCTL_WAKE takes a `uffdio_range`; waking changes no memory.
        unsafe { ask::<IOCTL_WAKE, _>(&self.fd, &mut range) }.map_err(MemoryError::WriteProtect)
    }

    /// Sets or lifts write protection on registered memory. Lifting it wakes writers.
    ///
    /// # Errors
    /// When the range is not registered.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn protect(
        &self,
        addresses: Range<u64>,
        protection: Protection,
    ) -> Result<(), MemoryError> {
        if protection == Protection::Lifted {
            told(Deed::Lifted, &addresses);
        }
        let mut request = uffdio_writeprotect {
            range: range_of(addresses.clone()),
            mode: match protection {
                Protection::Protected => WRITE_PROTECT_ON,
                Protection::Lifted => 0,
            },
        };
        // SAFETY: IOCTL_WRITE_PROTECT takes a `uffdio_writeprotect`; protection changes no content; the kernel
        // refuses ranges that are not registered.
        unsafe { ask::<IOCTL_WRITE_PROTECT, _>(&self.fd, &mut request) }
            .map_err(MemoryError::WriteProtect)?;
        if protection == Protection::Protected {
            told(Deed::Protected, &addresses);
        }
        Ok(())
    }

    /// Puts a copy of `content` at the page `address`, where no page is yet. In a private mapping of a
    /// file that is anonymous memory, and the file's page is not brought in: a write would allocate it
    /// first where the file has a hole.
    ///
    /// # Errors
    /// When the page is not registered, is there already, or there is no memory.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn copy(&self, address: u64, content: &[u8; PAGE_BYTES]) -> Result<(), Errno> {
        self.copy_as(address, content, Protection::Lifted)
    }

    /// As [`Self::copy`], and whoever writes to the page waits, if it is to be protected. Wakes who waits for the page.
    ///
    /// # Errors
    /// As [`Self::copy`].
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn copy_as(
        &self,
        address: u64,
        content: &[u8; PAGE_BYTES],
        protection: Protection,
    ) -> Result<(), Errno> {
        let mut request = uffdio_copy {
            dst: address,
            src: content.as_ptr() as u64,
            len: PAGE_BYTES as u64,
            mode: match protection {
                Protection::Protected => COPY_PROTECTED,
                Protection::Lifted => 0,
            },
            copy: 0,
        };
        // SAFETY: IOCTL_COPY takes a `uffdio_copy`; it reads `content` and writes to registered memory of
        // which no page is there yet.
        unsafe { ask::<IOCTL_COPY, _>(&self.fd, &mut request) }?;
        let is_protected = protection == Protection::Protected;
        told(Deed::Made { is_protected }, &page_at(address));
        Ok(())
    }

    /// Puts pages of zeros where no page is yet, from the first address on up to where one is. Wakes who waits for them. How many.
    ///
    /// # Errors
    /// When the first is not registered, is there already, or there is no memory.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn zero(&self, addresses: Range<u64>) -> Result<u64, Errno> {
        let mut request = uffdio_zeropage {
            range: range_of(addresses.clone()),
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: IOCTL_ZERO takes a `uffdio_zeropage`; it writes to registered memory of which no page is there yet.
        let made = unsafe { ask::<IOCTL_ZERO, _>(&self.fd, &mut request) };
        let bytes = u64::try_from(request.zeropage).unwrap_or(0);
        if bytes == 0 {
            // Of some of them the kernel says that it is to be tried again; of none, why.
            made?;
        }
        let is_protected = false;
        let end = addresses.start + bytes;
        told(Deed::Made { is_protected }, &(addresses.start..end));
        Ok(bytes / PAGE_BYTES as u64)
    }

    /// Adds those that wait to `found`, as many as come in one call. Whether there may be more.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub(super) fn take_faults(&self, found: &mut Vec<Fault>) -> Result<bool, MemoryError> {
        let mut messages = [Message::default(); AT_ONCE];
        match rustix::io::read(&self.fd, messages.as_flattened_mut()) {
            Ok(bytes) => {
                let taken = &messages[..bytes / size_of::<Message>()];
                found.extend(taken.iter().filter_map(decode));
                Ok(taken.len() == AT_ONCE)
            }
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(MemoryError::ReadUserfault(error)),
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// # Safety
/// The ioctl takes a `T` and writes to nothing else.
unsafe fn ask<const OPCODE: Opcode, T>(fd: impl AsFd, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller says that the ioctl takes a `T`, which outlives the call.
    let update = unsafe { Updater::<OPCODE, T>::new(argument) };
    // SAFETY: as the caller says.
    unsafe { ioctl(fd, update) }
}

fn page_at(address: u64) -> Range<u64> {
    address..address + PAGE_BYTES as u64
}

fn range_of(addresses: Range<u64>) -> uffdio_range {
    uffdio_range {
        start: addresses.start,
        len: addresses.end - addresses.start,
    }
}

/// The layout of `struct uffd_msg`: the event at 0, flags at 8, the address at 16, the thread at 24.
fn decode(message: &Message) -> Option<Fault> {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    let has = |flag: u32| word(8) & u64::from(flag) != 0;
    let kind = match has(UFFD_PAGEFAULT_FLAG_WP) {
        true => FaultKind::Protected,
        false => FaultKind::Missing {
            is_write: has(UFFD_PAGEFAULT_FLAG_WRITE),
        },
    };
    let address = word(16) & !(PAGE_BYTES as u64 - 1);
    let is_fault = u32::from(message[0]) == UFFD_EVENT_PAGEFAULT;
    is_fault.then_some(Fault {
        address,
        kind,
        thread: u32::try_from(word(24) & u64::from(u32::MAX)).expect("it is cut to size"),
    })
}
