//! The cache against a model that is a table of what was written last, and the disk's service times
//! against a simulation of arms that tick.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::buffers::{Buffers, Seen};
use super::cache::{Buffer, Cache};
use super::fake::FakeDisk;
use super::requests::{Requests, Service};
use super::*;
use crate::held::{Held, Slot};
use crate::page::{Memory, Page, Stamp, WORDS};
use crate::workload::tests::Ram;

const BLOCKS: u32 = 200;
const FRAMES: u32 = 64;

/// A system that has nothing but a cache.
struct System {
    ram: Ram,
    disk: FakeDisk,
    cache: Cache<'static>,
    held: Held<'static>,
    requests: Requests,
    /// Frames that somebody else has.
    elsewhere: Vec<Gfn>,
    /// The model: the version of each block.
    versions: Vec<u32>,
}

impl System {
    fn new(frames: u32) -> Self {
        let ram = Ram::new(FRAMES);
        let mut cache = Cache::new(
            vec![Buffer::EMPTY; FRAMES as usize].leak(),
            vec![0; BLOCKS as usize].leak(),
        );
        cache.clear(BLOCKS);
        let mut system = Self {
            disk: FakeDisk::new(ram.shared(), BLOCKS),
            ram,
            cache,
            held: Held::new(vec![Slot::default(); FRAMES as usize].leak()),
            requests: Requests::new(Service::AT_ONCE),
            elsewhere: (0..FRAMES).rev().collect(),
            versions: vec![0; BLOCKS as usize],
        };
        system.grow(frames);
        system
    }

    fn io(&mut self) -> Buffers<'_, 'static, Ram> {
        Buffers {
            cache: &mut self.cache,
            requests: &mut self.requests,
            held: &self.held,
            memory: &mut self.ram,
            disk: &mut self.disk,
            now_us: 0,
        }
    }

    fn grow(&mut self, count: u32) {
        for _ in 0..count {
            let Some(gfn) = self.elsewhere.pop() else {
                return;
            };
            self.held.push(Slot { gfn, version: 0 });
            self.cache.add_place();
        }
    }

    /// Gives frames up, and somebody else writes to them.
    fn give_up(&mut self, count: u32) {
        for _ in 0..count {
            let Some(given) = self.cache.give_up() else {
                return;
            };
            if let Some(place) = given.moves_to {
                let page = *self.ram.page(self.held.gfn(given.place));
                *self.ram.page(self.held.gfn(place)) = page;
            }
            let slot = self.held.pop().unwrap();
            self.ram.page(slot.gfn).fill(0x0e15e);
            self.elsewhere.push(slot.gfn);
        }
    }

    fn work(&mut self) -> bool {
        let has_worked = self.disk.work();
        self.io().take_done().unwrap();
        has_worked
    }

    fn stamp(&self, block: Block) -> Stamp {
        Stamp {
            guest: 1,
            gfn: block,
            version: self.versions[block as usize],
        }
    }

    /// What is in the block must be what was written last.
    fn is_right(&self, block: Block, page: &Page) -> bool {
        match self.versions[block as usize] {
            0 => page == &[0; WORDS],
            _ => self.stamp(block).first_wrong_word(page).is_none(),
        }
    }

    /// Has something happen that lets one go on who waits.
    fn wait(&mut self) {
        self.io().write_back(false);
        assert!(self.work(), "it waits for nothing");
    }

    fn read(&mut self, block: Block, most: u32) {
        if self.cache.count() == 0 {
            return;
        }
        for _ in 0..10 * FRAMES {
            let is_absent = match self.io().see(block) {
                Seen::Page(page) => {
                    let page = *page;
                    assert!(
                        self.is_right(block, &page),
                        "block {block}: {:x?}",
                        &page[..2]
                    );
                    return;
                }
                seen => seen == Seen::Absent,
            };
            if !is_absent || self.io().start_read(block, most.min(BLOCKS - block)) == 0 {
                self.wait();
            }
        }
        panic!("block {block} does not come");
    }

    fn write(&mut self, block: Block) {
        if self.cache.count() == 0 {
            return;
        }
        self.versions[block as usize] += 1;
        let stamp = self.stamp(block);
        for _ in 0..10 * FRAMES {
            if let Some(page) = self.io().write(block) {
                stamp.write(page);
                return;
            }
            self.wait();
        }
        panic!("block {block} cannot be written");
    }

    /// Makes the disk have everything.
    fn flush(&mut self) {
        while self.cache.dirty() > 0 || !self.requests.is_empty() {
            self.io().write_back(true);
            self.work();
        }
        for block in 0..BLOCKS {
            assert!(
                self.is_right(block, &self.disk.block(block)),
                "block {block} was lost"
            );
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read(Block, u32),
    Write(Block, u32),
    WriteBack,
    Work,
    Flush,
    GiveUp(u32),
    Grow(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let run = || (0..BLOCKS, 1_u32..=16);
    let step = prop_oneof![
        4 => run().prop_map(|(block, count)| Step::Read(block, count)),
        4 => run().prop_map(|(block, count)| Step::Write(block, count)),
        2 => Just(Step::WriteBack),
        2 => Just(Step::Work),
        1 => Just(Step::Flush),
        2 => (1..FRAMES).prop_map(Step::GiveUp),
        2 => (1..FRAMES).prop_map(Step::Grow),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn a_block_reads_as_written_last_whatever_comes_between(steps in steps(), frames in 1..FRAMES) {
        let mut system = System::new(frames);
        for step in steps {
            match step {
                Step::Read(block, count) => system.read(block, count),
                Step::Write(first, count) => {
                    (first..(first + count).min(BLOCKS)).for_each(|block| system.write(block));
                }
                Step::WriteBack => system.io().write_back(true),
                Step::Work => drop(system.work()),
                Step::Flush => system.flush(),
                Step::GiveUp(count) => system.give_up(count),
                Step::Grow(count) => system.grow(count),
            }
            prop_assert_eq!(system.cache.count(), system.held.count());
        }
        system.flush();
    }

    /// Arms that tick, each with the request that it serves.
    #[test]
    fn requests_take_as_long_as_on_a_disk_with_arms(
        arrivals in prop::collection::vec(0_u64..40, 1..REQUESTS_MAX),
        seek_us in 1_u32..30, depth in 1_u8..=7,
    ) {
        let mut system = System::new(FRAMES);
        system.requests.set_service(Service { seek_us, depth });
        system.disk.is_quick = true;
        let (mut now_us, mut done) = (0, Vec::new());
        let mut arms = vec![0_u32; depth.into()];
        let (mut waiting, mut model) = (0, Vec::new());
        let mut arrivals = arrivals.into_iter().scan(0, |at, gap| { *at += gap; Some(*at) }).peekable();
        while arrivals.peek().is_some() || !system.requests.is_empty() || waiting > 0
            || arms.iter().any(|&left| left > 0)
        {
            for arm in &mut arms {
                if *arm == 1 {
                    model.push(now_us);
                }
                *arm = arm.saturating_sub(1);
            }
            while arrivals.next_if(|&at| at <= now_us).is_some() {
                let mut io = system.io();
                io.now_us = now_us;
                prop_assert!(io.start_flush());
                waiting += 1;
            }
            for arm in &mut arms {
                if *arm == 0 && waiting > 0 {
                    waiting -= 1;
                    *arm = seek_us;
                }
            }
            while system.requests.take_done(&mut system.disk, now_us).is_some() {
                done.push(now_us);
            }
            if let Some(at) = system.requests.wake_at_us() {
                prop_assert!(at > now_us);
            }
            now_us += 1;
        }
        prop_assert_eq!(done, model);
    }
}

#[test]
fn what_was_not_used_lately_goes_first() {
    let mut system = System::new(32);
    (0..32).for_each(|block| system.read(block, 1));
    // One round of the hand takes all their second chances.
    system.read(100, 1);
    for block in 0..16 {
        system.read(block, 1);
    }
    for block in 100..108 {
        system.read(block, 1);
    }
    let kept = (1..16).filter(|&block| system.io().see(block) != Seen::Absent);
    assert_eq!(kept.count(), 15, "of those used since");
}

#[test]
fn memory_that_was_never_used_goes_before_what_was() {
    let mut system = System::new(40);
    (0..20).for_each(|block| system.read(block, 1));
    system.give_up(20);
    assert!((0..20).all(|block| system.io().see(block) != Seen::Absent));
}

#[test]
fn adjacent_dirty_blocks_are_one_request() {
    let mut system = System::new(FRAMES);
    for block in [20, 17, 18, 19, 16, 31, 32] {
        system.write(block);
    }
    system.io().write_back(true);
    let mut requests = 0;
    while system.work() {
        requests += 1;
    }
    assert_eq!(requests, 3, "16 to 20, 31, and 32 in the next window");
}

#[test]
fn dirty_memory_is_given_up_once_it_is_on_the_disk() {
    let mut system = System::new(8);
    (0..8).for_each(|block| system.write(block));
    system.give_up(8);
    assert_eq!(system.held.count(), 8, "nothing is lost");
    while system.held.count() > 0 {
        system.wait();
        system.give_up(8);
    }
    system.flush();
}

#[test]
fn a_failed_write_leaves_its_blocks_dirty_and_a_failed_read_leaves_nothing() {
    let mut system = System::new(8);
    system.write(3);
    system.disk.fault = Some(DiskError::Failed);
    system.io().write_back(true);
    assert!(system.disk.work());
    let failed = system.io().take_done().unwrap_err();
    assert_eq!((failed.action, failed.first), (Action::Write, 3));
    assert_eq!(system.cache.dirty(), 1);
    assert_eq!(system.io().start_read(9, 2), 2);
    assert!(system.disk.work());
    assert_eq!(system.io().take_done().unwrap_err().action, Action::Read);
    assert_eq!(system.io().see(9), Seen::Absent);
    system.disk.fault = None;
    system.flush();
}

/// The place where writing back was to go on may be gone.
#[test]
fn what_is_dirty_is_found_after_places_were_given_up() {
    let mut system = System::new(8);
    (0..8).for_each(|block| system.write(block));
    system.flush();
    system.write(5);
    system.flush();
    system.give_up(7);
    system.write(100);
    system.io().write_back(true);
    assert!(!system.requests.is_empty());
    system.flush();
}
