//! Finding the balloon among the virtio-mmio devices of the command line.

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

// SAFETY: `find_balloon` lends it once.
unsafe impl Sync for StorageCell {}

static STORAGE: StorageCell = StorageCell(UnsafeCell::new(Storage::new()));

/// Starts the first balloon device. Returns it and the pin that it interrupts on.
///
/// # Safety
/// To be called once.
pub(crate) unsafe fn find_balloon(
    line: &CommandLine<'_>,
    inside: FrameSet<'static>,
) -> Option<(GuestBalloon, u8)> {
    let (transport, irq) = line.devices().find_map(|device| {
        let transport = open(device)?;
        (transport.device_type() == DeviceType::MemoryBalloon).then_some((transport, device.irq))
    })?;
    // SAFETY: the caller calls once, so this is the only reference.
    let storage = unsafe { &mut *STORAGE.0.get() };
    let batch_pages = line.batch_pages as usize;
    match Balloon::new(Setup {
        transport,
        storage,
        inside,
        batch_pages,
    }) {
        Ok(balloon) => Some((balloon, irq)),
        Err(error) => {
            println!("error: the balloon device cannot be used: {error}");
            None
        }
    }
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
