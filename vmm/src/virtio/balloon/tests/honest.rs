//! What a driver that keeps to the standard gets.

use super::{SMALL, allocated, device_offers, statistic};
use crate::memory::ram::{GAP_END, GAP_START};
use crate::virtio::balloon::wire;
use crate::virtio::fake_driver::*;
use crate::virtio::mmio::register;
use crate::virtio::{InterruptCause, Served};
use page::{PAGE_SIZE, PageCount, PageStates};

const CONFIG: u64 = 0x100;
const BUFFER: u64 = FIRST_FREE_PAGE * PAGE_SIZE;

#[test]
fn inflating_frees_exactly_the_pages_listed() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    driver.touch(100..110);
    driver.put(BUFFER, &[0; 16]);
    let before = allocated(&driver);
    assert_eq!(driver.inflate(&[103, 101, 102, 107]), [0]);
    assert_eq!(allocated(&driver), before - 4);
    let states = driver.states(false);
    assert_eq!(states.ballooned, PageCount(4));
    assert_eq!(states.private, PageCount(before - 4));
    assert_eq!(states.total(), SMALL);
    for page in 100..110 {
        let expected = if [101, 102, 103, 107].contains(&page) {
            0
        } else {
            0xa5
        };
        assert_eq!(driver.get(page * PAGE_SIZE), [expected], "page {page}");
    }
    assert_eq!(driver.counters().inflated, 4);
    assert_eq!(driver.counters().repeated, 0);
}

#[test]
fn the_pages_are_free_before_the_guest_is_told_so() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    driver.touch(100..101);
    driver.interrupt.line().drain();
    driver.inflate(&[100]);
    assert!(driver.interrupt.line().drain(), "the guest is interrupted");
    let pending = driver.read(register::INTERRUPT_STATUS);
    assert_eq!(pending, InterruptCause::UsedBuffer as u32);
    driver.write(register::INTERRUPT_ACK, pending);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
}

#[test]
fn a_page_that_left_the_balloon_is_the_guests_again() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    driver.inflate(&[100, 101, 102]);
    assert_eq!(driver.deflate(&[101]), [0]);
    assert_eq!(driver.states(false).ballooned, PageCount(2));
    driver.touch([101]);
    let states = driver.states(true);
    assert_eq!(states.ballooned, PageCount(2));
    assert_eq!(states.total(), SMALL);
    assert_eq!(driver.counters().deflated, 1);
    assert_eq!(driver.counters().popped, 0);
}

#[test]
fn a_ballooned_page_that_is_touched_without_a_word_has_popped() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    driver.inflate(&[100, 101, 102]);
    driver.touch([101]);
    assert_eq!(
        driver.states(false).total(),
        SMALL,
        "even before it is found"
    );
    let states = driver.states(true);
    assert_eq!(states.ballooned, PageCount(2));
    assert_eq!(states.total(), SMALL);
    assert_eq!(driver.counters().popped, 1);
    // Its driver still thinks it is there, and takes it out some day.
    driver.deflate(&[101]);
    assert_eq!(driver.counters().repeated, 1);
}

#[test]
fn a_guest_that_touches_its_whole_balloon_keeps_states_that_add_up() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    let most: Vec<u32> = (64..512).collect();
    driver.inflate(&most);
    driver.touch(0..512);
    let states = driver.states(false);
    let whole = PageStates {
        private: SMALL,
        ..PageStates::default()
    };
    assert_eq!(states, whole);
    assert_eq!(driver.counters().popped, most.len() as u64);
}

#[test]
fn reported_pages_are_freed_but_stay_the_guests() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    driver.touch(200..216);
    let before = allocated(&driver);
    let reported = [
        (200 * PAGE_SIZE, 4 * 4096, WRITE),
        (208 * PAGE_SIZE, 4096, WRITE),
    ];
    driver.offer(REPORT, 0, &reported);
    driver.notify(REPORT);
    assert_eq!(driver.take_returned(REPORT), [0]);
    assert_eq!(allocated(&driver), before - 5);
    assert_eq!(driver.states(true).ballooned, PageCount::ZERO);
    assert_eq!(driver.get(200 * PAGE_SIZE), [0]);
    assert_eq!(
        driver.get(204 * PAGE_SIZE),
        [0xa5],
        "a neighbour keeps its content"
    );
    assert_eq!(driver.counters().reported, 5);
    assert_eq!(driver.counters().malformed, 0);
}

#[test]
fn a_statistics_buffer_waits_until_figures_are_wanted() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    let figures = [statistic(4, 1 << 20), statistic(5, 2 << 20)].concat();
    driver.put(BUFFER, &figures);
    driver.offer(STATS, 3, &[(BUFFER, 20, 0)]);
    driver.notify(STATS);
    assert_eq!(driver.take_returned(STATS), [] as [u32; 0]);
    let statistics = driver.balloon().statistics().unwrap();
    assert_eq!(statistics.free, Some(1 << 20));
    assert_eq!(statistics.total, Some(2 << 20));
    driver.balloon().request_statistics();
    assert_eq!(driver.take_returned(STATS), [3]);
    driver.balloon().request_statistics();
    assert_eq!(
        driver.take_returned(STATS),
        [] as [u32; 0],
        "it has none to give"
    );
}

#[test]
fn a_wanted_size_shows_in_the_configuration_and_interrupts() {
    let driver = FakeDriver::started(SMALL, ALL_FEATURES);
    driver.interrupt.line().drain();
    driver.balloon().set_target(PageCount(77));
    assert!(driver.interrupt.line().drain());
    assert_eq!(
        driver.read(register::INTERRUPT_STATUS),
        InterruptCause::Configuration as u32
    );
    assert_eq!(driver.read(CONFIG), 77);
    driver.balloon().set_target(PageCount(77));
    assert!(!driver.interrupt.line().drain(), "nothing changed");
    driver.balloon().set_target(PageCount(u64::MAX));
    assert_eq!(
        driver.balloon().target(),
        SMALL,
        "no guest has more to give"
    );
    driver.write(CONFIG + wire::CONFIG_ACTUAL, 70);
    assert_eq!(driver.balloon().claimed(), PageCount(70));
}

#[test]
fn a_wanted_size_does_not_interrupt_a_guest_without_a_driver() {
    let driver = FakeDriver::new(SMALL);
    driver.balloon().set_target(PageCount(77));
    assert!(!driver.interrupt.line().drain());
    assert_eq!(driver.read(CONFIG), 77);
}

#[test]
fn every_feature_that_the_balloon_has_is_offered() {
    let driver = FakeDriver::new(SMALL);
    assert_eq!(device_offers(&driver), ALL_FEATURES);
    driver.write(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(register::DEVICE_FEATURES), 0);
}

/// Linux and QEMU count only the queues that were agreed on.
#[test]
fn without_statistics_the_third_queue_is_for_reports() {
    let mut driver = FakeDriver::started(SMALL, VERSION_1 | REPORTING);
    driver.touch([200]);
    driver.offer(2, 0, &[(200 * PAGE_SIZE, 4096, WRITE)]);
    driver.notify(2);
    assert_eq!(driver.take_returned(2), [0]);
    assert_eq!(driver.counters().reported, 1);
    driver.offer(3, 0, &[(200 * PAGE_SIZE, 4096, WRITE)]);
    driver.notify(3);
    assert_eq!(
        driver.take_returned(3),
        [] as [u32; 0],
        "there is no fourth queue"
    );
}

#[test]
fn without_optional_features_there_are_two_queues() {
    let mut driver = FakeDriver::started(SMALL, VERSION_1);
    assert_eq!(driver.inflate(&[100]), [0]);
    assert_eq!(driver.deflate(&[100]), [0]);
    for queue in [2, 3, 4, usize::MAX] {
        driver.notify(queue);
    }
    assert!(driver.balloon().has_driver());
    assert_eq!(driver.counters().deflated, 1);
}

#[test]
fn a_reset_pops_the_balloon() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    driver.balloon().set_target(PageCount(10));
    driver.write(CONFIG + wire::CONFIG_ACTUAL, 3);
    driver.inflate(&[100, 101, 102]);
    driver.reset();
    assert_eq!(driver.status(), 0);
    assert!(!driver.balloon().has_driver());
    assert_eq!(driver.states(false).ballooned, PageCount::ZERO);
    assert_eq!(driver.states(false).total(), SMALL);
    assert_eq!(driver.balloon().claimed(), PageCount::ZERO);
    assert_eq!(driver.balloon().statistics(), None);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    assert_eq!(
        driver.balloon().target(),
        PageCount(10),
        "what the host wants stays"
    );
    assert_eq!(
        driver.counters().inflated,
        3,
        "counts are of the VM, not of its driver"
    );
}

#[test]
fn a_driver_can_start_over_after_a_reset() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    for round in 1..=3 {
        assert_eq!(driver.inflate(&[100]), [0]);
        assert_eq!(driver.counters().inflated, round);
        driver.start(ALL_FEATURES);
    }
    assert_eq!(driver.counters().repeated, 0);
}

#[test]
fn queues_of_every_size_go_round() {
    for size in [1, 2, 64, 128] {
        let mut driver = FakeDriver::new(SMALL);
        driver.start_with_size(ALL_FEATURES, size);
        for page in 100..400 {
            assert_eq!(driver.inflate(&[page]), [0], "queue of {size}");
        }
        assert_eq!(driver.states(true).ballooned, PageCount(300));
    }
}

/// The largest chain that is looked at frees all that it lists.
#[test]
fn a_list_may_be_spread_over_a_whole_table() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    for index in 0..128u32 {
        driver.put(BUFFER + u64::from(index) * 4, &(100 + index).to_le_bytes());
    }
    let buffers: Vec<_> = (0..128).map(|index| (BUFFER + index * 4, 4, 0)).collect();
    driver.offer(INFLATE, 0, &buffers);
    driver.notify(INFLATE);
    assert_eq!(driver.take_returned(INFLATE), [0]);
    assert_eq!(driver.counters().inflated, 128);
    assert_eq!(driver.counters().malformed, 0);
}

#[test]
fn pages_on_both_sides_of_the_gap_are_freed_and_those_in_it_refused() {
    let size = PageCount(GAP_START.0 + 64);
    let mut driver = FakeDriver::started(size, ALL_FEATURES);
    let (low, high) = (GAP_START.0 - 1, GAP_END.0);
    driver.touch([low - 1, low, high, high + 1, high + 63]);
    driver.put(BUFFER, &[0; 32]);
    let before = allocated(&driver);
    let listed = [low, low + 1, high - 1, high, high + 63, high + 64];
    driver.inflate(&listed.map(|page| u32::try_from(page).unwrap()));
    assert_eq!(allocated(&driver), before - 3);
    assert_eq!(driver.counters().outside, 3);
    assert_eq!(driver.get(high * PAGE_SIZE), [0]);
    assert_eq!(
        driver.get((high + 1) * PAGE_SIZE),
        [0xa5],
        "a neighbour keeps its content"
    );
    let states = driver.states(false);
    assert_eq!(states.total(), size);
    // Two of them are neighbours in the memory file, though not for the guest.
    driver.touch([low, high]);
    let states = driver.states(true);
    assert_eq!(states.total(), size);
    assert_eq!(driver.counters().popped, 2);
    assert_eq!(states.ballooned, PageCount(1));
}

#[test]
fn the_interrupt_says_that_statistics_are_wanted() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    driver.put(BUFFER, &statistic(4, 1));
    driver.offer(STATS, 0, &[(BUFFER, 10, 0)]);
    assert!(!driver.balloon().serve(STATS));
    driver.interrupt.line().drain();
    driver.balloon().request_statistics();
    assert!(driver.interrupt.line().drain());
}
