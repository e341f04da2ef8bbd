//! The driver against a device in memory.
#![expect(unsafe_code, reason = "PageAllocator is a promise")]

use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::fake::{Device, FakeHal, FakeTransport};
use super::*;
use crate::frames::Frames;
use crate::{BLOCK_FRAMES, Gfn};

const LIMIT: Gfn = 16 * BLOCK_FRAMES;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATS: u16 = 2;
const REPORTING: u16 = 3;
const ALL: Features = Features::all().difference(Features::FREE_PAGE_HINT);

struct Pages(Frames<'static>);

// SAFETY: the frames name no memory at all; blocks share one that nobody reads.
unsafe impl PageAllocator for Pages {
    fn take(&mut self, out: &mut [Gfn]) -> usize {
        self.0.take_for_balloon(out)
    }
    fn give_back(&mut self, gfns: &[Gfn]) {
        let before = self.0.free_count();
        self.0.give_back(gfns);
        assert_eq!(
            self.0.free_count() as usize,
            before as usize + gfns.len(),
            "a page came twice"
        );
    }
    fn available_count(&self) -> u32 {
        self.0.free_count()
    }
    fn unreported_blocks(&self) -> u32 {
        self.0.unreported_blocks()
    }
    fn isolate_block(&mut self) -> Option<Gfn> {
        self.0.isolate_block()
    }
    fn block_memory(&self, first: Gfn) -> NonNull<[u8]> {
        // As many bytes as the block's number, so that tests can tell which it is.
        let memory = Vec::leak(vec![0; first as usize + 1]);
        NonNull::from(memory)
    }
    fn return_block(&mut self, first: Gfn) {
        self.0.return_block(first);
    }
    fn figures(&self) -> MemoryFigures {
        MemoryFigures {
            free_pages: u64::from(self.0.free_count()),
            total_pages: u64::from(self.0.total()),
            ..Default::default()
        }
    }
}

struct Guest {
    device: Device,
    balloon: Balloon<FakeHal, FakeTransport>,
    pages: Pages,
    now_us: u64,
}

impl Guest {
    fn new(features: Features) -> Self {
        Self::on(Device::new(features), PAGES_PER_BATCH_MAX)
    }

    fn on(device: Device, batch_pages: usize) -> Self {
        let storage = || vec![0; Frames::words_for(LIMIT)].leak();
        let mut frames = Frames::new(storage(), LIMIT);
        frames.add_untouched(0..LIMIT);
        let balloon = Balloon::new(Setup {
            transport: device.transport(),
            storage: Box::leak(Box::new(Storage::new())),
            inside: FrameSet::new(storage(), LIMIT),
            batch_pages,
        });
        Self {
            device,
            balloon: balloon.unwrap(),
            pages: Pages(frames),
            now_us: 0,
        }
    }

    fn poll(&mut self) -> Result<Progress, Broken> {
        self.now_us += 10;
        self.balloon.on_interrupt();
        self.balloon.poll(&mut self.pages, self.now_us)
    }

    /// Serves all queues but the statistics' until the driver has no more to do.
    fn settle(&mut self) -> Progress {
        for _ in 0..1000 {
            let progress = self.poll().unwrap();
            let served =
                [INFLATE, DEFLATE, REPORTING].map(|queue| self.device.serve(queue).is_some());
            if served == [false; 3] && progress != Progress::Moving {
                return progress;
            }
        }
        panic!("the driver never settles");
    }

    fn settle_at(&mut self, target: u32) {
        self.device.set_target(target);
        assert_eq!(self.settle(), Progress::Settled);
        assert_eq!(self.balloon.figures().actual, target);
        assert_eq!(self.device.actual(), target);
        assert_eq!(self.pages.0.free_count(), LIMIT - target);
    }
}

#[test]
fn the_balloon_reaches_each_target_and_says_so() {
    for features in [ALL, Features::empty(), Features::VERSION_1] {
        let mut guest = Guest::new(features);
        for target in [5000, 8000, 1, 0, LIMIT] {
            guest.settle_at(target);
        }
    }
}

#[test]
fn two_batches_are_in_flight_and_no_more() {
    let mut guest = Guest::on(Device::new(ALL), 256);
    guest.device.set_target(5000);
    assert_eq!(guest.poll(), Ok(Progress::Moving));
    let sizes: Vec<_> = core::iter::from_fn(|| guest.device.take(INFLATE)).collect();
    assert!(sizes.iter().map(|chain| chain.gfns().len()).eq([256, 256]));
}

#[test]
fn a_page_is_used_only_after_the_device_has_answered() {
    let mut guest = Guest::new(ALL);
    guest.settle_at(3000);
    guest.device.set_target(1000);
    assert_eq!(guest.poll(), Ok(Progress::Moving));
    let chain = guest.device.take(DEFLATE).unwrap();
    assert_eq!(guest.poll(), Ok(Progress::Moving));
    assert_eq!(guest.pages.0.free_count(), LIMIT - 3000, "not answered yet");
    guest.device.answer(DEFLATE, chain.head);
    assert_eq!(guest.poll(), Ok(Progress::Settled));
    assert_eq!(guest.pages.0.free_count(), LIMIT - 1000);
}

#[test]
fn a_new_target_in_the_middle_is_followed_at_once() {
    let mut guest = Guest::on(Device::new(ALL), 256);
    guest.device.set_target(8000);
    guest.poll().unwrap();
    guest.device.serve(INFLATE).unwrap();
    guest.device.set_target(0);
    guest.poll().unwrap();
    assert_eq!(guest.device.take(DEFLATE).unwrap().gfns().len(), 256);
    guest.device.serve(INFLATE).unwrap();
    assert!(guest.device.take(INFLATE).is_none(), "nothing more goes in");
}

#[test]
fn a_target_beyond_memory_takes_all_there_is_and_waits() {
    let mut guest = Guest::new(ALL);
    guest.device.set_target(u32::MAX);
    assert_eq!(guest.settle(), Progress::Starved);
    assert_eq!(guest.device.actual(), LIMIT);
    guest.settle_at(17);
}

#[test]
fn answers_for_what_was_never_sent_end_the_conversation() {
    for lie in [1_u16, 7, 0xffff] {
        let mut guest = Guest::new(ALL);
        guest.device.set_target(1000);
        guest.poll().unwrap();
        guest.device.answer(INFLATE, lie);
        assert!(guest.poll().is_err());
        let free = guest.pages.0.free_count();
        guest.device.answer(INFLATE, 0);
        assert!(guest.poll().is_err(), "it stays ended");
        assert_eq!(guest.pages.0.free_count(), free);
        assert_eq!(guest.balloon.wake_at_us(guest.now_us), None);
    }
}

#[test]
fn the_same_answer_twice_gives_no_page_twice() {
    let mut guest = Guest::new(ALL);
    guest.settle_at(3000);
    guest.device.set_target(1000);
    guest.poll().unwrap();
    let chain = guest.device.serve(DEFLATE).unwrap();
    guest.device.answer(DEFLATE, chain.head);
    assert!(guest.poll().is_err());
    assert!(guest.pages.0.free_count() <= LIMIT - 1000);
}

#[test]
fn a_device_that_writes_to_the_buffer_changes_nothing() {
    let mut guest = Guest::new(ALL);
    guest.settle_at(3000);
    guest.device.set_target(0);
    guest.poll().unwrap();
    let chain = guest.device.take(DEFLATE).unwrap();
    chain.scribble();
    guest.device.answer(DEFLATE, chain.head);
    assert_eq!(guest.settle(), Progress::Settled);
    assert_eq!(guest.pages.0.free_count(), LIMIT);
}

#[test]
fn statistics_go_out_once_and_then_when_asked() {
    let mut guest = Guest::new(ALL);
    guest.poll().unwrap();
    let first = guest.device.take(STATS).unwrap();
    assert!(
        first.stats().contains(&(4, u64::from(LIMIT) * 4096)),
        "free memory"
    );
    guest.poll().unwrap();
    assert!(guest.device.take(STATS).is_none(), "nobody asked");
    guest.settle_at(100);
    guest.device.answer(STATS, first.head);
    guest.poll().unwrap();
    let second = guest.device.take(STATS).unwrap();
    assert!(second.stats().contains(&(4, u64::from(LIMIT - 100) * 4096)));
    assert!(second.stats().contains(&(5, u64::from(LIMIT) * 4096)));
}

#[test]
fn used_and_freed_blocks_are_reported_once_and_later() {
    let mut guest = Guest::new(ALL);
    let mut used = vec![0; 3 * BLOCK_FRAMES as usize];
    assert_eq!(guest.pages.0.allocate(&mut used), used.len());
    guest.poll().unwrap();
    assert_eq!(
        guest.balloon.wake_at_us(guest.now_us),
        None,
        "nothing to report, no wake-up"
    );
    guest.pages.0.give_back(&used);
    guest.poll().unwrap();
    assert!(guest.device.take(REPORTING).is_none());
    guest.now_us = guest.balloon.wake_at_us(guest.now_us).unwrap();
    guest.poll().unwrap();
    assert_eq!(
        guest.pages.0.free_count(),
        LIMIT - 3 * BLOCK_FRAMES,
        "isolated meanwhile"
    );
    let chain = guest.device.serve(REPORTING).unwrap();
    let blocks: BTreeSet<_> = chain.buffers.iter().map(|(_, length)| length - 1).collect();
    assert!(blocks.into_iter().eq([0, 512, 1024]));
    guest.poll().unwrap();
    assert_eq!(guest.pages.0.free_count(), LIMIT);
    assert_eq!(
        guest.balloon.figures().reported,
        3 * u64::from(BLOCK_FRAMES)
    );
    assert_eq!(guest.balloon.wake_at_us(guest.now_us), None);
}

#[test]
fn a_device_with_short_queues_is_used_without_reporting() {
    let device = Device::new(ALL);
    device.limit_queues(8);
    let mut guest = Guest::on(device, PAGES_PER_BATCH_MAX);
    guest.settle_at(2000);
}

#[test]
fn out_of_memory_takes_from_the_balloon_only_if_negotiated() {
    let mut guest = Guest::new(ALL.difference(Features::DEFLATE_ON_OOM));
    guest.settle_at(LIMIT);
    assert_eq!(guest.balloon.relieve(1000, guest.now_us), 0);

    let mut guest = Guest::new(ALL);
    guest.settle_at(LIMIT);
    assert_eq!(guest.balloon.relieve(1000, guest.now_us), 1000);
    assert_eq!(guest.settle(), Progress::Settled);
    assert_eq!(guest.pages.0.free_count(), 1000);
    assert_eq!(guest.balloon.figures().oom_deflated, 1000);
}

#[test]
fn an_untouched_event_loop_tells_the_device_nothing() {
    let mut guest = Guest::new(ALL);
    guest.settle_at(1000);
    let before = guest.device.notified();
    (0..100).for_each(|_| assert_eq!(guest.poll(), Ok(Progress::Settled)));
    assert_eq!(guest.device.notified(), before);
}

#[test]
fn a_dropped_driver_resets_the_device() {
    let mut guest = Guest::new(ALL);
    guest.settle_at(1000);
    assert_ne!(guest.device.status(), DeviceStatus::empty());
    drop(guest.balloon);
    assert_eq!(guest.device.status(), DeviceStatus::empty());
}

#[derive(Clone, Debug)]
enum Event {
    Target(u32),
    Serve(u16),
    Poll,
    Allocate(usize),
    Free(usize),
    Relieve(u32),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => (0..LIMIT * 5 / 4).prop_map(Event::Target),
        4 => (0_u16..4).prop_map(Event::Serve),
        4 => Just(Event::Poll),
        1 => (0_usize..3000).prop_map(Event::Allocate),
        1 => (0_usize..3000).prop_map(Event::Free),
        1 => (0_u32..1000).prop_map(Event::Relieve),
        1 => (0_u64..4_000_000).prop_map(Event::Wait),
    ];
    prop::collection::vec(event, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// Each frame is with the allocator, its user, or the device's view of the balloon; once.
    #[test]
    fn no_frame_is_in_two_places_whatever_comes_in_which_order(events in events(), batch in 1_usize..4096) {
        let mut guest = Guest::on(Device::new(ALL), batch);
        let mut allocated: Vec<Gfn> = Vec::new();
        let mut inside = BTreeSet::new();
        for event in events {
            match event {
                Event::Target(pages) => guest.device.set_target(pages),
                Event::Serve(queue) => if let Some(chain) = guest.device.serve(queue) {
                    match queue {
                        INFLATE => for gfn in chain.gfns() {
                            prop_assert!(inside.insert(gfn), "frame {} inflated twice", gfn);
                            prop_assert!(!allocated.contains(&gfn));
                        },
                        DEFLATE => for gfn in chain.gfns() {
                            prop_assert!(inside.remove(&gfn), "frame {} deflated twice", gfn);
                        },
                        _ => {}
                    }
                },
                Event::Poll => {
                    guest.poll().unwrap();
                }
                Event::Allocate(count) => {
                    let mut out = vec![0; count];
                    let got = guest.pages.0.allocate(&mut out);
                    prop_assert!(out[..got].iter().all(|gfn| !inside.contains(gfn)));
                    allocated.extend(&out[..got]);
                }
                Event::Free(count) => {
                    let keep = allocated.len().saturating_sub(count);
                    guest.pages.0.give_back(&allocated[keep..]);
                    allocated.truncate(keep);
                }
                Event::Relieve(count) => {
                    guest.balloon.relieve(count, guest.now_us);
                }
                Event::Wait(us) => guest.now_us += us,
            }
        }
        guest.pages.0.give_back(&allocated);
        guest.now_us += 10_000_000;
        guest.settle_at(100);
    }
}
