//! The places for segments in the VM's swap file, and when one may be written again.
//!
//! A read is handed out with a pin of its slot, and the disk is read without the log. The slot may become free meanwhile,
//! because its records died or were moved; then it waits until the last pin is gone. So what a read finds in its slot is what
//! was there when it was handed out, however long it takes, and a read that is given up needs nobody to be told.

use std::sync::Arc;

/// Kept by whoever reads a slot; also a mark of a thing that is under way.
pub(crate) type Pin = Arc<()>;

/// A place in the file, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

#[derive(Debug)]
pub(crate) struct Slots {
    total: u32,
    free: Vec<Slot>,
    /// Free but for reads that go on.
    waiting: Vec<(Slot, Pin)>,
    retired: Vec<Slot>,
}

impl Slots {
    pub(crate) fn new(total: u32) -> Self {
        Self {
            total,
            // From the file's start on.
            free: (0..total).rev().map(Slot).collect(),
            waiting: Vec::new(),
            retired: Vec::new(),
        }
    }

    pub(crate) fn take(&mut self) -> Option<Slot> {
        self.settle();
        self.free.pop()
    }

    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    pub(crate) fn give_back_once_unpinned(&mut self, slot: Slot, pin: Pin) {
        self.waiting.push((slot, pin));
        self.settle();
    }

    pub(crate) fn retire(&mut self, slot: Slot) {
        self.retired.push(slot);
    }

    /// Finds what has become free. `get_mut` sees all that the readers did before they let go; a mere count would not.
    fn settle(&mut self) {
        let is_free = |(_, pin): &mut (Slot, Pin)| Arc::get_mut(pin).is_some();
        let free = self.waiting.extract_if(.., is_free).map(|(slot, _)| slot);
        self.free.extend(free);
    }

    /// That can be written now, or once reads have ended.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.waiting.len()
    }

    /// That can be written now.
    pub(crate) fn ready(&self) -> usize {
        let unpinned = |(_, pin): &&(Slot, Pin)| Arc::strong_count(pin) == 1;
        self.free.len() + self.waiting.iter().filter(unpinned).count()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn retired(&self) -> usize {
        self.retired.len()
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// Those that hold no segment.
    pub(crate) fn unused(&self) -> impl Iterator<Item = Slot> {
        let waiting = self.waiting.iter().map(|&(slot, _)| slot);
        self.free
            .iter()
            .chain(&self.retired)
            .copied()
            .chain(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_waits_for_the_last_read_of_it() {
        let mut slots = Slots::new(1);
        let slot = slots.take().unwrap();
        let pin = Pin::default();
        let reads = [0; 2].map(|_| pin.clone());
        slots.give_back_once_unpinned(slot, pin);
        for read in reads {
            assert_eq!(slots.take(), None);
            drop(read);
        }
        assert_eq!(slots.take(), Some(slot));
    }
}
