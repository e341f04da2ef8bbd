//! The virtio block device: a raw file or block device as the guest's disk.
//!
//! ```text
//!   chain ──parse──▶ Request ──steps──▶ Step, Step… ──▶ Operation ──engine──▶ the file
//!          (refused: answered at once)                    (short: the rest again)
//! ```
//!
//! A thread of the disk's own serves the queue, many requests at a time (`worker`). What the guest
//! says is checked in one place (`request`); what is to be done with the file is decided in another
//! (`plan`); the kernel is reached through a third (`engine`), which owns what the kernel may touch.
//!
//! What stays true: a write that was answered is in the file, as its page cache has it, and survives
//! the VM process; after an answered flush, or in a guest that knows no flushes, it survives the
//! machine. No request is in flight when [`Device::reset`] returns. The file is never mapped, so
//! nobody who cuts it can stop the VM.

mod engine;
mod format;
mod image;
mod operation;
mod plan;
mod request;
#[cfg(test)]
mod tests;
mod wire;
mod worker;

pub use engine::EngineKind;
pub use image::{DiskError, DiskImage};
pub use worker::DiskWires;

use super::{Device, lock};
use crate::event::Event;
use protocol::{DiskCounters, DiskFigures, DiskSpec};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use virtio_queue::Queue;
use wire::{
    CONFIG_BYTES, F_BLOCK_SIZE, F_DISCARD, F_FLUSH, F_READ_ONLY, F_SEG_MAX, F_SIZE_MAX, F_TOPOLOGY,
    F_WRITE_ZEROES, SECTOR,
};
use worker::{Order, WorkerParts};

const QUEUE_SIZES: [u16; 1] = [256];

/// The device. Ends its thread when it is dropped.
#[derive(Debug)]
pub struct Disk {
    features: u64,
    config: [u8; CONFIG_BYTES],
    figures: Arc<Mutex<DiskFigures>>,
    orders: Sender<Order>,
    wake: Event,
}

impl Disk {
    /// How many queues it has.
    pub const QUEUES: usize = QUEUE_SIZES.len();

    /// Starts the thread of a disk: `disk0` for number 0. It has its ring when this returns, for a process may be
    /// forbidden to make one later.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(
        image: DiskImage,
        number: usize,
        wires: DiskWires,
        engine: EngineKind,
    ) -> Result<Self, DiskError> {
        let path = image.spec.path.clone();
        let no_thread = |source| DiskError::StartThread {
            path: path.clone(),
            source,
        };
        let wake = Event::new().map_err(no_thread)?;
        let (orders, inbox) = channel();
        let figures = DiskFigures {
            size_bytes: image.geometry.sectors * SECTOR,
            counters: DiskCounters::default(),
            last_error: None,
        };
        let disk = Self {
            features: offered(&image.spec),
            config: image.geometry.config_space(),
            figures: Arc::new(Mutex::new(figures)),
            orders,
            wake: wake.clone(),
        };
        let (ready, made) = sync_channel(1);
        let parts = WorkerParts {
            image,
            wires,
            orders: inbox,
            wake,
            figures: Arc::clone(&disk.figures),
            engine,
            ready,
        };
        thread::Builder::new()
            .name(format!("disk{number}"))
            .spawn(move || worker::run(parts))
            .map_err(no_thread)?;
        if made.recv().is_err() {
            tracing::debug!("the disk's thread has ended at once");
        }
        Ok(disk)
    }

    /// How things stand.
    #[must_use]
    pub fn figures(&self) -> DiskFigures {
        *lock(&self.figures)
    }

    /// Finishes what is in flight, makes it safe, and ends the disk's thread. Requests that come
    /// later are not answered.
    pub fn close(&self) {
        self.ask(Order::End);
    }

    /// Has all that waits in the queue carried out, as if it was notified.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn serve_all(&self) {
        self.ask(Order::ServeAll);
    }

    /// Returns when the order has been carried out. A thread that has ended holds nothing that it
    /// could still let go.
    fn ask(&self, order: impl FnOnce(SyncSender<()>) -> Order) {
        let (done, wait) = sync_channel(1);
        if self.send(order(done)) && wait.recv().is_err() {
            tracing::debug!("the disk's thread has ended before");
        }
    }

    fn send(&self, order: Order) -> bool {
        let sent = self.orders.send(order).is_ok();
        self.wake.signal();
        sent
    }
}

fn offered(spec: &DiskSpec) -> u64 {
    let always = F_SIZE_MAX | F_SEG_MAX | F_BLOCK_SIZE | F_TOPOLOGY | F_FLUSH;
    match spec.read_only {
        true => always | F_READ_ONLY,
        false => always | F_DISCARD | F_WRITE_ZEROES,
    }
}

impl Device for Disk {
    fn device_type(&self) -> u32 {
        wire::DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        self.config.to_vec()
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {
        // Nothing that is offered can be written.
        lock(&self.figures).counters.malformed += 1;
    }

    fn activate(&self, features: u64, queues: Vec<Queue>) {
        let queue = queues.into_iter().next();
        let order = queue.map(|queue| Order::Activate {
            features,
            queue: Box::new(queue),
        });
        if let Some(order) = order
            && !self.send(order)
        {
            tracing::debug!("a driver came after the disk's end");
        }
    }

    fn reset(&self) {
        self.ask(Order::Reset);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}
