//! The disk is read without the log: meanwhile records move, and slots are wanted again.

use crate::world::{SEGMENT, World, config, contents};
use page::Gfn;
use swap::{Found, Source, Stored, When};

/// Pages out, of which the first ones are in the file.
fn world(slots: u32) -> World {
    let mut world = World::new(config(400, 8, slots));
    for gfn in 0..100 {
        world.write(gfn, contents(gfn, 1500));
        world.out_with_work(gfn).unwrap();
    }
    world
}

fn find(world: &World, gfn: u64, together: usize) -> Stored {
    match world.log.find(Gfn(gfn), together).unwrap() {
        Found::Stored(stored) => stored,
        _ => panic!("page {gfn} is no record"),
    }
}

#[test]
fn a_slot_is_not_written_again_while_it_is_read() {
    let mut world = world(20);
    let reading = find(&world, 0, 0);
    assert!(matches!(reading.source, Source::File(_)));
    // All that lies there dies, and much is written after it.
    (0..100).for_each(|gfn| world.give_up(gfn));
    assert_eq!(world.log.figures().slots.waiting, 1);
    for gfn in 100..300 {
        world.write(gfn, contents(gfn, 1500));
        if world.out_with_work(gfn).is_err() {
            break;
        }
    }
    let mut bytes = world.fetch(&reading);
    let record = reading.records[0];
    let mut page = [0; 4096];
    world
        .sealer
        .open((record.gfn, record.generation), &mut bytes, &mut page)
        .unwrap();
    assert!(page == contents(0, 1500));
    assert!(
        !world.log.bring(record.gfn, record.generation),
        "it is given up"
    );
    drop(reading);
    assert_eq!(world.log.figures().slots.waiting, 0);
}

#[test]
fn a_page_that_was_moved_while_it_was_read_comes_back_all_the_same() {
    let mut world = world(20);
    let reading = find(&world, 0, 0);
    (1..100).for_each(|gfn| world.give_up(gfn));
    world.work_until_at_rest();
    for gfn in 100..160 {
        world.write(gfn, contents(gfn, 1500));
        world.out_with_work(gfn).unwrap();
    }
    let record = reading.records[0];
    let contents_read = world.open(&reading, &world.fetch(&reading)).unwrap();
    assert!(world.log.bring(record.gfn, record.generation));
    assert!(contents_read == contents(0, 1500));
}

#[test]
fn a_page_that_went_out_again_while_it_was_read_must_be_looked_for_again() {
    let mut world = world(40);
    let reading = find(&world, 0, 0);
    world.bring(0);
    world.write(0, contents(1234, 1500));
    world.out_with_work(0).unwrap();
    let record = reading.records[0];
    assert!(!world.log.bring(record.gfn, record.generation));
    assert!(world.look(0, 0).unwrap() == contents(1234, 1500));
}

#[test]
fn one_read_brings_those_that_left_together() {
    let world = world(40);
    let together = find(&world, 5, SEGMENT);
    let mut gfns: Vec<u64> = together.records.iter().map(|record| record.gfn.0).collect();
    assert_eq!(gfns[0], 5);
    gfns.sort_unstable();
    assert!(gfns.len() >= 8, "{gfns:?}");
    assert!(gfns.is_sorted_by(|a, b| a + 1 == *b), "{gfns:?}");
    let bytes = world.fetch(&together);
    for record in &together.records {
        let mut page = [0; 4096];
        let mut bytes = bytes[record.range()].to_vec();
        world
            .sealer
            .open((record.gfn, record.generation), &mut bytes, &mut page)
            .unwrap();
        assert!(page == contents(record.gfn.0, 1500));
    }
    let few = find(&world, 5, 4000);
    assert!(few.records.len() == 2 && world.fetch(&few).len() <= 4000);
    assert_eq!(find(&world, 5, 0).records.len(), 1);
}

#[test]
fn what_is_being_written_is_read_from_memory() {
    let mut world = World::new(config(400, 8, 20));
    let mut gfns = 0..;
    while world.writes.is_empty() {
        let gfn = gfns.next().unwrap();
        world.write(gfn, contents(gfn, 4096));
        world.out(gfn).unwrap();
        world.take_work(When::Now);
    }
    assert!(matches!(find(&world, 0, 0).source, Source::Memory(_)));
    world.check();
    world.finish_write(0, None);
    assert!(matches!(find(&world, 0, 0).source, Source::File(_)));
    world.check();
}

#[test]
fn a_segment_that_dies_while_it_is_cleaned_is_not_mistaken_for_the_next_one() {
    let mut world = world(40);
    (0..100)
        .filter(|gfn| gfn % 4 > 0)
        .for_each(|gfn| world.give_up(gfn));
    while world.job.is_none() {
        assert!(world.take_work(When::Idle), "nothing to clean");
        world.finish_write(0, None);
    }
    world.clean(2);
    (0..100).for_each(|gfn| world.give_up(gfn));
    for gfn in 100..130 {
        world.write(gfn, contents(gfn, 1500));
        world.out(gfn).unwrap();
    }
    assert_eq!(world.clean(1000), Some(swap::Cleaning::Done));
    world.check();
}
