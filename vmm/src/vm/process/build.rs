//! Builds a VM from what was opened: its machine, devices, agent and threads. No vCPU runs yet, and
//! the jail is closed last.

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
use crate::vm::jail::{Jail, VcpuJail};
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
    channel: &mut Channel,
    signals: EndSignals,
    opened: Opened,
    jail: Jail,
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
    let start = Start {
        bus: &bus,
        gate: &gate,
        jail: jail.of_vcpus(),
        tell,
        ended: &ended,
    };
    let vcpus = (0..).zip(machine.vcpus(config.vcpus, entry)?);
    let vcpus = vcpus
        .map(|(index, vcpu)| start_vcpu(index, vcpu, &start))
        .collect::<Result<_, _>>()?;
    let throttle =
        Throttle::start(ram.clone(), Arc::clone(&gate), vcpus).map_err(VmError::StartThread)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(VmError::Wait)?;
    let jail = jail.close(config.settings.size);
    Ok(Process {
        channel,
        door: opened.door,
        start_us: u64::try_from(opened.begin.elapsed().as_micros()).unwrap_or(u64::MAX),
        config,
        jail,
        throttle,
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
        epoll,
        _machine: machine,
    })
}

/// What all vCPUs' threads are given.
struct Start<'a> {
    bus: &'a Arc<Bus>,
    gate: &'a Arc<Gate>,
    jail: VcpuJail,
    tell: Sender<Ending>,
    ended: &'a Event,
}

/// Its thread waits at the gate first, enters its part of the jail, and tells of the guest's end.
fn start_vcpu(index: usize, vcpu: VcpuFd, start: &Start<'_>) -> Result<JoinHandle<()>, VmError> {
    let (bus, gate) = (Arc::clone(start.bus), Arc::clone(start.gate));
    let (jail, tell, ended) = (start.jail.clone(), start.tell.clone(), start.ended.clone());
    let body = move || {
        gate.pass();
        let ending = match jail.enter() {
            Ok(()) => vcpu::run(vcpu, &bus, &gate),
            Err(error) => Ending::Died(format!("its processor cannot be jailed: {error}")),
        };
        // Nobody listens any more only when the process is ending already.
        if tell.send(ending).is_ok() {
            ended.signal();
        }
    };
    thread::Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(body)
        .map_err(VmError::StartThread)
}
