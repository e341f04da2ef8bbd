//! By io_uring: the pager hands over what is to be read, and finds there what was.
//!
//! A buffer belongs to the ring until its read has ended, so the memory that the kernel writes cannot go away before. Dropping
//! the ring waits.
#![expect(
    unsafe_code,
    reason = "the kernel gets addresses, which no borrow can follow"
)]

use super::{Done, Read};
use crate::memory::swap::file::Sectors;
use crate::restricted_ring;
use io_uring::{IoUring, opcode, types};
use rustix::fd::{AsRawFd, BorrowedFd};
use std::collections::VecDeque;
use std::fmt;
use std::io;

/// Reads at once; what is more waits for its turn here.
const AT_ONCE: usize = 64;

pub(in crate::memory::swap) struct Ring {
    ring: IoUring,
    /// By number, which the kernel is told.
    started: Vec<Option<Started>>,
    waiting: VecDeque<Read>,
}

struct Started {
    read: Read,
    sectors: Sectors,
}

impl Ring {
    /// # Errors
    /// When the kernel has no io_uring, or not for this process.
    pub(super) fn new() -> io::Result<Self> {
        let entries = u32::try_from(AT_ONCE).map_err(io::Error::other)?;
        Ok(Self {
            ring: restricted_ring::new(entries, &[opcode::Read::CODE])?,
            started: std::iter::repeat_with(|| None).take(AT_ONCE).collect(),
            waiting: VecDeque::new(),
        })
    }

    pub(super) fn order(&mut self, read: Read) {
        self.waiting.push_back(read);
    }

    /// Whether the kernel did not take all that there is room for.
    pub(super) fn begin(&mut self) -> bool {
        while let Some(number) = self.started.iter().position(Option::is_none) {
            let Some(read) = self.waiting.pop_front() else {
                break;
            };
            let (position, length) = read.wanted.extent();
            let sectors = Sectors::of(position, length);
            self.started[number] = Some(Started { read, sectors });
            self.push(number);
        }
        if self.ring.submission().is_empty() {
            return false;
        }
        if let Err(error) = self.ring.submit() {
            tracing::debug!("io_uring did not take all: {error}");
        }
        !self.ring.submission().is_empty()
    }

    /// Has the kernel read what is left of one.
    fn push(&mut self, number: usize) {
        let Some(started) = &mut self.started[number] else {
            return;
        };
        let (position, left) = started.sectors.left();
        let length = u32::try_from(left.len()).expect("at most a segment");
        let file = types::Fd(started.read.file.as_raw_fd());
        let entry = opcode::Read::new(file, left.as_mut_ptr(), length)
            .offset(position)
            .build()
            .user_data(number as u64);
        // SAFETY: the memory that the entry points to belongs to `started[number]`, which stays untouched until its completion
        // was taken; `drop` waits for those that are left. The file too is its own.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has room for all that are started");
    }

    pub(super) fn next_done(&mut self) -> Option<Done> {
        loop {
            let completion = self.ring.completion().next()?;
            let number = usize::try_from(completion.user_data()).ok()?;
            let started = self.started.get_mut(number)?.as_mut()?;
            let outcome = match usize::try_from(completion.result()) {
                Ok(count) => started.sectors.came(count),
                Err(_negative) => {
                    let error = io::Error::from_raw_os_error(-completion.result());
                    match error.kind() {
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(false),
                        _ => Err(error),
                    }
                }
            };
            if matches!(outcome, Ok(false)) {
                self.push(number);
                self.begin();
                continue;
            }
            let Started { read, sectors } = self.started[number].take()?;
            return Some(Done {
                index: read.index,
                wanted: read.wanted,
                bytes: outcome.map(|_is_whole| sectors.into_bytes()),
            });
        }
    }

    pub(super) fn readiness(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open for as long as the ring is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.waiting.clear();
        while self.started.iter().any(Option::is_some) {
            if let Err(error) = self.ring.submit_and_wait(1) {
                tracing::debug!("io_uring did not wait: {error}");
                std::thread::yield_now();
            }
            while self.next_done().is_some() {}
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("started", &self.started.iter().flatten().count())
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}
