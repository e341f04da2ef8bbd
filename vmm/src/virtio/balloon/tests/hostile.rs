//! What a driver gets that lies, forgets and tries: its lies counted, its chains back, or a demand
//! to reset. Never more than that, and never anything of its host's.

use super::{SMALL, allocated, statistic};
use crate::memory::ram::{GAP_END, GAP_START};
use crate::virtio::balloon::chain::MOST_PFNS_IN_CHAIN;
use crate::virtio::fake_driver::*;
use crate::virtio::mmio::register;
use crate::virtio::{Device, Served};
use page::{PAGE_SIZE, PageCount};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_queue::desc::split::Descriptor;

const BUFFER: u64 = FIRST_FREE_PAGE * PAGE_SIZE;
const BOTH: [usize; 2] = [INFLATE, DEFLATE];

fn started() -> FakeDriver {
    FakeDriver::started(SMALL, ALL_FEATURES)
}

fn most_pfns() -> u32 {
    u32::try_from(MOST_PFNS_IN_CHAIN).unwrap()
}

/// Sends one chain; it must come back, with `malformed` buffers counted and nothing else done.
#[track_caller]
fn is_answered_as_malformed(queue: usize, buffers: &[(u64, u32, u16)], malformed: u64) {
    let mut driver = started();
    driver.touch([32, 100, 101, 511]);
    let before = allocated(&driver);
    driver.offer(queue, 0, buffers);
    driver.notify(queue);
    assert_eq!(driver.take_returned(queue), [0], "the chain comes back");
    assert_eq!(driver.counters().malformed, malformed);
    assert_eq!(driver.counters().inflated + driver.counters().reported, 0);
    assert_eq!(allocated(&driver), before);
    assert!(!driver.interrupt.needs_reset());
    assert_eq!(driver.states(true).total(), SMALL);
}

/// The device has demanded a reset, does nothing more, and works again after it.
#[track_caller]
fn needs_a_reset(driver: &mut FakeDriver) {
    assert!(driver.interrupt.needs_reset());
    assert_ne!(driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert_eq!(driver.counters().broken_queues, 1);
    assert!(!driver.balloon().has_driver());
    for queue in 0..QUEUES {
        assert!(!driver.balloon().serve(queue));
    }
    driver.balloon().request_statistics();
    assert_eq!(driver.counters().broken_queues, 1, "counted once");
    assert_eq!(driver.states(true).total(), SMALL);
    driver.start(ALL_FEATURES);
    assert_eq!(driver.status(), 0xf);
    assert_eq!(driver.inflate(&[300]), [0]);
    assert_eq!(driver.states(true).ballooned, PageCount(1));
}

#[test]
fn a_frame_outside_ram_is_refused_and_counted() {
    let mut driver = started();
    driver.touch([100, 511]);
    driver.put(BUFFER, &[0; 32]);
    let before = allocated(&driver);
    assert_eq!(
        driver.inflate(&[512, 513, u32::MAX, 1 << 20, 0xc_0000, 511]),
        [0]
    );
    assert_eq!(allocated(&driver), before - 1);
    assert_eq!(driver.counters().outside, 5);
    assert_eq!(driver.counters().inflated, 1);
    driver.deflate(&[512, u32::MAX]);
    assert_eq!(driver.counters().outside, 7);
    assert_eq!(driver.states(true).total(), SMALL);
}

/// A guest that lies about its frames takes nothing from its neighbour.
#[test]
fn whatever_a_guest_lists_its_neighbour_keeps_its_pages() {
    let neighbour = started();
    neighbour.touch(0..512);
    let mut driver = started();
    let pfns: Vec<u32> = (0..1 << 13).map(|index| index << 19 | index << 7).collect();
    driver.inflate(&pfns);
    driver.offer(
        REPORT,
        0,
        &[(0, 512 << 12, WRITE), (512 << 12, 512 << 12, WRITE)],
    );
    driver.notify(REPORT);
    assert_eq!(allocated(&neighbour), 512);
    for page in 0..512 {
        assert_eq!(neighbour.get(page * PAGE_SIZE), [0xa5]);
    }
    assert_eq!(driver.states(true).total(), SMALL);
}

#[test]
fn a_frame_given_up_twice_counts_once() {
    let mut driver = started();
    driver.inflate(&[100, 101, 100, 100]);
    assert_eq!(driver.counters().repeated, 2);
    driver.inflate(&[101, 102]);
    assert_eq!(driver.counters().repeated, 3);
    assert_eq!(driver.states(true).ballooned, PageCount(3));
    assert_eq!(driver.counters().inflated, 3);
}

#[test]
fn a_frame_that_is_not_in_the_balloon_cannot_be_taken_out() {
    let mut driver = started();
    driver.inflate(&[100]);
    driver.deflate(&[101, 100, 100]);
    assert_eq!(driver.counters().deflated, 1);
    assert_eq!(driver.counters().repeated, 2);
    assert_eq!(driver.states(true).ballooned, PageCount::ZERO);
}

#[test]
fn buffers_outside_ram_are_counted_and_answered() {
    let end = SMALL.bytes();
    for address in [
        end,
        end - 2,
        GAP_START.0 << 12,
        GAP_END.0 << 12,
        1 << 63,
        u64::MAX - 3,
        u64::MAX,
    ] {
        for queue in BOTH {
            is_answered_as_malformed(queue, &[(address, 4, 0)], 1);
        }
        is_answered_as_malformed(REPORT, &[(address, 4096, WRITE)], 1);
    }
}

#[test]
fn an_address_that_overflows_is_counted_and_answered() {
    for len in [8, 1 << 16, (1 << 18) - 4] {
        for queue in BOTH {
            is_answered_as_malformed(queue, &[(u64::MAX - 4, len, 0)], 1);
        }
    }
    is_answered_as_malformed(REPORT, &[(u64::MAX - 4095, 4096, WRITE)], 1);
    is_answered_as_malformed(REPORT, &[(u64::MAX - 4095, 0xffff_f000, WRITE)], 1);
}

#[test]
fn buffers_of_a_wrong_size_are_counted_and_answered() {
    for len in [0, 3, u32::MAX, u32::MAX - 3, 4 * (most_pfns() + 1)] {
        for queue in BOTH {
            is_answered_as_malformed(queue, &[(BUFFER, len, 0)], 1);
        }
    }
}

#[test]
fn buffers_that_the_device_should_write_are_not_read() {
    for queue in BOTH {
        is_answered_as_malformed(queue, &[(BUFFER, 4, WRITE), (BUFFER, 4, WRITE)], 2);
    }
}

#[test]
fn a_good_buffer_in_bad_company_is_served() {
    let mut driver = started();
    driver.put(BUFFER, &100u32.to_le_bytes());
    driver.offer(
        INFLATE,
        0,
        &[(u64::MAX, 4, 0), (BUFFER, 4, 0), (BUFFER, 0, 0)],
    );
    driver.notify(INFLATE);
    assert_eq!(driver.take_returned(INFLATE), [0]);
    assert_eq!(driver.counters().malformed, 2);
    assert_eq!(driver.counters().inflated, 1);
}

#[test]
fn a_report_of_anything_but_whole_pages_of_ram_is_refused() {
    let page = 100 * PAGE_SIZE;
    let bad = [
        (page, 4096, 0),
        (page + 1, 4096, WRITE),
        (page, 4095, WRITE),
        (page, 0, WRITE),
        (page, u32::MAX, WRITE),
        (page, 0xffff_f000, WRITE),
        (511 * PAGE_SIZE, 8192, WRITE),
        (512 * PAGE_SIZE, 4096, WRITE),
        (GAP_START.0 << 12, 4096, WRITE),
        (1 << 63, 4096, WRITE),
    ];
    for buffer in bad {
        is_answered_as_malformed(REPORT, &[buffer], 1);
    }
    is_answered_as_malformed(REPORT, &bad, bad.len() as u64);
}

#[test]
fn a_report_across_the_gap_is_refused() {
    let size = PageCount(GAP_START.0 + 1024);
    let mut driver = FakeDriver::started(size, ALL_FEATURES);
    let (low, high) = (GAP_START.0 - 1, GAP_END.0);
    driver.touch([low, high, high + 1]);
    let before = allocated(&driver);
    let across = [
        (low * PAGE_SIZE, 8192, WRITE),
        ((high - 1) * PAGE_SIZE, 8192, WRITE),
        // It begins and ends in memory.
        (low * PAGE_SIZE, 0x4000_2000, WRITE),
        (2 * PAGE_SIZE, 0xffff_f000, WRITE),
    ];
    driver.offer(REPORT, 0, &across);
    driver.notify(REPORT);
    assert_eq!(driver.take_returned(REPORT), [0]);
    assert_eq!(driver.counters().malformed, 4);
    assert_eq!(allocated(&driver), before);
    assert_eq!(driver.states(true).total(), size);
}

#[test]
fn reports_that_overlap_count_each_page_once() {
    let mut driver = started();
    driver.touch(100..110);
    let before = allocated(&driver);
    let reported = [
        (100 << 12, 4 << 12, WRITE),
        (102 << 12, 4 << 12, WRITE),
        (100 << 12, 4096, WRITE),
    ];
    driver.offer(REPORT, 0, &reported);
    driver.notify(REPORT);
    assert_eq!(driver.counters().reported, 6);
    assert_eq!(allocated(&driver), before - 6);
}

#[test]
fn a_loop_in_a_chain_ends_and_is_counted() {
    for (queue, len, flags) in [
        (INFLATE, 4, 0),
        (DEFLATE, 4, 0),
        (REPORT, 4096, WRITE),
        (STATS, 4, 0),
    ] {
        let mut driver = started();
        driver.put(BUFFER, &200u32.to_le_bytes());
        let buffer = |next| Descriptor::new(BUFFER, len, NEXT | flags, next);
        driver.put_descriptor(queue, 0, buffer(1));
        driver.put_descriptor(queue, 1, buffer(0));
        driver.offer_head(queue, 0);
        driver.notify(queue);
        driver.balloon().request_statistics();
        assert_eq!(driver.take_returned(queue), [0], "queue {queue}");
        assert_eq!(driver.counters().malformed, 1, "queue {queue}");
        assert_eq!(driver.states(true).total(), SMALL);
    }
}

#[test]
fn a_chain_that_leaves_its_table_is_counted_and_answered() {
    for next in [128, 129, u16::MAX] {
        for queue in 0..QUEUES {
            let mut driver = started();
            let flags = if queue == REPORT { WRITE } else { 0 };
            driver.put_descriptor(queue, 5, Descriptor::new(BUFFER, 4096, NEXT | flags, next));
            driver.offer_head(queue, 5);
            driver.notify(queue);
            driver.balloon().request_statistics();
            assert_eq!(driver.take_returned(queue), [5], "queue {queue}");
            assert_eq!(driver.counters().malformed, 1, "queue {queue}");
        }
    }
}

/// Nobody offered indirect tables. One could hold 65,535 buffers, or name itself.
#[test]
fn an_indirect_table_is_not_followed() {
    let mut driver = started();
    driver.touch([100]);
    driver.put(BUFFER, &100u32.to_le_bytes());
    let table = BUFFER + PAGE_SIZE;
    driver.put_descriptor_at(table, Descriptor::new(BUFFER, 4, 0, 0));
    driver.put_descriptor_at(table + 16, Descriptor::new(table, 32, INDIRECT, 0));
    for flags in [INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE] {
        let before = driver.counters().malformed;
        driver.offer(INFLATE, 0, &[(table, 32, flags)]);
        driver.notify(INFLATE);
        assert_eq!(driver.take_returned(INFLATE), [0]);
        assert_eq!(driver.counters().malformed, before + 1);
    }
    assert_eq!(driver.counters().inflated, 0);
    assert_eq!(driver.get(100 * PAGE_SIZE), [0xa5]);
}

#[test]
fn a_chain_with_more_frames_than_the_limit_is_cut_there() {
    let pages = PageCount(MOST_PFNS_IN_CHAIN as u64 / 1024 + 64);
    let mut driver = FakeDriver::started(pages, ALL_FEATURES);
    let most = 4 * most_pfns();
    let start = Instant::now();
    // Of zeroes, page 0 each, read over and over.
    driver.offer(
        INFLATE,
        0,
        &[(BUFFER, most, 0), (BUFFER, 4, 0), (BUFFER, most, 0)],
    );
    driver.notify(INFLATE);
    assert_eq!(driver.take_returned(INFLATE), [0]);
    assert_eq!(driver.counters().malformed, 2);
    assert_eq!(driver.counters().inflated, 1);
    assert_eq!(driver.counters().repeated, MOST_PFNS_IN_CHAIN as u64 - 1);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

/// A message from the host waits while a queue is served.
#[test]
fn the_device_stops_for_other_work_however_much_there_is() {
    let mut driver = started();
    let most = 4 * most_pfns();
    for head in 0..128 {
        driver.offer(DEFLATE, head, &[(BUFFER, most, 0)]);
    }
    assert!(driver.balloon().serve(DEFLATE), "work is left");
    assert_eq!(
        driver.take_returned(DEFLATE).len(),
        1,
        "one large chain is enough"
    );
    for head in 0..128 {
        driver.offer(INFLATE, head, &[(BUFFER, 0, 0)]);
    }
    assert!(driver.balloon().serve(INFLATE), "work is left");
    assert_eq!(
        driver.take_returned(INFLATE).len(),
        16,
        "and some small ones"
    );
    driver.notify(INFLATE);
    assert_eq!(driver.take_returned(INFLATE).len(), 112);
}

/// Neighbours cannot be joined: each costs a call to free it and a look to count it.
#[test]
fn the_most_scattered_balloon_is_made_and_counted_in_bounded_time() {
    let count = most_pfns();
    let first = 1024;
    let mut driver = FakeDriver::started(PageCount(u64::from(first + 2 * count)), ALL_FEATURES);
    let pfns: Vec<u32> = (0..count).map(|index| first + 2 * index).collect();
    let start = Instant::now();
    assert_eq!(driver.inflate(&pfns), [0]);
    let inflated = start.elapsed();
    let start = Instant::now();
    let states = driver.states(true);
    let counted = start.elapsed();
    assert_eq!(states.ballooned, PageCount(count.into()));
    println!("inflated in {inflated:?}, counted in {counted:?}");
    assert!(
        inflated < Duration::from_secs(5),
        "inflated in {inflated:?}"
    );
    assert!(counted < Duration::from_secs(5), "counted in {counted:?}");
}

#[test]
fn a_huge_statistics_buffer_is_read_only_as_far_as_makes_sense() {
    let mut driver = started();
    driver.put(BUFFER, &statistic(4, 4096));
    driver.offer(STATS, 0, &[(BUFFER, u32::MAX, 0)]);
    driver.notify(STATS);
    assert_eq!(driver.balloon().statistics().unwrap().free, Some(4096));
    let buffers = [(BUFFER, 600, 0), (BUFFER, 1 << 20, 0), (BUFFER, 10, 0)];
    driver.offer(STATS, 1, &buffers);
    driver.notify(STATS);
    assert_eq!(driver.counters().malformed, 0);
    assert_eq!(driver.take_returned(STATS), [0]);
}

#[test]
fn statistics_that_cannot_be_read_are_counted_and_their_buffer_kept() {
    let end = SMALL.bytes();
    for buffer in [
        (end, 10, 0),
        (end - 5, 10, 0),
        (u64::MAX, 10, 0),
        (BUFFER, 10, WRITE),
    ] {
        let mut driver = started();
        driver.offer(STATS, 7, &[buffer]);
        driver.notify(STATS);
        assert_eq!(driver.counters().malformed, 1, "{buffer:?}");
        assert_eq!(driver.balloon().statistics(), None);
        driver.balloon().request_statistics();
        assert_eq!(driver.take_returned(STATS), [7]);
    }
}

#[test]
fn of_several_statistics_buffers_only_the_newest_is_kept() {
    let mut driver = started();
    for head in 0..100u16 {
        driver.put(BUFFER, &statistic(4, head.into()));
        driver.offer(STATS, head, &[(BUFFER, 10, 0)]);
    }
    driver.notify(STATS);
    let returned = driver.take_returned(STATS);
    assert_eq!(returned, (0..99).collect::<Vec<u32>>());
    driver.balloon().request_statistics();
    assert_eq!(driver.take_returned(STATS), [99]);
}

#[test]
fn one_statistics_buffer_sent_twice_comes_back_twice() {
    let mut driver = started();
    driver.offer(STATS, 0, &[(BUFFER, 10, 0)]);
    driver.offer_head(STATS, 0);
    driver.notify(STATS);
    driver.balloon().request_statistics();
    assert_eq!(driver.take_returned(STATS), [0, 0]);
}

#[test]
fn an_index_that_jumps_breaks_the_queue() {
    for index in [129, 1000, u16::MAX] {
        for queue in 0..QUEUES {
            let mut driver = started();
            driver.set_avail_index(queue, index);
            driver.notify(queue);
            assert_eq!(driver.take_returned(queue), [] as [u32; 0]);
            needs_a_reset(&mut driver);
        }
    }
}

#[test]
fn an_index_that_goes_back_breaks_the_queue() {
    let mut driver = started();
    driver.inflate(&[100]);
    driver.inflate(&[101]);
    driver.set_avail_index(INFLATE, 1);
    driver.notify(INFLATE);
    needs_a_reset(&mut driver);
}

/// It could never be answered.
#[test]
fn a_chain_that_begins_outside_its_table_breaks_the_queue() {
    for head in [128, u16::MAX] {
        for queue in 0..QUEUES {
            let mut driver = started();
            driver.offer_head(queue, head);
            driver.notify(queue);
            needs_a_reset(&mut driver);
        }
    }
}

/// It takes away the ground under itself: what it wrote there is gone.
#[test]
fn a_guest_that_gives_up_its_own_rings_needs_a_reset() {
    let mut driver = started();
    driver.inflate(&[100]);
    let rings = u32::try_from(ring_page(INFLATE)).unwrap();
    driver.inflate(&[rings, rings + 1, rings + 2]);
    driver.notify(INFLATE);
    needs_a_reset(&mut driver);
}

#[test]
fn a_queue_that_was_never_set_up_is_not_served() {
    let mut driver = FakeDriver::new(SMALL);
    driver.negotiate(ALL_FEATURES);
    driver.set_up_queue(DEFLATE);
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(driver.inflate(&[100]), [] as [u32; 0]);
    assert_eq!(driver.deflate(&[100]), [0]);
    assert_eq!(driver.counters().inflated, 0);
    assert!(!driver.interrupt.needs_reset());
}

#[test]
fn nothing_is_served_before_the_driver_is_ready() {
    let mut driver = FakeDriver::new(SMALL);
    driver.negotiate(ALL_FEATURES);
    for queue in 0..QUEUES {
        driver.set_up_queue(queue);
    }
    assert_eq!(driver.inflate(&[100]), [] as [u32; 0]);
    driver.balloon().request_statistics();
    assert!(!driver.balloon().has_driver());
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    driver.notify(INFLATE);
    assert_eq!(
        driver.take_returned(INFLATE),
        [0],
        "what waited is served then"
    );
}

#[test]
fn a_configuration_write_of_any_shape_does_nothing_bad() {
    let driver = started();
    for offset in 0..16 {
        for width in 0..=8 {
            driver.transport.write(0x100 + offset, &[0xff; 8][..width]);
        }
    }
    assert_eq!(
        driver.balloon().claimed(),
        PageCount(u32::MAX.into()),
        "it may claim what it likes"
    );
    assert_eq!(driver.counters().malformed, 16 * 9 - 1);
    assert_eq!(driver.balloon().target(), PageCount::ZERO);
    assert_eq!(driver.states(true).total(), SMALL);
}

#[test]
fn the_configuration_reads_as_zero_beyond_its_end() {
    let driver = started();
    driver.balloon().set_target(PageCount(0x101));
    for (offset, expected) in [(0, 0x101), (1, 1), (2, 0), (5, 0), (8, 0), (0xefc, 0)] {
        let mut data = [0xee; 8];
        driver.transport.read(0x100 + offset, &mut data);
        assert_eq!(u64::from_le_bytes(data), expected, "offset {offset}");
    }
    let mut data = [0xee; 8];
    driver.balloon().read_config(u64::MAX, &mut data);
    assert_eq!(data, [0; 8]);
    driver.transport.read(u64::MAX, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn needs_reset_shows_once_and_goes_with_the_reset() {
    let mut driver = started();
    driver.interrupt.line().drain();
    driver.set_avail_index(INFLATE, 1000);
    driver.notify(INFLATE);
    assert!(driver.interrupt.line().drain(), "the guest is told");
    for _ in 0..10 {
        driver.notify(INFLATE);
    }
    assert!(!driver.interrupt.line().drain(), "once");
    driver.reset();
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
}
