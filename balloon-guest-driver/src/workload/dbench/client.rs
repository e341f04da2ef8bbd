//! What a client does: decides, touches nothing.

use super::FILE_BLOCKS;
use crate::disk::Block;
use crate::random::Random;

/// Blocks written over or appended at a time.
const PART_BLOCKS: u32 = 4;
/// The shortest that a file is created; it grows by appending.
const CREATED_BLOCKS: u32 = 12;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Read,
    Write,
    /// Of the size of a file.
    LookUp,
    Delete,
}

/// Something that a client does with adjacent blocks of one file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    pub(super) first: Block,
    pub(super) count: u32,
    /// A bit for each block, from the first: those that are done.
    done: u32,
    /// Those that had to be asked of the disk.
    asked: u32,
    /// Those that cannot be had now.
    passed_over: u32,
}

/// What a client is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Client {
    /// Nothing.
    Idle,
    /// Wants this file, which another client may have.
    Wants(u32),
    /// Has a file and does something with it.
    Does(Operation),
}

impl Client {
    /// Whether it has the file.
    pub(super) fn has(&self, file: u32) -> bool {
        matches!(self, Self::Does(operation) if operation.first / FILE_BLOCKS == file)
    }
}

impl Operation {
    const fn new(kind: Kind, first: Block, count: u32) -> Self {
        Self {
            kind,
            first,
            count,
            done: 0,
            asked: 0,
            passed_over: 0,
        }
    }

    /// The next block that is neither done nor passed over, counted from the first.
    pub(super) fn next_wanted(&self) -> Option<u32> {
        let next = (self.done | self.passed_over).trailing_ones();
        (next < self.count).then_some(next)
    }

    pub(super) const fn note_done(&mut self, index: u32) {
        self.done |= 1 << index;
    }

    /// So many from `index` on are on their way.
    pub(super) const fn note_asked(&mut self, index: u32, count: u32) {
        let blocks = ((1 << count) - 1) << index;
        self.asked |= blocks;
        self.passed_over |= blocks;
    }

    pub(super) const fn was_asked(&self, index: u32) -> bool {
        self.asked >> index & 1 == 1
    }

    pub(super) const fn pass_over(&mut self, index: u32) {
        self.passed_over |= 1 << index;
    }

    pub(super) const fn look_at_all_again(&mut self) {
        self.passed_over = 0;
    }

    /// Whether nothing is left to do. What has no blocks to wait for is done at once.
    pub(super) const fn is_done(&self) -> bool {
        match self.kind {
            Kind::Read | Kind::Write => self.done.count_ones() == self.count,
            Kind::LookUp | Kind::Delete => true,
        }
    }
}

/// What a client does with a file of that many blocks, if `write` percent of all writes.
pub(super) fn draw(random: &mut Random, write: u8, file: u32, length: u32) -> Operation {
    let first = file * FILE_BLOCKS;
    if length == 0 {
        let count = CREATED_BLOCKS + random.below(FILE_BLOCKS - CREATED_BLOCKS + 1);
        return Operation::new(Kind::Write, first, count);
    }
    let (writes, eighth) = (random.percent(write), random.below(8));
    match (writes, eighth) {
        (false, 0) => Operation::new(Kind::LookUp, first, 0),
        (false, _) => Operation::new(Kind::Read, first, length),
        (true, 0) => Operation::new(Kind::Delete, first, 0),
        (true, 1 | 2) if length < FILE_BLOCKS => {
            let count = PART_BLOCKS.min(FILE_BLOCKS - length);
            Operation::new(Kind::Write, first + length, count)
        }
        (true, _) => {
            let offset = random.below(length - PART_BLOCKS + 1);
            Operation::new(Kind::Write, first + offset, PART_BLOCKS)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_client_stays_within_its_file(
            seed: u64, write in 0_u8..=100, file in 0_u32..1000, length in CREATED_BLOCKS..=FILE_BLOCKS,
            is_there: bool,
        ) {
            let length = if is_there { length } else { 0 };
            let drawn = draw(&mut Random::new(seed), write, file, length);
            let (start, end) = (file * FILE_BLOCKS, (file + 1) * FILE_BLOCKS);
            prop_assert!(drawn.first >= start && drawn.first + drawn.count <= end);
            if drawn.kind == Kind::Read {
                prop_assert!(drawn.first + drawn.count <= start + length, "what is not there");
            }
            if !is_there {
                prop_assert!(drawn.kind == Kind::Write && drawn.count >= CREATED_BLOCKS);
            }
        }

        #[test]
        fn an_operation_is_done_when_each_block_is(order in Just(()), count in 1_u32..=FILE_BLOCKS, seed: u64) {
            let () = order;
            let mut operation = Operation::new(Kind::Read, 32, count);
            let mut random = Random::new(seed);
            let mut done = BTreeSet::new();
            while let Some(index) = operation.next_wanted() {
                prop_assert!(!operation.is_done() && !done.contains(&index) && index < count);
                if random.percent(50) {
                    operation.pass_over(index);
                } else {
                    operation.note_done(index);
                    done.insert(index);
                }
                if random.percent(20) {
                    operation.look_at_all_again();
                }
            }
            operation.look_at_all_again();
            prop_assert_eq!(operation.is_done(), done.len() == count as usize);
        }
    }

    #[test]
    fn the_asked_part_of_operations_writes() {
        for (write, low, high) in [(0, 0, 0), (20, 1800, 2200), (100, 10_000, 10_000)] {
            let mut random = Random::new(3);
            let writes = (0..10_000)
                .map(|_| draw(&mut random, write, 1, 14))
                .filter(|drawn| matches!(drawn.kind, Kind::Write | Kind::Delete))
                .count();
            assert!(
                (low..=high).contains(&writes),
                "{writes} of 10000 at {write}"
            );
        }
    }
}
