//! Which blocks of the disk are in memory, where, and what is given up for others: decides, touches
//! nothing.
//!
//! A *place* is a number of a frame held (see [`Held`](crate::held::Held)); it has a buffer here.
//! Places that were never used lie above the others, for an untouched frame costs the host nothing.
//!
//! What goes first is found by a clock, or second chance: a hand goes round the buffers and takes the
//! first that was not used since it came by last. A use then sets one bit. The order of exact LRU
//! would have to be kept at each of them, for a choice that is hardly better.
//!
//! The balloon wants long runs of frames, and the least useful buffers lie anywhere. So the buffer in
//! the last place moves to where the clock's choice was: one copy of a page in the guest makes the
//! host's work, and the memory that it gets, the same as from any other workload.

use bitflags::bitflags;

use super::{Block, RUN_BLOCKS};

/// No block, or no place.
const NONE: u32 = u32::MAX;
/// Blocks that may be written back together.
const WINDOW: u32 = 16;
const _: () = assert!(WINDOW as usize <= RUN_BLOCKS);
/// So many dirty buffers are let be, whatever the size of the cache.
const DIRTY_FLOOR: u32 = 16;

bitflags! {
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    struct Flags: u32 {
        /// The disk writes to it.
        const READING = 1 << 0;
        /// The disk reads from it.
        const WRITING = 1 << 1;
        /// The disk does not have its contents.
        const DIRTY = 1 << 2;
        /// Used since the hand came by.
        const RECENT = 1 << 3;
        /// Lent to the disk.
        const BUSY = Self::READING.bits() | Self::WRITING.bits();
    }
}

/// What is in a place. Any bytes make a valid one.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Buffer {
    block: Block,
    flags: Flags,
}

impl Buffer {
    /// A buffer of no block.
    pub const EMPTY: Self = Self {
        block: NONE,
        flags: Flags::empty(),
    };
}

/// Where a block is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// In this place, to be used.
    Here(u32),
    /// In this place, but lent to the disk.
    Busy(u32),
    /// On the disk only.
    Absent,
}

/// The last place, given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GivenUp {
    /// The place that is no more.
    pub place: u32,
    /// Where its contents have to be copied to before.
    pub moves_to: Option<u32>,
}

/// The buffers and what is in them.
#[derive(Debug)]
pub struct Cache<'a> {
    buffers: &'a mut [Buffer],
    /// By block: its place.
    places: &'a mut [u32],
    count: u32,
    /// Places from here on were never used.
    used: u32,
    hand: u32,
    /// Where writing back goes on.
    broom: u32,
    dirty: u32,
    busy: u32,
    /// Memory was wanted and there were only dirty buffers.
    is_short: bool,
}

impl<'a> Cache<'a> {
    /// No places yet; room for one for each buffer lent, and for blocks below the number of `places`.
    #[must_use]
    pub const fn new(buffers: &'a mut [Buffer], places: &'a mut [u32]) -> Self {
        Self {
            buffers,
            places,
            count: 0,
            used: 0,
            hand: 0,
            broom: 0,
            dirty: 0,
            busy: 0,
            is_short: false,
        }
    }

    /// Blocks that there is room for.
    #[must_use]
    pub fn block_limit(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(NONE)
    }

    /// Forgets everything: no places, and blocks below `blocks` from now on.
    ///
    /// # Panics
    /// If a buffer is lent to the disk, or there are more blocks than room for them.
    pub fn clear(&mut self, blocks: u32) {
        assert!(self.busy == 0, "{} buffers are lent", self.busy);
        self.places[..blocks as usize].fill(NONE);
        (self.count, self.used, self.hand, self.broom) = (0, 0, 0, 0);
        (self.dirty, self.is_short) = (0, false);
    }

    /// One place more, at the end.
    ///
    /// # Panics
    /// If there is no buffer for it.
    pub fn add_place(&mut self) {
        assert!((self.count as usize) < self.buffers.len(), "no more places");
        self.count += 1;
    }

    /// Places that there are.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Buffers that the disk does not have.
    #[must_use]
    pub const fn dirty(&self) -> u32 {
        self.dirty
    }

    /// Looks for a block.
    #[must_use]
    pub fn find(&self, block: Block) -> Found {
        match self.places[block as usize] {
            NONE => Found::Absent,
            place if self.flags(place).intersects(Flags::BUSY) => Found::Busy(place),
            place => Found::Here(place),
        }
    }

    /// Notes that a buffer was used.
    pub fn touch(&mut self, place: u32) {
        self.buffers[place as usize].flags |= Flags::RECENT;
    }

    /// Makes a place the block's, which has none; another block may lose it for that. `None` if all
    /// are dirty or lent.
    pub fn claim(&mut self, block: Block) -> Option<u32> {
        debug_assert_eq!(self.find(block), Found::Absent);
        let place = if self.used < self.count {
            self.used += 1;
            self.used - 1
        } else {
            let place = self.choose()?;
            self.unmap(place);
            place
        };
        self.buffers[place as usize] = Buffer {
            block,
            flags: Flags::empty(),
        };
        self.places[block as usize] = place;
        Some(place)
    }

    /// The buffer has contents that the disk does not have.
    pub fn mark_dirty(&mut self, place: u32) {
        let flags = &mut self.buffers[place as usize].flags;
        debug_assert!(!flags.intersects(Flags::BUSY), "place {place} is lent");
        self.dirty += u32::from(!flags.contains(Flags::DIRTY));
        *flags |= Flags::DIRTY | Flags::RECENT;
    }

    /// Whether there is no more to be made dirty before some of it was written back: a quarter of the
    /// cache, as other systems have it.
    #[must_use]
    pub fn is_too_dirty(&self) -> bool {
        self.dirty >= (self.count / 4).max(DIRTY_FLOOR)
    }

    /// Whether to begin writing back.
    #[must_use]
    pub const fn wants_write_back(&self) -> bool {
        self.dirty > self.count / 10 || (self.is_short && self.dirty > 0)
    }

    /// Lends the buffer to the disk, to be filled.
    pub fn begin_read(&mut self, place: u32) {
        self.lend(place, Flags::READING);
    }

    /// The disk has filled the buffer, or failed to: then it is no block's.
    pub fn end_read(&mut self, block: Block, ok: bool) {
        let place = self.take_back(block, Flags::READING);
        if !ok {
            self.unmap(place);
        }
    }

    /// Lends the buffer to the disk, to be written.
    pub fn begin_write(&mut self, place: u32) {
        let flags = &mut self.buffers[place as usize].flags;
        debug_assert!(flags.contains(Flags::DIRTY), "place {place} is clean");
        flags.remove(Flags::DIRTY);
        self.dirty -= 1;
        self.lend(place, Flags::WRITING);
    }

    /// The disk has the buffer's contents, or failed to take them.
    pub fn end_write(&mut self, block: Block, ok: bool) {
        let place = self.take_back(block, Flags::WRITING);
        if !ok {
            self.mark_dirty(place);
        }
    }

    /// The block's contents are of no use any more, not even to the disk. What is lent stays.
    pub fn forget(&mut self, block: Block) {
        if let Found::Here(place) = self.find(block) {
            self.dirty -= u32::from(self.flags(place).contains(Flags::DIRTY));
            self.unmap(place);
        }
    }

    /// All buffers' contents are of no use any more.
    ///
    /// # Panics
    /// If a buffer is lent to the disk.
    pub fn forget_all(&mut self) {
        assert!(self.busy == 0, "{} buffers are lent", self.busy);
        for place in 0..self.used {
            self.unmap(place);
        }
        (self.used, self.hand, self.broom) = (0, 0, 0);
        (self.dirty, self.is_short) = (0, false);
    }

    /// The next dirty block to write back, and as many dirty ones as follow it on the disk: the first
    /// and how many. The least recently dirtied are not looked for: all are written before long.
    pub fn dirty_run(&mut self) -> Option<(Block, usize)> {
        let place = (0..self.used).find_map(|_| {
            let place = self.within(self.broom);
            self.broom = place + 1;
            self.flags(place).contains(Flags::DIRTY).then_some(place)
        })?;
        let block = self.buffers[place as usize].block;
        // A run does not cross its aligned window, so that neighbours find each other from any side.
        let start = block - block % WINDOW;
        let end = start + WINDOW;
        let first = (start..block)
            .rev()
            .take_while(|&b| self.is_dirty(b))
            .last();
        let first = first.unwrap_or(block);
        let count = (first..end).take_while(|&b| self.is_dirty(b)).count();
        Some((first, count))
    }

    /// Gives up the last place. `None` if its buffer is lent to the disk or all are dirty; then asking
    /// again when requests are done helps.
    pub fn give_up(&mut self) -> Option<GivenUp> {
        let last = self.count.checked_sub(1)?;
        let mut moves_to = None;
        if last < self.used {
            if self.flags(last).intersects(Flags::BUSY) {
                return None;
            }
            let place = self.choose()?;
            self.unmap(place);
            if place != last && self.buffers[last as usize].block != NONE {
                moves_to = Some(place);
                let buffer = self.buffers[last as usize];
                self.buffers[place as usize] = buffer;
                self.places[buffer.block as usize] = place;
            }
            self.used = last;
        }
        self.count = last;
        Some(GivenUp {
            place: last,
            moves_to,
        })
    }

    /// The hand's next choice, clean and not lent.
    fn choose(&mut self) -> Option<u32> {
        for _ in 0..2 * self.used {
            let place = self.within(self.hand);
            self.hand = place + 1;
            let flags = &mut self.buffers[place as usize].flags;
            if flags.intersects(Flags::BUSY | Flags::DIRTY) {
                continue;
            }
            if flags.contains(Flags::RECENT) {
                flags.remove(Flags::RECENT);
                continue;
            }
            self.is_short = false;
            return Some(place);
        }
        self.is_short = true;
        None
    }

    /// A hand's place: behind the last one comes the first, and the last may have gone meanwhile.
    const fn within(&self, hand: u32) -> u32 {
        if hand < self.used { hand } else { 0 }
    }

    fn is_dirty(&self, block: Block) -> bool {
        match self.places.get(block as usize) {
            None | Some(&NONE) => false,
            Some(&place) => self.flags(place).contains(Flags::DIRTY),
        }
    }

    fn flags(&self, place: u32) -> Flags {
        self.buffers[place as usize].flags
    }

    fn unmap(&mut self, place: u32) {
        let buffer = &mut self.buffers[place as usize];
        if buffer.block != NONE {
            self.places[buffer.block as usize] = NONE;
        }
        *buffer = Buffer::EMPTY;
    }

    fn lend(&mut self, place: u32, how: Flags) {
        let flags = &mut self.buffers[place as usize].flags;
        debug_assert!(!flags.intersects(Flags::BUSY | Flags::DIRTY));
        *flags |= how;
        self.busy += 1;
    }

    fn take_back(&mut self, block: Block, how: Flags) -> u32 {
        let place = self.places[block as usize];
        let flags = &mut self.buffers[place as usize].flags;
        debug_assert!(flags.contains(how), "block {block} was not lent");
        flags.remove(how);
        self.busy -= 1;
        place
    }
}
