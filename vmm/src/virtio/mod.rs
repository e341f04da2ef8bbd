//! Virtio devices as virtio 1.2 describes them, modern only, over memory-mapped registers.
//!
//! Two threads meet here. A vCPU that reads or writes a register runs [`mmio::MmioTransport`]; the
//! queues are served by the VM's main thread through [`Served::serve`], or by a thread that a slow
//! device has of its own. Everything that comes from the guest is a claim: it is checked, counted
//! when wrong, and answered; it can panic nothing.

pub mod balloon;
pub mod blk;
mod chain;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "fuzz targets need a part of what tests need")
)]
pub mod fake_driver;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod interrupt;
pub mod mmio;
pub mod net;
pub mod rng;

pub use interrupt::{Interrupt, InterruptCause};

use crate::lock::lock;
use virtio_queue::Queue;

/// A device behind a transport.
pub trait Device: std::fmt::Debug + Send + Sync {
    /// Its number in the virtio standard, chapter 5.
    fn device_type(&self) -> u32;

    /// The features it offers; the transport adds `VERSION_1`.
    fn features(&self) -> u64;

    /// The largest size of each of its queues, in descriptors.
    fn queue_sizes(&self) -> &'static [u16];

    /// Its configuration space.
    fn config_space(&self) -> Vec<u8>;

    /// Reads its configuration space from `offset`. Bytes outside it read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        let start = usize::try_from(offset).map_or(space.len(), |start| start.min(space.len()));
        let count = data.len().min(space.len() - start);
        data.fill(0);
        data[..count].copy_from_slice(&space[start..start + count]);
    }

    /// The guest wrote to its configuration space. What may not be written is ignored.
    fn write_config(&self, offset: u64, data: &[u8]);

    /// The guest's driver is ready: `features` were agreed on, and `queues`, of which those that
    /// the driver set up are ready, are the device's from now until [`Device::reset`].
    fn activate(&self, features: u64, queues: Vec<Queue>);

    /// Stops using the queues. When it returns, the device touches no guest memory any more.
    fn reset(&self);
}

/// A device whose queues are served by whoever is told that they were notified.
pub trait Served: Device {
    /// Serves a queue that was notified. True if work is left and it wants to be called again.
    #[must_use]
    fn serve(&self, queue: usize) -> bool;
}
