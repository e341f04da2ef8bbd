//! Finding the balloon and the disk among the virtio-mmio devices of the command line.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use balloon_guest_driver::Balloon;
use balloon_guest_driver::balloon::{Setup, Storage};
use balloon_guest_driver::command_line::{CommandLine, MmioDevice};
use balloon_guest_driver::set::FrameSet;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport};

use crate::dma::GuestHal;
use crate::serial::println;

pub(crate) type GuestBalloon = Balloon<GuestHal, MmioTransport<'static>>;

struct StorageCell(UnsafeCell<Storage>);

// SAFETY: `start_balloon` lends it once.
unsafe impl Sync for StorageCell {}

static STORAGE: StorageCell = StorageCell(UnsafeCell::new(Storage::new()));

/// A device and the pin that it interrupts on.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) transport: MmioTransport<'static>,
    pub(crate) pin: u8,
}

/// The first device of each kind that there is a driver for.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub(crate) balloon: Option<Found>,
    pub(crate) disk: Option<Found>,
}

impl Devices {
    /// Looks at each device once, for those that are not kept are reset.
    pub(crate) fn find(line: &CommandLine<'_>) -> Self {
        let mut found = Self::default();
        for device in line.devices() {
            let Some(transport) = open(device) else {
                continue;
            };
            let place = match transport.device_type() {
                DeviceType::MemoryBalloon if line.has_balloon => &mut found.balloon,
                DeviceType::Block => &mut found.disk,
                _ => continue,
            };
            if place.is_none() {
                *place = Some(Found {
                    transport,
                    pin: device.irq,
                });
            }
        }
        found
    }
}

/// Starts the balloon device.
///
/// # Safety
/// To be called once.
pub(crate) unsafe fn start_balloon(
    transport: MmioTransport<'static>,
    batch_pages: u32,
    inside: FrameSet<'static>,
) -> Option<GuestBalloon> {
    // SAFETY: the caller calls once, so this is the only reference.
    let storage = unsafe { &mut *STORAGE.0.get() };
    let balloon = Balloon::new(Setup {
        transport,
        storage,
        inside,
        batch_pages: batch_pages as usize,
    });
    balloon
        .inspect_err(|error| println!("error: the balloon device cannot be used: {error}"))
        .ok()
}

fn open(device: MmioDevice) -> Option<MmioTransport<'static>> {
    let header = NonNull::new(device.address as *mut VirtIOHeader)?;
    if !header.is_aligned() {
        return None;
    }
    let size = usize::try_from(device.size).ok()?;
    // SAFETY: the command line says that a device is there; the first 4 GiB are mapped where they
    // are, and what does not answer with the magic number is let alone.
    match unsafe { MmioTransport::new(header, size) } {
        Ok(transport) => Some(transport),
        Err(error) => {
            println!("error: no virtio device at {:#x}: {error}", device.address);
            None
        }
    }
}
