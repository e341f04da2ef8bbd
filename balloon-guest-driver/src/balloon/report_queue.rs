//! Free page reporting: whole free blocks are shown to the host, which may drop what is in them.
//!
//! Nothing wakes an idle guest without need. A pass begins two seconds after there is something
//! to report, reports all there is, chain after chain, and then nothing happens until the
//! allocator has more.
#![expect(unsafe_code, reason = "blocks are lent to the device by address")]

use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::{Broken, PageAllocator};
use crate::{BLOCK_FRAMES, Gfn};

/// Blocks in one chain, as many as Linux sends.
const CHAIN: usize = 32;
const PASS_DELAY_US: u64 = 2_000_000;

#[derive(Debug)]
pub(super) struct ReportQueue<H: Hal> {
    queue: VirtQueue<H, CHAIN>,
    number: u16,
    blocks: [Gfn; CHAIN],
    count: usize,
    token: Option<u16>,
    pass_at_us: Option<u64>,
    reported_pages: u64,
}

impl<H: Hal> ReportQueue<H> {
    pub(super) fn new(transport: &mut impl Transport, number: u16) -> virtio_drivers::Result<Self> {
        Ok(Self {
            queue: VirtQueue::new(transport, number, false, false)?,
            number,
            blocks: [0; CHAIN],
            count: 0,
            token: None,
            pass_at_us: None,
            reported_pages: 0,
        })
    }

    /// Pages reported since the start.
    pub(super) const fn reported_pages(&self) -> u64 {
        self.reported_pages
    }

    /// When this wants to be polled next, if the device is not first.
    pub(super) const fn wake_at_us(&self) -> Option<u64> {
        if self.token.is_none() {
            self.pass_at_us
        } else {
            None
        }
    }

    pub(super) fn poll(
        &mut self,
        transport: &mut impl Transport,
        pages: &mut impl PageAllocator,
        now_us: u64,
    ) -> Result<(), Broken> {
        if self.token.is_some() && !self.reap(pages)? {
            return Ok(());
        }
        if pages.unreported_blocks() == 0 {
            self.pass_at_us = None;
            return Ok(());
        }
        if now_us < *self.pass_at_us.get_or_insert(now_us + PASS_DELAY_US) {
            return Ok(());
        }
        self.send(transport, pages)
    }

    fn send(
        &mut self,
        transport: &mut impl Transport,
        pages: &mut impl PageAllocator,
    ) -> Result<(), Broken> {
        self.count = 0;
        while self.count < CHAIN
            && let Some(first) = pages.isolate_block()
        {
            self.blocks[self.count] = first;
            self.count += 1;
        }
        let mut memory = self.memory(pages);
        // SAFETY: isolated blocks are nobody's until `reap` returns them.
        let token = unsafe { self.queue.add(&[], &mut memory[..self.count]) };
        self.token = Some(token.map_err(Broken)?);
        if self.queue.should_notify() {
            transport.notify(self.number);
        }
        Ok(())
    }

    /// Gives the blocks back to the allocator if the device has answered.
    fn reap(&mut self, pages: &mut impl PageAllocator) -> Result<bool, Broken> {
        let (Some(token), Some(used)) = (self.token, self.queue.peek_used()) else {
            return Ok(false);
        };
        if used != token {
            return Err(Broken(virtio_drivers::Error::WrongToken));
        }
        let mut memory = self.memory(pages);
        // SAFETY: these are the buffers that were added under this token.
        let popped = unsafe { self.queue.pop_used(token, &[], &mut memory[..self.count]) };
        popped.map_err(Broken)?;
        self.token = None;
        for &first in &self.blocks[..self.count] {
            pages.return_block(first);
            self.reported_pages += u64::from(BLOCK_FRAMES);
        }
        Ok(true)
    }

    /// The blocks' memory, for the queue to take addresses of.
    fn memory<'m>(&self, pages: &impl PageAllocator) -> [&'m mut [u8]; CHAIN] {
        core::array::from_fn(|n| {
            if n >= self.count {
                return &mut [][..];
            }
            let memory = pages.block_memory(self.blocks[n]);
            // SAFETY: the block is isolated, so nobody else has a reference into it; the
            // allocator vouches for the address.
            unsafe { &mut *memory.as_ptr() }
        })
    }
}
