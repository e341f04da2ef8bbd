//! ACPI tables: how a kernel finds processors, devices, and the way to switch the machine off
//! (ACPI 6.5; hardware-reduced, so that nothing of an old PC's power management must be there).
//!
//! The power button is an event of the Generic Event Device (section 5.6.9): an interrupt, for which
//! the kernel runs `_EVT`, which notifies the button.

use crate::vm::bus::{
    CONSOLE_FIRST_PORT, CONSOLE_LINE, DeviceSlot, POWER_BUTTON_LINE, POWER_OFF_TYPE, RESET_COMMAND,
    RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};
use acpi_tables::Aml;
use acpi_tables::aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where the tables begin: in the firmware's part of memory, where kernels also look by themselves.
pub(super) const RSDP: GuestAddress = GuestAddress(0xe_0000);
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const MAKER: [u8; 6] = *b"BLLNET";
const MODEL: [u8; 8] = *b"BALLONET";
const REVISION: u32 = 1;
/// Absent, says the FADT: a VGA adapter and a CMOS clock (ACPI 6.5, table 5.10).
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// Writes all tables.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    vcpus: u8,
    devices: &[DeviceSlot],
) -> Result<(), GuestMemoryError> {
    let mut next = Place {
        memory,
        at: RSDP.0 + 64,
    };
    let dsdt = next.put(dsdt(devices).as_slice())?;
    let fadt = next.put(&bytes_of(&fadt(dsdt)))?;
    let madt = next.put(&bytes_of(&madt(vcpus)))?;
    let mut xsdt = XSDT::new(MAKER, MODEL, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = next.put(&bytes_of(&xsdt))?;
    memory.write_slice(&bytes_of(&Rsdp::new(MAKER, xsdt)), RSDP)
}

/// Puts tables one behind the other.
struct Place<'a> {
    memory: &'a GuestMemoryMmap,
    at: u64,
}

impl Place<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, GuestMemoryError> {
        let at = self.at;
        self.memory.write_slice(table, GuestAddress(at))?;
        self.at = (at + table.len() as u64).next_multiple_of(64);
        Ok(at)
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(MAKER, MODEL, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_COMMAND;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let controller = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(MAKER, MODEL, REVISION, controller);
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(
            index,
            index,
            EnabledStatus::Enabled,
        ));
    }
    // Its identity is of no use to anybody, but must differ from the processors'.
    madt.add_structure(IoApic::new(vcpus, IO_APIC, 0));
    madt
}

fn dsdt(devices: &[DeviceSlot]) -> Sdt {
    const HEADER: u32 = 36;
    let mut body = Vec::new();
    console(&mut body);
    for slot in devices {
        virtio_device(slot, &mut body);
    }
    power_button(&mut body);
    let off = aml::Package::new(vec![&POWER_OFF_TYPE, &POWER_OFF_TYPE, &0u8, &0u8]);
    aml::Name::new("_S5_".into(), &off).to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 6, MAKER, MODEL, REVISION);
    dsdt.append_slice(&body);
    dsdt
}

fn edge_interrupt(line: u32) -> aml::Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    aml::Interrupt::new(consumer, edge_triggered, active_low, shared, line)
}

fn console(body: &mut Vec<u8>) {
    let ports = aml::IO::new(CONSOLE_FIRST_PORT, CONSOLE_FIRST_PORT, 0, 8);
    let line = edge_interrupt(CONSOLE_LINE);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&ports, &line]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

/// As Linux' virtio_mmio finds one: by the identifier LNRO0005.
fn virtio_device(slot: &DeviceSlot, body: &mut Vec<u8>) {
    let path = format!("_SB_.V{:03}", slot.0);
    let (start, size) = slot.registers_32();
    let registers = aml::Memory32Fixed::new(true, start, size);
    let line = edge_interrupt(slot.line());
    aml::Device::new(
        path.as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &slot.0),
            &aml::Name::new("_CCA".into(), &aml::One {}),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&registers, &line]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

fn power_button(body: &mut Vec<u8>) {
    /// What a button that was pressed is notified with (ACPI 6.5, section 4.8.3.1.1).
    const PRESSED: u8 = 0x80;
    aml::Device::new(
        "_SB_.PWRB".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
            &aml::Name::new("_UID".into(), &0u8),
        ],
    )
    .to_aml_bytes(body);
    let line = edge_interrupt(POWER_BUTTON_LINE);
    // From the root: a path without the backslash would be looked for below the method itself.
    let button = aml::Path::new("\\_SB_.PWRB");
    let notify = aml::Notify::new(&button, &PRESSED);
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &0u8),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&line])),
            &aml::Method::new("_EVT".into(), 1, true, vec![&notify]),
        ],
    )
    .to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ram::GuestRam;
    use page::PageCount;

    fn sum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    /// The table at an address, whose checksum must be right.
    fn table(ram: &GuestRam, at: u64) -> Vec<u8> {
        let mut length = [0; 4];
        ram.memory()
            .read_slice(&mut length, GuestAddress(at + 4))
            .unwrap();
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        ram.memory()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        assert_eq!(sum(&bytes), 0, "{:?}", &bytes[..4]);
        bytes
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_from_the_first_and_whole() {
        let ram = GuestRam::new(PageCount(1024)).unwrap();
        write(ram.memory(), 2, &[DeviceSlot(0), DeviceSlot(1)]).unwrap();
        let mut rsdp = [0; 36];
        ram.memory().read_slice(&mut rsdp, RSDP).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&ram, long(&rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&ram, long(&xsdt, 36));
        let madt = table(&ram, long(&xsdt, 44));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        let dsdt = table(&ram, long(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let names = |name: &[u8]| dsdt.windows(name.len()).filter(|at| *at == name).count();
        assert_eq!(names(b"LNRO0005"), 2);
        // Notify, from the root, two names, and the value.
        assert_eq!(names(b"\x86\x5c\x2e_SB_PWRB\x0a\x80"), 1);
    }
}
