//! The guest's serial console: a 16550 on one side, a stream socket on the other.
//!
//! A guest that prints faster than anyone reads loses what fits neither into the socket nor into a
//! backlog, and the loss is counted: neither the guest waits nor does memory grow without bound.

mod output;
#[cfg(test)]
mod tests;

pub(super) use output::Backlog;

use crate::event::Event;
use output::Output;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};

/// An interrupt line as the serial port's model wants it.
#[derive(Clone, Debug)]
struct Line(Event);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.signal();
        Ok(())
    }
}

/// Tells when the guest has read all of its input, so that more can follow.
#[derive(Clone, Debug)]
struct Room(Event);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.signal();
    }
}

/// A serial console.
#[derive(Debug)]
pub(super) struct Console {
    port: Mutex<Serial<Line, Room, Output>>,
    line: Event,
    room: Event,
    backlog: Event,
    ends: Mutex<Ends>,
}

/// One socket by two descriptors, so that each direction is watched for itself.
#[derive(Clone, Debug)]
struct Ends {
    input: Arc<OwnedFd>,
    output: Arc<OwnedFd>,
}

impl Ends {
    fn of(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            output: Arc::new(socket.try_clone()?),
            input: Arc::new(socket),
        })
    }
}

impl Console {
    /// A console whose other side is `socket`.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let ends = Ends::of(socket)?;
        let line = Event::new()?;
        let room = Event::new()?;
        let port = Serial::with_events(
            Line(line.clone()),
            Room(room.clone()),
            Output::new(Arc::clone(&ends.output)),
        );
        Ok(Self {
            port: Mutex::new(port),
            line,
            room,
            backlog: Event::new()?,
            ends: Mutex::new(ends),
        })
    }

    /// Its other side is another socket from now on, which does not block. What waits goes there.
    ///
    /// # Errors
    /// When the process has no descriptor left: then all is as before.
    pub(super) fn connect(&self, socket: OwnedFd) -> io::Result<()> {
        let ends = Ends::of(socket)?;
        self.lock().writer_mut().connect(Arc::clone(&ends.output));
        *self.ends() = ends;
        Ok(())
    }

    /// The interrupt line.
    pub(super) fn line(&self) -> &Event {
        &self.line
    }

    /// Readable when there is room for input again.
    pub(super) fn room(&self) -> &Event {
        &self.room
    }

    /// Readable when printed bytes have begun to wait: send the backlog, now and whenever `output`
    /// has room, until it is empty.
    pub(super) fn backlog(&self) -> &Event {
        &self.backlog
    }

    /// Where input comes from.
    pub(super) fn input(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.ends().input)
    }

    /// Where output goes to.
    pub(super) fn output(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.ends().output)
    }

    /// Bytes printed that nobody took in time.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lock().writer().lost_bytes()
    }

    /// The guest writes to one of the port's registers, perhaps several times in one instruction.
    pub(super) fn write(&self, register: u16, data: &[u8]) {
        let mut port = self.lock();
        let before = port.writer().backlog();
        for &byte in data {
            // An interrupt that cannot be raised is one that is pending already.
            if port.write(register_number(register), byte).is_err() {
                break;
            }
        }
        // Who waits already has been announced, and is sent by whoever heard of it.
        if before == Backlog::Empty && port.writer_mut().send() == Backlog::Waiting {
            self.backlog.signal();
        }
    }

    /// Sends as much of what waits as the socket takes.
    pub(super) fn send_backlog(&self) -> Backlog {
        self.lock().writer_mut().send()
    }

    /// Sends what waits, and waits no longer than `limit` for the socket.
    pub(super) fn send_backlog_within(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.send_backlog() == Backlog::Waiting {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.wait_for_output(left) {
                return;
            }
        }
    }

    /// Waits until the socket has room, its other side is gone, or the time is over. False when the
    /// kernel refuses.
    fn wait_for_output(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).expect("limits are short");
        let output = self.output();
        let mut sockets = [PollFd::new(&output, PollFlags::OUT)];
        matches!(
            rustix::event::poll(&mut sockets, Some(&limit)),
            Ok(_) | Err(Errno::INTR)
        )
    }

    /// The guest reads one of the port's registers.
    pub(super) fn read(&self, register: u16, data: &mut [u8]) {
        let mut port = self.lock();
        for byte in data {
            *byte = port.read(register_number(register));
        }
    }

    /// Passes input on to the guest, as much as it has room for.
    pub(super) fn take_input(&self) -> InputState {
        let mut port = self.lock();
        let mut bytes = vec![0; port.fifo_capacity()];
        if bytes.is_empty() {
            return InputState::Full;
        }
        match rustix::io::read(self.input(), &mut bytes) {
            Ok(0) => InputState::Closed,
            Ok(count) => {
                // There is room for all of it. Only in loopback mode the port takes no input: what
                // comes then is lost, as on a PC.
                drop(port.enqueue_raw_bytes(&bytes[..count]));
                InputState::Open
            }
            Err(Errno::AGAIN | Errno::INTR) => InputState::Open,
            Err(_) => InputState::Closed,
        }
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Serial<Line, Room, Output>> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether more input can be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputState {
    Open,
    /// The guest must read first.
    Full,
    /// Nobody is there any more.
    Closed,
}

fn register_number(register: u16) -> u8 {
    u8::try_from(register).unwrap_or(u8::MAX)
}
