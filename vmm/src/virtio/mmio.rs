//! The memory-mapped register transport (virtio 1.2, section 4.2), modern interface.
//!
//! The order in which a driver must write the registers is checked here once, so that a device
//! sees only a driver that is ready: features before queues, queues before `DRIVER_OK`. A write
//! out of order is counted and does nothing.

use super::{Device, Interrupt, lock};
use crate::event::Event;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Bytes of guest-physical address space that a device's registers take.
pub const REGISTERS_SIZE: u64 = 0x1000;
/// Where in them a queue is notified: KVM turns writes there into events.
pub const QUEUE_NOTIFY: u64 = 0x050;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION_MODERN: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"BLNT");
const CONFIG: u64 = 0x100;
const NO_SHARED_MEMORY: u32 = u32::MAX;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// The bits of the status register that a driver sets, in the order it must.
const STEPS: [u32; 5] = [
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// The registers by their offsets (virtio 1.2, table 4.1).
pub(super) mod register {
    pub(crate) const MAGIC_VALUE: u64 = 0x000;
    pub(crate) const VERSION: u64 = 0x004;
    pub(crate) const DEVICE_ID: u64 = 0x008;
    pub(crate) const VENDOR_ID: u64 = 0x00c;
    pub(crate) const DEVICE_FEATURES: u64 = 0x010;
    pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(crate) const QUEUE_SEL: u64 = 0x030;
    pub(crate) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(crate) const QUEUE_NUM: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
    pub(crate) const INTERRUPT_ACK: u64 = 0x064;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(crate) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(crate) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(crate) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(crate) const SHM_LEN_HIGH: u64 = 0x0b4;
    pub(crate) const SHM_BASE_LOW: u64 = 0x0b8;
    pub(crate) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(crate) const CONFIG_GENERATION: u64 = 0x0fc;
}

/// The registers of one device.
#[derive(Debug)]
pub struct MmioTransport<D: ?Sized> {
    device: Arc<D>,
    interrupt: Interrupt,
    memory: GuestMemoryMmap,
    registers: Mutex<Registers>,
    notified: Vec<Event>,
    violations: AtomicU64,
}

#[derive(Debug)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<Queue>,
}

impl Registers {
    fn new(queue_sizes: &[u16]) -> Self {
        let queue = |&size| Queue::new(size).expect("a device's queue sizes are powers of two");
        Self {
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    fn selected_queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }

    fn has(&self, status_bits: u32) -> bool {
        self.status & status_bits == status_bits
    }
}

impl<D: Device + ?Sized> MmioTransport<D> {
    /// The registers of `device`, as after a reset.
    pub fn new(device: Arc<D>, interrupt: Interrupt, memory: GuestMemoryMmap) -> Self {
        let registers = Mutex::new(Registers::new(device.queue_sizes()));
        Self {
            device,
            interrupt,
            memory,
            registers,
            notified: Vec::new(),
            violations: AtomicU64::new(0),
        }
    }

    /// With the events by which the device learns that a queue was notified, by queue.
    ///
    /// A driver may notify a queue before it is ready itself (Linux' balloon does so with its first
    /// statistics buffer). The device must not touch the queue then, and no second notification will
    /// come: so each queue counts as notified when the driver has become ready.
    #[must_use]
    pub fn with_notifications(mut self, queues: &[Event]) -> Self {
        self.notified = queues.to_vec();
        self
    }

    /// Accesses that the standard forbids.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// The device behind the registers.
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The guest reads from its device's registers.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            return self.device.read_config(offset - CONFIG, data);
        }
        let value = if data.len() == 4 && offset.is_multiple_of(4) {
            self.read_register(offset)
        } else {
            None
        };
        let value = value.unwrap_or_else(|| {
            self.count_violation();
            0
        });
        data.fill(0);
        let count = data.len().min(4);
        data[..count].copy_from_slice(&value.to_le_bytes()[..count]);
    }

    /// The guest writes to its device's registers.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            return self.write_config(offset - CONFIG, data);
        }
        let done = match <[u8; 4]>::try_from(data) {
            Ok(bytes) => self.write_register(offset, u32::from_le_bytes(bytes)),
            Err(_) => None,
        };
        if done.is_none() {
            self.count_violation();
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        // Under the lock, so that what a driver wrote does not outlive its reset.
        let registers = self.lock();
        if registers.has(VIRTIO_CONFIG_S_DRIVER) {
            self.device.write_config(offset, data);
        } else {
            self.count_violation();
        }
    }

    /// `None` for a register that cannot be read.
    fn read_register(&self, offset: u64) -> Option<u32> {
        use register::*;
        let mut registers = self.lock();
        Some(match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => VERSION_MODERN,
            DEVICE_ID => self.device.device_type(),
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.offered(), registers.device_features_sel),
            QUEUE_NUM_MAX => registers
                .selected_queue()
                .map_or(0, |queue| queue.max_size().into()),
            QUEUE_READY => registers
                .selected_queue()
                .is_some_and(|queue| queue.ready())
                .into(),
            INTERRUPT_STATUS => self.interrupt.status(),
            STATUS => registers.status | self.needs_reset_bit(),
            SHM_LEN_LOW | SHM_LEN_HIGH | SHM_BASE_LOW | SHM_BASE_HIGH => NO_SHARED_MEMORY,
            // The driver reads what changes, num_pages, in one access: nothing can be torn.
            CONFIG_GENERATION => 0,
            _ => return None,
        })
    }

    /// `None` for a write that the standard forbids now or at all.
    fn write_register(&self, offset: u64, value: u32) -> Option<()> {
        use register::*;
        let mut registers = self.lock();
        match offset {
            DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            DRIVER_FEATURES => return set_driver_features(&mut registers, value),
            QUEUE_SEL => registers.queue_sel = value,
            QUEUE_NUM | QUEUE_READY | QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH => {
                return self.write_queue(&mut registers, offset, value);
            }
            // Reached only where KVM does not turn the write into an event: it has no such queue.
            QUEUE_NOTIFY => return None,
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            STATUS => return self.write_status(&mut registers, value),
            _ => return None,
        }
        Some(())
    }

    fn write_queue(&self, registers: &mut Registers, offset: u64, value: u32) -> Option<()> {
        use register::*;
        let settable = registers.has(VIRTIO_CONFIG_S_FEATURES_OK)
            && registers.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED) == 0;
        if !settable {
            return None;
        }
        let queue = registers.selected_queue()?;
        if queue.ready() && offset != QUEUE_READY {
            return None;
        }
        match offset {
            QUEUE_NUM => queue.try_set_size(u16::try_from(value).ok()?).ok()?,
            QUEUE_READY => return self.set_queue_ready(queue, value),
            QUEUE_DESC_LOW | QUEUE_DESC_HIGH => queue
                .try_set_desc_table_address(with_half(queue.desc_table(), offset, value))
                .ok()?,
            QUEUE_DRIVER_LOW | QUEUE_DRIVER_HIGH => queue
                .try_set_avail_ring_address(with_half(queue.avail_ring(), offset, value))
                .ok()?,
            QUEUE_DEVICE_LOW | QUEUE_DEVICE_HIGH => queue
                .try_set_used_ring_address(with_half(queue.used_ring(), offset, value))
                .ok()?,
            _ => return None,
        }
        Some(())
    }

    /// A queue whose rings were not placed, or do not lie in the guest's memory, does not become
    /// ready.
    fn set_queue_ready(&self, queue: &mut Queue, value: u32) -> Option<()> {
        let ready = match value {
            0 => false,
            1 => true,
            _ => return None,
        };
        queue.set_ready(ready);
        if ready && (queue.avail_ring() == 0 || !queue.is_valid(&self.memory)) {
            queue.set_ready(false);
            return None;
        }
        Some(())
    }

    fn write_status(&self, registers: &mut Registers, value: u32) -> Option<()> {
        if value == 0 {
            self.reset(registers);
            return Some(());
        }
        // A driver adds bits; only a reset takes them away.
        if registers.status & !value != 0 {
            return None;
        }
        STEPS
            .into_iter()
            .filter(|step| value & step != 0)
            .try_for_each(|step| self.take_step(registers, step))
    }

    /// A driver may take several steps with one write, but in their order.
    fn take_step(&self, registers: &mut Registers, step: u32) -> Option<()> {
        if registers.has(step) {
            return Some(());
        }
        let before = match step {
            VIRTIO_CONFIG_S_DRIVER => VIRTIO_CONFIG_S_ACKNOWLEDGE,
            VIRTIO_CONFIG_S_FEATURES_OK => VIRTIO_CONFIG_S_DRIVER,
            VIRTIO_CONFIG_S_DRIVER_OK => VIRTIO_CONFIG_S_FEATURES_OK,
            _ => 0,
        };
        if !registers.has(before) {
            return None;
        }
        match step {
            VIRTIO_CONFIG_S_FEATURES_OK => return self.agree_on_features(registers),
            VIRTIO_CONFIG_S_DRIVER_OK => self.activate(registers),
            _ => registers.status |= step,
        }
        Some(())
    }

    /// The bit `FEATURES_OK` stays off where the driver wants what was not offered, or is older
    /// than the modern interface; the driver reads it back and gives up.
    fn agree_on_features(&self, registers: &mut Registers) -> Option<()> {
        let wanted = registers.driver_features;
        if wanted & !self.offered() != 0 || wanted & VERSION_1 == 0 {
            return None;
        }
        registers.status |= VIRTIO_CONFIG_S_FEATURES_OK;
        Some(())
    }

    fn activate(&self, registers: &mut Registers) {
        registers.status |= VIRTIO_CONFIG_S_DRIVER_OK;
        let fresh = Registers::new(self.device.queue_sizes()).queues;
        let mut queues = std::mem::replace(&mut registers.queues, fresh);
        // The registers keep showing what was set up; the device works on its own copy.
        for (shown, used) in registers.queues.iter_mut().zip(&mut queues) {
            shown.set_ready(used.ready());
        }
        self.device.activate(registers.driver_features, queues);
        self.notified.iter().for_each(Event::signal);
    }

    fn reset(&self, registers: &mut Registers) {
        self.device.reset();
        self.interrupt.reset();
        *registers = Registers::new(self.device.queue_sizes());
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn needs_reset_bit(&self) -> u32 {
        if self.interrupt.needs_reset() {
            VIRTIO_CONFIG_S_NEEDS_RESET
        } else {
            0
        }
    }

    fn count_violation(&self) {
        self.violations.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }
}

fn set_driver_features(registers: &mut Registers, value: u32) -> Option<()> {
    let open = registers.has(VIRTIO_CONFIG_S_DRIVER)
        && registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0;
    if !open {
        return None;
    }
    let value = u64::from(value);
    match registers.driver_features_sel {
        0 => registers.driver_features = registers.driver_features & !u64::from(u32::MAX) | value,
        1 => {
            registers.driver_features =
                registers.driver_features & u64::from(u32::MAX) | value << 32
        }
        _ if value == 0 => {}
        _ => return None,
    }
    Some(())
}

/// An address of which the driver wrote one half.
fn with_half(address: u64, offset: u64, value: u32) -> GuestAddress {
    // Of each pair of registers the higher one holds the higher half.
    let shift = if offset.is_multiple_of(8) { 0 } else { 32 };
    GuestAddress(address & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift)
}

/// The 32 feature bits that `sel` chooses.
fn half(features: u64, sel: u32) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the half is what is asked for"
    )]
    match sel {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
