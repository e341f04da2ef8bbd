//! A guest whose pages do not shrink, all of them out: one that must go out always can, with the reserved file.

use crate::world::{SEGMENT, World, config, contents};
use page::{PageCount, Random};
use proptest::prelude::*;
use swap::{AfterFailure, Cleaning, Config, Refused, When, reserved_slots};

const NOISE: usize = 4096;

fn full_to_the_brim(pages: u64, segment_bytes: usize) -> World {
    let mut world = World::new(Config {
        segment_bytes,
        ..config(
            pages,
            swap::LEAST_POOL_SEGMENTS,
            reserved_slots(PageCount(pages), segment_bytes),
        )
    });
    for gfn in 0..pages {
        world.write(gfn, contents(gfn, NOISE));
        world.out_with_work(gfn).unwrap();
    }
    world
}

/// Which page comes back and goes out again next.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    Uniform,
    HotAndCold,
    /// One of each segment, so that all are as full as each other.
    Stride(u64),
}

impl Pattern {
    fn next(self, step: u64, random: &mut Random, pages: u64) -> u64 {
        match self {
            Self::HotAndCold if random.below(10) > 0 => random.below(pages.div_ceil(10)),
            Self::HotAndCold | Self::Uniform => random.below(pages),
            Self::Stride(stride) => (step * stride + step * stride / pages) % pages,
        }
    }
}

fn pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        Just(Pattern::Uniform),
        Just(Pattern::HotAndCold),
        (2..40u64).prop_map(Pattern::Stride)
    ]
}

/// How much of a page is noise, as often as not all of it.
fn distinct(random: &mut Random) -> usize {
    match random.below(2) {
        0 => NOISE,
        _ => usize::try_from(random.below(4097)).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn rewritten_in_any_order_they_always_go_out_again(
        pages in 1u64..400, kib in prop::sample::select(&[20usize, 28, 64]), seed: u64, is_all_noise: bool,
        pattern in pattern()
    ) {
        let (mut world, mut random) = (full_to_the_brim(pages, kib << 10), Random::new(seed));
        for step in 0..3 * pages {
            let gfn = pattern.next(step, &mut random, pages);
            world.bring(gfn);
            let distinct = if is_all_noise { NOISE } else { distinct(&mut random) };
            if random.below(8) > 0 {
                world.write(gfn, contents(random.next(), distinct));
            }
            prop_assert_eq!(world.out_with_work(gfn), Ok(()));
        }
        world.check();
    }
}

#[test]
fn several_pages_at_a_time_come_back_and_go_out_again() {
    let mut world = full_to_the_brim(300, SEGMENT);
    for round in 0..20 {
        let gfns = (round * 13 % 200)..(round * 13 % 200 + 100);
        gfns.clone().for_each(|gfn| world.bring(gfn));
        for gfn in gfns {
            world.write(gfn, contents(round * 1000 + gfn, NOISE));
            world.out_with_work(gfn).unwrap();
        }
    }
    world.check();
}

#[test]
fn without_a_file_the_pool_is_all_there_is_and_then_it_is_full() {
    let mut world = World::new(config(1000, 12, 0));
    let mut refused = None;
    for gfn in 0..1000 {
        world.write(gfn, contents(gfn, NOISE));
        if let Err(why) = world.out_with_work(gfn) {
            refused.get_or_insert((gfn, why));
        }
    }
    let (first, why) = refused.unwrap();
    assert_eq!(why, Refused::Full);
    // Five of twelve segments are set aside.
    assert!(first >= 7 * 4, "{first} pages");
    world.check();
    world.write(first, contents(0, 0));
    assert_eq!(world.out(first), Ok(()), "a page of zeros needs no room");
    (0..8).for_each(|gfn| world.give_up(gfn));
    assert_eq!(
        world.out_with_work(first + 1),
        Ok(()),
        "there is room again"
    );
    world.check();
}

/// Every write fails from here on, and its slot with it.
fn out_while_the_disk_breaks(world: &mut World, gfn: u64) -> Result<(), Refused> {
    for _ in 0..1000 {
        match world.out(gfn) {
            Err(Refused::Wait) => {
                world.take_work(When::Now);
                world.finish_write(0, Some(AfterFailure::Retire));
                while world.clean(4) == Some(Cleaning::More) {}
                world.job = None;
            }
            outcome => return outcome,
        }
    }
    panic!("page {gfn} waits for what never comes");
}

#[test]
fn with_every_slot_retired_nothing_is_lost() {
    let mut world = World::new(config(1000, 12, 4));
    let full = (0..100).filter(|&gfn| {
        world.write(gfn, contents(gfn, NOISE));
        out_while_the_disk_breaks(&mut world, gfn) == Err(Refused::Full)
    });
    assert!(full.count() > 50);
    world.check();
}

#[test]
fn a_disk_that_breaks_while_the_file_is_cleaned_makes_the_log_full_and_loses_nothing() {
    for seed in 0..40 {
        let (mut world, mut random) = (World::new(config(200, 8, 24)), Random::new(seed));
        for gfn in 0..80 {
            world.write(gfn, contents(gfn, NOISE));
            world.out_with_work(gfn).unwrap();
        }
        let mut full = 0;
        for _ in 0..400 {
            let gfn = random.below(100);
            if world.pages.get(&gfn).is_some_and(|page| page.is_out) {
                world.bring(gfn);
            }
            let distinct = distinct(&mut random);
            world.write(gfn, contents(random.next(), distinct));
            full += u32::from(out_while_the_disk_breaks(&mut world, gfn).is_err());
        }
        world.check();
        assert!(full > 0);
    }
}

/// Pages that do not shrink, until there is no room, and how many there were. Three segments of the pool are the caller's.
fn full_pool(segment_bytes: usize) -> (World, u64) {
    let mut world = World::new(Config {
        segment_bytes,
        ..config(1000, 8, 0)
    });
    let is_out = |&gfn: &u64| {
        world.write(gfn, contents(gfn, NOISE));
        world.out_with_work(gfn).is_ok()
    };
    let count = (0..1000).take_while(is_out).count() as u64;
    (world, count)
}

#[test]
fn what_is_dead_in_the_segment_that_is_appended_to_is_won_back() {
    let (mut world, count) = full_pool(SEGMENT);
    assert_eq!(count, 3 * 4);
    (count - 3..count).for_each(|gfn| world.give_up(gfn));
    assert_eq!(world.out_with_work(count), Ok(()));
    world.check();
}

#[test]
fn a_little_that_is_dead_in_every_segment_is_won_back() {
    let (mut world, count) = full_pool(128 << 10);
    let dead: Vec<u64> = (0..count).filter(|gfn| gfn % 6 == 0).collect();
    dead.iter().for_each(|&gfn| world.give_up(gfn));
    let back = dead.iter().filter(|&&gfn| {
        world.write(gfn, contents(gfn, NOISE));
        world.out_with_work(gfn).is_ok()
    });
    assert!(back.count() >= dead.len() / 2);
    world.check();
}
