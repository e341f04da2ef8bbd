//! What a driver gets that keeps to the standard.

use super::*;
use crate::virtio::blk::image::DiskImage;
use crate::virtio::mmio::register;
use rustix::fs::SealFlags;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

fn answered(written: u32) -> Answer {
    Answer {
        status: OK,
        written,
    }
}

#[test]
fn what_the_guest_writes_is_in_the_file_and_is_read_back() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        let bytes = pattern(8192, 77);
        bench.driver.put(DATA, &bytes);
        let answer = bench.ask(WRITE_OUT, 16, &[(DATA, 512, 0), (DATA + 512, 7680, 0)]);
        assert_eq!(answer, answered(1), "{engine:?}");
        assert_eq!(bench.file()[8192..16384], bytes, "{engine:?}");
        let (first, second) = (DATA + 65536, DATA + 3 * 65536);
        let answer = bench.ask(READ, 16, &[(first, 4096, WRITE), (second, 4096, WRITE)]);
        assert_eq!(answer, answered(8193), "{engine:?}");
        let seen = [bench.memory(first, 4096), bench.memory(second, 4096)].concat();
        assert_eq!(seen, bytes, "{engine:?}");
        let counters = bench.counters();
        assert_eq!((counters.reads, counters.read_bytes), (1, 8192));
        assert_eq!((counters.writes, counters.written_bytes), (1, 8192));
        assert_ne!(bench.driver.interrupt.status() & 1, 0, "the guest is told");
    }
}

#[test]
fn the_first_and_the_last_sector_are_the_guests_and_the_rest_stays() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.driver.put(DATA, &[0x11; 512]);
        for sector in [0, SECTORS - 1] {
            assert_eq!(bench.ask(WRITE_OUT, sector, &[(DATA, 512, 0)]), answered(1));
        }
        let mut expected = pattern(DISK_BYTES, 0);
        expected[..512].fill(0x11);
        expected[1048064..].fill(0x11);
        assert!(bench.file() == expected, "{engine:?}");
        assert_eq!(bench.file.as_file().metadata().unwrap().len(), DISK_BYTES);
    }
}

/// As many as the queue holds, told of once.
#[test]
fn many_requests_at_a_time_come_back_each_with_its_own_data() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        let requests = LARGEST_QUEUE / 3;
        for index in 0..requests {
            let place = u64::from(index);
            let header = HEADER + place * 16;
            bench.put_header(header, READ, place * 5);
            let status = STATUS + place;
            bench.driver.put(status, &[UNWRITTEN]);
            let data = DATA + place * PAGE_SIZE;
            let buffers = [(header, 16, 0), (data, 2560, WRITE), (status, 1, WRITE)];
            bench.driver.offer(0, index * 3, &buffers);
        }
        bench.disk().serve_all();
        let mut heads = bench.driver.take_returned(0);
        heads.sort_unstable();
        let all: Vec<u32> = (0..u32::from(requests)).map(|index| index * 3).collect();
        assert_eq!(heads, all, "{engine:?}");
        let file = bench.file();
        for place in 0..u64::from(requests) {
            assert_eq!(bench.driver.get::<1>(STATUS + place), [OK]);
            let start = usize::try_from(place * 2560).unwrap();
            let seen = bench.memory(DATA + place * PAGE_SIZE, 2560);
            assert_eq!(seen, file[start..start + 2560], "{engine:?} {place}");
        }
    }
}

#[test]
fn sectors_that_are_given_up_or_zeroed_read_as_zero_and_cost_no_space() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.file.as_file().sync_all().unwrap();
        let blocks = || bench_blocks(&bench.file);
        let before = blocks();
        let list = [extent(128, 512, 0), extent(1024, 128, 0)].concat();
        bench.driver.put(DATA, &list);
        assert_eq!(bench.ask(DISCARD, 0, &[(DATA, 32, 0)]), answered(1));
        assert!(bench_blocks(&bench.file) + 640 <= before, "{engine:?}");
        // The flag allows to give the space up.
        bench.driver.put(DATA, &extent(1536, 256, 1));
        assert_eq!(bench.ask(WRITE_ZEROES, 0, &[(DATA, 16, 0)]), answered(1));
        assert!(bench_blocks(&bench.file) + 896 <= before, "{engine:?}");
        let mut expected = pattern(DISK_BYTES, 0);
        for (sector, sectors) in [(128, 512), (1024, 128), (1536, 256)] {
            expected[sector * 512..(sector + sectors) * 512].fill(0);
        }
        assert!(bench.file() == expected, "{engine:?}");
        assert_eq!(bench.counters().discards, 1);
        assert_eq!(bench.counters().zeroings, 1);
        assert_eq!(bench.ask(DISCARD, 0, &[(DATA, 16, 0)]).status, UNSUPPORTED);
        bench.driver.put(DATA, &extent(0, 0, 0));
        assert_eq!(bench.ask(DISCARD, 0, &[(DATA, 16, 0)]), answered(1));
        assert!(bench.file() == expected, "no sectors, nothing done");
    }
}

fn bench_blocks(file: &NamedTempFile) -> u64 {
    file.as_file().metadata().unwrap().blocks()
}

/// Most file systems are told to be zero there; a memory file cannot be, and is written.
#[test]
fn sectors_that_must_keep_their_space_are_zeroed_on_any_file_system() {
    for engine in ENGINES {
        for in_memory in [false, true] {
            let memory = memory_file();
            let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
            let mut bench = Bench::with(engine, |spec| {
                if in_memory {
                    spec.path = path.into();
                }
            });
            let list = [extent(8, 16, 0), extent(1, 2000, 0)].concat();
            let seen = |bench: &Bench| match in_memory {
                true => contents(&memory),
                false => bench.file(),
            };
            let mut expected = pattern(DISK_BYTES, 0);
            for (list, zeroed) in [(&list[..16], 4096..12288), (&list[..], 512..1_024_512)] {
                bench.driver.put(DATA, list);
                let bytes = u32::try_from(list.len()).unwrap();
                let answer = bench.ask(WRITE_ZEROES, 0, &[(DATA, bytes, 0)]);
                assert_eq!(answer, answered(1), "{engine:?} in_memory={in_memory}");
                expected[zeroed].fill(0);
                assert!(seen(&bench) == expected, "{engine:?} in_memory={in_memory}");
            }
        }
    }
}

fn memory_file() -> File {
    let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("disk", flags).unwrap());
    file.write_all_at(&pattern(DISK_BYTES, 0), 0).unwrap();
    file
}

#[test]
fn a_flush_is_carried_out_and_counted() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        assert_eq!(bench.ask(FLUSH, 0, &[]), answered(1));
        assert_eq!(bench.counters().flushes, 1, "{engine:?}");
    }
}

#[test]
fn a_disk_has_a_serial_number_that_stays_with_its_file() {
    let serial = |bench: &mut Bench| {
        bench.driver.put(DATA, &[0; 32]);
        assert_eq!(bench.ask(GET_ID, 0, &[(DATA, 20, WRITE)]), answered(21));
        assert_eq!(bench.driver.get::<12>(DATA + 20), [0; 12]);
        bench.driver.get::<20>(DATA)
    };
    let mut bench = Bench::new(EngineKind::Best);
    let first = serial(&mut bench);
    assert!(first.starts_with(b"bln-") && first.is_ascii(), "{first:?}");
    assert_ne!(first, serial(&mut Bench::new(EngineKind::Best)));
    bench.disk().close();
    let Bench { driver, file } = bench;
    drop(driver);
    let other_name = file.path().with_extension("other");
    std::fs::rename(file.path(), &other_name).unwrap();
    let again = DiskImage::open(&spec(&other_name)).unwrap();
    assert_eq!(again.serial, first);
    std::fs::remove_file(other_name).unwrap();
}

#[test]
fn the_configuration_space_tells_size_and_limits() {
    let bench = Bench::new(EngineKind::Best);
    let number = |offset: u64, bytes: usize| {
        let mut data = [0; 8];
        bench
            .driver
            .transport
            .read(0x100 + offset, &mut data[..bytes]);
        u64::from_le_bytes(data)
    };
    assert_eq!(number(0, 8), SECTORS);
    assert_eq!(number(0, 4) | number(4, 4) << 32, SECTORS, "in two halves");
    assert_eq!((number(8, 4), number(12, 4)), (65536, 126));
    assert_eq!(number(20, 4), 512, "a block");
    assert_eq!(
        (number(24, 1), number(26, 2)),
        (3, 8),
        "of eight that are physical"
    );
    assert_eq!(number(34, 2), 1, "queues");
    assert_eq!(
        (number(36, 4), number(40, 4), number(44, 4)),
        (1 << 21, 16, 8)
    );
    assert_eq!(
        (number(48, 4), number(52, 4), number(56, 1)),
        (1 << 21, 16, 1)
    );
    assert_eq!(
        (number(60, 4), number(4096, 8)),
        (0, 0),
        "nothing behind it"
    );
    let mut across = [0xff; 8];
    bench.driver.transport.read(0x100 + 56, &mut across);
    assert_eq!(across, [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_disk_that_is_only_to_be_read_says_so_and_is_not_written() {
    for engine in ENGINES {
        let mut bench = Bench::with(engine, |spec| spec.read_only = true);
        bench.driver.write(register::DEVICE_FEATURES_SEL, 0);
        let offered = bench.driver.read(register::DEVICE_FEATURES);
        assert_ne!(offered & 1 << 5, 0, "read-only");
        assert_eq!(offered & (1 << 13 | 1 << 14), 0, "nothing to give up");
        let answer = bench.ask(WRITE_OUT, 0, &[(DATA, 512, 0)]);
        assert_eq!(answer.status, IO_ERROR);
        bench.driver.put(DATA, &extent(0, 8, 0));
        assert_eq!(bench.ask(DISCARD, 0, &[(DATA, 16, 0)]).status, UNSUPPORTED);
        assert_eq!(bench.ask(READ, 0, &[(DATA, 512, WRITE)]), answered(513));
        assert_eq!(bench.ask(FLUSH, 0, &[]), answered(1));
        assert!(bench.file() == pattern(DISK_BYTES, 0), "{engine:?}");
        assert_eq!(bench.counters().refused, 2);
    }
}

/// Buffers of the guest are where they are; those of direct access must be aligned.
#[test]
fn direct_access_reads_and_writes_whatever_buffers_the_guest_has() {
    for engine in ENGINES {
        let mut bench = Bench::with(engine, |spec| spec.direct = true);
        let bytes = pattern(300 << 10, 5);
        bench.driver.put(DATA + 2, &bytes);
        let half = 150 << 10;
        let buffers = [(DATA + 2, half, 0), (DATA + 2 + u64::from(half), half, 0)];
        assert_eq!(bench.ask(WRITE_OUT, 8, &buffers), answered(1), "{engine:?}");
        assert!(bench.file()[4096..][..bytes.len()] == bytes, "{engine:?}");
        let target = DATA + (600 << 10) + 6;
        let buffers = [(target, 2 * half, WRITE)];
        assert_eq!(bench.ask(READ, 8, &buffers), answered(2 * half + 1));
        assert!(bench.memory(target, 300 << 10) == bytes, "{engine:?}");
    }
}

#[test]
fn what_was_cut_off_a_file_is_an_error_for_ever_and_the_rest_stays() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.file.as_file().set_len(DISK_BYTES / 2).unwrap();
        let half = SECTORS / 2;
        // One before the end, one across it, one behind it.
        for (sector, status) in [(half - 8, OK), (half - 4, IO_ERROR), (half, IO_ERROR)] {
            let answer = bench.ask(READ, sector, &[(DATA, 4096, WRITE)]);
            assert_eq!(answer.status, status, "{engine:?} {sector}");
        }
        assert_eq!((bench.counters().reads, bench.counters().errors), (1, 2));
        // A write behind the end would make what was cut off read as zeros.
        let behind = [(WRITE_OUT, SECTORS - 8, 0), (READ, half, WRITE)];
        for (kind, sector, flags) in behind {
            let answer = bench.ask(kind, sector, &[(DATA, 4096, flags)]);
            assert_eq!(answer.status, IO_ERROR, "{engine:?} {sector}");
        }
        let length = bench.file.as_file().metadata().unwrap().len();
        assert_eq!(length, DISK_BYTES / 2, "it was not made longer");
        // Nor is it what it was when the file has its length again.
        bench.file.as_file().set_len(DISK_BYTES).unwrap();
        let answer = bench.ask(READ, half, &[(DATA, 4096, WRITE)]);
        assert_eq!(answer.status, IO_ERROR, "{engine:?}");
        let answer = bench.ask(WRITE_OUT, 0, &[(DATA, 4096, 0)]);
        assert_eq!(answer.status, OK, "{engine:?}");
    }
}

/// A full file system answers writes in the same way.
#[test]
fn writes_that_the_file_refuses_are_errors_of_the_guests_disk() {
    for engine in ENGINES {
        let sealed = memory_file();
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        let mut bench = Bench::with(engine, |spec| spec.path = path.into());
        rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
        let answer = bench.ask(WRITE_OUT, 0, &[(DATA, 4096, 0)]);
        let failed = Answer {
            status: IO_ERROR,
            written: 1,
        };
        assert_eq!(answer, failed, "{engine:?}");
        bench.driver.put(DATA, &extent(0, 8, 1));
        assert_eq!(bench.ask(WRITE_ZEROES, 0, &[(DATA, 16, 0)]), failed);
        assert_eq!((bench.counters().writes, bench.counters().errors), (0, 2));
        assert_eq!(bench.ask(READ, 0, &[(DATA, 512, WRITE)]), answered(513));
        assert!(contents(&sealed) == pattern(DISK_BYTES, 0));
    }
}

#[test]
fn requests_that_come_after_the_disk_was_closed_are_not_answered() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.disk().close();
        bench.put_header(HEADER, READ, 0);
        let buffers = [(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)];
        bench.driver.offer(0, 0, &buffers);
        bench.disk().serve_all();
        assert!(bench.driver.take_returned(0).is_empty());
        bench.driver.start(FEATURES);
        assert_eq!(bench.driver.status(), 0xf, "the guest does not hang");
    }
}
