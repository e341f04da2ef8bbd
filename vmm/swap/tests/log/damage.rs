//! A disk that spoils what it holds costs the pages that it spoilt, and no other.

use crate::world::{SEGMENT, World, config, contents};
use page::{Gfn, Random};
use proptest::prelude::*;
use std::collections::BTreeSet;
use swap::segment::walk;
use swap::{Cleaning, Found, Source, Stored, When, Work};

const PAGES: u64 = 120;

/// All pages out, most of them in the file.
fn world(slots: u32) -> World {
    let mut world = World::new(config(PAGES, 8, slots));
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
        let (mut world, mut random) = (world(45), Random::new(seed));
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
    let mut world = world(45);
    let spoilt = spoil(&mut world, &mut Random::new(1), 10);
    assert!(spoilt.len() > 3);
    assert!(spoilt.iter().all(|&gfn| world.look(gfn, 0).is_err()));
}

/// Gives up two pages of three, of a file that is so full that it is cleaned then.
fn sparse() -> World {
    let mut world = world(12);
    (0..PAGES)
        .filter(|gfn| gfn % 3 > 0)
        .for_each(|gfn| world.give_up(gfn));
    world
}

/// Does all there is to do, where reads of whole segments bring what `read` makes of them: nothing is an error.
fn work(world: &mut World, read: impl Fn(Vec<u8>) -> Option<Vec<u8>>) -> u32 {
    let mut reads = 0;
    while let Some(work) = world.log.next_work(When::Idle) {
        match work {
            Work::Write(order) => {
                world.writes.push(order);
                world.finish_write(0, None);
            }
            Work::Clean(victim) => {
                let bytes = victim.read().map(|range| world.read(range));
                reads += u32::from(bytes.is_some());
                match bytes.map_or(Some(Vec::new()), &read) {
                    Some(bytes) => {
                        let mut job = victim.into_job(bytes);
                        while world.log.clean(&mut job, 8) == Cleaning::More {}
                    }
                    None => world.log.unreadable(victim),
                }
            }
        }
        assert!(reads < 100, "picked again and again");
    }
    reads
}

#[test]
fn a_segment_that_cannot_be_read_is_left_alone_and_nothing_is_lost() {
    let mut world = sparse();
    assert!(work(&mut world, |_| None) > 0);
    world.check();
}

#[test]
fn a_short_read_loses_nothing() {
    let mut world = sparse();
    let short = |bytes: Vec<u8>| Some(bytes[..5000].to_vec());
    assert!(work(&mut world, short) > 0);
    world.check();
}

#[test]
fn what_is_moved_with_a_spoilt_header_can_be_walked_past() {
    let mut world = sparse();
    let before = position(&world, 0).expect("the first to leave is in the file");
    // Of its length.
    world.disk[before + 12] ^= 0x55;
    assert!(work(&mut world, Some) > 0);
    let others: Vec<u64> = (0..PAGES).filter(|gfn| gfn % 3 > 0).collect();
    for (round, &gfn) in (0..1000).zip(others.iter().cycle()) {
        if position(&world, 0).is_some_and(|now| now != before) {
            break;
        }
        if world.pages.contains_key(&gfn) {
            world.bring(gfn);
        }
        world.write(gfn, contents(round, 1500));
        world.out_with_work(gfn).unwrap();
    }
    let now = position(&world, 0).expect("it is in the file again");
    assert_ne!(now, before);
    let slot = now / SEGMENT * SEGMENT;
    let (_, records) = walk(&world.disk[slot..slot + SEGMENT]).unwrap();
    let walked: BTreeSet<usize> = records.map(|(offset, ..)| slot + offset).collect();
    let out = world.pages.keys().filter_map(|&gfn| position(&world, gfn));
    let there: BTreeSet<usize> = out.filter(|at| at / SEGMENT == now / SEGMENT).collect();
    assert!(
        there.len() > 1 && there.is_subset(&walked),
        "{there:?} of {walked:?}"
    );
    assert!(world.look(0, 0).is_err());
}

fn position(world: &World, gfn: u64) -> Option<usize> {
    match world.log.find(Gfn(gfn), 0)? {
        Found::Stored(Stored {
            source: Source::File(range),
            ..
        }) => usize::try_from(range.position).ok(),
        _ => None,
    }
}
