//! The inflate and the deflate queue: batches of page numbers on their way to the device.
//!
//! Two large batches are in flight, so that the device always has work while the guest fills the
//! next. What a batch held is remembered in a copy that the device never sees: what it does to
//! the buffer cannot make the driver hand out another page, or one twice.
#![expect(
    unsafe_code,
    reason = "VirtQueue wants the promise that buffers outlive their use"
)]

use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::Broken;
use crate::Gfn;

/// The most page numbers in one buffer: 16 KiB, 16 MiB of memory.
pub const PAGES_PER_BATCH_MAX: usize = 4096;
const BATCHES: usize = 2;
const PFN_BYTES: usize = 4;

/// Room for one batch.
#[derive(Debug)]
struct Batch {
    /// What the device reads: little-endian page numbers.
    buffer: [u8; PAGES_PER_BATCH_MAX * PFN_BYTES],
    /// The same numbers, out of the device's reach.
    gfns: [Gfn; PAGES_PER_BATCH_MAX],
    count: usize,
    /// The queue's name for it while the device has it.
    token: Option<u16>,
}

/// Room for the batches of one queue; forever, because a device may still read it when the driver
/// is long gone.
#[derive(Debug)]
pub struct BatchStorage([Batch; BATCHES]);

impl BatchStorage {
    /// Empty batches.
    #[must_use]
    pub const fn new() -> Self {
        const EMPTY: Batch = Batch {
            buffer: [0; PAGES_PER_BATCH_MAX * PFN_BYTES],
            gfns: [0; PAGES_PER_BATCH_MAX],
            count: 0,
            token: None,
        };
        Self([EMPTY; BATCHES])
    }
}

impl Default for BatchStorage {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
pub(super) struct PageQueue<H: Hal> {
    queue: VirtQueue<H, BATCHES>,
    number: u16,
    batches: &'static mut [Batch; BATCHES],
    batch_pages: usize,
    in_flight: u32,
}

impl<H: Hal> PageQueue<H> {
    pub(super) fn new(
        transport: &mut impl Transport,
        number: u16,
        storage: &'static mut BatchStorage,
        batch_pages: usize,
    ) -> virtio_drivers::Result<Self> {
        Ok(Self {
            queue: VirtQueue::new(transport, number, false, false)?,
            number,
            batches: &mut storage.0,
            batch_pages: batch_pages.clamp(1, PAGES_PER_BATCH_MAX),
            in_flight: 0,
        })
    }

    /// Pages that the device was told of and has not answered for.
    pub(super) const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn has_room(&self) -> bool {
        self.batches.iter().any(|batch| batch.token.is_none())
    }

    /// Sends one batch of at most `pages` that `fill` provides. Returns how many were sent; 0 if
    /// `fill` had none or all batches are in flight.
    pub(super) fn send(
        &mut self,
        transport: &mut impl Transport,
        pages: u32,
        fill: impl FnOnce(&mut [Gfn]) -> usize,
    ) -> Result<u32, Broken> {
        let Some(batch) = self.batches.iter_mut().find(|batch| batch.token.is_none()) else {
            return Ok(0);
        };
        let room = self.batch_pages.min(pages as usize);
        batch.count = fill(&mut batch.gfns[..room]);
        if batch.count == 0 {
            return Ok(0);
        }
        let used = &mut batch.buffer[..batch.count * PFN_BYTES];
        for (bytes, gfn) in used.chunks_exact_mut(PFN_BYTES).zip(&batch.gfns) {
            bytes.copy_from_slice(&gfn.to_le_bytes());
        }
        // SAFETY: storage is static, and nothing writes a batch that has a token.
        let token = unsafe { self.queue.add(&[used], &mut []) };
        batch.token = Some(token.map_err(Broken)?);
        let sent = u32::try_from(batch.count).expect("a batch is 4096 pages at most");
        self.in_flight += sent;
        if self.queue.should_notify() {
            transport.notify(self.number);
        }
        Ok(sent)
    }

    /// The pages of the next batch that the device has answered for.
    pub(super) fn reap(&mut self) -> Result<Option<&[Gfn]>, Broken> {
        let Some(used) = self.queue.peek_used() else {
            return Ok(None);
        };
        let batch = self
            .batches
            .iter_mut()
            .find(|batch| batch.token == Some(used))
            .ok_or(Broken(virtio_drivers::Error::WrongToken))?;
        let buffer = &batch.buffer[..batch.count * PFN_BYTES];
        // SAFETY: this is the buffer that was added under this token.
        let popped = unsafe { self.queue.pop_used(used, &[buffer], &mut []) };
        popped.map_err(Broken)?;
        batch.token = None;
        self.in_flight -= u32::try_from(batch.count).expect("a batch is 4096 pages at most");
        Ok(Some(&batch.gfns[..batch.count]))
    }
}
