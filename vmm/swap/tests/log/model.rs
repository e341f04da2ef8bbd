//! Whatever happens in whatever order, each page reads back as it left.

use crate::world::{SEGMENT, World, config, contents};
use page::Gfn;
use proptest::prelude::*;
use swap::{AfterFailure, CleaningPolicy, Config, Found, Stored, When};

const PAGES: u64 = 60;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, usize),
    Out(u64),
    LeaveToDisk(u64),
    Bring(u64),
    GiveUp(u64),
    Find(u64, usize),
    FinishRead(usize),
    Work(When),
    FinishWrite(usize, Option<AfterFailure>),
    Clean(usize),
    DropJob,
}

fn step() -> impl Strategy<Value = Step> {
    let gfn = 0..PAGES;
    // Of one word, well compressed, hardly compressed, not at all.
    let distinct = prop_oneof![Just(0), 100..3000usize, 3000..3200usize, Just(4096)];
    let failure = prop_oneof![
        6 => Just(None),
        2 => Just(Some(AfterFailure::Retry)),
        1 => Just(Some(AfterFailure::Retire)),
    ];
    let when = prop_oneof![Just(When::Now), Just(When::Idle)];
    prop_oneof![
        8 => (gfn.clone(), any::<u64>(), distinct).prop_map(|(gfn, seed, distinct)| Step::Write(gfn, seed, distinct)),
        12 => gfn.clone().prop_map(Step::Out),
        2 => gfn.clone().prop_map(Step::LeaveToDisk),
        4 => gfn.clone().prop_map(Step::Bring),
        1 => gfn.clone().prop_map(Step::GiveUp),
        2 => (gfn, 0..2 * SEGMENT).prop_map(|(gfn, together)| Step::Find(gfn, together)),
        2 => any::<usize>().prop_map(Step::FinishRead),
        6 => when.prop_map(Step::Work),
        5 => (any::<usize>(), failure).prop_map(|(index, failure)| Step::FinishWrite(index, failure)),
        6 => (1..9usize).prop_map(Step::Clean),
        1 => Just(Step::DropJob),
    ]
}

fn take(world: &mut World, reads: &mut Vec<(u64, Stored)>, step: Step) {
    let is_out = |world: &World, gfn| world.pages.get(&gfn).map(|page| page.is_out);
    match step {
        Step::Write(gfn, seed, distinct) if is_out(world, gfn) != Some(true) => {
            world.write(gfn, contents(seed, distinct));
        }
        Step::Out(gfn) if is_out(world, gfn) == Some(false) => drop(world.out(gfn)),
        Step::LeaveToDisk(gfn) if is_out(world, gfn) == Some(false) => world.leave_to_disk(gfn),
        Step::Bring(gfn) if is_out(world, gfn) == Some(true) => world.bring(gfn),
        Step::GiveUp(gfn) => world.give_up(gfn),
        Step::Find(gfn, together) => {
            if let Some(Found::Stored(stored)) = world.log.find(Gfn(gfn), together) {
                reads.push((gfn, stored));
            }
        }
        Step::FinishRead(index) if !reads.is_empty() => {
            let (gfn, stored) = reads.swap_remove(index % reads.len());
            finish_read(world, gfn, &stored);
        }
        Step::Work(when) if world.job.is_none() => drop(world.take_work(when)),
        Step::FinishWrite(index, failure) => world.finish_write(index, failure),
        Step::Clean(records) => drop(world.clean(records)),
        Step::DropJob => world.job = None,
        _ => {}
    }
}

/// However long it took, and whatever was moved meanwhile: what was read is what was found, and if that is out of
/// date the log says so.
fn finish_read(world: &mut World, gfn: u64, stored: &Stored) {
    let found = stored.records[0];
    let read = world
        .open(stored, &world.fetch(stored))
        .expect("the slot was not written again");
    if world.log.bring(found.gfn, found.generation) {
        let page = world.pages.get_mut(&gfn).unwrap();
        assert!(page.is_out && page.contents == read, "page {gfn}");
        (page.is_out, page.is_changed) = (false, false);
    }
}

fn configs() -> impl Strategy<Value = Config> {
    let policy = prop_oneof![
        Just(CleaningPolicy::Greedy),
        Just(CleaningPolicy::CostBenefit)
    ];
    (8..12usize, 0..16u32, policy).prop_map(|(pool, slots, policy)| Config {
        policy,
        ..config(PAGES, pool, slots)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_page_reads_back_as_it_left_whatever_happens(
        config in configs(), steps in prop::collection::vec(step(), 1..400)
    ) {
        let (mut world, mut reads) = (World::new(config), Vec::new());
        for (number, step) in steps.into_iter().enumerate() {
            take(&mut world, &mut reads, step);
            world.log.audit().unwrap();
            if number % 16 == 0 {
                world.check();
            }
        }
        world.check();
        reads.clear();
        world.work_until_at_rest();
        world.check();
        for gfn in 0..PAGES {
            world.give_up(gfn);
        }
        world.work_until_at_rest();
        let figures = world.log.figures();
        prop_assert_eq!(figures.slots.free + figures.slots.retired, figures.slots.total);
        prop_assert_eq!(figures.stored_bytes + figures.filled_pages + figures.disk_pages, 0);
    }
}
