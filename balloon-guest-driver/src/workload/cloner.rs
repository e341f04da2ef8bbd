//! `clone`: memory of which a part is equal across guests, as clones of one image have it.
//!
//! What a page holds follows from its place among the pages held: zero, equal in all guests with
//! the same seed, or this guest's own.

use super::pace::Pace;
use super::spec::CloneSpec;
use super::{Counters, Slice};
use crate::held::{Held, Slot};
use crate::page::{Memory, Page, common_seed, fill};
use crate::random::{Random, mix};

/// Shuffling moves pages about within so many, a power of two; so it needs no table and does not
/// depend on how many are held.
const SHUFFLED: u32 = 4096;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Class {
    Zero,
    Common,
    Unique,
}

#[derive(Debug)]
pub(super) struct Cloner {
    spec: CloneSpec,
    guest: u32,
    pace: Pace,
    random: Random,
}

impl Cloner {
    pub(super) fn new(spec: CloneSpec, guest: u32, now_us: u64) -> Self {
        Self {
            spec,
            guest,
            pace: Pace::new(1, now_us),
            random: Random::new(u64::from(guest)),
        }
    }

    /// Writes what belongs at `index` among the pages held.
    pub(super) fn write(&self, index: u32, version: u32, page: &mut Page) {
        let index = self.content_index(index);
        match self.class(index) {
            Class::Zero => page.fill(0),
            Class::Common => fill(page, self.common_seed(index)),
            Class::Unique => {
                let own = u64::from(self.guest) << 32 | u64::from(version);
                fill(
                    page,
                    mix(self.common_seed(index) ^ mix(own.wrapping_add(1))),
                );
            }
        }
    }

    /// Rewrites as many pages as are due, each with what belongs there. Returns when to come again.
    pub(super) fn step(
        &mut self,
        held: &mut Held<'_>,
        memory: &mut impl Memory,
        counters: &mut Counters,
        slice: &mut Slice<'_>,
    ) -> Option<u64> {
        let count = held.count();
        if self.spec.rewrite == 0 || count == 0 {
            return Some(u64::MAX);
        }
        let rate = (u64::from(count) * u64::from(self.spec.rewrite) / 100).max(1);
        self.pace.set_rate(rate, slice.now_us());
        for _ in 0..self.pace.due(slice.now_us()) {
            if slice.is_over() {
                break;
            }
            let index = self.random.below(count);
            let Slot { gfn, version } = &mut held.slots()[index as usize];
            *version = version.wrapping_add(1);
            self.write(index, *version, memory.page(*gfn));
            self.pace.note_done(1);
            counters.rewritten += 1;
        }
        self.pace.wake_at_us(slice.now_us())
    }

    fn content_index(&self, index: u32) -> u32 {
        if !self.spec.shuffle {
            return index;
        }
        // An odd factor permutes the numbers below a power of two.
        let mut random = Random::new(u64::from(self.guest));
        let (factor, offset) = (random.below(SHUFFLED) | 1, random.below(SHUFFLED));
        let moved = (index % SHUFFLED).wrapping_mul(factor).wrapping_add(offset) % SHUFFLED;
        index - index % SHUFFLED + moved
    }

    const fn common_seed(&self, index: u32) -> u64 {
        common_seed(self.spec.seed, index)
    }

    fn class(&self, index: u32) -> Class {
        // From the common seed, so that all guests agree which pages are common.
        let percent = mix(self.common_seed(index)) % 100;
        let zero = u64::from(self.spec.zero);
        if percent < zero {
            Class::Zero
        } else if percent < zero + u64::from(self.spec.common) {
            Class::Common
        } else {
            Class::Unique
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::*;
    use crate::page::{WORDS, is_zero};

    const SPEC: CloneSpec = CloneSpec {
        zero: 25,
        common: 35,
        rewrite: 1,
        seed: 1,
        shuffle: false,
    };
    const PAGES: u32 = 8192;

    fn pages(spec: CloneSpec, guest: u32) -> Vec<Page> {
        let cloner = Cloner::new(spec, guest, 0);
        (0..PAGES)
            .map(|index| {
                let mut page = [1; WORDS];
                cloner.write(index, 0, &mut page);
                page
            })
            .collect()
    }

    fn is_about(count: usize, percent: usize) -> bool {
        (count * 100).abs_diff(PAGES as usize * percent) < PAGES as usize * 3
    }

    #[test]
    fn guests_have_the_given_parts_zero_and_in_common() {
        let (a, b) = (pages(SPEC, 1), pages(SPEC, 2));
        let zero = a.iter().filter(|page| is_zero(page)).count();
        let equal = a.iter().zip(&b).filter(|(a, b)| a == b).count();
        assert!(is_about(zero, 25), "{zero} zero of {PAGES}");
        assert!(is_about(equal, 60), "{equal} equal of {PAGES}");
    }

    #[test]
    fn another_seed_has_nothing_but_zero_in_common() {
        let (a, b) = (pages(SPEC, 1), pages(CloneSpec { seed: 2, ..SPEC }, 1));
        assert!(a.iter().zip(&b).all(|(a, b)| a != b || is_zero(a)));
    }

    #[test]
    fn shuffled_guests_have_the_same_common_pages_elsewhere() {
        let spec = CloneSpec {
            shuffle: true,
            ..SPEC
        };
        let (a, b) = (pages(spec, 1), pages(spec, 2));
        let in_place = a
            .iter()
            .zip(&b)
            .filter(|(a, b)| a == b && !is_zero(a))
            .count();
        let set: BTreeSet<_> = a.iter().filter(|page| !is_zero(page)).collect();
        let common = b.iter().filter(|page| set.contains(page)).count();
        assert!(is_about(common, 35), "{common} common of {PAGES}");
        assert!(in_place * 20 < common, "{in_place} at the same place");
    }

    /// Where each content of a shuffled guest lies.
    fn places(guest: u32) -> Vec<u32> {
        let spec = CloneSpec {
            shuffle: true,
            ..SPEC
        };
        let cloner = Cloner::new(spec, guest, 0);
        let mut places = std::vec![0; PAGES as usize];
        for place in 0..PAGES {
            places[cloner.content_index(place) as usize] = place;
        }
        places
    }

    /// A host that keeps shared pages in one guest's order finds no order that suits another.
    #[test]
    fn shuffled_guests_have_no_run_of_neighbours_in_common() {
        let cloner = Cloner::new(SPEC, 0, 0);
        let common: Vec<usize> = (0..PAGES)
            .filter(|&index| cloner.class(index) == Class::Common)
            .map(|index| index as usize)
            .collect();
        let guests: Vec<_> = (0..8).map(places).collect();
        for (n, a) in guests.iter().enumerate() {
            for (m, b) in guests.iter().enumerate().skip(n + 1) {
                let in_place = common.iter().filter(|&&index| a[index] == b[index]);
                let in_place = in_place.count();
                let mut by_place: Vec<_> =
                    common.iter().map(|&index| (a[index], b[index])).collect();
                by_place.sort_unstable();
                let neighbours = by_place
                    .windows(2)
                    .filter(|pair| {
                        pair[1].0 - pair[0].0 == 1 && pair[1].1.wrapping_sub(pair[0].1) == 1
                    })
                    .count();
                assert!(
                    in_place * 100 < common.len(),
                    "{in_place} of {n} and {m} in place"
                );
                assert!(
                    neighbours * 100 < common.len(),
                    "{neighbours} of {n} and {m} together"
                );
            }
        }
    }
}
