//! A driver for tests, of a balloon or another device. It sets the device up through its registers
//! and fills its queues in real guest memory, as told, right or wrong.
//!
//! The rings of queue `q` have two pages of their own from [`ring_page`] on; a chain's descriptors
//! are written from the descriptor named on, so a test sees everything that it put there.

use super::balloon::Balloon;
use super::mmio::{MmioTransport, register};
use super::{Device, Interrupt, Served};
use crate::event::Event;
use crate::memory::agent::AgentHandle;
use crate::memory::ram::GuestRam;
use page::{PAGE_SIZE, PageCount, PageStates};
use protocol::BalloonCounters;
use std::sync::Arc;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

/// The feature of every modern device, as the driver must accept it.
pub const VERSION_1: u64 = 1 << 32;
/// All features of the balloon, as a modern driver accepts them.
pub const ALL_FEATURES: u64 = VERSION_1 | MUST_TELL_HOST | STATISTICS | DEFLATE_ON_OOM | REPORTING;
/// Feature: the driver tells before it takes a page back.
pub const MUST_TELL_HOST: u64 = 1 << 0;
/// Feature: the queue for statistics.
pub const STATISTICS: u64 = 1 << 1;
/// Feature: pages may leave the balloon when the guest runs out of memory.
pub const DEFLATE_ON_OOM: u64 = 1 << 2;
/// Feature: the queue for free pages.
pub const REPORTING: u64 = 1 << 5;

/// The inflate queue. All numbers of queues are as with all features.
pub const INFLATE: usize = 0;
/// The deflate queue.
pub const DEFLATE: usize = 1;
/// The statistics queue.
pub const STATS: usize = 2;
/// The queue of free pages.
pub const REPORT: usize = 3;

/// A descriptor's flag: another follows.
pub const NEXT: u16 = 1;
/// A descriptor's flag: the device may write.
pub const WRITE: u16 = 2;
/// A descriptor's flag: it names a table of descriptors.
pub const INDIRECT: u16 = 4;

/// The first page of memory that the fake driver itself does not use, and where its tests put
/// their buffers.
pub const FIRST_FREE_PAGE: u64 = 32;
/// Queues whose rings have a place.
pub const QUEUES: usize = 4;
/// Descriptors of a queue, at most.
pub const LARGEST_QUEUE: u16 = 128;

/// Bytes of the two pages that a queue's rings have.
pub const RINGS_BYTES: usize = 8192;

const FIRST_RING_PAGE: u64 = 16;
const AVAIL_OFFSET: u64 = 2048;
const USED_OFFSET: u64 = PAGE_SIZE;
/// Serving all that can wait in a queue takes fewer calls than this.
const MOST_CALLS: usize = LARGEST_QUEUE as usize + 1;

/// The first of the two pages that the rings of a queue have.
#[must_use]
pub fn ring_page(queue: usize) -> u64 {
    FIRST_RING_PAGE + 2 * queue as u64
}

/// Where a queue's descriptor table lies.
#[must_use]
pub fn table_address(queue: usize) -> u64 {
    ring_page(queue) * PAGE_SIZE
}

/// Where a queue's ring of chains for the device lies.
#[must_use]
pub fn avail_address(queue: usize) -> u64 {
    table_address(queue) + AVAIL_OFFSET
}

/// Where a queue's ring of chains that come back lies.
#[must_use]
pub fn used_address(queue: usize) -> u64 {
    table_address(queue) + USED_OFFSET
}

/// A guest with a device, seen from its driver.
#[derive(Debug)]
pub struct FakeDriver<D = Balloon> {
    /// The guest's memory.
    pub ram: GuestRam,
    /// The device's registers.
    pub transport: MmioTransport<D>,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// By which the device learns that a queue was notified, by queue.
    pub notified: Vec<Event>,
    size: u16,
    /// For each queue, chains offered and chains seen to come back.
    offered: [u16; QUEUES],
    returned: [u16; QUEUES],
}

impl FakeDriver {
    /// A guest of `size` pages whose balloon is as after a reset.
    ///
    /// # Panics
    /// Where this machine cannot run a VM.
    #[must_use]
    pub fn new(size: PageCount) -> Self {
        Self::with_device(size, |ram, interrupt| {
            let agent = AgentHandle::start(ram, None).expect("an agent");
            Balloon::new(ram.clone(), agent, interrupt.clone(), PageCount::ZERO)
        })
    }

    /// A guest whose driver is ready, with these features.
    #[must_use]
    pub fn started(size: PageCount, features: u64) -> Self {
        let mut driver = Self::new(size);
        driver.start(features);
        driver
    }

    /// The device behind the registers.
    #[must_use]
    pub fn balloon(&self) -> &Balloon {
        self.transport.device()
    }

    /// What the guest did, as the device counts.
    #[must_use]
    pub fn counters(&self) -> BalloonCounters {
        self.balloon().counters()
    }

    /// The guest's pages by state.
    ///
    /// # Panics
    /// When the kernel does not answer.
    #[must_use]
    pub fn states(&self, recount: bool) -> PageStates {
        let states = self.balloon().page_states(recount);
        states.expect("the kernel counts pages")
    }

    /// Lists pages in one buffer at `address`, has them served, and tells which chains came back.
    pub fn send_pfns(&mut self, queue: usize, address: u64, pfns: &[u32]) -> Vec<u32> {
        let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        self.put(address, &bytes);
        let len = low_half(bytes.len() as u64);
        self.offer(queue, 0, &[(address, len, 0)]);
        self.notify(queue);
        self.take_returned(queue)
    }

    /// Gives pages up to the balloon.
    pub fn inflate(&mut self, pfns: &[u32]) -> Vec<u32> {
        self.send_pfns(INFLATE, FIRST_FREE_PAGE * PAGE_SIZE, pfns)
    }

    /// Takes pages out of the balloon.
    pub fn deflate(&mut self, pfns: &[u32]) -> Vec<u32> {
        self.send_pfns(DEFLATE, FIRST_FREE_PAGE * PAGE_SIZE, pfns)
    }
}

impl<D: Served> FakeDriver<D> {
    /// Has the device serve a queue until nothing is left.
    ///
    /// # Panics
    /// If the device finds more than a queue can hold.
    pub fn notify(&self, queue: usize) {
        let mut calls = 0;
        while self.transport.device().serve(queue) {
            calls += 1;
            assert!(calls < MOST_CALLS, "queue {queue} has no end");
        }
    }
}

impl<D: Device> FakeDriver<D> {
    /// A guest of `size` pages with the device that `make` makes, as after a reset.
    ///
    /// # Panics
    /// Where this machine cannot run a VM.
    #[must_use]
    pub fn with_device(size: PageCount, make: impl FnOnce(&GuestRam, &Interrupt) -> D) -> Self {
        Self::with_shared_device(size, |ram, interrupt| Arc::new(make(ram, interrupt)))
    }

    /// The same with a device that others hold too, such as its thread.
    ///
    /// # Panics
    /// Where this machine cannot run a VM.
    #[must_use]
    pub fn with_shared_device(
        size: PageCount,
        make: impl FnOnce(&GuestRam, &Interrupt) -> Arc<D>,
    ) -> Self {
        let ram = GuestRam::new(size).expect("memory for a test's guest");
        let interrupt = Interrupt::new().expect("an event descriptor");
        let device = make(&ram, &interrupt);
        let memory = ram.memory().clone();
        let events = (0..QUEUES).map(|_| Event::new().expect("an event descriptor"));
        let notified: Vec<Event> = events.collect();
        let transport = MmioTransport::new(device, interrupt.clone(), memory);
        Self {
            transport: transport.with_notifications(&notified),
            ram,
            interrupt,
            notified,
            size: LARGEST_QUEUE,
            offered: [0; QUEUES],
            returned: [0; QUEUES],
        }
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Reads a register.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The status register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    /// Adds bits to the status register.
    pub fn add_status(&self, bits: u32) {
        self.write(register::STATUS, self.status() | bits);
    }

    /// Resets the device, and forgets what its queues held.
    pub fn reset(&mut self) {
        self.write(register::STATUS, 0);
        self.offered = [0; QUEUES];
        self.returned = [0; QUEUES];
    }

    /// The whole handshake, with a queue of the largest size for every number.
    pub fn start(&mut self, features: u64) {
        self.start_with_size(features, LARGEST_QUEUE);
    }

    /// The whole handshake, with queues of `size` descriptors.
    pub fn start_with_size(&mut self, features: u64, size: u16) {
        self.reset();
        self.size = size;
        self.negotiate(features);
        for queue in 0..QUEUES {
            self.set_up_queue(queue);
        }
        self.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// The handshake up to the features. Whether the device took them shows in the status.
    pub fn negotiate(&self, features: u64) {
        self.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.add_status(VIRTIO_CONFIG_S_DRIVER);
        for (sel, half) in [features, features >> 32].into_iter().enumerate() {
            self.write(register::DRIVER_FEATURES_SEL, low_half(sel as u64));
            self.write(register::DRIVER_FEATURES, low_half(half));
        }
        self.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
    }

    /// Clears a queue's rings and makes it ready in its place.
    pub fn set_up_queue(&self, queue: usize) {
        self.put(table_address(queue), &[0; RINGS_BYTES]);
        let places = [table_address, avail_address, used_address].map(|place| place(queue));
        self.place_queue(queue, self.size, places);
    }

    /// Tells the device a queue's size and the places of its three parts, and makes it ready.
    pub fn place_queue(&self, queue: usize, size: u16, places: [u64; 3]) {
        use register::*;
        self.write(QUEUE_SEL, low_half(queue as u64));
        self.write(QUEUE_NUM, size.into());
        let low = [QUEUE_DESC_LOW, QUEUE_DRIVER_LOW, QUEUE_DEVICE_LOW];
        for (register, place) in low.into_iter().zip(places) {
            self.write(register, low_half(place));
            self.write(register + 4, low_half(place >> 32));
        }
        self.write(QUEUE_READY, 1);
    }

    /// Writes to guest memory.
    ///
    /// # Panics
    /// Where there is none.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        let written = self.ram.memory().write_slice(bytes, GuestAddress(address));
        written.expect("inside the guest's memory");
    }

    /// Reads guest memory.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let read = self
            .ram
            .memory()
            .read_slice(&mut bytes, GuestAddress(address));
        read.expect("inside the guest's memory");
        bytes
    }

    /// Writes a descriptor into a queue's table.
    pub fn put_descriptor(&self, queue: usize, index: u16, descriptor: Descriptor) {
        self.put_descriptor_at(table_address(queue) + u64::from(index) * 16, descriptor);
    }

    /// Writes a descriptor anywhere.
    pub fn put_descriptor_at(&self, address: u64, descriptor: Descriptor) {
        self.put(address, &descriptor.addr().0.to_le_bytes());
        self.put(address + 8, &descriptor.len().to_le_bytes());
        self.put(address + 12, &descriptor.flags().to_le_bytes());
        self.put(address + 14, &descriptor.next().to_le_bytes());
    }

    /// Offers a chain of buffers, each an address, a length and flags, that begins at descriptor
    /// `head`. The device does not know of it before it is notified.
    pub fn offer(&mut self, queue: usize, head: u16, buffers: &[(u64, u32, u16)]) {
        for (index, &(address, len, flags)) in (head..).zip(buffers) {
            let last = usize::from(index - head) + 1 == buffers.len();
            let flags = if last { flags } else { flags | NEXT };
            let next = if last { 0 } else { index + 1 };
            self.put_descriptor(queue, index, Descriptor::new(address, len, flags, next));
        }
        self.offer_head(queue, head);
    }

    /// Offers the chain that begins at descriptor `head`, whatever is there.
    pub fn offer_head(&mut self, queue: usize, head: u16) {
        let slot = u64::from(self.offered[queue] % self.size);
        self.put(avail_address(queue) + 4 + slot * 2, &head.to_le_bytes());
        self.offered[queue] = self.offered[queue].wrapping_add(1);
        self.set_avail_index(queue, self.offered[queue]);
    }

    /// Sets the index up to which chains are offered.
    pub fn set_avail_index(&self, queue: usize, index: u16) {
        self.put(avail_address(queue) + 2, &index.to_le_bytes());
    }

    /// Chains that came back since the last look, by their first descriptor.
    pub fn take_returned(&mut self, queue: usize) -> Vec<u32> {
        let end = u16::from_le_bytes(self.get(used_address(queue) + 2));
        let mut heads = Vec::new();
        while self.returned[queue] != end {
            let slot = u64::from(self.returned[queue] % self.size);
            let place = used_address(queue) + 4 + slot * 8;
            heads.push(u32::from_le_bytes(self.get(place)));
            self.returned[queue] = self.returned[queue].wrapping_add(1);
        }
        heads
    }

    /// Writes to each page of a range, so that the guest holds it.
    pub fn touch(&self, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            self.put(page * PAGE_SIZE, &[0xa5]);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "registers take addresses in halves"
)]
fn low_half(value: u64) -> u32 {
    value as u32
}
