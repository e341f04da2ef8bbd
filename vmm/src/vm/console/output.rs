//! What a guest prints, on its way to a stream socket.
//!
//! KVM hands over a printed text byte by byte, and such a socket takes only some 270 small sends
//! until its reader comes. A reader that gets no processor for some milliseconds must not cost the
//! guest its words. So what the socket does not take now waits here, and goes on in few large sends
//! when there is room again.
//!
//! Nothing overtakes what waits, and nothing here blocks. No more than [`BACKLOG_LIMIT`] bytes wait:
//! what comes then is lost and counted. Each byte is in one place: taken by the socket, waiting, or
//! counted as lost.

use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Bytes that wait at most for the socket.
pub(super) const BACKLOG_LIMIT: usize = 64 << 10;

/// Whether printed bytes wait for the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vm) enum Backlog {
    Empty,
    Waiting,
}

/// The way out for what a guest prints. Writing only puts bytes in line; [`Output::send`] sends.
#[derive(Debug)]
pub(super) struct Output {
    socket: Arc<OwnedFd>,
    waiting: VecDeque<u8>,
    lost_bytes: u64,
}

impl Output {
    /// To `socket`, which must not block.
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            waiting: VecDeque::with_capacity(BACKLOG_LIMIT),
            lost_bytes: 0,
        }
    }

    /// To another socket from now on.
    pub(super) fn connect(&mut self, socket: Arc<OwnedFd>) {
        self.socket = socket;
    }

    pub(super) fn backlog(&self) -> Backlog {
        match self.waiting.is_empty() {
            true => Backlog::Empty,
            false => Backlog::Waiting,
        }
    }

    /// Bytes printed that nobody took in time.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Sends as much as the socket takes.
    pub(super) fn send(&mut self) -> Backlog {
        while let (next @ [_, ..], _) = self.waiting.as_slices() {
            match rustix::net::send(&self.socket, next, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Backlog::Waiting,
                // Nobody will ever read it: what waits would wait forever.
                Err(_) => self.lose_all(),
            }
        }
        Backlog::Empty
    }

    /// How many bytes wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn lose_all(&mut self) {
        self.lose(self.waiting.len());
        self.waiting.clear();
    }

    fn lose(&mut self, count: usize) {
        self.lost_bytes += count as u64;
    }

    fn room(&self) -> usize {
        BACKLOG_LIMIT - self.waiting.len()
    }
}

impl Write for Output {
    /// Takes all, and never fails: a serial port does not know who listens.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The reader may have come in the meantime, without our having been told yet.
        if self.room() < bytes.len() {
            self.send();
        }
        let (kept, lost) = bytes.split_at(bytes.len().min(self.room()));
        self.waiting.extend(kept);
        self.lose(lost.len());
        Ok(bytes.len())
    }

    /// Sending waits until the guest's whole instruction is in line.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
