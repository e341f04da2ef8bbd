//! Draws what is sampled: pages, each with the same chance, and blocks.

use super::BLOCK;
use page::Random;
use protocol::page_sharing::MOST_SAMPLED;
use sharing::BLOCK_PAGES;
use std::collections::BTreeSet;

/// The part of all large pages that may be looked into, as a divisor,
const LOOKED_INTO_DIVISOR: usize = 4;
/// and how many of them in any case.
const LEAST_LOOKED_INTO: usize = 4;

/// One in so many of the large pages that are looked into is one in which nothing was touched lately, if there are any:
/// a guest that begins to use them may use them in another way.
const IDLE_DIVISOR: usize = 4;

/// What a look into a large page can tell, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interest {
    /// It is used, and nobody knows how much of it.
    Unknown,
    /// It is used, and looked into lately.
    Known,
    /// It was not used lately, or never watched: probably nothing will be seen.
    Idle,
}

/// What was drawn.
#[derive(Clone, Debug, Default)]
pub(super) struct Drawn {
    /// Pages that are in no large page.
    pub(super) small: u64,
    /// Pages in large pages.
    pub(super) large: u64,
    /// The sampled pages of both,
    pub(super) pages: Vec<u32>,
    /// and the sampled large pages, in order; all that pages were drawn from are among them.
    pub(super) blocks: Vec<u32>,
}

/// What can be drawn.
pub(super) struct Candidates {
    size: usize,
    small: Reservoir<u64>,
    large: Reservoir<(Interest, u32)>,
    random: Random,
}

impl Candidates {
    /// For a sample of so many pages.
    pub(super) fn new(size: u32, seed: u64) -> Self {
        let size = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .min(MOST_SAMPLED);
        Self {
            size,
            small: Reservoir::new(size),
            large: Reservoir::new(MOST_SAMPLED),
            random: Random::new(seed),
        }
    }

    pub(super) fn offer_page(&mut self, page: u64) {
        self.small.offer(page, &mut self.random);
    }

    pub(super) fn offer_block(&mut self, block: u32, interest: Interest) {
        self.large.offer((interest, block), &mut self.random);
    }

    /// Of the pages as many from large ones as are in large ones, out of `most_blocks` at most, as many from each; out of
    /// those that can tell the most.
    pub(super) fn draw(mut self, most_blocks: u32) -> Drawn {
        let (small, large) = (self.small.seen, self.large.seen * BLOCK);
        let from_large = share(self.size, large, small + large);
        let mut pages = self.small.take(self.size - from_large, &mut self.random);
        let most_blocks = usize::try_from(most_blocks).unwrap_or(usize::MAX);
        let mut blocks = self.large.take(MOST_SAMPLED, &mut self.random);
        // The guest keeps most of what it has in large pages, however little that is.
        let few = (blocks.len() / LOOKED_INTO_DIVISOR).max(LEAST_LOOKED_INTO);
        let count = blocks.len().min(most_blocks.max(1)).min(few);
        most_telling_first(&mut blocks, count);
        for (turn, &(_, block)) in blocks[..count].iter().enumerate() {
            let places = from_large / count + usize::from(turn < from_large % count);
            let places = self.distinct_places(places);
            pages.extend(
                places
                    .into_iter()
                    .map(|place| u64::from(block) * BLOCK + place),
            );
        }
        let mut blocks: Vec<u32> = blocks.into_iter().map(|(_, block)| block).collect();
        blocks.sort_unstable();
        // What lies beyond 16 TiB is not sampled.
        let pages = pages
            .into_iter()
            .filter_map(|page| u32::try_from(page).ok());
        Drawn {
            small,
            large,
            pages: pages.collect(),
            blocks,
        }
    }

    /// So many different pages of a block, by their places in it.
    fn distinct_places(&mut self, count: usize) -> BTreeSet<u64> {
        let mut places = BTreeSet::new();
        while places.len() < count.min(BLOCK_PAGES) {
            places.insert(self.random.below(BLOCK));
        }
        places
    }
}

/// The first `count` of some in random order are those to look into.
fn most_telling_first(blocks: &mut [(Interest, u32)], count: usize) {
    blocks.sort_by_key(|&(interest, _)| interest);
    let used = blocks.partition_point(|&(interest, _)| interest < Interest::Idle);
    let idle = blocks.len() - used;
    let of_idle = (count / IDLE_DIVISOR).min(idle);
    let of_used = used.min(count - of_idle);
    // The idle ones follow at once upon those used ones that are taken.
    blocks[of_used..].rotate_left(used - of_used);
}

/// The part of `count` that `part` of `whole` stands for, to the nearest.
fn share(count: usize, part: u64, whole: u64) -> usize {
    let count = count as u128 * u128::from(part) + u128::from(whole) / 2;
    let count = count.checked_div(u128::from(whole)).unwrap_or(0);
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Some of a row, each with the same chance, without knowing how many will come (Vitter's algorithm R).
struct Reservoir<T> {
    drawn: Vec<T>,
    most: usize,
    seen: u64,
}

impl<T> Reservoir<T> {
    fn new(most: usize) -> Self {
        Self {
            drawn: Vec::with_capacity(most),
            most,
            seen: 0,
        }
    }

    fn offer(&mut self, thing: T, random: &mut Random) {
        self.seen += 1;
        if self.drawn.len() < self.most {
            self.drawn.push(thing);
            return;
        }
        let place = usize::try_from(random.below(self.seen)).unwrap_or(usize::MAX);
        if let Some(drawn) = self.drawn.get_mut(place) {
            *drawn = thing;
        }
    }

    /// So many of what was drawn, in any order.
    fn take(&mut self, count: usize, random: &mut Random) -> Vec<T> {
        let mut drawn = std::mem::take(&mut self.drawn);
        // Where a thing lies depends on when it came.
        random.shuffle(&mut drawn);
        drawn.truncate(count);
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draw(size: u32, seed: u64, small: u64, blocks: u32, most_blocks: u32) -> Drawn {
        let mut candidates = Candidates::new(size, seed);
        // Behind the large ones.
        let first_small = u64::from(blocks) * BLOCK;
        (first_small..first_small + small).for_each(|page| candidates.offer_page(page));
        (0..blocks).for_each(|block| candidates.offer_block(block, Interest::Idle));
        candidates.draw(most_blocks)
    }

    /// Of twelve, four are looked into.
    #[test]
    fn used_blocks_of_which_nothing_is_known_are_looked_into_and_an_idle_one() {
        let looked_into = |interest: fn(u32) -> Interest| {
            let mut candidates = Candidates::new(40, 7);
            (0..12).for_each(|block| candidates.offer_block(block, interest(block)));
            let drawn = candidates.draw(8);
            let blocks = drawn
                .pages
                .iter()
                .map(|&page| super::super::block_of(page.into()));
            blocks.collect::<BTreeSet<u32>>()
        };
        let some = looked_into(|block| match block {
            0..2 => Interest::Unknown,
            2..6 => Interest::Known,
            _ => Interest::Idle,
        });
        let of =
            |range: std::ops::Range<u32>| some.iter().filter(|block| range.contains(block)).count();
        assert_eq!((of(0..2), of(2..6), of(6..12)), (2, 1, 1), "{some:?}");
        let all_used = looked_into(|block| match block {
            0..4 => Interest::Unknown,
            _ => Interest::Known,
        });
        assert_eq!(all_used, (0..4).collect());
        let one_used = looked_into(|block| match block {
            5 => Interest::Known,
            _ => Interest::Idle,
        });
        assert_eq!((one_used.len(), one_used.contains(&5)), (4, true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// 20 of 100 pages, 2,000 times: each is drawn 400 times, give or take six deviations.
        #[test]
        fn every_page_has_the_same_chance(seed: u64) {
            let mut drawn_times = [0u32; 100];
            for turn in 0..2000 {
                let drawn = draw(20, seed.wrapping_add(turn << 40), 100, 0, 30);
                prop_assert_eq!((drawn.small, drawn.pages.len()), (100, 20));
                drawn.pages.iter().for_each(|&page| drawn_times[page as usize] += 1);
            }
            prop_assert!(drawn_times.iter().all(|times| (290..510).contains(times)), "{drawn_times:?}");
        }

        /// The same of 24 pages of which some are small and some in 3 large pages: 1,536 and 1,000.
        #[test]
        fn it_is_the_same_chance_in_large_pages(seed: u64) {
            let mut drawn_times = [0u32; 4];
            for turn in 0..2000 {
                let drawn = draw(24, seed.wrapping_add(turn << 40), 1000, 3, 1);
                prop_assert_eq!((drawn.small, drawn.large, drawn.pages.len()), (1000, 1536, 24));
                for page in drawn.pages {
                    drawn_times[(page as usize / BLOCK_PAGES).min(3)] += 1;
                }
            }
            // All of those in large ones lie in one of the three, which is drawn 667 times.
            prop_assert!(drawn_times[..3].iter().all(|times| (7_000..13_000).contains(times)), "{drawn_times:?}");
            prop_assert_eq!(drawn_times.iter().sum::<u32>(), 48_000);
        }

        #[test]
        fn pages_are_of_few_blocks_and_all_different(
            size in 0u32..600, seed: u64, small in 0u64..3000, blocks in 0u32..600, most_blocks in 0u32..40,
        ) {
            let drawn = draw(size, seed, small, blocks, most_blocks);
            let distinct: BTreeSet<u32> = drawn.pages.iter().copied().collect();
            prop_assert_eq!(distinct.len(), drawn.pages.len());
            let large = u64::from(blocks) * BLOCK;
            let of_blocks: BTreeSet<u32> = distinct.iter().filter(|&&page| u64::from(page) < large)
                .map(|&page| super::super::block_of(page.into())).collect();
            prop_assert!(of_blocks.len() <= most_blocks.max(1) as usize);
            prop_assert!(of_blocks.iter().all(|block| drawn.blocks.binary_search(block).is_ok()));
            prop_assert!(drawn.blocks.len() == MOST_SAMPLED.min(blocks as usize));
            prop_assert!(drawn.blocks.is_sorted());
            prop_assert!(drawn.pages.iter().all(|&page| u64::from(page) < large + small));
            let least = u64::from(size).min(MOST_SAMPLED as u64).min(small);
            prop_assert!(blocks > 0 || drawn.pages.len() as u64 == least);
        }
    }
}
