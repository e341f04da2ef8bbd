//! vCPUs and the card's thread at the same time.

use super::*;
use crate::event::Event;
use crate::virtio::mmio::register;
use crate::virtio::net::NetThread;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const ROUNDS: u8 = 100;

/// A guest whose card has its thread.
struct Running {
    driver: FakeDriver<Net<LineEnd>>,
    notified: [Event; 2],
    far: LineEnd,
    thread: NetThread,
}

fn running() -> Running {
    let [near, far] = line();
    let notified = [Event::new().unwrap(), Event::new().unwrap()];
    let mut thread = None;
    let driver = FakeDriver::with_shared_device(SMALL, |ram, interrupt| {
        let net = Net::new(spec(), near, ram.memory().clone(), interrupt.clone()).unwrap();
        let net = Arc::new(net);
        thread = Some(NetThread::start("net", Arc::clone(&net), &notified).unwrap());
        net
    });
    Running {
        driver,
        notified,
        far,
        thread: thread.unwrap(),
    }
}

fn used_index(driver: &FakeDriver<Net<LineEnd>>, queue: usize) -> u16 {
    u16::from_le_bytes(driver.get(used_address(queue) + 2))
}

/// A driver that sees the first of a packet's buffers takes the others, or drops the packet.
#[test]
fn all_buffers_of_a_packet_come_back_at_once() {
    const PARTS: u16 = 5;
    let mut running = running();
    let driver = &mut running.driver;
    driver.start(ALL);
    let mut expected = 0u16;
    for _ in 0..ROUNDS {
        for index in 0..20 * PARTS {
            let place = buffer(index.into());
            driver.offer(RECEIVE, index, &[(place, 1000, WRITE)]);
        }
        running.notified[RECEIVE].signal();
        expected = expected.wrapping_add(20 * PARTS);
        for _ in 0..20 {
            let packet = packet_of(&frame(4500));
            while running.far.write_packet(&packet).is_err() {
                thread::yield_now();
            }
        }
        loop {
            let index = used_index(driver, RECEIVE);
            assert_eq!(index % PARTS, 0, "a part of a packet came back");
            if index == expected {
                break;
            }
        }
    }
}

/// Rings full of chains on `&driver`, which several threads may share.
fn start_with_full_rings(driver: &FakeDriver<Net<LineEnd>>) {
    driver.negotiate(ALL);
    for queue in [RECEIVE, TRANSMIT] {
        driver.set_up_queue(queue);
        let flags = if queue == RECEIVE { WRITE } else { 0 };
        for index in 0..LARGEST_QUEUE {
            let place = buffer(u64::from(index % 64));
            let descriptor = virtio_queue::desc::split::Descriptor::new(place, 1000, flags, 0);
            driver.put_descriptor(queue, index, descriptor);
            let slot = avail_address(queue) + 4 + u64::from(index) * 2;
            driver.put(slot, &index.to_le_bytes());
        }
        driver.set_avail_index(queue, LARGEST_QUEUE);
    }
    driver.add_status(4);
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Does something while the network is busy in both directions.
fn with_traffic(far: &LineEnd, act: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let packet = packet_of(&frame(2500));
            while !stop.load(Ordering::SeqCst) {
                if far.write_packet(&packet).is_err() && next_packet(far).is_none() {
                    thread::yield_now();
                }
            }
        });
        let _stop = StopOnDrop(&stop);
        act();
    });
}

/// When the reset is done, the memory of the rings and buffers is the driver's, to use for anything.
#[test]
fn a_card_that_is_reset_while_it_works_lets_go_of_the_guests_memory() {
    let running = running();
    let (driver, notified) = (&running.driver, &running.notified);
    with_traffic(&running.far, || {
        for mark in 0..ROUNDS {
            driver.write(register::STATUS, 0);
            let places = [table_address(0), table_address(1), buffer(0), buffer(63)];
            for place in places {
                driver.put(place, &[mark; RINGS_BYTES]);
            }
            for _ in 0..20 {
                thread::yield_now();
                for place in places {
                    let bytes: [u8; RINGS_BYTES] = driver.get(place);
                    assert!(bytes.iter().all(|&byte| byte == mark), "{place:#x} changed");
                }
            }
            start_with_full_rings(driver);
            notified.iter().for_each(Event::signal);
            // The device is at work when the next reset comes.
            while used_index(driver, TRANSMIT) == 0 && used_index(driver, RECEIVE) == 0 {
                thread::yield_now();
            }
        }
    });
    assert_eq!(
        running.driver.transport.device().counters().broken_queues,
        0
    );
}

#[test]
fn two_processors_that_write_registers_at_once_end_in_a_state_that_a_reset_mends() {
    let mut running = running();
    with_traffic(&running.far, || {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        running.driver.write(register::STATUS, 0);
                        start_with_full_rings(&running.driver);
                        running.notified.iter().for_each(Event::signal);
                    }
                });
            }
        });
    });
    let driver = &mut running.driver;
    driver.start(ALL);
    assert_eq!(driver.status(), 0xf);
    while next_packet(&running.far).is_some() {}
    let packet = packet_of(&frame(100));
    driver.put(buffer(0), &packet);
    driver.offer(TRANSMIT, 0, &[(buffer(0), 112, 0)]);
    running.notified[TRANSMIT].signal();
    while used_index(driver, TRANSMIT) == 0 {
        thread::yield_now();
    }
    assert_eq!(next_packet(&running.far), Some(packet));
}

#[test]
fn the_thread_ends_when_it_is_no_longer_wanted_however_busy_it_is() {
    let running = running();
    start_with_full_rings(&running.driver);
    with_traffic(&running.far, || drop(running.thread));
    let before = running.driver.transport.device().counters();
    start_with_full_rings(&running.driver);
    running.notified.iter().for_each(Event::signal);
    assert_eq!(running.driver.transport.device().counters(), before);
}
