//! The frames that a workload holds: a stack, so that growing and giving up are one step each.
//!
//! The allocator gives the lowest free frames first, so what is on top is what lies highest; it
//! is given up first, in long runs, and next to what the balloon has already.

use crate::Gfn;

/// A frame that the workload holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Slot {
    /// The frame.
    pub gfn: Gfn,
    /// Which version of its content was written last; kept here, outside the page.
    pub version: u32,
}

/// The frames held, in storage lent by the owner. Storage beyond them is never touched.
#[derive(Debug)]
pub struct Held<'a> {
    slots: &'a mut [Slot],
    count: usize,
}

impl<'a> Held<'a> {
    /// Nothing held yet; at most as many as there are slots.
    #[must_use]
    pub const fn new(slots: &'a mut [Slot]) -> Self {
        Self { slots, count: 0 }
    }

    /// How many are held.
    ///
    /// # Panics
    /// Never: there are fewer frames than `u32` has numbers.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.count).expect("frames have 32-bit numbers")
    }

    /// The slots in use.
    #[must_use]
    pub fn slots(&mut self) -> &mut [Slot] {
        &mut self.slots[..self.count]
    }

    /// The frame in a place, counted from the one held first.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn gfn(&self, place: u32) -> Gfn {
        self.slots[..self.count][place as usize].gfn
    }

    /// How many more can be held.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.slots.len() - self.count
    }

    /// Holds one more.
    ///
    /// # Panics
    /// If there is no [`room`](Self::room).
    pub fn push(&mut self, slot: Slot) {
        self.slots[self.count] = slot;
        self.count += 1;
    }

    /// Gives one up, the one held last.
    pub fn pop(&mut self) -> Option<Slot> {
        self.count = self.count.checked_sub(1)?;
        Some(self.slots[self.count])
    }
}
