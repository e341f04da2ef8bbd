//! vCPUs and the device thread at the same time.

use super::SMALL;
use crate::virtio::Served;
use crate::virtio::fake_driver::*;
use crate::virtio::mmio::register;
use page::PAGE_SIZE;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const ROUNDS: usize = 150;

/// Serves and asks for everything until told to stop, as the device thread does.
fn serve_all(driver: &FakeDriver, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        for queue in 0..QUEUES {
            let _more = driver.balloon().serve(queue);
        }
        driver.balloon().request_statistics();
        driver.balloon().set_target(driver.balloon().claimed());
        assert_eq!(driver.states(true).total(), SMALL);
    }
}

/// A driver whose device a second thread serves, and that can be started from where it is shared.
fn with_device_thread(act: impl FnOnce(&FakeDriver)) -> FakeDriver {
    let driver = FakeDriver::started(SMALL, ALL_FEATURES);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| serve_all(&driver, &stop));
        // Stops the other thread on a failed assertion as well, or the scope would not end.
        let _stop = StopOnDrop(&stop);
        act(&driver);
    });
    driver
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Rings full of chains, so that the device is busy when the reset comes.
fn fill_rings(driver: &FakeDriver) {
    for queue in 0..QUEUES {
        for index in 0..128u16 {
            let flags = if queue == REPORT { [2, 0] } else { [0, 0] };
            let place = table_address(queue) + u64::from(index) * 16;
            let buffer = (FIRST_FREE_PAGE + u64::from(index)) * PAGE_SIZE;
            driver.put(place, &buffer.to_le_bytes());
            driver.put(place + 8, &4096u32.to_le_bytes());
            driver.put(place + 12, &flags);
            driver.put(place + 14, &[0; 2]);
            driver.put(
                avail_address(queue) + 4 + u64::from(index) * 2,
                &index.to_le_bytes(),
            );
        }
        driver.set_avail_index(queue, 128);
    }
}

fn start_again(driver: &FakeDriver) {
    driver.negotiate(ALL_FEATURES);
    (0..QUEUES).for_each(|queue| driver.set_up_queue(queue));
    driver.add_status(4);
    fill_rings(driver);
}

/// When the reset is done, the memory of the rings is the driver's, to use for anything.
#[test]
fn a_device_that_is_reset_while_it_serves_lets_go_of_the_guests_memory() {
    let mut driver = with_device_thread(|driver| {
        for round in 0..ROUNDS {
            driver.write(register::STATUS, 0);
            let mark = u8::try_from(round).unwrap();
            for queue in 0..QUEUES {
                driver.put(table_address(queue), &[mark; RINGS_BYTES]);
            }
            thread::yield_now();
            for queue in 0..QUEUES {
                let rings: [u8; RINGS_BYTES] = driver.get(table_address(queue));
                assert!(
                    rings.iter().all(|&byte| byte == mark),
                    "queue {queue} was written"
                );
            }
            start_again(driver);
        }
    });
    driver.start(ALL_FEATURES);
    assert_eq!(driver.inflate(&[400]), [0], "the device still works");
    assert_eq!(driver.counters().broken_queues, 0);
}

#[test]
fn two_processors_that_write_registers_at_once_end_in_a_state_that_a_reset_mends() {
    let mut driver = with_device_thread(|driver| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        driver.write(register::STATUS, 0);
                        start_again(driver);
                    }
                });
            }
        });
    });
    driver.start(ALL_FEATURES);
    assert_eq!(driver.status(), 0xf);
    assert_eq!(driver.inflate(&[400]), [0]);
}
