//! How a device tells its guest that something happened.

use crate::event::Event;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

/// Why the device interrupts: the bits of the register `InterruptStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum InterruptCause {
    /// Buffers came back through a queue.
    UsedBuffer = 1 << 0,
    /// The configuration space or the device's status changed.
    Configuration = 1 << 1,
}

/// The device's interrupt line, its pending causes, and whether the device has given up.
#[derive(Clone, Debug)]
pub struct Interrupt {
    line: Event,
    status: Arc<AtomicU32>,
    needs_reset: Arc<AtomicBool>,
}

impl Interrupt {
    /// One with nothing pending.
    ///
    /// # Errors
    /// When the kernel gives no event descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            line: Event::new()?,
            status: Arc::default(),
            needs_reset: Arc::default(),
        })
    }

    /// The event descriptor that KVM turns into an interrupt.
    #[must_use]
    pub fn line(&self) -> &Event {
        &self.line
    }

    /// Interrupts the guest.
    pub fn raise(&self, cause: InterruptCause) {
        self.status.fetch_or(cause as u32, Ordering::SeqCst);
        self.line.signal();
    }

    /// Gives a chain back to the guest, which is interrupted if it wants to be. A guest that moved its
    /// ring away gets no answer.
    pub(super) fn answer(
        &self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) {
        let answered = queue.add_used(memory, head, written).is_ok();
        if answered && queue.needs_notification(memory).unwrap_or(true) {
            self.raise(InterruptCause::UsedBuffer);
        }
    }

    /// The device cannot go on with what its driver did: only a reset helps.
    pub fn demand_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.raise(InterruptCause::Configuration);
        }
    }

    /// Whether the device waits for a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Pending causes, as the register `InterruptStatus` shows them.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The guest has seen these causes.
    pub fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::SeqCst);
    }

    /// Back to nothing pending.
    pub fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }
}
