//! A virtual processor: a thread that runs the guest and answers when it reaches for a device.

use crate::vm::bus::{AfterWrite, Bus};
use crate::vm::gate::Gate;
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::io::Errno;
use std::sync::Arc;

/// Why a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It asked to be reset or switched off.
    AskedTo,
    /// It cannot go on: a fault it could not handle, or an instruction that KVM cannot do.
    Died(String),
}

impl Ending {
    pub(super) fn reason(&self) -> String {
        match self {
            Self::AskedTo => "the guest switched itself off".into(),
            Self::Died(why) => format!("the guest died: {why}"),
        }
    }
}

/// Runs the guest until it ends, as long as the gate is open.
pub(super) fn run(mut vcpu: VcpuFd, bus: &Arc<Bus>, gate: &Gate) -> Ending {
    loop {
        gate.pass();
        if let Some(ending) = step(&mut vcpu, bus) {
            return ending;
        }
    }
}

fn step(vcpu: &mut VcpuFd, bus: &Bus) -> Option<Ending> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => match bus.write_port(port, data) {
            AfterWrite::GoOn => None,
            AfterWrite::End => Some(Ending::AskedTo),
        },
        Ok(VcpuExit::IoIn(port, data)) => {
            bus.read_port(port, data);
            None
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            bus.read_memory(address, data);
            None
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            bus.write_memory(address, data);
            None
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => None,
        Ok(VcpuExit::Shutdown) => Some(Ending::Died(
            "a fault while handling a fault (triple fault)".into(),
        )),
        Ok(VcpuExit::SystemEvent(..)) => Some(Ending::AskedTo),
        Ok(exit) => {
            let exit = format!("{exit:?}");
            Some(Ending::Died(describe(vcpu, &exit)))
        }
        Err(error) if interrupted(error.errno()) => None,
        Err(error) => Some(Ending::Died(describe(vcpu, &error.to_string()))),
    }
}

fn interrupted(errno: i32) -> bool {
    [Errno::INTR, Errno::AGAIN]
        .iter()
        .any(|known| known.raw_os_error() == errno)
}

/// What happened and where, for whoever wrote the guest.
fn describe(vcpu: &VcpuFd, what: &str) -> String {
    match vcpu.get_regs() {
        Ok(registers) => format!("{what} at instruction {:#x}", registers.rip),
        Err(_) => what.to_owned(),
    }
}
