//! What the pool holds, what leaves it, and what is dropped.

use crate::world::{SEGMENT, World, config, contents};
use page::{Gfn, Random};
use proptest::prelude::*;
use swap::{Config, Refused, When};

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn at_rest_nine_tenths_of_its_memory_are_needed(seed: u64, pool in 8usize..20, slots in 0u32..30) {
        let config = Config { segment_bytes: 64 << 10, ..config(900, pool, slots) };
        let (mut world, mut random) = (World::new(config), Random::new(seed));
        for _ in 0..2500 {
            let gfn = random.below(900);
            if world.pages.get(&gfn).is_some_and(|page| page.is_out) {
                world.bring(gfn);
            }
            if random.below(4) > 0 {
                let distinct = usize::try_from(100 + random.below(2700)).unwrap();
                world.write(gfn, contents(random.next(), distinct));
                prop_assume!(world.out_with_work(gfn) != Err(Refused::Wait));
            }
        }
        world.work_until_at_rest();
        world.check();
        let memory = world.log.figures().memory;
        prop_assert!(memory.needed.bytes * 10 >= memory.bytes * 9, "{memory:?}");
    }
}

#[test]
fn the_coldest_leave_the_pool_first() {
    let mut world = World::new(config(400, 20, 100));
    for gfn in 0..400 {
        world.write(gfn, contents(gfn, 2000));
        world.out_with_work(gfn).unwrap();
    }
    let is_in_memory = |gfn| match world.log.find(Gfn(gfn), 0).unwrap() {
        swap::Found::Stored(stored) => matches!(stored.source, swap::Source::Memory(_)),
        _ => panic!("page {gfn} is no record"),
    };
    let in_memory: Vec<u64> = (0..400).filter(|&gfn| is_in_memory(gfn)).collect();
    assert!(in_memory.len() > 80);
    assert_eq!(in_memory[0] + in_memory.len() as u64, 400, "{in_memory:?}");
}

#[test]
fn pages_that_do_not_shrink_do_not_fill_the_pool() {
    let mut world = World::new(config(1000, 20, 300));
    for gfn in 0..1000 {
        let distinct = if gfn < 50 { 1000 } else { 4096 };
        world.write(gfn, contents(gfn, distinct));
        world.out_with_work(gfn).unwrap();
        while world.take_work(When::Now) {
            world.work_once(When::Now);
        }
    }
    let figures = world.log.figures();
    let compressed = 50;
    assert!(figures.memory.needed.records >= compressed);
    assert!(
        figures.memory.needed.records <= compressed + 8,
        "{figures:?}"
    );
    world.check();
}

#[test]
fn a_segment_that_is_being_cleaned_is_not_written_meanwhile() {
    let mut world = World::new(config(100, 8, 4));
    let out = |world: &mut World, gfn| {
        world.write(gfn, contents(gfn, 4096));
        world.out(gfn)
    };
    (0..5).for_each(|gfn| out(&mut world, gfn).unwrap());
    world.work_once(When::Now);
    // Of four slots three are the cleaner's, and the other one is read.
    let reading = world.log.find(Gfn(0), 0);
    (0..4).for_each(|gfn| world.give_up(gfn));
    assert!((5..100).any(|gfn| out(&mut world, gfn).is_err()));
    (4..6).for_each(|gfn| world.give_up(gfn));
    world.take_work(When::Now);
    assert!(world.job.is_some(), "nothing is cleaned");
    drop(reading);
    while world.take_work(When::Now) && world.writes.len() < 4 {}
    world.check();
    while world
        .clean(1)
        .is_some_and(|cleaning| cleaning == swap::Cleaning::More)
    {
        world.check();
    }
    world.work_until_at_rest();
    world.check();
}

#[test]
fn a_page_that_was_not_written_goes_out_again_for_nothing() {
    let mut world = World::new(config(100, 8, 20));
    for gfn in 0..50 {
        world.write(gfn, contents(gfn, 2000));
        world.out_with_work(gfn).unwrap();
    }
    let before = world.log.figures();
    (0..50).for_each(|gfn| world.bring(gfn));
    assert_eq!(world.log.figures().stored_bytes, 0);
    for gfn in 0..50 {
        world.out(gfn).unwrap();
    }
    let after = world.log.figures();
    assert_eq!(after.totals.appended, before.totals.appended);
    assert_eq!(after.totals.kept_used, 50);
    assert_eq!(after.stored_bytes, before.stored_bytes);
    world.check();
}

#[test]
fn what_is_kept_goes_before_anything_is_refused() {
    let mut world = World::new(config(400, 12, 0));
    let mut out = 0..;
    let last = out.find(|&gfn| {
        world.write(gfn, contents(gfn, 2000));
        world.out_with_work(gfn) == Err(Refused::Full)
    });
    let last = last.unwrap();
    (0..last).for_each(|gfn| world.bring(gfn));
    for gfn in 200..200 + last - 4 {
        world.write(gfn, contents(gfn, 2000));
        world.out_with_work(gfn).unwrap();
    }
    assert!(world.log.figures().totals.dropped_kept > 0);
    assert!((0..last).any(|gfn| !world.log.keep_out(Gfn(gfn))));
    world.log.audit().unwrap();
}

#[test]
fn entries_of_dropped_records_do_not_pile_up() {
    let mut world = World::new(config(2000, 8, 0));
    let empty = world.log.figures().index_bytes;
    let stay_out = |world: &mut World, gfns: std::ops::Range<u64>| {
        for gfn in gfns {
            world.write(gfn, contents(gfn, 1500));
            world.out_with_work(gfn).unwrap();
        }
    };
    stay_out(&mut world, 0..30);
    (0..30).for_each(|gfn| world.bring(gfn));
    stay_out(&mut world, 1000..1030);
    assert!(world.log.figures().totals.dropped_kept > 20);
    (1000..1030).for_each(|gfn| world.give_up(gfn));
    let still_kept = (0..30).filter(|&gfn| world.log.keep_out(Gfn(gfn)));
    still_kept
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|gfn| world.give_up(gfn));
    assert!(world.log.next_work(When::Idle).is_none());
    assert_eq!(world.log.figures().index_bytes, empty);
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Each segment that a caller may fill is needed but for what the cleaner would not win; of two that are appended to
    /// nothing is said.
    #[test]
    fn it_is_full_only_of_what_is_needed(seed: u64, pool in 10usize..16, keeps: bool) {
        let (mut world, mut random) = (World::new(config(300, pool, 0)), Random::new(seed));
        let mut full = 0;
        for _ in 0..1500 {
            let gfn = random.below(300);
            if world.pages.get(&gfn).is_some_and(|page| page.is_out) {
                world.bring(gfn);
                if keeps {
                    continue;
                }
            }
            let distinct = if random.below(3) == 0 { 4096 } else { 100 + random.below(2700) };
            world.write(gfn, contents(random.next(), usize::try_from(distinct).unwrap()));
            if world.out_with_work(gfn) == Err(Refused::Full) {
                full += 1;
                let least = (pool as u64 - 5 - 2) * (SEGMENT as u64 - 64 - 4128 - SEGMENT as u64 / 32);
                let memory = world.log.figures().memory;
                prop_assert!(memory.needed.bytes >= least, "{memory:?}, at least {least}");
            }
        }
        prop_assert!(full > 0);
    }
}
