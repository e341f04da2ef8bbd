//! A balloon device in memory, for tests: honest when served as it should be, and free to lie.
#![expect(unsafe_code, reason = "the device's side of the rings is raw memory")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use core::ptr::NonNull;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::wire::Features;

/// Addresses are the same on both sides.
#[derive(Debug)]
pub(super) struct FakeHal;

// SAFETY: memory is fresh, zero, aligned and its own.
unsafe impl Hal for FakeHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        (memory.as_ptr() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: allocated above with this layout.
        unsafe { dealloc(memory.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).unwrap()
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    size: u16,
    descriptors: PhysAddr,
    available: PhysAddr,
    used: PhysAddr,
    seen: u16,
    answered: u16,
}

#[derive(Debug)]
struct State {
    features: Features,
    agreed: Features,
    queue_size: u32,
    queues: [Option<Queue>; 8],
    config: [u32; 2],
    interrupts: u32,
    status: DeviceStatus,
    notified: usize,
}

/// The device, as the test holds it.
#[derive(Clone, Debug)]
pub(super) struct Device(Rc<RefCell<State>>);

/// The same device, as the driver holds it.
#[derive(Debug)]
pub(super) struct FakeTransport(Rc<RefCell<State>>);

/// A chain that the driver made available.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) head: u16,
    pub(super) buffers: Vec<(PhysAddr, u32)>,
}

impl Chain {
    fn bytes(&self) -> Vec<u8> {
        let (address, length) = self.buffers[0];
        // SAFETY: the driver says so; its buffers are static.
        unsafe { core::slice::from_raw_parts(address as *const u8, length as usize) }.to_vec()
    }

    /// The page numbers in the first buffer.
    pub(super) fn gfns(&self) -> Vec<u32> {
        let bytes = self.bytes();
        bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect()
    }

    /// The statistics in the first buffer.
    pub(super) fn stats(&self) -> Vec<(u16, u64)> {
        let stat = |bytes: &[u8]| {
            let (tag, value) = bytes.split_at(2);
            (
                u16::from_le_bytes(tag.try_into().unwrap()),
                u64::from_le_bytes(value.try_into().unwrap()),
            )
        };
        self.bytes().chunks_exact(10).map(stat).collect()
    }

    /// Writes to the first buffer, which the device must not do.
    pub(super) fn scribble(&self) {
        let (address, length) = self.buffers[0];
        // SAFETY: the test runs the driver on this same thread, and not now.
        unsafe { core::ptr::write_bytes(address as *mut u8, 0x77, length as usize) };
    }
}

fn read<T>(address: PhysAddr) -> T {
    // SAFETY: ring memory of a queue that the driver keeps alive.
    unsafe { core::ptr::read_volatile(address as *const T) }
}

fn write<T>(address: PhysAddr, value: T) {
    // SAFETY: ring memory of a queue that the driver keeps alive.
    unsafe { core::ptr::write_volatile(address as *mut T, value) };
}

impl Device {
    pub(super) fn new(features: Features) -> Self {
        Self(Rc::new(RefCell::new(State {
            features,
            agreed: Features::empty(),
            queue_size: 128,
            queues: [None; 8],
            config: [0; 2],
            interrupts: 0,
            status: DeviceStatus::empty(),
            notified: 0,
        })))
    }

    pub(super) fn transport(&self) -> FakeTransport {
        FakeTransport(self.0.clone())
    }

    pub(super) fn limit_queues(&self, size: u32) {
        self.0.borrow_mut().queue_size = size;
    }

    pub(super) fn set_target(&self, pages: u32) {
        let mut state = self.0.borrow_mut();
        state.config[0] = pages;
        state.interrupts |= InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT.bits();
    }

    pub(super) fn actual(&self) -> u32 {
        self.0.borrow().config[1]
    }

    pub(super) fn status(&self) -> DeviceStatus {
        self.0.borrow().status
    }

    pub(super) fn notified(&self) -> usize {
        self.0.borrow().notified
    }

    /// Takes the next chain that the driver made available, without answering.
    pub(super) fn take(&self, number: u16) -> Option<Chain> {
        let mut state = self.0.borrow_mut();
        let queue = state.queues[usize::from(number)].as_mut()?;
        let available: u16 = read(queue.available + 2);
        if queue.seen == available {
            return None;
        }
        let slot = u64::from(queue.seen % queue.size);
        let head: u16 = read(queue.available + 4 + 2 * slot);
        queue.seen = queue.seen.wrapping_add(1);
        let mut buffers = vec![];
        let mut next = Some(head);
        while let Some(index) = next {
            let descriptor = queue.descriptors + 16 * u64::from(index);
            buffers.push((read(descriptor), read(descriptor + 8)));
            let flags: u16 = read(descriptor + 12);
            next = (flags & 1 == 1).then(|| read(descriptor + 14));
        }
        Some(Chain { head, buffers })
    }

    /// Answers with a chain's number, or with a lie.
    pub(super) fn answer(&self, number: u16, head: u16) {
        let mut state = self.0.borrow_mut();
        let queue = state.queues[usize::from(number)].as_mut().unwrap();
        let slot = u64::from(queue.answered % queue.size);
        write(queue.used + 4 + 8 * slot, u32::from(head));
        queue.answered = queue.answered.wrapping_add(1);
        write(queue.used + 2, queue.answered);
        state.interrupts |= InterruptStatus::QUEUE_INTERRUPT.bits();
    }

    /// Does what an honest device does with the next chain.
    pub(super) fn serve(&self, number: u16) -> Option<Chain> {
        let chain = self.take(number)?;
        self.answer(number, chain.head);
        Some(chain)
    }
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::MemoryBalloon
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.borrow().features.bits()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.0.borrow_mut().agreed = Features::from_bits_retain(features);
    }

    fn max_queue_size(&mut self, _: u16) -> u32 {
        self.0.borrow().queue_size
    }

    fn notify(&mut self, _: u16) {
        self.0.borrow_mut().notified += 1;
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.borrow().status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.borrow_mut().status = status;
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        number: u16,
        size: u32,
        descriptors: PhysAddr,
        available: PhysAddr,
        used: PhysAddr,
    ) {
        let size = size.try_into().unwrap();
        self.0.borrow_mut().queues[usize::from(number)] = Some(Queue {
            size,
            descriptors,
            available,
            used,
            seen: 0,
            answered: 0,
        });
    }

    fn queue_unset(&mut self, number: u16) {
        self.0.borrow_mut().queues[usize::from(number)] = None;
    }

    fn queue_used(&mut self, number: u16) -> bool {
        self.0.borrow().queues[usize::from(number)].is_some()
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(core::mem::take(&mut self.0.borrow_mut().interrupts))
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let bytes = self.0.borrow().config[offset / 4].to_le_bytes();
        T::read_from_bytes(&bytes).map_err(|_size| virtio_drivers::Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        let bytes = value.as_bytes().try_into().unwrap();
        self.0.borrow_mut().config[offset / 4] = u32::from_le_bytes(bytes);
        Ok(())
    }
}
