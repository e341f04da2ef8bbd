//! What a driver gets that lies, forgets and tries: an error and a number in a counter. Never more
//! than that, and never anything beyond its disk and its memory.

use super::*;
use crate::memory::ram::{GAP_END, GAP_START};
use crate::virtio::blk::wire::{LARGEST_EXTENT, MOST_BYTES, MOST_EXTENTS};
use virtio_queue::desc::split::Descriptor;

const OUTSIDE: u64 = SMALL.0 * PAGE_SIZE;

/// Sends one chain, over each engine; it must come back so, with nothing done and one count.
#[track_caller]
fn is_refused(kind: u32, sector: u64, buffers: &[(u64, u32, u16)], answer: Answer, malformed: u64) {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.put_header(HEADER, kind, sector);
        bench.driver.put(DATA, &[0xee; 4096]);
        assert_eq!(bench.send(buffers), answer, "{engine:?} {buffers:x?}");
        let counters = bench.counters();
        assert_eq!(counters.malformed, malformed, "{counters:?}");
        assert_eq!(counters.refused, 1 - malformed, "{counters:?}");
        assert!(bench.file() == pattern(DISK_BYTES, 0));
        assert_eq!(bench.driver.get::<4096>(DATA), [0xee; 4096]);
        assert!(!bench.driver.interrupt.needs_reset());
        assert_eq!(bench.ask(FLUSH, 0, &[]).status, OK, "it goes on");
    }
}

fn failed(status: u8) -> Answer {
    Answer { status, written: 1 }
}

/// No byte of the guest was written.
const UNANSWERABLE: Answer = Answer {
    status: UNWRITTEN,
    written: 0,
};

#[test]
fn a_chain_without_a_status_byte_comes_back_without_one() {
    let chains: [&[(u64, u32, u16)]; 7] = [
        &[(HEADER, 16, 0)],
        &[(HEADER, 16, 0), (DATA, 512, 0)],
        &[(HEADER, 16, 0), (STATUS, 0, WRITE)],
        &[(HEADER, 16, 0), (OUTSIDE, 1, WRITE)],
        &[(HEADER, 16, 0), (OUTSIDE - 8, 9, WRITE)],
        &[(HEADER, 16, 0), (u64::MAX, 9, WRITE)],
        &[(HEADER, 16, INDIRECT), (STATUS, 1, WRITE)],
    ];
    for chain in chains {
        is_refused(READ, 0, chain, UNANSWERABLE, 1);
    }
}

#[test]
fn chains_that_loop_or_leave_their_table_come_back_without_a_status() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.put_header(HEADER, READ, 0);
        bench.driver.put(STATUS, &[UNWRITTEN]);
        for (round, next) in (1..).zip([0, 1, LARGEST_QUEUE, u16::MAX]) {
            let header = Descriptor::new(HEADER, 16, NEXT, 1);
            bench.driver.put_descriptor(0, 0, header);
            let status = Descriptor::new(STATUS, 1, WRITE | NEXT, next);
            bench.driver.put_descriptor(0, 1, status);
            bench.driver.offer_head(0, 0);
            bench.disk().serve_all();
            assert_eq!(bench.driver.take_returned(0), [0]);
            assert_eq!(bench.answer(), UNANSWERABLE, "{next}");
            assert_eq!(bench.counters().malformed, round);
        }
    }
}

#[test]
fn chains_that_are_no_request_get_an_error() {
    let status = (STATUS, 1, WRITE);
    let reads: [&[(u64, u32, u16)]; 11] = [
        &[status],
        &[(HEADER, 15, 0), status],
        &[(HEADER, 0, 0), (HEADER, 16, 0), (DATA, 512, WRITE), status],
        &[(HEADER, 16, 0), status],
        &[(HEADER, 16, 0), (DATA, 512, 0), status],
        &[(HEADER, 16, 0), (DATA, 511, WRITE), status],
        &[
            (HEADER, 16, 0),
            (DATA, 512, WRITE),
            (DATA, 0, WRITE),
            status,
        ],
        &[(DATA, 512, WRITE), (HEADER, 16, 0), status],
        &[(OUTSIDE, 16, 0), (DATA, 512, WRITE), status],
        &[(HEADER, 16, 0), (OUTSIDE - 256, 512, WRITE), status],
        &[(HEADER, 16, 0), (u64::MAX - 255, 512, WRITE), status],
    ];
    for chain in reads {
        is_refused(READ, 0, chain, failed(IO_ERROR), 1);
    }
    let writes: [&[(u64, u32, u16)]; 4] = [
        &[(HEADER, 16, 0), status],
        &[(HEADER, 16, 0), (DATA, 512, WRITE), status],
        &[(HEADER, 16, 0), (DATA, 100, 0), status],
        &[(HEADER, 16, 0), (OUTSIDE - 512, 1024, 0), status],
    ];
    for chain in writes {
        is_refused(WRITE_OUT, 0, chain, failed(IO_ERROR), 1);
    }
    let identities: [&[(u64, u32, u16)]; 2] = [
        &[(HEADER, 16, 0), status],
        &[(HEADER, 16, 0), (DATA, 20, 0), status],
    ];
    for chain in identities {
        is_refused(GET_ID, 0, chain, failed(IO_ERROR), 1);
    }
}

#[test]
fn more_data_than_a_request_may_have_is_refused() {
    let large = u32::try_from(MOST_BYTES).unwrap();
    for (kind, flags) in [(READ, WRITE), (WRITE_OUT, 0)] {
        for engine in ENGINES {
            // Room for it, in memory and on the disk: only the limit is in the way.
            let mut bench = Bench::of_size(PageCount(4096), engine, |_| {});
            let answer = bench.ask(kind, 0, &[(DATA, large + 512, flags)]);
            assert_eq!(answer, failed(IO_ERROR));
            assert_eq!(bench.counters().malformed, 1);
        }
    }
}

#[test]
fn sectors_beyond_the_disk_are_refused() {
    let claims = [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
        (0, u32::try_from(DISK_BYTES).unwrap() + 512),
    ];
    for (sector, bytes) in claims {
        for (kind, flags) in [(READ, WRITE), (WRITE_OUT, 0)] {
            let chain = [(HEADER, 16, 0), (DATA, bytes, flags), (STATUS, 1, WRITE)];
            is_refused(kind, sector, &chain, failed(IO_ERROR), 0);
        }
    }
}

#[test]
fn requests_of_kinds_that_nobody_offered_are_unsupported() {
    let kinds = [2, 3, 5, 6, 9, 10, 12, 14, 16, 255, 1 << 31, u32::MAX];
    for kind in kinds {
        for flags in [0, WRITE] {
            let chain = [(HEADER, 16, 0), (DATA, 512, flags), (STATUS, 1, WRITE)];
            is_refused(kind, 0, &chain, failed(UNSUPPORTED), 0);
        }
    }
}

#[test]
fn a_feature_that_the_driver_did_not_take_is_not_there() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.driver.start(VERSION_1);
        bench.driver.put(DATA, &extent(0, 8, 0));
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(bench.ask(kind, 0, &[(DATA, 16, 0)]), failed(UNSUPPORTED));
        }
        assert!(bench.file() == pattern(DISK_BYTES, 0));
    }
}

#[test]
fn extents_that_make_no_sense_are_refused_and_no_sector_is_lost() {
    let last = SECTORS - 1;
    let claims: [(Vec<u8>, u8); 8] = [
        (extent(0, 8, 2), UNSUPPORTED),
        (extent(0, 8, u32::MAX), UNSUPPORTED),
        (extent(last, 2, 0), IO_ERROR),
        (extent(SECTORS, 1, 0), IO_ERROR),
        (extent(u64::MAX, 1, 0), IO_ERROR),
        (extent(0, LARGEST_EXTENT + 1, 0), IO_ERROR),
        // The first is right; none is carried out.
        ([extent(0, 8, 0), extent(SECTORS, 8, 0)].concat(), IO_ERROR),
        (extent(0, 8, 0).repeat(MOST_EXTENTS as usize + 1), IO_ERROR),
    ];
    for engine in ENGINES {
        for kind in [DISCARD, WRITE_ZEROES] {
            let mut bench = Bench::new(engine);
            for (list, status) in &claims {
                bench.driver.put(DATA, list);
                let bytes = u32::try_from(list.len()).unwrap();
                let answer = bench.ask(kind, 0, &[(DATA, bytes, 0)]);
                assert_eq!(answer, failed(*status), "{list:?}");
            }
            assert_eq!(bench.counters().refused, 8);
            assert_eq!(bench.ask(kind, 0, &[(DATA, 15, 0)]), failed(IO_ERROR));
            assert_eq!(bench.counters().malformed, 1);
            assert!(bench.file() == pattern(DISK_BYTES, 0), "{engine:?}");
        }
    }
}

/// The guest's memory ends at the gap for devices and goes on behind it.
#[test]
fn buffers_that_reach_into_the_gap_are_refused() {
    let size = PageCount(GAP_START.0 + 64);
    let (start, end) = (GAP_START.0 * PAGE_SIZE, GAP_END.0 * PAGE_SIZE);
    for engine in ENGINES {
        let mut bench = Bench::of_size(size, engine, |_| {});
        for (address, status) in [
            (start - 1024, OK),
            (start - 512, IO_ERROR),
            (start, IO_ERROR),
            (end - 512, IO_ERROR),
            (end, OK),
        ] {
            let answer = bench.ask(READ, 0, &[(address, 1024, WRITE)]);
            assert_eq!(answer.status, status, "{address:#x}");
        }
        assert_eq!(bench.memory(end, 1024), bench.file()[..1024]);
        assert_eq!(bench.counters().malformed, 3);
    }
}

/// One chain offered again and again before it came back, more often than requests may be in flight.
#[test]
fn a_chain_that_is_offered_many_times_comes_back_as_often() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.put_header(HEADER, READ, 0);
        let buffers = [(HEADER, 16, 0), (DATA, 4096, WRITE), (STATUS, 1, WRITE)];
        bench.driver.offer(0, 0, &buffers);
        (1..LARGEST_QUEUE).for_each(|_| bench.driver.offer_head(0, 0));
        bench.disk().serve_all();
        let returned = bench.driver.take_returned(0);
        assert_eq!(returned, [0; LARGEST_QUEUE as usize], "{engine:?}");
        assert_eq!(bench.counters().reads, u64::from(LARGEST_QUEUE));
    }
}

#[test]
fn a_queue_whose_index_jumps_needs_a_reset_and_works_after_it() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.driver.set_avail_index(0, 1000);
        bench.disk().serve_all();
        assert!(bench.driver.interrupt.needs_reset());
        assert_eq!(bench.counters().broken_queues, 1);
        bench.disk().serve_all();
        assert_eq!(bench.counters().broken_queues, 1, "counted once");
        bench.driver.start(FEATURES);
        assert_eq!(bench.ask(READ, 0, &[(DATA, 512, WRITE)]).status, OK);
    }
}

#[test]
fn what_the_guest_writes_to_the_configuration_space_is_counted_and_ignored() {
    let bench = Bench::new(EngineKind::Best);
    bench.driver.transport.write(0x100, &u64::MAX.to_le_bytes());
    bench.driver.transport.write(0x120, &[0]);
    assert_eq!(bench.counters().malformed, 2);
    let mut capacity = [0; 8];
    bench.driver.transport.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
}
