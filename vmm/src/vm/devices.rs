//! Puts a VM's virtio devices together: each gets its place on the bus, its interrupt and an event for
//! each of its queues.

use crate::event::Event;
use crate::memory::agent::AgentHandle;
use crate::memory::ram::GuestRam;
use crate::memory::swap::GuestDisks;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{Disk, DiskImage, DiskWires, EngineKind};
use crate::virtio::mmio::MmioTransport;
use crate::virtio::net::{Net, NetSpec, NetThread, Tap};
use crate::virtio::rng::Rng;
use crate::virtio::{Device, Interrupt, Served};
use crate::vm::bus::{DeviceSlot, MOST_DEVICES};
use crate::vm::error::VmError;
use crate::vm::machine::Machine;
use page::PageCount;
use protocol::{NetConfig, NetState};
use std::io;
use std::sync::Arc;

/// The devices that there are so far.
#[derive(Debug)]
pub(super) struct Devices<'a> {
    machine: &'a Machine,
    ram: &'a GuestRam,
    transports: Vec<MmioTransport<dyn Device>>,
    served: Vec<ServedQueue>,
}

/// A queue that the main thread serves.
#[derive(Debug)]
pub(super) struct ServedQueue {
    pub(super) device: Arc<dyn Served>,
    pub(super) queue: usize,
    pub(super) notified: Event,
}

/// Most network cards of a VM: all devices together have eight interrupt lines.
pub const MOST_NETS: usize = 4;

/// A network card and the thread that serves it.
#[derive(Debug)]
pub(super) struct RunningNet {
    net: Arc<Net<Tap>>,
    /// Ends with this.
    _thread: NetThread,
}

impl RunningNet {
    pub(super) fn state(&self) -> NetState {
        NetState {
            has_driver: self.net.has_driver(),
            counters: self.net.counters(),
        }
    }
}

/// What a device is connected by.
#[derive(Debug)]
struct Wires {
    interrupt: Interrupt,
    /// An event for each queue, which becomes ready when the guest notifies it.
    queues: Vec<Event>,
}

impl Wires {
    fn new(queues: usize) -> Result<Self, VmError> {
        let events: io::Result<Vec<Event>> = (0..queues).map(|_| Event::new()).collect();
        Ok(Self {
            interrupt: Interrupt::new().map_err(VmError::StartThread)?,
            queues: events.map_err(VmError::StartThread)?,
        })
    }
}

impl<'a> Devices<'a> {
    pub(super) fn new(machine: &'a Machine, ram: &'a GuestRam) -> Self {
        Self {
            machine,
            ram,
            transports: Vec::new(),
            served: Vec::new(),
        }
    }

    /// Connects a device whose queues are served by a thread of its own.
    fn add(&mut self, device: Arc<dyn Device>, wires: &Wires) -> Result<(), VmError> {
        let number = u32::try_from(self.transports.len()).unwrap_or(u32::MAX);
        assert!(number < MOST_DEVICES, "counted before they were opened");
        self.machine
            .connect_device(DeviceSlot(number), &wires.interrupt, &wires.queues)?;
        let (interrupt, memory) = (wires.interrupt.clone(), self.ram.memory().clone());
        let transport = MmioTransport::new(device, interrupt, memory);
        self.transports
            .push(transport.with_notifications(&wires.queues));
        Ok(())
    }

    /// Connects a device whose queues the main thread serves.
    fn add_served<D: Served + 'static>(
        &mut self,
        device: &Arc<D>,
        wires: &Wires,
    ) -> Result<(), VmError> {
        self.add(Arc::clone(device) as Arc<dyn Device>, wires)?;
        let queues = wires.queues.iter().enumerate();
        self.served.extend(queues.map(|(queue, event)| ServedQueue {
            device: Arc::clone(device) as Arc<dyn Served>,
            queue,
            notified: event.clone(),
        }));
        Ok(())
    }

    /// Connects the balloon.
    pub(super) fn add_balloon(
        &mut self,
        agent: AgentHandle,
        target: PageCount,
    ) -> Result<Arc<Balloon>, VmError> {
        let wires = Wires::new(Balloon::QUEUES)?;
        let interrupt = wires.interrupt.clone();
        let balloon = Arc::new(Balloon::new(self.ram.clone(), agent, interrupt, target));
        self.add_served(&balloon, &wires)?;
        Ok(balloon)
    }

    /// Connects the network cards, each with a thread of its own.
    pub(super) fn add_nets(
        &mut self,
        configs: &[NetConfig],
        taps: Vec<Tap>,
    ) -> Result<Vec<RunningNet>, VmError> {
        let cards = configs.iter().zip(taps).enumerate();
        cards
            .map(|(index, (config, tap))| self.add_net(index, config, tap))
            .collect()
    }

    fn add_net(
        &mut self,
        index: usize,
        config: &NetConfig,
        tap: Tap,
    ) -> Result<RunningNet, VmError> {
        let spec = NetSpec {
            mac: config.mac,
            mtu: tap.mtu(),
            bytes_per_s: config.bytes_per_s,
        };
        let wires = Wires::new(Net::<Tap>::QUEUES)?;
        let (memory, interrupt) = (self.ram.memory().clone(), wires.interrupt.clone());
        let net = Net::new(spec, tap, memory, interrupt).map_err(VmError::StartThread)?;
        let net = Arc::new(net);
        self.add(Arc::clone(&net) as Arc<dyn Device>, &wires)?;
        let name = format!("net{index}");
        let thread = NetThread::start(&name, Arc::clone(&net), &wires.queues)
            .map_err(VmError::StartThread)?;
        Ok(RunningNet {
            net,
            _thread: thread,
        })
    }

    /// Connects disks, each of which has a thread of its own.
    pub(super) fn add_disks(
        &mut self,
        images: Vec<DiskImage>,
        agent: &AgentHandle,
    ) -> Result<Vec<Arc<Disk>>, VmError> {
        let mut disks = Vec::new();
        for (number, image) in images.into_iter().enumerate() {
            let wires = Wires::new(Disk::QUEUES)?;
            let to_disk = DiskWires {
                memory: self.ram.memory().clone(),
                interrupt: wires.interrupt.clone(),
                notified: wires.queues[0].clone(),
                reads: listener(&image, number, agent),
            };
            let disk = Arc::new(Disk::start(image, number, to_disk, EngineKind::Best)?);
            self.add(Arc::clone(&disk) as Arc<dyn Device>, &wires)?;
            disks.push(disk);
        }
        Ok(disks)
    }

    /// Connects a source of random bytes.
    pub(super) fn add_rng(&mut self) -> Result<(), VmError> {
        let wires = Wires::new(Rng::QUEUES)?;
        let rng = Rng::new(self.ram.memory().clone(), wires.interrupt.clone());
        self.add_served(&Arc::new(rng), &wires)
    }

    /// Where the devices are, for the guest to be told.
    pub(super) fn slots(&self) -> Vec<DeviceSlot> {
        (0..)
            .zip(&self.transports)
            .map(|(number, _)| DeviceSlot(number))
            .collect()
    }

    /// The registers by slot, and the queues for the main thread.
    pub(super) fn finish(self) -> (Vec<MmioTransport<dyn Device>>, Vec<ServedQueue>) {
        (self.transports, self.served)
    }
}

/// Who hears what the guest reads from a disk that it can only read.
fn listener(
    image: &DiskImage,
    number: usize,
    agent: &AgentHandle,
) -> Option<(Arc<GuestDisks>, u8)> {
    image.read_only_file()?;
    let number = u8::try_from(number).ok()?;
    agent.guest_disks().map(|disks| (Arc::clone(disks), number))
}
