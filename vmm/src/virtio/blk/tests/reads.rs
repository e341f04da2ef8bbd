//! What is told of reads from a disk that the guest cannot write.

use super::*;
use crate::memory::swap::GuestDisks;
use page::PAGE_BYTES;
use std::sync::Arc;

const NUMBER: u8 = 3;

fn with_listener(engine: EngineKind) -> (Bench, Arc<GuestDisks>) {
    let file = image();
    let spec = DiskSpec {
        read_only: true,
        ..spec(file.path())
    };
    let mut disks = None;
    let driver = FakeDriver::with_device(SMALL, |ram, interrupt| {
        let image = DiskImage::open(&spec).unwrap();
        let read_only = vec![None, None, None, image.read_only_file()];
        let listener = Arc::new(GuestDisks::new(ram.layout(), read_only).unwrap());
        listener.set_limited(true);
        disks = Some(Arc::clone(&listener));
        let wires = DiskWires {
            reads: Some((listener, NUMBER)),
            ..wires(ram, interrupt)
        };
        Disk::start(image, 0, wires, engine).unwrap()
    });
    let mut bench = Bench { driver, file };
    bench.driver.start(VERSION_1 | F_FLUSH);
    (bench, disks.unwrap())
}

/// The page of the image that the memory at an address is said to be.
fn page_at(bench: &Bench, disks: &GuestDisks, address: u64) -> Option<u64> {
    let content: [u8; PAGE_BYTES] = bench.memory(address, PAGE_SIZE).try_into().unwrap();
    let found = disks.find(address / PAGE_SIZE, &content)?;
    assert_eq!(found.disk(), NUMBER);
    Some(found.page())
}

#[test]
fn what_was_read_is_known_page_by_page_until_it_is_written() {
    for engine in ENGINES {
        let (mut bench, disks) = with_listener(engine);
        let (first, second) = (DATA, DATA + 16 * PAGE_SIZE);
        let data = [(first, 8192, WRITE), (second, 8192, WRITE)];
        assert_eq!(bench.ask(READ, 8 * 5, &data).status, OK);
        let pages = [first, first + 4096, second, second + 4096];
        let known = pages.map(|address| page_at(&bench, &disks, address));
        assert_eq!(known, [Some(5), Some(6), Some(7), Some(8)], "{engine:?}");
        bench.driver.put(second + 77, b"written");
        assert_eq!(page_at(&bench, &disks, second), None, "{engine:?}");
        assert_eq!(page_at(&bench, &disks, first), Some(5));
    }
}

/// A page of the guest that is parts of two of the disk, or a part of one, is told of by nobody.
#[test]
fn where_pages_of_guest_and_disk_do_not_meet_nothing_is_known() {
    let (mut bench, disks) = with_listener(EngineKind::Best);
    assert_eq!(bench.ask(READ, 3, &[(DATA, 8192, WRITE)]).status, OK);
    assert_eq!(page_at(&bench, &disks, DATA), None);
    // Both begin in the middle of a page, and 1 KiB of the last is missing.
    let data = [(DATA + 1024, 3072 + 4096 + 3072, WRITE)];
    assert_eq!(bench.ask(READ, 8 * 9 + 2, &data).status, OK);
    let known = [DATA, DATA + 4096, DATA + 8192].map(|address| page_at(&bench, &disks, address));
    assert_eq!(known, [None, Some(10), None]);
}

#[test]
fn nothing_is_told_of_a_read_that_failed() {
    let (mut bench, disks) = with_listener(EngineKind::Best);
    bench.file.as_file().set_len(4096).unwrap();
    assert_eq!(
        bench.ask(READ, 8 * 5, &[(DATA, 4096, WRITE)]).status,
        IO_ERROR
    );
    assert_eq!(page_at(&bench, &disks, DATA), None);
}
