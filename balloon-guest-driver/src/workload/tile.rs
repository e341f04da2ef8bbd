//! `tile`: a small server, to be one of many equal ones on a machine, and to say whether it is as fast as alone.
//!
//! It has memory of its own, and beside it files on a disk, served from a cache that takes what memory is left and gives it
//! up when the balloon or the memory of its own wants it, as other systems' page caches do ([`Dbench`]).
//!
//! **Its own memory** breathes: for half of a period it is `size` large and used all over; for the other half it is `low`
//! large, what was more is freed, and of what is left only `active` is used. When a guest turns follows from its identity, so
//! that equal guests are out of step. A *transaction* looks at some pages, drawn by Zipf's law, checks every byte of each and
//! writes over some. Transactions come at a rate, and what cannot be done in time is left out: so a tile that is slowed has
//! done less, and how long a transaction took is counted, too. Told to be a tile with the same pages and files, it keeps them:
//! so it can be put to sleep and woken.
//!
//! **What is in its pages**: in runs, as files and programs lie, a part is equal in all guests with the same seed, and is only
//! read; the rest carries the pattern of [`Stamp`], which names guest, page and version. Half of each page repeats one
//! word, so that pages compress to about half, as those of ordinary systems do.

use super::dbench::Dbench;
use super::pace::Pace;
use super::spec::{Action, Size, TileSpec};
use super::verifier::WrongPage;
use super::zipf::Zipf;
use super::{Counters, Slice};
use crate::held::{Held, Slot};
use crate::page::{HEADER_WORDS, Memory, Page, Stamp, WORDS, common_seed, fill, word_of};
use crate::random::{GOLDEN, Random, mix};

/// Pages that a transaction looks at.
const TOUCHES: u32 = 16;
/// Pages that are equal in all guests, or not, together.
const RUN: u32 = 16;
/// From here on a page repeats one word.
const REPEATED: usize = WORDS / 2;
/// A prime beyond any number of pages: spreads what is used most over all of what is used.
const SPREAD: u64 = 4_294_967_291;
const SECOND_US: u64 = 1_000_000;

#[derive(Debug)]
pub(super) struct Tile {
    spec: TileSpec,
    guest: u32,
    pages: u32,
    pace: Pace,
    random: Random,
    zipf: Option<Zipf>,
    /// Pages that it should have of its own now.
    wanted: u32,
    pub(super) files: Option<Dbench>,
    has_failed: bool,
}

impl Tile {
    /// One whose own memory is of that many pages at most, with its files.
    pub(super) fn new(
        spec: TileSpec,
        pages: u32,
        guest: u32,
        files: Option<Dbench>,
        now_us: u64,
    ) -> Self {
        let mut tile = Self {
            spec,
            guest,
            pages,
            pace: Pace::new(u64::from(spec.rate), now_us),
            random: Random::new(u64::from(guest) << 32 | u64::from(spec.seed)),
            zipf: None,
            wanted: 0,
            files,
            has_failed: false,
        };
        tile.look_at_time(now_us);
        tile
    }

    /// Goes on by another specification, which may have no other contents and files. False if it has.
    pub(super) fn turn_into(&mut self, spec: TileSpec, now_us: u64) -> bool {
        let contents = |spec: TileSpec| (spec.common, spec.seed);
        let can = !self.has_failed()
            && contents(spec) == contents(self.spec)
            && Action::Tile(spec).files() == Action::Tile(self.spec).files();
        if can {
            self.spec = spec;
            self.pace.set_rate(u64::from(spec.rate), now_us);
            self.zipf = None;
        }
        can
    }

    /// Sees whether its memory is to grow or shrink.
    pub(super) fn look_at_time(&mut self, now_us: u64) {
        let low = match self.spec.low {
            Size::Max => self.pages,
            Size::Pages(pages) => pages.min(self.pages),
        };
        self.wanted = if self.is_high(now_us) {
            self.pages
        } else {
            low
        };
    }

    /// Pages that it should have of its own now.
    pub(super) const fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Pages that its cache can use.
    pub(super) fn wanted_for_files(&self) -> u32 {
        self.files.as_ref().map_or(0, Dbench::blocks)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed || self.files.as_ref().is_some_and(Dbench::has_failed)
    }

    /// A page is wrong: nothing more is done with any, and what the disk has is taken back.
    pub(super) const fn stop(&mut self) {
        self.has_failed = true;
        if let Some(files) = &mut self.files {
            files.stop();
        }
    }

    /// Writes what belongs in its `index`th page.
    pub(super) fn write(&self, index: u32, slot: Slot, page: &mut Page) {
        let seed = self.seed(index, slot);
        fill(page, seed);
        page[..HEADER_WORDS].copy_from_slice(&self.header(index, slot));
        page[REPEATED..].fill(seed);
    }

    /// Checks all of its `index`th page.
    pub(super) fn check(&self, index: u32, slot: Slot, page: &Page) -> Result<(), WrongPage> {
        let seed = self.seed(index, slot);
        let [first, second] = self.header(index, slot);
        let mut wrong = (page[0] ^ first) | (page[1] ^ second);
        let mut expected = word_of(seed, HEADER_WORDS);
        for word in &page[HEADER_WORDS..REPEATED] {
            wrong |= word ^ expected;
            expected = expected.wrapping_add(GOLDEN);
        }
        for word in &page[REPEATED..] {
            wrong |= word ^ seed;
        }
        if wrong == 0 {
            return Ok(());
        }
        let mut right = [0; WORDS];
        self.write(index, slot, &mut right);
        let word = page.iter().zip(&right).position(|(a, b)| a != b);
        match word {
            None => Ok(()),
            Some(word) => Err(WrongPage::at(slot, page, word)),
        }
    }

    /// Does the transactions that are due. Returns when to come again.
    pub(super) fn step(
        &mut self,
        held: &mut Held<'_>,
        memory: &mut impl Memory,
        counters: &mut Counters,
        slice: &mut Slice<'_>,
    ) -> Result<Option<u64>, WrongPage> {
        if self.has_failed {
            return Ok(Some(u64::MAX));
        }
        let active = self.active(held.count(), slice.now_us());
        if active > 0 {
            let zipf = self.zipf_of(active);
            for _ in 0..self.pace.due(slice.now_us()) {
                if slice.is_over() {
                    break;
                }
                let begin_ns = slice.look();
                for _ in 0..TOUCHES {
                    self.touch(zipf, held, memory, counters)?;
                }
                counters.transactions += 1;
                counters.transaction_time.note(slice.look() - begin_ns);
                self.pace.note_done(1);
            }
        }
        let turn_us = self.next_turn_us(slice.now_us());
        let due_us = self.pace.wake_at_us(slice.now_us());
        Ok(due_us.map(|due_us| due_us.min(turn_us)))
    }

    fn touch(
        &mut self,
        zipf: Zipf,
        held: &mut Held<'_>,
        memory: &mut impl Memory,
        counters: &mut Counters,
    ) -> Result<(), WrongPage> {
        let rank = zipf.draw(&mut self.random);
        let index = spread(rank, zipf.count());
        let writes = self.random.percent(self.spec.write) && !self.is_common(index);
        let slot = &mut held.slots()[index as usize];
        let page = memory.page(slot.gfn);
        self.check(index, *slot, page)?;
        if writes {
            slot.version = slot.version.wrapping_add(1);
            self.write(index, *slot, page);
        }
        counters.checks += 1;
        counters.touches += 1;
        counters.touches_written += u64::from(writes);
        Ok(())
    }

    /// Of so many pages, those that are used now.
    fn active(&self, held: u32, now_us: u64) -> u32 {
        match self.spec.active {
            Size::Pages(pages) if !self.is_high(now_us) => held.min(pages),
            _ => held,
        }
    }

    fn zipf_of(&mut self, count: u32) -> Zipf {
        match self.zipf {
            Some(zipf) if zipf.count() == count => zipf,
            _ => *self.zipf.insert(Zipf::new(count, self.spec.theta)),
        }
    }

    const fn period_us(&self) -> u64 {
        self.spec.period_s as u64 * SECOND_US
    }

    /// How far it is in its period.
    #[expect(clippy::cast_possible_truncation, reason = "below the period")]
    const fn position_us(&self, now_us: u64) -> u64 {
        // Multiples of the golden ratio are spread evenly, however many there are.
        let part = (self.guest as u64).wrapping_mul(GOLDEN) >> 32;
        let offset_us = (part as u128 * self.period_us() as u128) >> 32;
        (now_us + offset_us as u64) % self.period_us()
    }

    const fn is_high(&self, now_us: u64) -> bool {
        self.position_us(now_us) < self.period_us() / 2
    }

    const fn next_turn_us(&self, now_us: u64) -> u64 {
        let half = self.period_us() / 2;
        now_us + half - self.position_us(now_us) % half
    }

    /// A page's first words: by the others a person sees whose it is.
    fn header(&self, index: u32, slot: Slot) -> [u64; HEADER_WORDS] {
        if self.is_common(index) {
            let seed = self.seed(index, slot);
            return core::array::from_fn(|word| word_of(seed, word));
        }
        let stamp = Stamp {
            guest: self.guest,
            gfn: slot.gfn,
            version: slot.version,
        };
        stamp.header()
    }

    const fn is_common(&self, index: u32) -> bool {
        let run = mix(common_seed(self.spec.seed, index / RUN));
        run % 100 < self.spec.common as u64
    }

    const fn seed(&self, index: u32, slot: Slot) -> u64 {
        if self.is_common(index) {
            return common_seed(self.spec.seed, index);
        }
        let place = (self.guest as u64) << 32 | slot.gfn as u64;
        mix(place ^ mix(slot.version as u64 + 1))
    }
}

/// A place for each rank below `count`, each another.
#[expect(clippy::cast_possible_truncation, reason = "below the count")]
const fn spread(rank: u32, count: u32) -> u32 {
    (rank as u64 * SPREAD % count as u64) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::spec::Spec;
    use super::*;

    fn tile(guest: u32) -> Tile {
        let spec = Spec::parse("tile:size=32M,low=16M,active=8M,common=25,period_s=30").unwrap();
        let Action::Tile(tile) = spec.action else {
            panic!("{spec} is no tile");
        };
        Tile::new(tile, 8192, guest, None, 0)
    }

    fn page_of(tile: &Tile, index: u32, version: u32) -> Page {
        let mut page = [1; WORDS];
        let slot = Slot {
            gfn: index + 7,
            version,
        };
        tile.write(index, slot, &mut page);
        page
    }

    #[test]
    fn a_quarter_is_equal_in_all_guests_in_runs_and_nothing_else_is() {
        let (a, b) = (tile(1), tile(2));
        let equal: BTreeSet<u32> = (0..8192)
            .filter(|&index| page_of(&a, index, 0) == page_of(&b, index, 0))
            .collect();
        assert!(equal.len().abs_diff(2048) < 300, "{} of 8192", equal.len());
        let whole = |&index: &u32| equal.contains(&(index ^ 1));
        assert!(equal.iter().all(whole), "runs are whole");
    }

    #[test]
    fn one_wrong_bit_anywhere_is_found_and_an_older_version_is_wrong() {
        let tile = tile(3);
        for index in 0..64 {
            let slot = Slot {
                gfn: index + 7,
                version: 5,
            };
            let right = page_of(&tile, index, 5);
            assert_eq!(tile.check(index, slot, &right), Ok(()));
            for word in [0, 1, 2, 255, 256, 511] {
                let mut page = right;
                page[word] ^= 1 << (index % 64);
                assert_eq!(tile.check(index, slot, &page).unwrap_err().word, word);
            }
            let older = tile.check(index, slot, &page_of(&tile, index, 4));
            assert_eq!(older.is_ok(), tile.is_common(index));
        }
    }

    #[test]
    fn guests_are_out_of_step_and_each_is_high_half_of_the_time() {
        for second in 0..60 {
            let high = (0..20).filter(|&guest| tile(guest).is_high(second * SECOND_US));
            assert!((8..=12).contains(&high.count()), "at {second} s");
        }
        let tile = tile(1);
        let high = (0..300).filter(|tenth| tile.is_high(tenth * SECOND_US / 10));
        assert_eq!(high.count(), 150);
        let turn = tile.next_turn_us(0);
        assert_ne!(tile.is_high(turn), tile.is_high(turn - 1));
    }

    #[test]
    fn the_longest_period_is_one_like_others() {
        let spec = TileSpec {
            period_s: 86_400,
            ..tile(0).spec
        };
        let high = (0..100).filter(|&guest| Tile::new(spec, 8192, guest, None, 0).is_high(0));
        assert!((45..=55).contains(&high.count()));
    }

    #[test]
    fn every_page_has_a_rank() {
        for count in [1, 2, 1000, 8192] {
            let places: BTreeSet<u32> = (0..count).map(|rank| spread(rank, count)).collect();
            assert_eq!(places.len(), count as usize);
        }
    }
}
