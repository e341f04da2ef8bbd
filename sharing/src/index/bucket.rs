//! Six entries in one cache line.
//!
//! An entry takes 10 bytes: 32 bits of the hash, and 48 that say what it is. `high` tells the kinds
//! apart: zero is an empty place; with its top bit clear it is the slot of a hint's VM, with `low` the
//! gfn; with the top bit set it is a frame's, whose generation and 7 more bits of the hash follow.

use super::Entry;
use crate::content::ContentHash;
use crate::frames::{Frame, FrameKey};
use crate::vms::VmSlot;

pub(super) const SLOTS: usize = 6;
const FRAME_BIT: u16 = 0x8000;
const GENERATION_SHIFT: u16 = 7;
const MORE_HASH_MASK: u16 = 0x7f;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    tags: [u32; SLOTS],
    low: [u32; SLOTS],
    high: [u16; SLOTS],
    /// Entries that belong here may lie in the next bucket. Never unset while the table lives.
    pub(super) is_spilled: bool,
}

/// Some of a bucket's slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots(u8);

impl Iterator for Slots {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let slot = self.0.trailing_zeros() as usize;
        (self.0 != 0).then(|| {
            self.0 &= self.0 - 1;
            slot
        })
    }
}

/// The half of a hash that finds the bucket and is kept in every entry.
pub(super) const fn tag(hash: ContentHash) -> u32 {
    (hash.0 >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "masked to 7 bits")]
const fn more_hash(hash: ContentHash) -> u16 {
    hash.0 as u16 & MORE_HASH_MASK
}

impl Bucket {
    pub(super) fn is_free(&self, slot: usize) -> bool {
        self.high[slot] == 0
    }

    pub(super) fn is_hint(&self, slot: usize) -> bool {
        !self.is_free(slot) && self.high[slot] & FRAME_BIT == 0
    }

    pub(super) fn tag(&self, slot: usize) -> u32 {
        self.tags[slot]
    }

    /// The slots of entries that may be for `hash`, a bit each: a frame is told by 39 bits, a hint by
    /// 32. Looks at all six without a branch.
    pub(super) fn matching(&self, hash: ContentHash) -> Slots {
        let (tag, more) = (tag(hash), more_hash(hash));
        let mut slots = 0;
        for slot in 0..SLOTS {
            let high = self.high[slot];
            let is_hint = high & FRAME_BIT == 0;
            let is_match = (self.tags[slot] == tag)
                & (high != 0)
                & (is_hint | (high & MORE_HASH_MASK == more));
            slots |= u8::from(is_match) << slot;
        }
        Slots(slots)
    }

    /// The first slot without an entry.
    pub(super) fn first_free(&self) -> Option<usize> {
        (0..SLOTS).find(|&slot| self.is_free(slot))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the generation's 8 bits")]
    pub(super) fn get(&self, slot: usize) -> Option<Entry> {
        let (high, low) = (self.high[slot], self.low[slot]);
        match high {
            0 => None,
            slot if slot & FRAME_BIT == 0 => Some(Entry::Hint {
                slot: VmSlot::new(slot),
                gfn: low,
            }),
            _ => Some(Entry::Frame(FrameKey {
                frame: Frame(low),
                generation: (high >> GENERATION_SHIFT) as u8,
            })),
        }
    }

    pub(super) fn put(&mut self, slot: usize, hash: ContentHash, entry: Entry) {
        self.tags[slot] = tag(hash);
        (self.high[slot], self.low[slot]) = match entry {
            Entry::Hint { slot, gfn } => (slot.get(), gfn),
            Entry::Frame(FrameKey { frame, generation }) => {
                let generation = u16::from(generation) << GENERATION_SHIFT;
                (FRAME_BIT | generation | more_hash(hash), frame.0)
            }
        };
    }

    /// Copies an entry as it is: its full hash is not known any more.
    pub(super) fn copy(&mut self, slot: usize, from: &Self, from_slot: usize) {
        self.tags[slot] = from.tags[from_slot];
        self.low[slot] = from.low[from_slot];
        self.high[slot] = from.high[from_slot];
    }

    pub(super) fn clear(&mut self, slot: usize) {
        self.high[slot] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bucket_is_a_cache_line() {
        assert_eq!(size_of::<Bucket>(), 64);
    }

    proptest! {
        #[test]
        fn an_entry_comes_back_as_it_was_put(
            hash: u64, low: u32, slot in 1u16..0x8000, generation: u8, is_frame: bool, at in 0..SLOTS
        ) {
            let entry = if is_frame {
                Entry::Frame(FrameKey { frame: Frame(low), generation })
            } else {
                Entry::Hint { slot: VmSlot::new(slot), gfn: low }
            };
            let mut bucket = Bucket::default();
            bucket.put(at, ContentHash(hash), entry);
            prop_assert_eq!(bucket.get(at), Some(entry));
            prop_assert!(bucket.matching(ContentHash(hash)).eq([at]));
            prop_assert_eq!(bucket.matching(ContentHash(hash ^ (1 << 40))).count(), 0);
            prop_assert_eq!(bucket.is_hint(at), !is_frame);
            bucket.clear(at);
            prop_assert_eq!(bucket.get(at), None);
        }
    }
}
