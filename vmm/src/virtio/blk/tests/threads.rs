//! vCPUs and the disk's thread at the same time.

use super::*;
use crate::virtio::mmio::register;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const ROUNDS: usize = 100;

/// Rings full of reads, so that the disk is busy when the reset comes.
fn fill_ring(bench: &Bench, notified: &Event) {
    for index in 0..LARGEST_QUEUE / 4 {
        let place = u64::from(index);
        bench.put_header(HEADER + place * 16, READ, place * 8);
        let at = table_address(0) + place * 48;
        let buffers = [
            (HEADER + place * 16, 16u32, NEXT),
            (DATA + place * PAGE_SIZE, 4096, WRITE | NEXT),
            (STATUS + place, 1, WRITE),
        ];
        for (link, (address, len, flags)) in (0u16..).zip(buffers) {
            let next = if link == 2 { 0 } else { index * 3 + link + 1 };
            let descriptor = virtio_queue::desc::split::Descriptor::new(address, len, flags, next);
            let at = at + u64::from(link) * 16;
            bench.driver.put_descriptor_at(at, descriptor);
        }
        let head = (index * 3).to_le_bytes();
        bench.driver.put(avail_address(0) + 4 + place * 2, &head);
    }
    bench.driver.set_avail_index(0, LARGEST_QUEUE / 4);
    notified.signal();
}

fn start_again(bench: &Bench, notified: &Event) {
    bench.driver.negotiate(FEATURES);
    bench.driver.set_up_queue(0);
    bench.driver.add_status(4);
    fill_ring(bench, notified);
}

fn bench_and_event(engine: EngineKind) -> (Bench, Event) {
    let notified = Event::new().unwrap();
    let file = image();
    let driver = FakeDriver::with_device(SMALL, |ram, interrupt| {
        let wires = DiskWires {
            notified: notified.clone(),
            ..wires(ram, interrupt)
        };
        let image = DiskImage::open(&spec(file.path())).unwrap();
        Disk::start(image, 0, wires, engine).unwrap()
    });
    (Bench { driver, file }, notified)
}

/// When the reset is done, rings and buffers are the driver's, to use for anything.
#[test]
fn a_disk_that_is_reset_while_it_reads_lets_go_of_the_guests_memory() {
    for engine in ENGINES {
        let (mut bench, notified) = bench_and_event(engine);
        let mut carried_out = 0;
        for round in 0..ROUNDS {
            start_again(&bench, &notified);
            // From no time at all to long enough.
            (0..round * 20).for_each(|_| thread::yield_now());
            bench.driver.write(register::STATUS, 0);
            let mark = [u8::try_from(round).unwrap(); 4096];
            let places = (0..32).map(|page| DATA + page * PAGE_SIZE);
            let places: Vec<u64> = places
                .chain([STATUS, table_address(0), used_address(0)])
                .collect();
            places
                .iter()
                .for_each(|&place| bench.driver.put(place, &mark));
            thread::yield_now();
            for &place in &places {
                let seen: [u8; 4096] = bench.driver.get(place);
                assert!(seen == mark, "{engine:?} {place:#x} was written");
            }
            carried_out = bench.counters().reads;
        }
        assert!(carried_out > 0, "{engine:?}: some were in time");
        bench.driver.start(FEATURES);
        assert_eq!(bench.ask(READ, 0, &[(DATA, 512, WRITE)]).status, OK);
    }
}

/// Nobody asks the thread for anything: the queue's event alone wakes it, and the file's answer.
#[test]
fn a_notified_queue_is_served_and_the_guest_interrupted() {
    for engine in ENGINES {
        let (mut bench, notified) = bench_and_event(engine);
        bench.driver.start(FEATURES);
        for round in 1..50 {
            bench.put_header(HEADER, READ, round);
            let buffers = [(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)];
            bench.driver.offer(0, 0, &buffers);
            notified.signal();
            while !bench.driver.interrupt.line().drain() {
                thread::yield_now();
            }
            bench.driver.interrupt.acknowledge(1);
            assert_eq!(bench.driver.take_returned(0), [0], "{engine:?}");
            let start = usize::try_from(round * 512).unwrap();
            assert_eq!(bench.memory(DATA, 512), bench.file()[start..start + 512]);
        }
    }
}

#[test]
fn two_processors_that_write_registers_at_once_end_in_a_state_that_a_reset_mends() {
    for engine in ENGINES {
        let (mut bench, notified) = bench_and_event(engine);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let scribble = || {
                for _ in 0..ROUNDS {
                    bench.driver.write(register::STATUS, 0);
                    start_again(&bench, &notified);
                }
                stop.store(true, Ordering::SeqCst);
            };
            scope.spawn(scribble);
            scope.spawn(scribble);
            while !stop.load(Ordering::SeqCst) {
                notified.signal();
                thread::yield_now();
            }
        });
        bench.driver.start(FEATURES);
        assert_eq!(bench.driver.status(), 0xf);
        assert_eq!(bench.ask(READ, 0, &[(DATA, 512, WRITE)]).status, OK);
    }
}
