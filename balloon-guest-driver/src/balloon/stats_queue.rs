//! The statistics queue: one buffer, which the device hands back whenever it wants new figures.
#![expect(
    unsafe_code,
    reason = "VirtQueue wants the promise that buffers outlive their use"
)]

use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::{Broken, MemoryFigures};
use crate::PAGE_SIZE;
use crate::wire::{STAT_BYTES, StatTag, encode_stat};

const STATS: usize = 8;

/// Room for the statistics.
pub(super) type StatsBuffer = [u8; STATS * STAT_BYTES];
pub(super) const EMPTY: StatsBuffer = [0; STATS * STAT_BYTES];

#[derive(Debug)]
pub(super) struct StatsQueue<H: Hal> {
    queue: VirtQueue<H, 1>,
    number: u16,
    buffer: &'static mut StatsBuffer,
    token: Option<u16>,
}

impl<H: Hal> StatsQueue<H> {
    pub(super) fn new(
        transport: &mut impl Transport,
        number: u16,
        buffer: &'static mut StatsBuffer,
    ) -> virtio_drivers::Result<Self> {
        let queue = VirtQueue::new(transport, number, false, false)?;
        Ok(Self {
            queue,
            number,
            buffer,
            token: None,
        })
    }

    /// Answers the device if it asks. The first buffer goes out unasked: without it, it cannot.
    pub(super) fn poll(
        &mut self,
        transport: &mut impl Transport,
        figures: impl FnOnce() -> MemoryFigures,
    ) -> Result<(), Broken> {
        if let Some(token) = self.token {
            match self.queue.peek_used() {
                None => return Ok(()),
                Some(used) if used != token => {
                    return Err(Broken(virtio_drivers::Error::WrongToken));
                }
                Some(_) => {}
            }
            // SAFETY: this is the buffer that was added under this token.
            let popped = unsafe { self.queue.pop_used(token, &[&*self.buffer], &mut []) };
            popped.map_err(Broken)?;
        }
        *self.buffer = encode(figures());
        // SAFETY: the buffer is static, and nothing writes it while it has a token.
        let token = unsafe { self.queue.add(&[&*self.buffer], &mut []) };
        self.token = Some(token.map_err(Broken)?);
        if self.queue.should_notify() {
            transport.notify(self.number);
        }
        Ok(())
    }
}

fn encode(figures: MemoryFigures) -> StatsBuffer {
    let stats: [(StatTag, u64); STATS] = [
        (StatTag::SwapIn, 0),
        (StatTag::SwapOut, 0),
        (StatTag::MajorFaults, 0),
        (StatTag::MinorFaults, figures.minor_faults),
        (StatTag::MemFree, figures.free_pages * PAGE_SIZE),
        (StatTag::MemTotal, figures.total_pages * PAGE_SIZE),
        (StatTag::MemAvailable, figures.available_pages * PAGE_SIZE),
        (StatTag::DiskCaches, 0),
    ];
    let mut buffer = EMPTY;
    for (bytes, (tag, value)) in buffer.chunks_exact_mut(STAT_BYTES).zip(stats) {
        bytes.copy_from_slice(&encode_stat(tag, value));
    }
    buffer
}
