//! What the memory of the processes compared holds. It follows from a few numbers, so that a scanner
//! of ours and KSM find the same.

use serde::{Deserialize, Serialize};

/// Words of a page.
const WORDS: usize = 512;

/// Equal memory comes in groups of `run` pages, each at a multiple of that.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Contents {
    pub(crate) pages: u64,
    pub(crate) run: u64,
    pub(crate) pattern: Pattern,
    pub(crate) places: Places,
}

/// Which groups are equal in all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pattern {
    /// Every second one; the others are each process's own. No group has an equal neighbour.
    Alternating,
    /// So many percent are zero, so many equal, drawn for each group: some are neighbours by chance.
    Drawn { zero: u64, common: u64 },
}

/// Where a process has what others have, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Places {
    /// Where all have it, as clones of one image do.
    Same,
    /// The groups in an order of its own.
    Shuffled,
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Zero,
    Common(u64),
    Unique,
}

impl Contents {
    pub(crate) const fn unique(pages: u64) -> Self {
        Self {
            pages,
            run: 1,
            pattern: Pattern::Drawn { zero: 0, common: 0 },
            places: Places::Same,
        }
    }

    pub(crate) const fn common(pages: u64) -> Self {
        Self {
            pattern: Pattern::Drawn {
                zero: 0,
                common: 100,
            },
            ..Self::unique(pages)
        }
    }

    /// Every page of process number `vm`.
    pub(crate) fn of(&self, vm: u64) -> Vec<Page> {
        let groups: Vec<Page> = (0..self.pages.div_ceil(self.run))
            .map(|group| self.class(group))
            .collect();
        let common = groups
            .iter()
            .filter(|class| matches!(class, Page::Common(_)));
        let mut order: Vec<u64> = (0..common.count() as u64).collect();
        if self.places == Places::Shuffled {
            shuffle(&mut order, vm);
        }
        let mut order = order.into_iter();
        let numbered = groups.into_iter().map(|class| match class {
            Page::Common(_) => Page::Common(order.next().unwrap_or_default()),
            other => other,
        });
        let pages =
            numbered.flat_map(|class| (0..self.run).map(move |place| class.at(place, self.run)));
        pages
            .take(usize::try_from(self.pages).unwrap_or(usize::MAX))
            .collect()
    }

    fn class(&self, group: u64) -> Page {
        match self.pattern {
            Pattern::Alternating if group.is_multiple_of(2) => Page::Common(0),
            Pattern::Alternating => Page::Unique,
            Pattern::Drawn { zero, common } => match mix(group ^ 0x5eed) % 100 {
                percent if percent < zero => Page::Zero,
                percent if percent < zero + common => Page::Common(0),
                _ => Page::Unique,
            },
        }
    }

    /// Pages that `vms` such processes need not have, if all that is equal is one and zero is nothing.
    pub(crate) fn ideal_saving(&self, vms: u64) -> u64 {
        let one = self.of(0);
        let count = |is: fn(&Page) -> bool| one.iter().filter(|page| is(page)).count() as u64;
        count(|page| *page == Page::Zero) * vms
            + count(|page| matches!(page, Page::Common(_))) * (vms - 1)
    }
}

impl Page {
    fn at(self, place: u64, run: u64) -> Self {
        match self {
            Self::Common(group) => Self::Common(group * run + place),
            other => other,
        }
    }

    /// Writes what page `index` of process `vm` holds.
    pub(crate) fn fill(self, vm: u64, index: u64, bytes: &mut [u8; WORDS * 8]) {
        let seed = match self {
            Self::Zero => return bytes.fill(0),
            Self::Common(number) => mix(number),
            Self::Unique => mix(mix(vm + 1) ^ index),
        };
        for (number, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&mix(seed.wrapping_add(number as u64)).to_le_bytes());
        }
    }
}

/// In an order that follows from `seed`.
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64) {
    for last in (1..items.len()).rev() {
        let other = mix(seed << 40 ^ last as u64) % (last as u64 + 1);
        items.swap(last, usize::try_from(other).unwrap_or(0));
    }
}

/// Spreads a number over all bits.
fn mix(value: u64) -> u64 {
    page::Random::new(value).next()
}
