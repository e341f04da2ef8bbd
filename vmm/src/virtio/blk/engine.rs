//! Has operations on a disk's file carried out: by io_uring, many at a time, or where the kernel has
//! none or forbids it, by plain calls, one after the other.
//!
//! An operation belongs to the engine until it has ended, so the memory that the kernel reads and
//! writes cannot go away before. Dropping an engine waits.
#![expect(
    unsafe_code,
    reason = "the kernel gets addresses, which no borrow can follow"
)]

use super::operation::{Operation, Transfer};
use crate::restricted_ring;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// What [`entry`] makes of an operation.
const OPERATIONS: &[u8] = &[
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fallocate::CODE,
    opcode::Fsync::CODE,
];

/// Which engine a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring, or plain calls where there is none.
    Best,
    /// Plain calls.
    #[cfg(any(test, feature = "fuzzing"))]
    Plain,
}

/// An operation that has ended, with what the kernel said.
#[derive(Debug)]
pub(super) struct Ended {
    /// The number under which it was started.
    pub(super) number: usize,
    pub(super) operation: Operation,
    /// Bytes moved.
    pub(super) result: Result<u64, Errno>,
}

/// Whether the kernel has all that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Submission {
    Complete,
    /// It had no room: to be tried again soon.
    Incomplete,
}

/// What carries out operations.
#[derive(Debug)]
pub(super) enum Engine {
    Ring(Box<Ring>),
    Plain(Plain),
}

impl Engine {
    /// An engine for at most `most` operations at a time.
    pub(super) fn new(kind: EngineKind, file: &Arc<File>, most: usize) -> Self {
        let ring = match kind {
            EngineKind::Best => Ring::new(Arc::clone(file), most),
            #[cfg(any(test, feature = "fuzzing"))]
            EngineKind::Plain => Err(io::Error::from(Errno::NOSYS)),
        };
        match ring {
            Ok(ring) => Self::Ring(Box::new(ring)),
            Err(error) => {
                tracing::debug!("a disk without io_uring: {error}");
                Self::Plain(Plain {
                    file: Arc::clone(file),
                    ended: VecDeque::new(),
                })
            }
        }
    }

    /// Starts an operation under a number that no other has that has not ended.
    pub(super) fn start(&mut self, number: usize, operation: Operation) {
        match self {
            Self::Ring(ring) => ring.start(number, operation),
            Self::Plain(plain) => plain.carry_out(number, operation),
        }
    }

    /// Tells the kernel what was started.
    pub(super) fn submit(&mut self) -> Submission {
        match self {
            Self::Ring(ring) => ring.submit(),
            Self::Plain(_) => Submission::Complete,
        }
    }

    /// The next operation that has ended.
    pub(super) fn take_ended(&mut self) -> Option<Ended> {
        match self {
            Self::Ring(ring) => ring.take_ended(),
            Self::Plain(plain) => plain.ended.pop_front(),
        }
    }

    /// Waits until an operation has ended, if any has been started.
    pub(super) fn wait(&mut self) {
        if let Self::Ring(ring) = self {
            ring.wait();
        }
    }

    /// Becomes readable when an operation has ended.
    pub(super) fn readiness(&self) -> Option<BorrowedFd<'_>> {
        match self {
            // SAFETY: the ring's descriptor is open for as long as the ring is borrowed.
            Self::Ring(ring) => Some(unsafe { BorrowedFd::borrow_raw(ring.ring.as_raw_fd()) }),
            Self::Plain(_) => None,
        }
    }
}

/// io_uring.
pub(super) struct Ring {
    ring: IoUring,
    file: Arc<File>,
    /// By number.
    started: Vec<Option<Operation>>,
    /// Those that could not even be queued.
    refused: VecDeque<usize>,
}

impl Ring {
    fn new(file: Arc<File>, most: usize) -> io::Result<Self> {
        let entries = u32::try_from(most).map_err(io::Error::other)?;
        Ok(Self {
            ring: restricted_ring::new(entries, OPERATIONS)?,
            file,
            started: std::iter::repeat_with(|| None).take(most).collect(),
            refused: VecDeque::new(),
        })
    }

    fn start(&mut self, number: usize, operation: Operation) {
        let entry = entry(&operation, types::Fd(self.file.as_raw_fd()));
        let entry = entry.user_data(number as u64);
        let before = self.started[number].replace(operation);
        assert!(before.is_none(), "operation {number} was started twice");
        // SAFETY: what the entry points to belongs to `operation`, which stays untouched in `started`
        // until `take_ended` has its completion; `drop` waits for those that are left.
        let queued = unsafe { self.ring.submission().push(&entry) };
        if queued.is_err() {
            self.refused.push_back(number);
        }
    }

    fn submit(&mut self) -> Submission {
        match self.ring.submit() {
            Ok(_) => {}
            Err(error) => tracing::debug!("io_uring did not take all: {error}"),
        }
        match self.ring.submission().is_empty() {
            true => Submission::Complete,
            false => Submission::Incomplete,
        }
    }

    fn take_ended(&mut self) -> Option<Ended> {
        let (number, result) = match self.refused.pop_front() {
            Some(number) => (number, Err(Errno::AGAIN)),
            None => {
                let completion = self.ring.completion().next()?;
                let number = usize::try_from(completion.user_data()).ok()?;
                (number, result(completion.result().into()))
            }
        };
        let operation = self.started.get_mut(number)?.take()?;
        Some(Ended {
            number,
            operation,
            result,
        })
    }

    fn has_started(&self) -> bool {
        self.started.iter().any(Option::is_some)
    }

    fn wait(&mut self) {
        if !self.has_started() || !self.refused.is_empty() {
            return;
        }
        // Disturbed or short of room: whoever waits comes again.
        if let Err(error) = self.ring.submit_and_wait(1) {
            tracing::debug!("io_uring did not wait: {error}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.has_started() {
            self.wait();
            while self.take_ended().is_some() {}
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("started", &self.started.iter().flatten().count())
            .finish_non_exhaustive()
    }
}

fn entry(operation: &Operation, file: types::Fd) -> squeue::Entry {
    match operation {
        Operation::Read(transfer) => {
            let (iovecs, count) = raw(transfer);
            opcode::Readv::new(file, iovecs, count)
                .offset(transfer.offset())
                .build()
        }
        Operation::Write(transfer) => {
            let (iovecs, count) = raw(transfer);
            opcode::Writev::new(file, iovecs, count)
                .offset(transfer.offset())
                .build()
        }
        Operation::Allocate { mode, extent } => opcode::Fallocate::new(file, extent.bytes)
            .offset(extent.offset)
            .mode(mode.bits().cast_signed())
            .build(),
        Operation::Sync => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

fn raw(transfer: &Transfer) -> (*const libc::iovec, u32) {
    let iovecs = transfer.iovecs();
    let count = u32::try_from(iovecs.len()).expect("a queue has few descriptors");
    (iovecs.as_ptr(), count)
}

/// Plain calls.
#[derive(Debug)]
pub(super) struct Plain {
    file: Arc<File>,
    ended: VecDeque<Ended>,
}

impl Plain {
    fn carry_out(&mut self, number: usize, operation: Operation) {
        let result = match &operation {
            Operation::Read(transfer) => self.transfer(transfer, libc::preadv),
            Operation::Write(transfer) => self.transfer(transfer, libc::pwritev),
            Operation::Allocate { mode, extent } => {
                rustix::fs::fallocate(&self.file, *mode, extent.offset, extent.bytes).map(|()| 0)
            }
            Operation::Sync => rustix::fs::fdatasync(&self.file).map(|()| 0),
        };
        self.ended.push_back(Ended {
            number,
            operation,
            result,
        });
    }

    fn transfer(&self, transfer: &Transfer, call: TransferCall) -> Result<u64, Errno> {
        let (iovecs, count) = raw(transfer);
        let count = libc::c_int::try_from(count).map_err(|_too_many| Errno::INVAL)?;
        let offset = i64::try_from(transfer.offset()).map_err(|_too_far| Errno::INVAL)?;
        // SAFETY: the memory that the list points to belongs to `transfer`, borrowed until the call
        // is over. The guest may write it meanwhile; nobody holds a reference into it.
        let moved = unsafe { call(self.file.as_raw_fd(), iovecs, count, offset) };
        match moved {
            0.. => result(moved as i64),
            _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }
}

type TransferCall =
    unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> isize;

/// Bytes moved, or a negative error number.
fn result(value: i64) -> Result<u64, Errno> {
    u64::try_from(value).map_err(|_negative| {
        let errno = i32::try_from(value.unsigned_abs()).unwrap_or(libc::EIO);
        Errno::from_raw_os_error(errno)
    })
}
