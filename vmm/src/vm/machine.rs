//! The virtual machine as KVM sees it: memory slots, interrupt controllers, processors, and the
//! events by which devices and guest reach each other without going through a vCPU thread.

use crate::event::Event;
use crate::memory::ram::GuestRam;
use crate::virtio::Interrupt;
use crate::vm::boot::Entry;
use crate::vm::bus::{CONSOLE_LINE, DeviceSlot};
use crate::vm::error::VmError;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Most processors of a VM.
pub const MOST_VCPUS: u8 = 8;

/// Three pages that KVM on Intel needs, in the gap for devices where no guest looks.
const KVM_PRIVATE_PAGES: usize = 0xfffb_d000;
const KVM_API_VERSION: i32 = 12;
const NEEDED: [(Cap, &str); 4] = [
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::UserMemory, "user memory regions"),
];

/// A virtual machine without processors yet.
#[derive(Debug)]
pub(super) struct Machine {
    kvm: Kvm,
    vm: VmFd,
}

impl Machine {
    /// Makes a virtual machine with the given memory.
    pub(super) fn new(ram: &GuestRam) -> Result<Self, VmError> {
        let kvm = open_kvm()?;
        let vm = kvm.create_vm().map_err(refused("make a virtual machine"))?;
        vm.set_tss_address(KVM_PRIVATE_PAGES)
            .map_err(refused("place its private pages"))?;
        vm.create_irq_chip()
            .map_err(refused("make interrupt controllers"))?;
        let machine = Self { kvm, vm };
        machine.map_memory(ram)?;
        Ok(machine)
    }

    #[expect(unsafe_code, reason = "KVM takes the address of guest memory")]
    fn map_memory(&self, ram: &GuestRam) -> Result<(), VmError> {
        for (slot, region) in (0..).zip(ram.memory().iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as `ram` lives, and the process holds a
            // clone of it until it ends.
            unsafe { self.vm.set_user_memory_region(slot) }
                .map_err(refused("map the guest's memory"))?;
        }
        Ok(())
    }

    /// Events at `line` become interrupts of the guest's console.
    pub(super) fn connect_console(&self, line: &Event) -> Result<(), VmError> {
        self.vm
            .register_irqfd(line.descriptor(), CONSOLE_LINE)
            .map_err(refused("connect the console's interrupt"))
    }

    /// Connects a device: its interrupts go to the guest, and a notification of queue `i` becomes
    /// an event at `queues[i]`.
    pub(super) fn connect_device(
        &self,
        slot: DeviceSlot,
        interrupt: &Interrupt,
        queues: &[Event],
    ) -> Result<(), VmError> {
        self.vm
            .register_irqfd(interrupt.line().descriptor(), slot.line())
            .map_err(refused("connect a device's interrupt"))?;
        let address = IoEventAddress::Mmio(slot.notify_address());
        for (index, event) in (0u32..).zip(queues) {
            self.vm
                .register_ioevent(event.descriptor(), &address, index)
                .map_err(refused("connect a device's queue"))?;
        }
        Ok(())
    }

    /// Makes the processors. The first begins at `entry`; the others wait until it starts them.
    pub(super) fn vcpus(&self, count: u8, entry: Entry) -> Result<Vec<VcpuFd>, VmError> {
        let cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("tell its processor features"))?;
        let vcpus = (0..count).map(|index| self.vcpu(index, count, &cpuid));
        let vcpus = vcpus.collect::<Result<Vec<_>, _>>()?;
        set_entry(&vcpus[0], entry).map_err(refused("set a processor's first state"))?;
        Ok(vcpus)
    }

    fn vcpu(&self, index: u8, count: u8, cpuid: &CpuId) -> Result<VcpuFd, VmError> {
        let vcpu = self
            .vm
            .create_vcpu(index.into())
            .map_err(refused("make a processor"))?;
        vcpu.set_cpuid2(&with_topology(cpuid, index, count))
            .map_err(refused("set a processor's features"))?;
        Ok(vcpu)
    }
}

fn open_kvm() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(VmError::OpenKvm)?;
    match kvm.get_api_version() {
        KVM_API_VERSION => {}
        other => return Err(VmError::KvmVersion(other)),
    }
    match NEEDED
        .into_iter()
        .find(|(capability, _)| !kvm.check_extension(*capability))
    {
        Some((_, name)) => Err(VmError::KvmLacks(name)),
        None => Ok(kvm),
    }
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { what, source }
}

/// The processor's own number and the number of processors, where software looks for them
/// (Intel's manual, volume 2A, CPUID leaves 1 and 0BH).
fn with_topology(cpuid: &CpuId, index: u8, count: u8) -> CpuId {
    let (index, count) = (u32::from(index), u32::from(count));
    let mut cpuid = cpuid.clone();
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (0x1, _) => entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | index << 24,
            (0xb, 0) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 1, 1 << 8, index),
            (0xb, 1) => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (3, count, 2 << 8 | 1, index)
            }
            (0xb, _) => (entry.eax, entry.ebx, entry.edx) = (0, 0, index),
            _ => {}
        }
    }
    cpuid
}

/// 32-bit protected mode with flat segments and no paging, as PVH wants it.
fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    const PROTECTED_MODE: u64 = 1 << 0;
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    const BUSY_TASK: u8 = 0xb;
    let mut system = vcpu.get_sregs()?;
    system.cr0 = PROTECTED_MODE;
    system.cs = flat_segment(0x8, CODE);
    let data = flat_segment(0x10, DATA);
    (system.ds, system.es, system.ss) = (data, data, data);
    (system.fs, system.gs) = (data, data);
    system.tr = kvm_segment {
        type_: BUSY_TASK,
        limit: 0x67,
        s: 0,
        g: 0,
        db: 0,
        ..flat_segment(0x18, BUSY_TASK)
    };
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.address.0,
        rbx: entry.start_info.0,
        rflags: 1 << 1,
        ..kvm_regs::default()
    })
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}
