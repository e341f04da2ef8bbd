//! Reads random bytes as what a guest does to its disk, and checks what must stay true.

use super::{Input, RandomGuest, low};
use crate::event::Event;
use crate::virtio::blk::{Disk, DiskImage, DiskWires, EngineKind};
use crate::virtio::fake_driver::{
    FIRST_FREE_PAGE, FakeDriver, LARGEST_QUEUE, VERSION_1, table_address,
};
use crate::virtio::mmio::REGISTERS_SIZE;
use page::{PAGE_SIZE, PageCount};
use protocol::DiskSpec;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const SIZE: PageCount = PageCount(128);
const SECTORS: u64 = DISK_BYTES as u64 / 512;
const DISK_BYTES: usize = 32768;
/// What the disk holds at first.
const FILLING: u8 = 0x5a;

const HEADER: u64 = FIRST_FREE_PAGE * PAGE_SIZE;
const STATUS: u64 = HEADER + PAGE_SIZE;
const DATA: u64 = HEADER + 2 * PAGE_SIZE;
/// All that a disk can offer.
const FEATURES: u64 = VERSION_1 | 0x7fff;

/// Does what `bytes` say to a new guest's disk.
///
/// # Panics
/// If something does not stay true that must.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let kind = input.u8().unwrap_or(0);
    Guest::new(kind & 1 != 0, kind & 6 == 0).run(input);
}

struct Guest {
    driver: FakeDriver<Disk>,
    file: File,
    read_only: bool,
}

impl Guest {
    fn new(read_only: bool, ring: bool) -> Self {
        let file = rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC);
        let file = File::from(file.expect("a memory file"));
        file.write_all_at(&[FILLING; DISK_BYTES], 0)
            .expect("it can be written");
        let spec = DiskSpec {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            read_only,
            direct: false,
            raw: false,
        };
        let engine = match ring {
            true => EngineKind::Best,
            false => EngineKind::Plain,
        };
        let driver = FakeDriver::with_device(SIZE, |ram, interrupt| {
            let wires = DiskWires {
                memory: ram.memory().clone(),
                interrupt: interrupt.clone(),
                notified: Event::new().expect("an event descriptor"),
                reads: None,
            };
            let image = DiskImage::open(&spec).expect("a disk");
            Disk::start(image, 0, wires, engine).expect("its thread")
        });
        let mut guest = Self {
            driver,
            file,
            read_only,
        };
        guest.start(FEATURES);
        guest
    }

    /// With those of the features that the disk offers.
    fn start(&mut self, features: u64) {
        use crate::virtio::Device;
        let offered = self.driver.transport.device().features() | VERSION_1;
        self.driver.start(features & offered);
    }

    /// A request in the usual layout, with numbers near those that matter.
    fn offer_request(&mut self, input: &mut Input<'_>) -> Option<()> {
        let kind = match input.up_to(7)? {
            0 => input.u32()?,
            _ => [0, 1, 4, 8, 11, 13][usize::from(input.up_to(5)?)],
        };
        let sector = self.sector(input)?;
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.write(HEADER, &header);
        let flags = u16::from(input.up_to(1)?) * 2;
        let (address, len) = match kind {
            11 | 13 => (DATA, u32::from(input.up_to(3)?) * 16),
            _ => (self.address(input)?, self.len(input)?),
        };
        for extent in 0..2 {
            let sectors = u32::from(input.u8()?);
            let words = [
                sectors.to_le_bytes(),
                u32::from(input.up_to(3)?).to_le_bytes(),
            ];
            let bytes = [&self.sector(input)?.to_le_bytes()[..], &words.concat()].concat();
            self.write(DATA + extent * 16, &bytes);
        }
        let buffers = [(HEADER, 16, 0), (address, len, flags), (STATUS, 1, 2)];
        let first = u16::from(input.up_to(40)?) * 3;
        self.driver.offer(0, first, &buffers);
        Some(())
    }

    fn sector(&self, input: &mut Input<'_>) -> Option<u64> {
        Some(match input.up_to(5)? {
            0 => input.u64()?,
            1 => u64::MAX - u64::from(input.u8()?),
            _ => u64::from(input.u8()?) % (SECTORS + 4),
        })
    }
}

impl RandomGuest for Guest {
    type Device = Disk;

    fn driver(&mut self) -> &mut FakeDriver<Disk> {
        &mut self.driver
    }

    fn act(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.up_to(9)? {
            0 => {
                let offset = u64::from(input.u16()?) % REGISTERS_SIZE;
                let value: [u8; 4] = input.take()?;
                self.driver.transport.write(offset, &value);
            }
            1 => {
                let mut data = [0; 8];
                let width = usize::from(input.up_to(8)?);
                let offset = u64::from(input.u16()?) % (2 * REGISTERS_SIZE);
                self.driver.transport.read(offset, &mut data[..width]);
            }
            2 => {
                let features = u64::from(input.u16()?) | VERSION_1;
                self.start(features);
            }
            3 | 4 => self.offer(input)?,
            5 | 6 => self.offer_request(input)?,
            7 => self.driver.transport.device().serve_all(),
            8 => self.jump_avail_index(input)?,
            _ => {
                let address = self.address(input)?;
                let bytes: [u8; 8] = input.take()?;
                self.write(address, &bytes);
            }
        }
        Some(())
    }

    fn check(&mut self) {
        self.driver.transport.device().serve_all();
        let length = self.file.metadata().expect("an open file").len();
        assert_eq!(length, DISK_BYTES as u64, "the disk's size");
        let mut contents = [0; DISK_BYTES];
        let read = self.file.read_exact_at(&mut contents, 0);
        read.expect("it can be read");
        if self.read_only {
            assert!(contents == [FILLING; DISK_BYTES], "it was written");
        }
        // Whatever was done to it, a reset makes the device usable again.
        self.start(FEATURES);
        assert_eq!(self.driver.status(), 0xf, "a driver starts over");
        self.write(HEADER, &[0; 16]);
        self.write(STATUS, &[0xff]);
        self.driver
            .offer(0, 0, &[(HEADER, 16, 0), (DATA, 512, 2), (STATUS, 1, 2)]);
        self.driver.transport.device().serve_all();
        assert_eq!(self.driver.take_returned(0), [0], "and is answered");
        assert_eq!(self.driver.get::<1>(STATUS), [0], "well");
        assert!(self.driver.get::<512>(DATA) == contents[..512], "and reads");
    }

    fn queue(&self, _input: &mut Input<'_>) -> Option<usize> {
        Some(0)
    }

    fn index(&self, input: &mut Input<'_>) -> Option<u16> {
        Some(u16::from(input.u8()?) % (LARGEST_QUEUE + 2))
    }

    fn address(&self, input: &mut Input<'_>) -> Option<u64> {
        let end = SIZE.bytes();
        Some(match input.up_to(9)? {
            0 => input.u64()?,
            1 => u64::MAX - u64::from(input.u8()?),
            2 => end - u64::from(input.u16()?),
            3 => end + u64::from(input.u8()?),
            4 => table_address(0) + u64::from(input.u16()? % 8192),
            5 => STATUS + u64::from(input.u8()?),
            6 => HEADER,
            _ => DATA + u64::from(input.u16()?),
        })
    }

    fn len(&self, input: &mut Input<'_>) -> Option<u32> {
        Some(match input.up_to(6)? {
            0 => input.u32()?,
            1 => u32::MAX - u32::from(input.u8()?),
            2 => low(SIZE.bytes()),
            3 => u32::from(input.u8()?),
            _ => u32::from(input.up_to(9)?) * 512,
        })
    }
}
