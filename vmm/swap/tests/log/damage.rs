//! A disk that spoils what it holds costs the pages that it spoilt, and no other.

use crate::world::{SEGMENT, World, config, contents};
use page::Random;
use proptest::prelude::*;
use std::collections::BTreeSet;
use swap::segment::walk;

const PAGES: u64 = 120;

/// All pages out, most of them in the file.
fn world() -> World {
    let mut world = World::new(config(PAGES, 8, 45));
    for gfn in 0..PAGES {
        world.write(gfn, contents(gfn, 1500));
        world.out_with_work(gfn).unwrap();
    }
    world
}

fn index(random: &mut Random, below: usize) -> usize {
    usize::try_from(random.below(below as u64)).unwrap()
}

/// Pages of which a bit flips in the file.
fn spoil(world: &mut World, random: &mut Random, flips: u64) -> BTreeSet<u64> {
    let mut spoilt = BTreeSet::new();
    let used: Vec<usize> = (0..world.disk.len())
        .step_by(SEGMENT)
        .filter(|&slot| walk(&world.disk[slot..slot + SEGMENT]).is_ok())
        .collect();
    for _ in 0..flips {
        let slot = used[index(random, used.len())];
        let (_, records) = walk(&world.disk[slot..slot + SEGMENT]).unwrap();
        let records: Vec<_> = records
            .map(|(offset, header, bytes)| (offset, header.gfn.0, bytes.len()))
            .collect();
        // A header that is spoilt already hides what follows.
        if records.is_empty() {
            continue;
        }
        let (offset, gfn, length) = records[index(random, records.len())];
        // Headers are few: every other flip is in one.
        let within = if random.below(2) == 0 { 16 } else { length };
        let byte = index(random, within);
        if spoilt.insert(gfn) {
            world.disk[slot + offset + byte] ^= 1 << random.below(8);
        }
    }
    spoilt
}

fn check(world: &World, spoilt: &BTreeSet<u64>) {
    world.log.audit().unwrap();
    for (&gfn, page) in world.pages.iter().filter(|(_, page)| page.is_out) {
        match world.look(gfn, 0) {
            Ok(contents) => assert!(contents == page.contents, "wrong data in page {gfn}"),
            Err(damaged) => {
                assert!(spoilt.contains(&gfn), "{damaged}");
                assert_eq!(damaged.gfn().0, gfn);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_is_spoilt_is_an_error_of_its_page_also_after_it_was_moved(seed: u64, flips in 1u64..20) {
        let (mut world, mut random) = (world(), Random::new(seed));
        let spoilt = spoil(&mut world, &mut random, flips);
        check(&world, &spoilt);
        // Until the cleaner has been everywhere.
        for _ in 0..4 * PAGES {
            let gfn = random.below(PAGES);
            if spoilt.contains(&gfn) {
                continue;
            }
            if world.pages[&gfn].is_out {
                world.bring(gfn);
            }
            world.write(gfn, contents(random.next(), 3500));
            world.out_with_work(gfn).unwrap();
        }
        prop_assert!(world.log.figures().totals.moved_from_file.records > 0);
        check(&world, &spoilt);
    }
}

#[test]
fn a_spoilt_page_is_an_error_and_not_a_wrong_page() {
    let mut world = world();
    let spoilt = spoil(&mut world, &mut Random::new(1), 10);
    assert!(spoilt.len() > 3);
    assert!(spoilt.iter().all(|&gfn| world.look(gfn, 0).is_err()));
}

#[test]
fn a_segment_that_cannot_be_read_whole_is_left_alone() {
    let mut world = world();
    let gfns: Vec<u64> = (0..PAGES).filter(|gfn| gfn % 3 > 0).collect();
    gfns.iter().for_each(|&gfn| world.give_up(gfn));
    let mut unreadable = 0;
    while let Some(work) = world.log.next_work(swap::When::Idle) {
        match work {
            swap::Work::Write(order) => world.log.written(order),
            swap::Work::Clean(victim) if victim.read().is_some() => {
                unreadable += 1;
                world.log.unreadable(victim);
            }
            swap::Work::Clean(victim) => {
                let mut job = victim.into_job(Vec::new());
                while world.log.clean(&mut job, 8) == swap::Cleaning::More {}
            }
        }
        assert!(unreadable < 100, "picked again and again");
    }
    world.log.audit().unwrap();
}

#[test]
fn a_short_read_loses_nothing() {
    let mut world = world();
    (0..PAGES)
        .filter(|gfn| gfn % 8 > 0)
        .for_each(|gfn| world.give_up(gfn));
    // Few slots are free, so that the file is cleaned.
    let mut short = 0;
    for _ in 0..200 {
        match world.log.next_work(swap::When::Idle) {
            Some(swap::Work::Clean(victim)) => {
                let mut bytes = victim
                    .read()
                    .map(|range| world.read(range))
                    .unwrap_or_default();
                if victim.read().is_some() {
                    bytes.truncate(5000);
                    short += 1;
                }
                let mut job = victim.into_job(bytes);
                while world.log.clean(&mut job, 8) == swap::Cleaning::More {}
            }
            Some(swap::Work::Write(order)) => {
                world.writes.push(order);
                world.finish_write(0, None);
            }
            None => break,
        }
    }
    check(&world, &BTreeSet::new());
    assert!(short < 60);
}
