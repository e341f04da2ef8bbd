//! The guest's serial console: a 16550 on one side, a stream socket on the other.
//!
//! A guest that prints faster than anyone reads loses what does not fit into the socket, and the
//! loss is counted: neither the guest waits nor does memory grow.

use crate::event::Event;
use rustix::io::Errno;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// Bytes that a vCPU has printed in one exit, on their way to the socket.
#[derive(Debug, Default)]
struct Output(Vec<u8>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A serial console.
#[derive(Debug)]
pub(super) struct Console {
    port: Mutex<Serial<Line, Room, Output>>,
    line: Event,
    room: Event,
    socket: OwnedFd,
    lost_bytes: AtomicU64,
}

impl Console {
    /// A console whose other side is `socket`.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let line = Event::new()?;
        let room = Event::new()?;
        let port = Serial::with_events(Line(line.clone()), Room(room.clone()), Output::default());
        Ok(Self {
            port: Mutex::new(port),
            line,
            room,
            socket,
            lost_bytes: AtomicU64::new(0),
        })
    }

    /// The interrupt line.
    pub(super) fn line(&self) -> &Event {
        &self.line
    }

    /// Readable when there is room for input again.
    pub(super) fn room(&self) -> &Event {
        &self.room
    }

    /// Where input comes from.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Bytes printed that nobody took in time.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost_bytes.load(Ordering::Relaxed)
    }

    /// The guest writes to one of the port's registers, perhaps several times in one instruction.
    pub(super) fn write(&self, register: u16, data: &[u8]) {
        let mut port = self.lock();
        for &byte in data {
            // An interrupt that cannot be raised is one that is pending already.
            if port.write(register_number(register), byte).is_err() {
                break;
            }
        }
        let printed = std::mem::take(&mut port.writer_mut().0);
        drop(port);
        self.send(&printed);
    }

    /// The guest reads one of the port's registers.
    pub(super) fn read(&self, register: u16, data: &mut [u8]) {
        let mut port = self.lock();
        for byte in data {
            *byte = port.read(register_number(register));
        }
    }

    /// Passes input on to the guest. False when the guest must read first.
    pub(super) fn take_input(&self) -> InputState {
        let mut port = self.lock();
        let mut bytes = vec![0; port.fifo_capacity()];
        if bytes.is_empty() {
            return InputState::Full;
        }
        match rustix::io::read(&self.socket, &mut bytes) {
            Ok(0) => InputState::Closed,
            Ok(count) => match port.enqueue_raw_bytes(&bytes[..count]) {
                Ok(_) => InputState::Open,
                // In loopback mode the port takes no input: what comes then is lost, as on a PC.
                Err(_) => InputState::Open,
            },
            Err(Errno::AGAIN | Errno::INTR) => InputState::Open,
            Err(_) => InputState::Closed,
        }
    }

    fn send(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.lost_bytes
                        .fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return;
                }
            }
        }
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
