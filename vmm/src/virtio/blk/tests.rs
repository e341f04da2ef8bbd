//! The device under a fake driver, in real guest memory and with real files, over both engines.

mod agent;
mod honest;
mod hostile;
mod reads;
mod threads;

use super::wire::{F_DISCARD, F_FLUSH, F_WRITE_ZEROES, SECTOR};
use super::{Disk, DiskImage, DiskWires, EngineKind};
use crate::event::Event;
use crate::memory::ram::GuestRam;
use crate::virtio::Interrupt;
use crate::virtio::fake_driver::*;
use page::{PAGE_SIZE, PageCount};
use protocol::{DiskCounters, DiskSpec};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tempfile::NamedTempFile;

/// A guest of 2 MiB, and a disk of 1 MiB.
const SMALL: PageCount = PageCount(512);
const DISK_BYTES: u64 = 1 << 20;
const SECTORS: u64 = DISK_BYTES / SECTOR;

const ENGINES: [EngineKind; 2] = [EngineKind::Best, EngineKind::Plain];
const FEATURES: u64 = VERSION_1 | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

const HEADER: u64 = FIRST_FREE_PAGE * PAGE_SIZE;
const STATUS: u64 = HEADER + PAGE_SIZE;
const DATA: u64 = HEADER + 8 * PAGE_SIZE;
/// What stands in a status byte that nobody has written.
const UNWRITTEN: u8 = 0xff;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A guest with a disk.
#[derive(Debug)]
struct Bench {
    driver: FakeDriver<Disk>,
    file: NamedTempFile,
}

/// What a chain came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    status: u8,
    written: u32,
}

/// Bytes that are different everywhere.
fn pattern(bytes: u64, salt: u64) -> Vec<u8> {
    let byte = |index: u64| {
        let mixed = (index + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed.to_be_bytes()[0]
    };
    (0..bytes).map(byte).collect()
}

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file()
        .write_all_at(&pattern(DISK_BYTES, 0), 0)
        .unwrap();
    file
}

fn spec(path: &Path) -> DiskSpec {
    DiskSpec {
        path: path.into(),
        read_only: false,
        direct: false,
        raw: false,
    }
}

fn wires(ram: &GuestRam, interrupt: &Interrupt) -> DiskWires {
    DiskWires {
        memory: ram.memory().clone(),
        interrupt: interrupt.clone(),
        notified: Event::new().unwrap(),
        reads: None,
    }
}

impl Bench {
    fn new(engine: EngineKind) -> Self {
        Self::with(engine, |_| {})
    }

    fn with(engine: EngineKind, change: impl FnOnce(&mut DiskSpec)) -> Self {
        Self::of_size(SMALL, engine, change)
    }

    fn of_size(size: PageCount, engine: EngineKind, change: impl FnOnce(&mut DiskSpec)) -> Self {
        let file = image();
        let mut spec = spec(file.path());
        change(&mut spec);
        let mut driver = FakeDriver::with_device(size, |ram, interrupt| {
            let image = DiskImage::open(&spec).unwrap();
            Disk::start(image, 0, wires(ram, interrupt), engine).unwrap()
        });
        let features = match spec.read_only {
            true => VERSION_1 | F_FLUSH,
            false => FEATURES,
        };
        driver.start(features);
        assert_eq!(driver.status(), 0xf);
        Self { driver, file }
    }

    fn disk(&self) -> &Disk {
        self.driver.transport.device()
    }

    fn counters(&self) -> DiskCounters {
        self.disk().figures().counters
    }

    fn put_header(&self, address: u64, kind: u32, sector: u64) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.driver.put(address, &header);
    }

    /// Offers a request in the usual layout and has it carried out.
    fn ask(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> Answer {
        self.put_header(HEADER, kind, sector);
        let buffers = [&[(HEADER, 16, 0)], data, &[(STATUS, 1, WRITE)]].concat();
        self.send(&buffers)
    }

    /// Offers any chain and has it carried out; it must come back.
    #[track_caller]
    fn send(&mut self, buffers: &[(u64, u32, u16)]) -> Answer {
        self.driver.put(STATUS, &[UNWRITTEN]);
        self.driver.offer(0, 0, buffers);
        self.disk().serve_all();
        assert_eq!(self.driver.take_returned(0), [0], "the chain comes back");
        self.answer()
    }

    /// The newest answer.
    fn answer(&self) -> Answer {
        let index = u16::from_le_bytes(self.driver.get(used_address(0) + 2));
        let slot = u64::from(index.wrapping_sub(1) % LARGEST_QUEUE);
        let length = self.driver.get(used_address(0) + 4 + slot * 8 + 4);
        Answer {
            status: self.driver.get::<1>(STATUS)[0],
            written: u32::from_le_bytes(length),
        }
    }

    fn memory(&self, address: u64, bytes: u64) -> Vec<u8> {
        let byte = |at: u64| self.driver.get::<512>(address + at * SECTOR);
        (0..bytes / SECTOR).flat_map(byte).collect()
    }

    fn file(&self) -> Vec<u8> {
        contents(self.file.as_file())
    }
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// One extent of a request to give up or zero sectors.
fn extent(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}
