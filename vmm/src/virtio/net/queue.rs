//! A queue whose chains come back together.
//!
//! A received packet may lie in several buffers, and the driver must see all of them come back at
//! once (virtio 1.2, section 5.1.6.4): so the ring's index moves once for all. That also saves
//! interrupts, of which the driver says when it wants the next.

use crate::virtio::chain::Chain;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Offset of the first element in either ring; before it are flags and index.
const RING_HEADER: u64 = 4;
const INDEX: u64 = 2;
const USED_ELEMENT: u64 = 8;
const AVAIL_ELEMENT: u64 = 2;
/// The driver's flag: it wants no interrupts.
const NO_INTERRUPT: u16 = 1;

/// A queue of the device, and the chains that are about to come back through it.
#[derive(Debug)]
pub(super) struct BatchQueue {
    queue: Queue,
    /// Heads and bytes written, in order.
    done: Vec<(u16, u32)>,
}

impl BatchQueue {
    pub(super) fn new(mut queue: Queue, event_index: bool) -> Self {
        queue.set_event_idx(event_index);
        Self {
            queue,
            done: Vec::new(),
        }
    }

    /// How many chains can be in it.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain, if one waits.
    pub(super) fn take<'a>(
        &mut self,
        memory: &'a GuestMemoryMmap,
    ) -> Result<Option<Chain<'a>>, Error> {
        Chain::take(&mut self.queue, memory)
    }

    /// The last `count` chains that were taken wait again, unanswered.
    pub(super) fn untake(&mut self, count: u16) {
        let next = self.queue.next_avail().wrapping_sub(count);
        self.queue.set_next_avail(next);
    }

    /// A chain is done with, and comes back with the others.
    pub(super) fn finish(&mut self, head: u16, written: u32) {
        self.done.push((head, written));
    }

    /// Gives back what is done with. True if the driver wants to be interrupted for it.
    pub(super) fn give_back(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        if self.done.is_empty() {
            return Ok(false);
        }
        let first = self.queue.next_used();
        let mut next = first;
        for (head, written) in self.done.drain(..) {
            let slot = u64::from(next % self.queue.size());
            let place = at(self.queue.used_ring(), RING_HEADER + slot * USED_ELEMENT)?;
            let element = u64::from(head) | u64::from(written) << 32;
            memory
                .write_slice(&element.to_le_bytes(), place)
                .map_err(Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let index = at(self.queue.used_ring(), INDEX)?;
        memory
            .store(next.to_le(), index, Ordering::Release)
            .map_err(Error::GuestMemory)?;
        self.interrupt_wanted(memory, first, next)
    }

    fn interrupt_wanted(
        &self,
        memory: &GuestMemoryMmap,
        old: u16,
        new: u16,
    ) -> Result<bool, Error> {
        // The driver sets its event index and then looks at the index: one of us sees the other.
        fence(Ordering::SeqCst);
        let read = |offset| -> Result<u16, Error> {
            let place = at(self.queue.avail_ring(), offset)?;
            memory
                .load(place, Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(Error::GuestMemory)
        };
        if self.queue.event_idx_enabled() {
            let event = RING_HEADER + AVAIL_ELEMENT * u64::from(self.queue.size());
            return Ok(is_passed(read(event)?, old, new));
        }
        Ok(read(0)? & NO_INTERRUPT == 0)
    }

    /// Asks the driver to tell of chains from now on. True if more have come already.
    pub(super) fn ask_for_notice(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        if !self.queue.ready() {
            return Ok(false);
        }
        self.queue.enable_notification(memory)
    }

    /// The device looks by itself; the driver need not tell.
    pub(super) fn decline_notice(&mut self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue.disable_notification(memory)
    }
}

/// Whether an index that moved from `old` to `new` has passed the event (virtio 1.2, section
/// 2.7.7.2).
fn is_passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn at(ring: u64, offset: u64) -> Result<GuestAddress, Error> {
    ring.checked_add(offset)
        .map(GuestAddress)
        .ok_or(Error::AddressOverflow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The rule, step by step: the index passes the event when it leaves it.
        #[test]
        fn an_event_is_passed_when_the_index_leaves_it(
            old in any::<u16>(), step in 0u16..300, distance in 0u16..600,
        ) {
            let new = old.wrapping_add(step);
            let event = old.wrapping_sub(300).wrapping_add(distance);
            let walked = (0..step).any(|taken| old.wrapping_add(taken) == event);
            prop_assert_eq!(is_passed(event, old, new), walked);
        }
    }
}
