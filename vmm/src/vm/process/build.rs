//! Builds a VM from what was opened: its machine, devices, agent and threads. No vCPU runs yet.

use super::open::Opened;
use super::run::Process;
use crate::event::Event;
use crate::memory::agent::{AgentHandle, Outs};
use crate::virtio::blk::DiskImage;
use crate::vm::boot;
use crate::vm::bus::Bus;
use crate::vm::console::Console;
use crate::vm::devices::Devices;
use crate::vm::end_signals::EndSignals;
use crate::vm::error::VmError;
use crate::vm::gate::Gate;
use crate::vm::machine::Machine;
use crate::vm::throttle::Throttle;
use crate::vm::vcpu::{self, Ending};
use kvm_ioctls::VcpuFd;
use protocol::Channel;
use rustix::event::epoll::{self, CreateFlags};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

pub(super) fn build(
    channel: &Channel,
    signals: EndSignals,
    opened: Opened,
) -> Result<Process<'_>, VmError> {
    let (config, ram) = (opened.config, opened.ram);
    let machine = Machine::new(opened.kvm, &ram)?;
    let outs = match (opened.swap_file, config.swap_file_for) {
        (Some(file), Some(pages)) => Outs::GoToFile(file, pages),
        _ if config.has_swap => Outs::GoToLog,
        _ => Outs::Stay,
    };
    let read_only = opened.disks.iter().map(DiskImage::read_only_file).collect();
    let agent = AgentHandle::start_behind(opened.fence, &ram, opened.scanner, outs, read_only)?;
    let mut devices = Devices::new(&machine, &ram);
    let balloon = devices.add_balloon(agent.clone(), config.balloon_target)?;
    let disks = devices.add_disks(opened.disks, &agent)?;
    let nets = devices.add_nets(&config.nets, opened.taps)?;
    if config.kernel.is_some() {
        devices.add_rng()?;
    }
    let slots = devices.slots();
    let (devices, queues) = devices.finish();
    let bus = Arc::new(Bus {
        console: Console::new(opened.console).map_err(VmError::StartThread)?,
        devices,
    });
    machine.connect_console(bus.console.line())?;
    let power_button = Event::new().map_err(VmError::StartThread)?;
    machine.connect_power_button(&power_button)?;
    let entry = boot::load(&config, opened.kernel, &ram, &slots)?;
    let ended = Event::new().map_err(VmError::StartThread)?;
    let (tell, endings) = mpsc::channel();
    let gate = Arc::new(Gate::closed());
    let vcpus = (0..).zip(machine.vcpus(config.vcpus, entry)?);
    let vcpus = vcpus
        .map(|(index, vcpu)| start_vcpu(index, vcpu, &bus, &gate, (tell.clone(), ended.clone())))
        .collect::<Result<_, _>>()?;
    Ok(Process {
        channel,
        start_us: u64::try_from(opened.begin.elapsed().as_micros()).unwrap_or(u64::MAX),
        config,
        throttle: Throttle::start(ram.clone(), Arc::clone(&gate), vcpus)
            .map_err(VmError::StartThread)?,
        gate,
        ram,
        agent,
        bus,
        balloon,
        nets,
        disks,
        queues,
        power_button,
        endings,
        ended,
        signals,
        power_off_by: None,
        epoll: epoll::create(CreateFlags::CLOEXEC).map_err(VmError::Wait)?,
        _machine: machine,
    })
}

/// Its thread waits at the gate first, and tells of the guest's end.
fn start_vcpu(
    index: usize,
    vcpu: VcpuFd,
    bus: &Arc<Bus>,
    gate: &Arc<Gate>,
    (tell, ended): (Sender<Ending>, Event),
) -> Result<JoinHandle<()>, VmError> {
    let (bus, gate) = (Arc::clone(bus), Arc::clone(gate));
    let body = move || {
        // Nobody listens any more only when the process is ending already.
        if tell.send(vcpu::run(vcpu, &bus, &gate)).is_ok() {
            ended.signal();
        }
    };
    thread::Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(body)
        .map_err(VmError::StartThread)
}
