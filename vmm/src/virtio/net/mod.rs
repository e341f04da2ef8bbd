//! A network card: frames between its guest and a tap of the host's kernel.
//!
//! A thread of its own serves both queues and the tap. Each packet is copied through a buffer of
//! the device: the agent may change what backs guest memory at any time, and the guest may change
//! a header after it was checked. Checksums and cutting into segments are left to whoever can do
//! them best: a whole TCP segment of 64 KiB goes through as one packet, and its header, where it
//! comes from the guest, is a claim (see `header.rs`).
//!
//! Nothing here waits for the guest: without buffers for received packets the tap is not read,
//! and its own queue drops what is too much.

mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod header;
mod queue;
mod rate;
mod receive;
#[cfg(any(test, feature = "fuzzing"))]
mod stand_in;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;
mod wire;
mod worker;

pub(crate) use tap::IOCTL as TAP_IOCTL;
pub use tap::{Tap, TapError};
pub use worker::NetThread;

use super::{Device, Interrupt, InterruptCause, lock};
use crate::event::Event;
use features::{Agreed, OFFERED};
use protocol::{MacAddress, NetCounters};
use queue::BatchQueue;
use rate::Pace;
use receive::Receiver;
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::fmt::Debug;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use transmit::Transmitter;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use wire::*;

/// Descriptors of each queue.
const QUEUE_SIZES: [u16; 2] = [256; 2];

/// Where a card's frames come from and go to: a descriptor that carries one packet, with the
/// header of virtio before it, each time it is read or written.
pub trait FramePort: AsFd + Debug + Send + Sync + 'static {
    /// From now on the kernel may leave this undone in packets that are read, in its own bits.
    ///
    /// # Errors
    /// When the kernel does not know of such work, or the tap is gone.
    fn set_offloads(&self, offloads: u32) -> Result<(), Errno>;

    /// The next packet; its length. Never waits.
    ///
    /// # Errors
    /// `AGAIN` when there is none, anything else when there will be none.
    fn read_packet(&self, packet: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(self, packet)
    }

    /// Sends a packet. Never waits.
    ///
    /// # Errors
    /// `AGAIN` when there is no room, anything else when it is not taken.
    fn write_packet(&self, packet: &[u8]) -> Result<usize, Errno> {
        rustix::io::write(self, packet)
    }
}

/// What a card is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// Its address.
    pub mac: MacAddress,
    /// How long packets on its network may be, if that is known.
    pub mtu: Option<u16>,
    /// The most bytes a second in each direction.
    pub bytes_per_s: Option<u64>,
}

/// The device. vCPUs set it up, its thread serves it. Locks are taken in the order of the fields.
#[derive(Debug)]
pub struct Net<P> {
    spec: NetSpec,
    port: P,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    link_up: AtomicBool,
    /// Signalled when there is a new driver, or none any more.
    changed: Event,
    driver: Mutex<Option<Driver>>,
    counters: Mutex<NetCounters>,
}

/// A guest's driver that is ready: the queues it set up.
#[derive(Debug)]
struct Driver {
    agreed: Agreed,
    receiver: Receiver,
    transmitter: Transmitter,
}

/// What a packet's way needs to know.
#[derive(Debug)]
struct Place<'a, P> {
    port: &'a P,
    memory: &'a GuestMemoryMmap,
    agreed: Agreed,
}

impl<P> Clone for Place<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Place<'_, P> {}

/// What one direction must wait for before it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Only for the other direction to have its turn.
    Turn,
    /// For the guest to notify the queue.
    Notice,
    /// For a packet from the tap.
    Frames,
    /// For room in the tap.
    TapRoom,
    /// For its rate.
    Time(Duration),
    /// For nothing: the tap has been deleted.
    TapGone,
}

/// The bounds on both directions. They outlive a driver: a reset does not fill them.
#[derive(Clone, Debug)]
struct Paces {
    receive: Pace,
    transmit: Pace,
}

impl<P: FramePort> Net<P> {
    /// How many queues it has.
    pub const QUEUES: usize = QUEUE_SIZES.len();

    /// A card whose other side is `port`.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(
        spec: NetSpec,
        port: P,
        memory: GuestMemoryMmap,
        interrupt: Interrupt,
    ) -> io::Result<Self> {
        Ok(Self {
            spec,
            port,
            memory,
            interrupt,
            link_up: AtomicBool::new(true),
            changed: Event::new()?,
            driver: Mutex::new(None),
            counters: Mutex::default(),
        })
    }

    /// Whether a driver has set the device up.
    #[must_use]
    pub fn has_driver(&self) -> bool {
        lock(&self.driver).is_some()
    }

    /// What went through so far.
    #[must_use]
    pub fn counters(&self) -> NetCounters {
        *lock(&self.counters)
    }

    /// The card's bounds, with nothing used yet.
    fn paces(&self) -> Paces {
        Paces {
            receive: Pace::new(self.spec.bytes_per_s),
            transmit: Pace::new(self.spec.bytes_per_s),
        }
    }

    /// Moves some packets in both directions; what each waits for then. Nothing without a driver.
    fn serve(&self, paces: &mut Paces, now: Duration) -> Option<[Wait; 2]> {
        let mut driver = lock(&self.driver);
        let ready = driver.as_mut()?;
        let mut counters = *lock(&self.counters);
        let served = self.serve_ready(ready, paces, now, &mut counters);
        *lock(&self.counters) = counters;
        match served {
            Ok(waits) => {
                if waits.contains(&Wait::TapGone) {
                    self.take_link_down();
                }
                Some(waits)
            }
            Err(_) => {
                self.give_up(&mut driver);
                None
            }
        }
    }

    /// An error when the driver has made a queue unusable.
    fn serve_ready(
        &self,
        driver: &mut Driver,
        paces: &mut Paces,
        now: Duration,
        counters: &mut NetCounters,
    ) -> Result<[Wait; 2], virtio_queue::Error> {
        let place = Place {
            port: &self.port,
            memory: &self.memory,
            agreed: driver.agreed,
        };
        let (receiver, transmitter) = (&mut driver.receiver, &mut driver.transmitter);
        let receive = if self.link_up.load(Ordering::Relaxed) {
            receiver.serve(place, &mut paces.receive, now, counters)?
        } else {
            Wait::TapGone
        };
        let transmit = transmitter.serve(place, &mut paces.transmit, now, counters)?;
        let mut wanted = false;
        for queue in [&mut receiver.queue, &mut transmitter.queue] {
            wanted |= queue.give_back(&self.memory)?;
        }
        if wanted {
            self.interrupt.raise(InterruptCause::UsedBuffer);
        }
        Ok([receive, transmit])
    }

    /// The tap has been deleted under us: for the guest, somebody pulled the cable.
    fn take_link_down(&self) {
        if self.link_up.swap(false, Ordering::Relaxed) {
            self.interrupt.raise(InterruptCause::Configuration);
        }
    }

    /// The driver has made a queue unusable: nothing of it is served until it resets the device.
    fn give_up(&self, driver: &mut Option<Driver>) {
        *driver = None;
        lock(&self.counters).broken_queues += 1;
        self.interrupt.demand_reset();
    }

    /// A tap that is gone takes no settings, and needs none.
    fn set_offloads(&self, offloads: u32) {
        if let Err(error) = self.port.set_offloads(offloads) {
            tracing::debug!("the tap's offloads were not set: {error}");
        }
    }
}

impl<P: FramePort> Device for Net<P> {
    fn device_type(&self) -> u32 {
        wire::DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        OFFERED | self.spec.mtu.map_or(0, |_| F_MTU)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config_space(&self) -> Vec<u8> {
        let status = match self.link_up.load(Ordering::Relaxed) {
            true => STATUS_LINK_UP,
            false => 0,
        };
        // How many pairs of queues there are is for drivers that agreed on several.
        let (pairs, mtu) = (0u16, self.spec.mtu.unwrap_or(0));
        let numbers = [status, pairs, mtu].map(u16::to_le_bytes);
        [&self.spec.mac.bytes()[..], &numbers.concat()].concat()
    }

    /// Nothing in it may be written by a driver of the modern interface.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn activate(&self, features: u64, queues: Vec<Queue>) {
        let Ok([receive, transmit]) = <[Queue; 2]>::try_from(queues) else {
            unreachable!("the transport makes as many queues as there are sizes");
        };
        let agreed = Agreed::of(features);
        // First: nothing may come that the driver does not finish.
        self.set_offloads(agreed.tap_offloads());
        let batch = |queue| BatchQueue::new(queue, agreed.has(F_EVENT_IDX));
        *lock(&self.driver) = Some(Driver {
            agreed,
            receiver: Receiver::new(batch(receive)),
            transmitter: Transmitter::new(batch(transmit)),
        });
        self.changed.signal();
    }

    fn reset(&self) {
        *lock(&self.driver) = None;
        self.set_offloads(0);
        self.changed.signal();
    }
}
