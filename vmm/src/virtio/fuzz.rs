//! Reads random bytes as what a guest does to its balloon, well or badly, and checks what must
//! stay true whatever it does.
//!
//! Random bytes alone would hardly get past the first register. So there are actions for whole
//! steps of a driver, and numbers are drawn near those that matter: the edges of memory, the
//! rings, frame numbers that are RAM.

pub mod blk;

use super::balloon::Balloon;
use super::fake_driver::{
    ALL_FEATURES, FIRST_FREE_PAGE, FakeDriver, LARGEST_QUEUE, QUEUES, VERSION_1, avail_address,
    ring_page, table_address, used_address,
};
use super::mmio::REGISTERS_SIZE;
use super::{Device, Served};
use crate::memory::ram::{GAP_END, GAP_START};
use page::{PAGE_SIZE, PageCount};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

/// Actions that are read from one input.
const MOST_ACTIONS: usize = 200;
/// A guest in one piece, and one that goes on above the gap for devices.
const SMALL: PageCount = PageCount(512);
const ABOVE_GAP: u64 = 64;

/// What is left of an input. Every draw takes some of it; there is none at its end.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl Input<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn up_to(&mut self, most: u8) -> Option<u8> {
        Some(self.u8()? % (most + 1))
    }
}

/// Does what `bytes` say to a new guest's balloon.
///
/// # Panics
/// If something does not stay true that must.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let size = match input.u8() {
        Some(kind) if kind % 8 == 7 => PageCount(GAP_START.0 + ABOVE_GAP),
        _ => SMALL,
    };
    let driver = FakeDriver::new(size);
    Guest { driver, size }.run(input);
}

/// A guest that does what an input says. Its actions return `None` at the input's end.
pub(super) trait RandomGuest: Sized {
    type Device: Device;

    fn driver(&mut self) -> &mut FakeDriver<Self::Device>;

    fn act(&mut self, input: &mut Input<'_>) -> Option<()>;

    /// What must be true after everything that a guest can do.
    fn check(&mut self);

    fn queue(&self, input: &mut Input<'_>) -> Option<usize>;

    fn address(&self, input: &mut Input<'_>) -> Option<u64>;

    fn len(&self, input: &mut Input<'_>) -> Option<u32>;

    fn run(mut self, mut input: Input<'_>) {
        for _ in 0..MOST_ACTIONS {
            if self.act(&mut input).is_none() {
                break;
            }
        }
        self.check();
    }

    /// Mostly inside the largest table.
    fn index(&self, input: &mut Input<'_>) -> Option<u16> {
        match input.u8()? {
            byte @ 0..0xf0 => Some(u16::from(byte) % 130),
            _ => input.u16(),
        }
    }

    fn write_register(&mut self, input: &mut Input<'_>) -> Option<()> {
        let offset = u64::from(input.u16()?) % REGISTERS_SIZE;
        let width = usize::from(input.up_to(8)?);
        let value: [u8; 8] = input.take()?;
        self.driver().transport.write(offset, &value[..width]);
        Some(())
    }

    /// A chain that goes on as its flags say, in order or anywhere.
    fn offer(&mut self, input: &mut Input<'_>) -> Option<()> {
        let queue = self.queue(input)?;
        let head = self.index(input)?;
        let mut index = head;
        for _ in 0..=input.up_to(7)? {
            let (address, len) = (self.address(input)?, self.len(input)?);
            let flags = input.u8()?;
            let next = match flags & 0x30 {
                0 => self.index(input)?,
                _ => index.wrapping_add(1),
            };
            if index < LARGEST_QUEUE {
                let descriptor = Descriptor::new(address, len, u16::from(flags & 7), next);
                self.driver().put_descriptor(queue, index, descriptor);
            }
            index = next;
        }
        self.driver().offer_head(queue, head);
        Some(())
    }

    fn jump_avail_index(&mut self, input: &mut Input<'_>) -> Option<()> {
        let queue = self.queue(input)?;
        self.driver().set_avail_index(queue, input.u16()?);
        Some(())
    }

    /// One queue set up again, with its parts anywhere.
    fn place_queue(&mut self, queue: usize, size: u16, input: &mut Input<'_>) -> Option<()> {
        let mut place = || self.address(input);
        let places = [place()?, place()?, place()?];
        self.driver().place_queue(queue, size, places);
        Some(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        // Where there is no memory nothing is written, as on a real machine.
        let memory = self.driver().ram.memory();
        let written = memory.write(bytes, GuestAddress(address));
        assert!(written.is_err() || written.is_ok_and(|count| count <= bytes.len()));
    }
}

struct Guest {
    driver: FakeDriver,
    size: PageCount,
}

impl RandomGuest for Guest {
    type Device = Balloon;

    fn driver(&mut self) -> &mut FakeDriver {
        &mut self.driver
    }

    fn act(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.up_to(15)? {
            0 => self.write_register(input),
            1 => self.read_register(input),
            2 => self.write_known_register(input),
            3 => self.write_memory(input),
            4 => self.start(input),
            5 | 6 => self.offer(input),
            7 | 8 => self.notify(input),
            9 => {
                self.driver
                    .balloon()
                    .set_target(PageCount(input.u32()?.into()));
                Some(())
            }
            10 => {
                self.driver.balloon().request_statistics();
                Some(())
            }
            11 => self.count(input),
            12 => self.list_pages(input),
            13 => self.jump_avail_index(input),
            14 => {
                let page = self.pfn(input)?;
                self.write(u64::from(page) * PAGE_SIZE, &[0xa5]);
                Some(())
            }
            _ => {
                let queue = self.queue(input)?;
                let size = match input.up_to(3)? {
                    0 => input.u16()?,
                    _ => 1 << input.up_to(7)?,
                };
                self.place_queue(queue, size, input)
            }
        }
    }

    /// What must be true after everything that a guest can do.
    fn check(&mut self) {
        for queue in 0..QUEUES {
            let calls = (0..=LARGEST_QUEUE).find(|_| !self.driver.balloon().serve(queue));
            assert!(calls.is_some(), "queue {queue} has no end");
        }
        let states = self.driver.states(true);
        assert_eq!(states.total(), self.size, "states must add up: {states:?}");
        let file = self.driver.ram.file().metadata().expect("an open file");
        assert_eq!(file.len(), self.size.bytes(), "the memory file's size");
        let allocated = self.driver.ram.allocated().expect("an open file");
        assert!(allocated <= self.size, "{allocated:?} in use");
        // Whatever was done to it, a reset makes the device usable again.
        self.driver.start(ALL_FEATURES);
        assert_eq!(self.driver.status(), 0xf, "a driver starts over");
        let pfn = u32::try_from(self.size.0.min(GAP_START.0) - 1).expect("frame numbers are small");
        self.driver.touch([pfn.into()]);
        assert_eq!(self.driver.inflate(&[pfn]), [0], "and is answered");
        assert_eq!(
            self.driver.states(true).ballooned,
            PageCount(1),
            "and can give up a page"
        );
    }

    fn queue(&self, input: &mut Input<'_>) -> Option<usize> {
        input.up_to(3).map(usize::from)
    }

    fn address(&self, input: &mut Input<'_>) -> Option<u64> {
        let end = self.size.bytes().min(GAP_START.0 * PAGE_SIZE);
        Some(match input.up_to(11)? {
            0 => input.u64()?,
            1 => u64::MAX - u64::from(input.u8()?),
            2 => end - u64::from(input.u8()?),
            3 => end + u64::from(input.u16()?),
            4 => GAP_END.0 * PAGE_SIZE + u64::from(input.u16()?),
            5 => GAP_END.0 * PAGE_SIZE - u64::from(input.u16()?),
            6 => (GAP_END.0 + ABOVE_GAP) * PAGE_SIZE - u64::from(input.u8()?),
            7 => {
                let place = [table_address, avail_address, used_address];
                let place = place[usize::from(input.up_to(2)?)];
                place(self.queue(input)?) + u64::from(input.u8()?)
            }
            8 => u64::from(input.u32()?),
            _ => u64::from(self.pfn(input)?) * PAGE_SIZE + u64::from(input.up_to(3)?),
        })
    }

    fn len(&self, input: &mut Input<'_>) -> Option<u32> {
        Some(match input.up_to(5)? {
            0 => input.u32()?,
            1 => u32::MAX - u32::from(input.u8()?),
            2 => u32::from(input.u16()?) << 12,
            3 => u32::from(input.up_to(7)?),
            _ => u32::from(input.u16()?),
        })
    }
}

impl Guest {
    fn read_register(&mut self, input: &mut Input<'_>) -> Option<()> {
        let offset = match input.up_to(7)? {
            0 => input.u64()?,
            _ => u64::from(input.u16()?) % REGISTERS_SIZE,
        };
        let mut data = [0; 8];
        let width = usize::from(input.up_to(8)?);
        self.driver.transport.read(offset, &mut data[..width]);
        Some(())
    }

    fn write_known_register(&mut self, input: &mut Input<'_>) -> Option<()> {
        let offset = u64::from(input.u8()?) * 4;
        let value = match input.up_to(3)? {
            0 => input.u32()?,
            _ => input.u8()?.into(),
        };
        self.driver.write(offset, value);
        Some(())
    }

    fn write_memory(&mut self, input: &mut Input<'_>) -> Option<()> {
        let address = self.address(input)?;
        let value = input.u64()?.to_le_bytes();
        let count = usize::from(input.up_to(8)?);
        self.write(address, &value[..count]);
        Some(())
    }

    fn start(&mut self, input: &mut Input<'_>) -> Option<()> {
        let features = match input.u8()? {
            byte @ 0..0x40 => u64::from(byte) | VERSION_1,
            _ => ALL_FEATURES,
        };
        let size = 1 << input.up_to(7)?;
        self.driver.start_with_size(features, size);
        Some(())
    }

    fn notify(&mut self, input: &mut Input<'_>) -> Option<()> {
        let queue = usize::from(input.up_to(4)?);
        let _more = self.driver.balloon().serve(queue);
        Some(())
    }

    fn count(&mut self, input: &mut Input<'_>) -> Option<()> {
        let recount = input.up_to(1)? == 1;
        let states = self.driver.states(recount);
        assert_eq!(states.total(), self.size, "states must add up: {states:?}");
        Some(())
    }

    /// A list of pages as an honest driver sends it, perhaps of pages that it does not have.
    fn list_pages(&mut self, input: &mut Input<'_>) -> Option<()> {
        let queue = usize::from(input.up_to(1)?);
        let address = (FIRST_FREE_PAGE + u64::from(input.up_to(31)?)) * PAGE_SIZE;
        let mut bytes = Vec::new();
        for _ in 0..=input.up_to(31)? {
            bytes.extend(self.pfn(input)?.to_le_bytes());
        }
        self.write(address, &bytes);
        let len = u32::try_from(bytes.len()).ok()?;
        self.driver.offer(queue, 0, &[(address, len, 0)]);
        let _more = self.driver.balloon().serve(queue);
        Some(())
    }

    /// Mostly a page that is there.
    fn pfn(&self, input: &mut Input<'_>) -> Option<u32> {
        Some(match input.up_to(9)? {
            0 => input.u32()?,
            1 => low(self.size.0.min(GAP_START.0)) - 1 + u32::from(input.up_to(1)?),
            2 => low(GAP_END.0 + ABOVE_GAP) - u32::from(input.u8()?),
            3 => low(ring_page(0)) + u32::from(input.up_to(7)?),
            _ => u32::from(input.u16()?) % low(SMALL.0),
        })
    }
}

fn low(page: u64) -> u32 {
    u32::try_from(page).expect("frame numbers here are small")
}

#[cfg(test)]
pub(crate) mod tests;
