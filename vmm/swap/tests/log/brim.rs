//! A guest whose pages do not shrink, all of them out: one that must go out always can, with the reserved file.

use crate::world::{SEGMENT, World, config, contents};
use page::{PageCount, Random};
use proptest::prelude::*;
use swap::{Refused, reserved_slots};

const NOISE: usize = 4096;

fn full_to_the_brim(pages: u64) -> World {
    let slots = reserved_slots(PageCount(pages), SEGMENT);
    let mut world = World::new(config(pages, swap::LEAST_POOL_SEGMENTS, slots));
    for gfn in 0..pages {
        world.write(gfn, contents(gfn, NOISE));
        world.out_with_work(gfn).unwrap();
    }
    world
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
    fn rewritten_at_random_they_always_go_out_again(
        pages in 1u64..400, seed: u64, is_all_noise: bool, is_hot_and_cold: bool
    ) {
        let (mut world, mut random) = (full_to_the_brim(pages), Random::new(seed));
        for _ in 0..3 * pages {
            let among = if is_hot_and_cold && random.below(10) > 0 { pages.div_ceil(10) } else { pages };
            let gfn = random.below(among);
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
    let mut world = full_to_the_brim(300);
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

#[test]
fn with_every_slot_retired_nothing_is_lost() {
    let mut world = World::new(config(1000, 12, 4));
    let mut full = 0;
    for gfn in 0..100 {
        world.write(gfn, contents(gfn, NOISE));
        for _ in 0..100 {
            match world.out(gfn) {
                Ok(()) => break,
                Err(Refused::Full) => {
                    full += 1;
                    break;
                }
                Err(Refused::Wait) => {
                    world.take_work(swap::When::Now);
                    world.finish_write(0, Some(swap::AfterFailure::Retire));
                    while world
                        .clean(4)
                        .is_some_and(|cleaning| cleaning != swap::Cleaning::NoRoom)
                    {
                    }
                    world.job = None;
                }
            }
        }
    }
    assert!(full > 50, "{full} were refused");
    world.check();
}
