//! The virtual machine as KVM sees it: memory slots, interrupt controllers, processors, and the
//! events by which devices and guest reach each other without going through a vCPU thread.

use crate::event::Event;
use crate::memory::ram::GuestRam;
use crate::virtio::Interrupt;
use crate::vm::boot::{Entry, LongModeEntry};
use crate::vm::bus::{CONSOLE_LINE, DeviceSlot, POWER_BUTTON_LINE};
use crate::vm::cpuid;
use crate::vm::error::VmError;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs, kvm_segment,
    kvm_sregs, kvm_userspace_memory_region,
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
    pub(super) fn new(kvm: Kvm, ram: &GuestRam) -> Result<Self, VmError> {
        let vm = kvm.create_vm().map_err(refused("make a virtual machine"))?;
        vm.set_tss_address(KVM_PRIVATE_PAGES)
            .map_err(refused("place its private pages"))?;
        vm.create_irq_chip()
            .map_err(refused("make interrupt controllers"))?;
        let timer = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        vm.create_pit2(timer).map_err(refused("make a timer"))?;
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

    /// Events at `button` become presses of the guest's power button.
    pub(super) fn connect_power_button(&self, button: &Event) -> Result<(), VmError> {
        self.vm
            .register_irqfd(button.descriptor(), POWER_BUTTON_LINE)
            .map_err(refused("connect the power button"))
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
        vcpu.set_cpuid2(&cpuid::for_processor(cpuid, index, count))
            .map_err(refused("set a processor's features"))?;
        set_interrupt_pins(&vcpu).map_err(refused("set a processor's interrupt pins"))?;
        Ok(vcpu)
    }
}

/// Opens KVM, and looks whether it can do all that is needed.
pub(super) fn open_kvm() -> Result<Kvm, VmError> {
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

/// The two pins of a local APIC as firmware leaves them: the old interrupt controllers at one,
/// non-maskable interrupts at the other (Intel MultiProcessor Specification 1.4, section 3.6.1).
fn set_interrupt_pins(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const EXTERNAL: u8 = 0b111;
    const NON_MASKABLE: u8 = 0b100;
    let mut apic = vcpu.get_lapic()?;
    for (register, mode) in [(LINT0, EXTERNAL), (LINT1, NON_MASKABLE)] {
        // Bits 8 to 10 are the delivery mode, bit 16 masks.
        apic.regs[register + 1] =
            (apic.regs[register + 1].cast_unsigned() & !0b111 | mode).cast_signed();
        apic.regs[register + 2] = (apic.regs[register + 2].cast_unsigned() & !1).cast_signed();
    }
    vcpu.set_lapic(&apic)
}

fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    const DATA: u8 = 0x3;
    let mut system = vcpu.get_sregs()?;
    let registers = match entry {
        Entry::Protected {
            address,
            start_info,
        } => {
            set_protected_mode(&mut system);
            kvm_regs {
                rip: address.0,
                rbx: start_info.0,
                ..kvm_regs::default()
            }
        }
        Entry::Long(entry) => {
            set_long_mode(&mut system, &entry);
            kvm_regs {
                rip: entry.address,
                rsi: entry.parameters,
                ..kvm_regs::default()
            }
        }
    };
    // In both tables of descriptors that of data follows that of code.
    let data = flat_segment(system.cs.selector + 8, DATA);
    (system.ds, system.es, system.ss) = (data, data, data);
    (system.fs, system.gs) = (data, data);
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs {
        rflags: 1 << 1,
        ..registers
    })
}

const PROTECTED_MODE: u64 = 1 << 0;
/// The type of a segment of code.
const CODE: u8 = 0xb;

/// Long mode with identity-mapped memory, as Linux' 64-bit boot protocol wants it.
fn set_long_mode(system: &mut kvm_sregs, entry: &LongModeEntry) {
    const PAGING: u64 = 1 << 31;
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const LONG_MODE_ENABLED_AND_ACTIVE: u64 = 1 << 8 | 1 << 10;
    system.cr0 = PROTECTED_MODE | PAGING;
    system.cr3 = entry.page_tables;
    system.cr4 |= PHYSICAL_ADDRESS_EXTENSION;
    system.efer |= LONG_MODE_ENABLED_AND_ACTIVE;
    system.gdt.base = entry.descriptors;
    system.gdt.limit = 4 * 8 - 1;
    system.cs = kvm_segment {
        l: 1,
        db: 0,
        ..flat_segment(0x10, CODE)
    };
}

/// 32-bit protected mode with flat segments and no paging, as PVH wants it.
fn set_protected_mode(system: &mut kvm_sregs) {
    const BUSY_TASK: u8 = 0xb;
    system.cr0 = PROTECTED_MODE;
    system.cs = flat_segment(0x8, CODE);
    system.tr = kvm_segment {
        type_: BUSY_TASK,
        limit: 0x67,
        s: 0,
        g: 0,
        db: 0,
        ..flat_segment(0x18, BUSY_TASK)
    };
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
