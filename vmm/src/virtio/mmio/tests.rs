use super::*;
use crate::virtio::fake_driver::{
    ALL_FEATURES, FakeDriver, QUEUES, REPORTING, VERSION_1 as VERSION, avail_address,
    table_address, used_address,
};
use page::PageCount;
use proptest::prelude::*;
use register::*;

const SMALL: PageCount = PageCount(512);
const READY: u32 = 0xf;

fn places(queue: usize) -> [u64; 3] {
    [table_address, avail_address, used_address].map(|place| place(queue))
}

/// Past the features, so that queues can be set up.
fn negotiated() -> FakeDriver {
    let driver = FakeDriver::new(SMALL);
    driver.negotiate(ALL_FEATURES);
    driver
}

#[track_caller]
fn is_a_violation(driver: &FakeDriver, act: impl FnOnce(&FakeDriver)) {
    let before = driver.transport.violations();
    act(driver);
    assert_eq!(driver.transport.violations(), before + 1);
}

#[test]
fn the_registers_say_what_the_device_is() {
    let driver = FakeDriver::new(SMALL);
    assert_eq!(driver.read(MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(register::VERSION), 2);
    assert_eq!(driver.read(DEVICE_ID), 5);
    assert_eq!(driver.read(CONFIG_GENERATION), 0);
    for queue in 0..5 {
        driver.write(QUEUE_SEL, queue);
        let expected = if queue < 4 { 128 } else { 0 };
        assert_eq!(driver.read(QUEUE_NUM_MAX), expected);
        assert_eq!(driver.read(QUEUE_READY), 0);
    }
    assert_eq!(driver.transport.violations(), 0);
}

#[test]
fn an_honest_driver_violates_nothing() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    assert_eq!(driver.status(), READY);
    for queue in 0..4 {
        driver.write(QUEUE_SEL, queue);
        assert_eq!(driver.read(QUEUE_READY), 1);
    }
    driver.reset();
    driver.start(VERSION);
    assert_eq!(driver.transport.violations(), 0);
}

/// Linux' balloon notifies its statistics queue before it is ready itself, and never again.
#[test]
fn a_queue_that_was_notified_too_early_is_served_once_the_driver_is_ready() {
    let mut driver = negotiated();
    driver.set_up_queue(2);
    driver.put(100 << 12, &[4, 0, 0, 16, 0, 0, 0, 0, 0, 0]);
    driver.offer(2, 0, &[(100 << 12, 10, 0)]);
    driver.notify(2);
    assert_eq!(driver.balloon().statistics(), None);
    assert!(driver.notified.iter().all(|queue| !queue.drain()));
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert!(driver.notified.iter().all(Event::drain));
    driver.notify(2);
    let free = driver.balloon().statistics().map(|figures| figures.free);
    assert_eq!(free, Some(Some(4096)));
}

#[test]
fn features_that_were_not_offered_are_not_agreed_to() {
    for bit in (0..64).filter(|bit| ALL_FEATURES & 1 << bit == 0) {
        let driver = FakeDriver::new(SMALL);
        driver.negotiate(ALL_FEATURES | 1 << bit);
        assert_eq!(driver.status(), 0x3, "feature {bit}");
        driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        assert!(!driver.balloon().has_driver());
    }
}

#[test]
fn a_driver_older_than_the_modern_interface_is_refused() {
    let driver = FakeDriver::new(SMALL);
    driver.negotiate(ALL_FEATURES & !VERSION);
    assert_eq!(driver.status(), 0x3);
    // It may think again.
    driver.negotiate(VERSION);
    assert_eq!(driver.status(), 0xb);
}

#[test]
fn features_beyond_the_sixty_fourth_are_not_there() {
    let driver = FakeDriver::new(SMALL);
    driver.add_status(0x3);
    driver.write(DRIVER_FEATURES_SEL, 2);
    driver.write(DRIVER_FEATURES, 0);
    assert_eq!(driver.transport.violations(), 0);
    is_a_violation(&driver, |driver| driver.write(DRIVER_FEATURES, 1));
}

#[test]
fn features_cannot_change_once_they_are_agreed_on() {
    let mut driver = negotiated();
    driver.write(DRIVER_FEATURES_SEL, 0);
    is_a_violation(&driver, |driver| driver.write(DRIVER_FEATURES, 0));
    for queue in 0..QUEUES {
        driver.set_up_queue(queue);
    }
    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    // Statistics are still the third queue, and reports the fourth.
    driver.offer(3, 0, &[(100 << 12, 4096, 2)]);
    driver.notify(3);
    assert_eq!(driver.counters().reported, 1);
}

#[test]
fn queues_are_set_up_between_the_features_and_the_start() {
    let driver = FakeDriver::new(SMALL);
    let try_all = |driver: &FakeDriver| {
        for offset in (QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH)
            .step_by(4)
            .chain([QUEUE_NUM, QUEUE_READY])
        {
            is_a_violation(driver, |driver| driver.write(offset, 64));
        }
    };
    for bit in [0, VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER] {
        driver.write(STATUS, driver.status() | bit);
        try_all(&driver);
    }
    let driver = FakeDriver::started(SMALL, ALL_FEATURES);
    try_all(&driver);
    is_a_violation(&driver, |driver| driver.write(QUEUE_READY, 0));
    assert_eq!(driver.read(QUEUE_READY), 1);
}

#[test]
fn a_queue_has_a_size_that_is_a_power_of_two_up_to_the_largest() {
    let driver = negotiated();
    for size in [0, 3, 127, 129, 256, 0x1_0000, 0x1_0080, u32::MAX] {
        is_a_violation(&driver, |driver| driver.write(QUEUE_NUM, size));
    }
    for size in [1, 2, 64, 128] {
        driver.write(QUEUE_NUM, size);
    }
    assert_eq!(driver.transport.violations(), 8);
}

#[test]
fn rings_outside_ram_do_not_become_ready() {
    let end = SMALL.bytes();
    // The last that still fits, by part: 128 descriptors, offers, returns.
    let (sizes, outside) = ([2048, 262, 1030], [end, 1 << 32, 1 << 63, u64::MAX - 15]);
    for (part, size) in sizes.into_iter().enumerate() {
        let too_high = (end - size) / 16 * 16 + 16;
        for address in outside.into_iter().chain([too_high]) {
            let driver = negotiated();
            let mut places = places(0);
            places[part] = address;
            is_a_violation(&driver, |driver| driver.place_queue(0, 128, places));
            assert_eq!(driver.read(QUEUE_READY), 0, "part {part} at {address:#x}");
        }
        let driver = negotiated();
        let mut places = places(0);
        places[part] = (end - size) / 16 * 16;
        driver.place_queue(0, 128, places);
        assert_eq!(
            driver.read(QUEUE_READY),
            1,
            "part {part} at the end of memory"
        );
    }
}

#[test]
fn rings_across_the_gap_do_not_become_ready() {
    use crate::memory::ram::GAP_START;
    let driver = FakeDriver::new(PageCount(GAP_START.0 + 64));
    driver.negotiate(ALL_FEATURES);
    let end = GAP_START.0 << 12;
    driver.place_queue(0, 128, [end - 2032, avail_address(0), used_address(0)]);
    assert_eq!(driver.read(QUEUE_READY), 0);
    driver.place_queue(0, 128, [end - 2048, 1 << 32, (1 << 32) + 4096]);
    assert_eq!(driver.read(QUEUE_READY), 1);
}

/// A ring must not end up elsewhere than the driver thinks.
#[test]
fn misaligned_rings_are_refused_and_counted() {
    for (part, offset) in [(0, 8), (0, 1), (1, 1), (2, 2), (2, 1)] {
        let driver = negotiated();
        let mut places = places(0);
        places[part] += offset;
        driver.write(QUEUE_SEL, 0);
        let register = [QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW][part];
        is_a_violation(&driver, |driver| {
            driver.write(register, u32::try_from(places[part]).unwrap());
        });
    }
}

#[test]
fn a_queue_whose_rings_were_never_placed_does_not_become_ready() {
    let driver = negotiated();
    is_a_violation(&driver, |driver| driver.write(QUEUE_READY, 1));
    assert_eq!(driver.read(QUEUE_READY), 0);
}

#[test]
fn a_ready_queue_cannot_be_moved_before_it_is_taken_back() {
    let driver = negotiated();
    driver.set_up_queue(0);
    for offset in (QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH)
        .step_by(4)
        .chain([QUEUE_NUM])
    {
        is_a_violation(&driver, |driver| driver.write(offset, 64));
    }
    is_a_violation(&driver, |driver| driver.write(QUEUE_READY, 2));
    assert_eq!(
        driver.read(QUEUE_READY),
        1,
        "a forbidden write does nothing"
    );
    driver.write(QUEUE_READY, 1);
    assert_eq!(driver.read(QUEUE_READY), 1);
    let before = driver.transport.violations();
    driver.write(QUEUE_READY, 0);
    driver.set_up_queue(0);
    assert_eq!(driver.transport.violations(), before);
    assert_eq!(driver.read(QUEUE_READY), 1);
}

#[test]
fn a_queue_that_is_not_there_cannot_be_set_up() {
    let driver = negotiated();
    for queue in [4, u32::MAX] {
        driver.write(QUEUE_SEL, queue);
        is_a_violation(&driver, |driver| driver.write(QUEUE_NUM, 64));
        is_a_violation(&driver, |driver| driver.write(QUEUE_READY, 1));
        assert_eq!(driver.read(QUEUE_READY), 0);
    }
}

#[test]
fn status_bits_out_of_order_do_nothing() {
    let driver = FakeDriver::new(SMALL);
    for bits in [0x2, 0x4, 0x8, 0xc, 0x6] {
        is_a_violation(&driver, |driver| driver.write(STATUS, bits));
        assert_eq!(driver.status(), 0);
    }
    driver.add_status(0x1);
    for bits in [0x5, 0x9, 0xd] {
        is_a_violation(&driver, |driver| driver.write(STATUS, bits));
        assert_eq!(driver.status(), 0x1);
    }
    driver.add_status(0x2);
    is_a_violation(&driver, |driver| driver.write(STATUS, 0x7));
    assert_eq!(driver.status(), 0x3);
}

#[test]
fn status_bits_can_be_taken_away_only_all_together() {
    let mut driver = FakeDriver::started(SMALL, ALL_FEATURES);
    for bits in (1..READY).chain([!READY]) {
        is_a_violation(&driver, |driver| driver.write(STATUS, bits));
        assert_eq!(driver.status(), READY);
    }
    assert!(driver.balloon().has_driver());
    assert_eq!(driver.inflate(&[100]), [0]);
}

#[test]
fn one_write_may_take_all_steps() {
    let driver = FakeDriver::new(SMALL);
    is_a_violation(&driver, |driver| driver.write(STATUS, READY));
    assert_eq!(
        driver.status(),
        0x3,
        "but nobody accepted the modern interface"
    );
}

#[test]
fn registers_answer_only_whole_words() {
    let driver = FakeDriver::new(SMALL);
    for width in [0, 1, 2, 3, 5, 8] {
        let mut data = [0xee; 8];
        is_a_violation(&driver, |driver| {
            driver.transport.read(MAGIC_VALUE, &mut data[..width])
        });
        assert!(data[..width].iter().all(|&byte| byte == 0), "{width} bytes");
        is_a_violation(&driver, |driver| {
            driver.transport.write(STATUS, &[1; 8][..width])
        });
    }
    assert_eq!(driver.status(), 0);
    for offset in [1, 2, 3, 0x71] {
        is_a_violation(&driver, |driver| assert_eq!(driver.read(offset), 0));
        is_a_violation(&driver, |driver| driver.write(offset, 1));
    }
}

#[test]
fn every_offset_takes_odd_values_in_every_state() {
    let states: [fn(&mut FakeDriver); 4] = [
        |_| {},
        |driver| driver.add_status(0x3),
        |driver| driver.negotiate(ALL_FEATURES),
        |driver| driver.start(VERSION | REPORTING),
    ];
    for enter in states {
        let mut driver = FakeDriver::new(SMALL);
        enter(&mut driver);
        for offset in 0..0x200 {
            for value in [
                0xffff_ffff_ffff_ffff,
                0,
                0x8000_0000_8000_0001,
                0x5a5a_5a5a_a5a5_a5a5_u64,
            ] {
                for width in [1, 2, 4, 8] {
                    driver
                        .transport
                        .write(offset, &value.to_le_bytes()[..width]);
                    driver.transport.read(offset, &mut [0; 8][..width]);
                }
            }
        }
        assert_eq!(driver.states(true).total(), SMALL);
        driver.start(ALL_FEATURES);
        assert_eq!(driver.status(), READY);
        assert_eq!(driver.inflate(&[100]), [0]);
    }
}

#[test]
fn a_notification_that_reaches_the_registers_is_of_no_queue() {
    let driver = FakeDriver::started(SMALL, ALL_FEATURES);
    is_a_violation(&driver, |driver| driver.write(QUEUE_NOTIFY, 4));
    assert!(driver.balloon().has_driver());
}

#[test]
fn the_configuration_cannot_be_written_before_there_is_a_driver() {
    let driver = FakeDriver::new(SMALL);
    is_a_violation(&driver, |driver| driver.write(CONFIG + 4, 7));
    assert_eq!(driver.balloon().claimed(), PageCount::ZERO);
}

/// What a driver may write, in any order.
#[derive(Clone, Debug)]
enum Step {
    Status(u32),
    FeaturesSel(u32),
    Features(u32),
    QueueSel(u32),
    QueueNum(u32),
    QueueReady(u32),
    /// One of the three parts, its higher half or not, and the value.
    Place(usize, bool, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let status = prop_oneof![
        Just(0u32),
        Just(1),
        Just(3),
        Just(0xb),
        Just(0xf),
        Just(0x83),
        0u32..16,
        any::<u32>()
    ];
    let features = prop_oneof![Just(0u32), Just(1), Just(0x27), Just(0x8), any::<u32>()];
    let ring = prop_oneof![
        (0usize..4, 0usize..3)
            .prop_map(|(queue, part)| u32::try_from(places(queue)[part]).unwrap()),
        0u32..0x20_0000,
        any::<u32>()
    ];
    let high = prop_oneof![4 => Just(0u32), 1 => Just(1)];
    let step = prop_oneof![
        6 => status.prop_map(Step::Status),
        2 => (0u32..3).prop_map(Step::FeaturesSel),
        3 => features.prop_map(Step::Features),
        1 => (0u32..5).prop_map(Step::QueueSel),
        1 => prop_oneof![Just(64u32), 0u32..300].prop_map(Step::QueueNum),
        3 => (0u32..3).prop_map(Step::QueueReady),
        4 => (0usize..3, ring).prop_map(|(part, value)| Step::Place(part, false, value)),
        1 => (0usize..3, high).prop_map(|(part, value)| Step::Place(part, true, value)),
    ];
    // Random steps alone seldom come as far as the queues.
    let start = prop_oneof![
        Just(vec![]),
        Just(vec![
            Step::Status(3),
            Step::FeaturesSel(1),
            Step::Features(1),
            Step::Status(0xb)
        ]),
    ];
    (start, prop::collection::vec(step, 0..40)).prop_map(|(start, rest)| [start, rest].concat())
}

#[derive(Clone, Copy)]
struct ModelQueue {
    size: u64,
    places: [u64; 3],
    ready: bool,
}

/// The handshake as the standard's text has it, over plain values.
struct Model {
    status: u32,
    features_sel: usize,
    features: [u32; 2],
    queue_sel: usize,
    queues: [ModelQueue; 4],
    violations: u64,
}

impl Model {
    fn new() -> Self {
        let queue = ModelQueue {
            size: 128,
            places: [0; 3],
            ready: false,
        };
        Self {
            status: 0,
            features_sel: 0,
            features: [0; 2],
            queue_sel: 0,
            queues: [queue; 4],
            violations: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        let allowed = match *step {
            Step::Status(0) => {
                *self = Self {
                    violations: self.violations,
                    ..Self::new()
                };
                true
            }
            Step::Status(value) => self.status & !value == 0 && self.take_status(value),
            Step::FeaturesSel(sel) => {
                self.features_sel = sel as usize;
                true
            }
            Step::Features(value) => self.set_features(value),
            Step::QueueSel(sel) => {
                self.queue_sel = sel as usize;
                true
            }
            _ => self.set_queue(step),
        };
        self.violations += u64::from(!allowed);
    }

    fn take_status(&mut self, value: u32) -> bool {
        for (bit, needed) in [(128, 0), (1, 0), (2, 1), (8, 2), (4, 8)] {
            if value & bit == 0 || self.status & bit != 0 {
                continue;
            }
            let agreed = bit != 8 || self.features[1] == 1 && self.features[0] & !0x27 == 0;
            if self.status & needed != needed || !agreed {
                return false;
            }
            self.status |= bit;
        }
        true
    }

    fn set_features(&mut self, value: u32) -> bool {
        let open = self.status & 2 != 0 && self.status & 8 == 0;
        if open && self.features_sel < 2 {
            self.features[self.features_sel] = value;
        }
        open && (self.features_sel < 2 || value == 0)
    }

    fn set_queue(&mut self, step: &Step) -> bool {
        let open = self.status & 8 != 0 && self.status & (4 | 128) == 0;
        let Some(queue) = self.queues.get_mut(self.queue_sel).filter(|_| open) else {
            return false;
        };
        match *step {
            Step::QueueReady(0) => queue.ready = false,
            Step::QueueReady(1) => {
                let lengths = [16 * queue.size, 6 + 2 * queue.size, 6 + 8 * queue.size];
                let inside = |(place, len): (u64, u64)| place + len <= SMALL.bytes();
                queue.ready =
                    queue.places[1] != 0 && queue.places.into_iter().zip(lengths).all(inside);
                return queue.ready;
            }
            _ if queue.ready => return false,
            Step::QueueNum(size) if size <= 128 && size.is_power_of_two() => {
                queue.size = size.into()
            }
            Step::Place(part, high, value) => {
                let aligned = u64::from(value).is_multiple_of([16, 2, 4][part]);
                let (low_half, high_half) =
                    (queue.places[part] % (1 << 32), queue.places[part] >> 32);
                match (high, aligned) {
                    (false, true) => queue.places[part] = high_half << 32 | u64::from(value),
                    (true, _) => queue.places[part] = u64::from(value) << 32 | low_half,
                    (false, false) => return false,
                }
            }
            _ => return false,
        }
        true
    }
}

fn act(driver: &FakeDriver, step: &Step) {
    match *step {
        Step::Status(value) => driver.write(STATUS, value),
        Step::FeaturesSel(sel) => driver.write(DRIVER_FEATURES_SEL, sel),
        Step::Features(value) => driver.write(DRIVER_FEATURES, value),
        Step::QueueSel(sel) => driver.write(QUEUE_SEL, sel),
        Step::QueueNum(size) => driver.write(QUEUE_NUM, size),
        Step::QueueReady(value) => driver.write(QUEUE_READY, value),
        Step::Place(part, high, value) => {
            let low = [QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW][part];
            driver.write(low + if high { 4 } else { 0 }, value);
        }
    }
}

proptest! {
    /// The status, the queues and the count of violations are as the model has them after every
    /// step, and there is a driver exactly when it said `DRIVER_OK` in its turn.
    #[test]
    fn the_handshake_is_the_models(steps in steps()) {
        let driver = FakeDriver::new(SMALL);
        let mut model = Model::new();
        for step in &steps {
            act(&driver, step);
            model.take(step);
            prop_assert_eq!(driver.status(), model.status, "after {:?}", step);
            prop_assert_eq!(driver.transport.violations(), model.violations, "after {:?}", step);
            let ready = model.queues.get(model.queue_sel).is_some_and(|queue| queue.ready);
            prop_assert_eq!(driver.read(QUEUE_READY), u32::from(ready), "after {:?}", step);
            prop_assert_eq!(driver.balloon().has_driver(), model.status & 4 != 0);
        }
    }
}
