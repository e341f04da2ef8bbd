//! An operation on the file that the kernel has been asked for, and the memory that it may touch
//! until it has ended.
//!
//! The kernel copies between its page cache and guest memory as the guest itself would: a page that
//! is gone is faulted in, a write to a protected page waits for the agent. Direct access would pin the
//! pages instead, and go on writing to frames that the agent has long taken away; so it goes through
//! a buffer of the device's own.

use super::plan::{BOUNCE_BYTES, Step};
use super::request::{Extent, Stretches};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fmt;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

/// Alignment that direct access wants of memory.
const ALIGNMENT: usize = 4096;

/// Aligned as direct access wants it.
#[repr(align(4096))]
struct Zeros([u8; 64 << 10]);

static ZEROS: Zeros = Zeros([0; 64 << 10]);

/// Memory of the device's own for direct access.
#[derive(Debug)]
pub(super) struct Bounce {
    bytes: Vec<u8>,
}

impl Bounce {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BOUNCE_BYTES + ALIGNMENT],
        }
    }

    /// The first `count` bytes of its aligned part.
    fn part(&mut self, count: usize) -> &mut [u8] {
        let start = self.bytes.as_ptr().align_offset(ALIGNMENT);
        &mut self.bytes[start..start + count]
    }
}

/// What a transfer goes to or comes from.
enum Memory {
    Zeros,
    /// Keeps the guest's memory mapped.
    Guest(#[expect(dead_code, reason = "held, not used")] GuestMemoryMmap),
    Bounce {
        bounce: Bounce,
        guest: GuestMemoryMmap,
        data: Stretches,
    },
}

/// A read or write that may take several calls.
pub(super) struct Transfer {
    memory: Memory,
    /// Memory that is left to transfer: in `memory`, for as long as this lives.
    iovecs: Vec<libc::iovec>,
    offset: u64,
    left: u64,
}

/// An operation.
#[derive(Debug)]
pub(super) enum Operation {
    Read(Transfer),
    Write(Transfer),
    Allocate {
        mode: FallocateFlags,
        extent: Extent,
    },
    Sync,
}

/// What comes after a call to the kernel.
#[derive(Debug)]
pub(super) enum After {
    /// The rest of the same operation.
    GoOn(Operation),
    /// The same again: the kernel was disturbed.
    Again(Operation),
    Done(Operation),
    Failed(Errno, Operation),
}

impl Operation {
    /// The operation for a step. Direct access needs a `bounce`; what is to be written is copied into
    /// it here.
    pub(super) fn new(
        step: Step,
        memory: &GuestMemoryMmap,
        bounce: Option<Bounce>,
    ) -> Result<Self, Errno> {
        Ok(match step {
            Step::Read { offset, data } => {
                Self::Read(Transfer::new(offset, data, memory, bounce).ok_or(Errno::FAULT)?)
            }
            Step::Write { offset, data } => {
                let transfer = Transfer::new(offset, data, memory, bounce);
                let mut transfer = transfer.ok_or(Errno::FAULT)?;
                transfer.fill_bounce()?;
                Self::Write(transfer)
            }
            Step::WriteZeros { extent } => Self::Write(Transfer::zeros(extent)),
            Step::Allocate { mode, extent } => Self::Allocate { mode, extent },
            Step::Sync => Self::Sync,
        })
    }

    /// What comes after a call that ended so.
    pub(super) fn after(self, result: Result<u64, Errno>) -> After {
        match (result, self) {
            (Err(Errno::INTR | Errno::AGAIN), operation) => After::Again(operation),
            (Err(errno), operation) => After::Failed(errno, operation),
            // The file ends here: it was cut while the guest uses it.
            (Ok(0), operation @ (Self::Read(_) | Self::Write(_))) => {
                After::Failed(Errno::NXIO, operation)
            }
            (Ok(count), Self::Read(mut transfer)) => match transfer.advance(count) {
                true => After::GoOn(Self::Read(transfer)),
                false => match transfer.empty_bounce() {
                    Ok(()) => After::Done(Self::Read(transfer)),
                    Err(errno) => After::Failed(errno, Self::Read(transfer)),
                },
            },
            (Ok(count), Self::Write(mut transfer)) => match transfer.advance(count) {
                true => After::GoOn(Self::Write(transfer)),
                false => After::Done(Self::Write(transfer)),
            },
            (Ok(_), operation) => After::Done(operation),
        }
    }

    /// The bounce buffer, which the next operation can use.
    pub(super) fn into_bounce(self) -> Option<Bounce> {
        match self {
            Self::Read(transfer) | Self::Write(transfer) => match transfer.memory {
                Memory::Bounce { bounce, .. } => Some(bounce),
                Memory::Guest(_) | Memory::Zeros => None,
            },
            _ => None,
        }
    }
}

impl Transfer {
    /// `None` where the data is not RAM, or more than a bounce buffer holds.
    fn new(
        offset: u64,
        data: Stretches,
        memory: &GuestMemoryMmap,
        bounce: Option<Bounce>,
    ) -> Option<Self> {
        let left = data.bytes();
        let (iovecs, memory) = match bounce {
            None => (guest_iovecs(&data, memory)?, Memory::Guest(memory.clone())),
            Some(mut bounce) => {
                let count = usize::try_from(left).ok()?;
                if count > BOUNCE_BYTES {
                    return None;
                }
                let part = bounce.part(count);
                let iovec = libc::iovec {
                    iov_base: part.as_mut_ptr().cast(),
                    iov_len: part.len(),
                };
                let memory = Memory::Bounce {
                    bounce,
                    guest: memory.clone(),
                    data,
                };
                (vec![iovec], memory)
            }
        };
        Some(Self {
            memory,
            iovecs,
            offset,
            left,
        })
    }

    /// Writes zeros to an extent: the same ones again and again.
    fn zeros(extent: Extent) -> Self {
        let iovec = |start: u64| {
            let left = usize::try_from(extent.bytes - start).unwrap_or(usize::MAX);
            libc::iovec {
                // Only ever read.
                iov_base: ZEROS.0.as_ptr().cast_mut().cast(),
                iov_len: left.min(ZEROS.0.len()),
            }
        };
        let starts = (0..extent.bytes).step_by(ZEROS.0.len());
        Self {
            memory: Memory::Zeros,
            iovecs: starts.map(iovec).collect(),
            offset: extent.offset,
            left: extent.bytes,
        }
    }

    /// Where in the file the rest begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The memory of the rest.
    pub(super) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// So many bytes are done. True if some are left.
    fn advance(&mut self, count: u64) -> bool {
        assert!(count <= self.left, "{count} bytes of {} moved", self.left);
        self.offset += count;
        self.left -= count;
        let mut skip = usize::try_from(count).expect("no more than lies in memory");
        let done = self.iovecs.iter().take_while(|iovec| {
            let whole = iovec.iov_len <= skip;
            if whole {
                skip -= iovec.iov_len;
            }
            whole
        });
        let done = done.count();
        self.iovecs.drain(..done);
        if let Some(first) = self.iovecs.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(skip);
            first.iov_len -= skip;
        }
        self.left > 0
    }

    fn fill_bounce(&mut self) -> Result<(), Errno> {
        let Memory::Bounce {
            bounce,
            guest,
            data,
        } = &mut self.memory
        else {
            return Ok(());
        };
        let count = usize::try_from(self.left).unwrap_or(0);
        match data.copy_out(guest, bounce.part(count)) {
            true => Ok(()),
            false => Err(Errno::FAULT),
        }
    }

    fn empty_bounce(&mut self) -> Result<(), Errno> {
        let Memory::Bounce {
            bounce,
            guest,
            data,
        } = &mut self.memory
        else {
            return Ok(());
        };
        let count = usize::try_from(data.bytes()).unwrap_or(0);
        match data.copy_in(guest, bounce.part(count)) {
            Some(_) => Ok(()),
            None => Err(Errno::FAULT),
        }
    }
}

fn guest_iovecs(data: &Stretches, memory: &GuestMemoryMmap) -> Option<Vec<libc::iovec>> {
    let mut iovecs = Vec::new();
    for stretch in data.iter() {
        let bytes = usize::try_from(stretch.bytes).ok()?;
        for slice in memory.get_slices(stretch.start, bytes) {
            let slice = slice.ok()?;
            let guard = slice.ptr_guard_mut();
            iovecs.push(libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
    }
    Some(iovecs)
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("offset", &self.offset)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
