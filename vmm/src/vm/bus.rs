//! Where a guest's devices are: their addresses, interrupt lines and I/O ports, and who answers
//! when a vCPU reaches for one.

use crate::virtio::Device;
use crate::virtio::mmio::{MmioTransport, QUEUE_NOTIFY, REGISTERS_SIZE};
use crate::vm::console::Console;

/// Guest-physical address of the first device's registers, in the gap below 4 GiB.
const FIRST_DEVICE: u64 = 0xd000_0000;
/// Interrupt lines from here on reach the I/O APIC only; those below also reach the old PIC.
const FIRST_LINE: u32 = 16;
/// Devices of a VM: the I/O APIC has 24 lines.
pub(super) const MOST_DEVICES: u32 = 24 - FIRST_LINE;

/// The serial console's interrupt line and ports, as PCs have them.
pub(super) const CONSOLE_LINE: u32 = 4;
pub(super) const CONSOLE_FIRST_PORT: u16 = 0x3f8;
const CONSOLE_PORTS: std::ops::Range<u16> = CONSOLE_FIRST_PORT..CONSOLE_FIRST_PORT + 8;
/// Keyboard controller: writing the reset command here ends the guest, as it reboots a PC.
pub(super) const RESET_PORT: u16 = 0x64;
pub(super) const RESET_COMMAND: u8 = 0xfe;
/// The interrupt of the power button, where PCs have ACPI's.
pub(super) const POWER_BUTTON_LINE: u32 = 9;
/// ACPI's sleep registers (ACPI 6.5, section 4.8.3.7): writing the type of state S5 with the enable
/// bit switches the machine off.
pub(super) const SLEEP_CONTROL_PORT: u16 = 0x600;
pub(super) const SLEEP_STATUS_PORT: u16 = 0x601;
pub(super) const POWER_OFF_TYPE: u8 = 5;
const SLEEP_ENABLE: u8 = 1 << 5;
const POWER_OFF: u8 = POWER_OFF_TYPE << 2 | SLEEP_ENABLE;
/// What a port without a device reads as.
const NOBODY: u8 = 0xff;

/// A device's place: the registers' address and the interrupt line follow from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceSlot(pub(super) u32);

impl DeviceSlot {
    pub(super) fn registers(self) -> u64 {
        FIRST_DEVICE + u64::from(self.0) * REGISTERS_SIZE
    }

    /// The same address, and the size, as ACPI wants them.
    pub(super) fn registers_32(self) -> (u32, u32) {
        let narrow = |number| u32::try_from(number).expect("devices lie below 4 GiB");
        (narrow(self.registers()), narrow(REGISTERS_SIZE))
    }

    pub(super) fn notify_address(self) -> u64 {
        self.registers() + QUEUE_NOTIFY
    }

    pub(super) fn line(self) -> u32 {
        FIRST_LINE + self.0
    }

    /// How a kernel's command line announces the device (Linux: virtio_mmio.device).
    pub(super) fn command_line_word(&self) -> String {
        let size = REGISTERS_SIZE / 1024;
        format!(
            "virtio_mmio.device={size}K@{:#x}:{}",
            self.registers(),
            self.line()
        )
    }
}

/// What a vCPU should do after it reached a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterWrite {
    GoOn,
    /// The guest has asked to be reset or switched off, which ends it.
    End,
}

/// Everything that a vCPU can reach besides memory.
#[derive(Debug)]
pub(super) struct Bus {
    pub(super) console: Console,
    /// By the number of their slots.
    pub(super) devices: Vec<MmioTransport<dyn Device>>,
}

impl Bus {
    /// `data` may be several units of a string instruction to one port.
    pub(super) fn write_port(&self, port: u16, data: &[u8]) -> AfterWrite {
        if CONSOLE_PORTS.contains(&port) {
            self.console.write(port - CONSOLE_PORTS.start, data);
        } else if port == RESET_PORT && data.contains(&RESET_COMMAND)
            || port == SLEEP_CONTROL_PORT && data.contains(&POWER_OFF)
        {
            return AfterWrite::End;
        }
        AfterWrite::GoOn
    }

    pub(super) fn read_port(&self, port: u16, data: &mut [u8]) {
        if CONSOLE_PORTS.contains(&port) {
            self.console.read(port - CONSOLE_PORTS.start, data);
        } else if [RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT].contains(&port) {
            // The keyboard controller is always ready for a command; nothing has woken the machine.
            data.fill(0);
        } else {
            data.fill(NOBODY);
        }
    }

    pub(super) fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.device_at(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(NOBODY),
        }
    }

    pub(super) fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device_at(address) {
            device.write(offset, data);
        }
    }

    /// The device whose registers are at an address, and where in them that is.
    fn device_at(&self, address: u64) -> Option<(&MmioTransport<dyn Device>, u64)> {
        let offset = address.checked_sub(FIRST_DEVICE)?;
        let number = usize::try_from(offset / REGISTERS_SIZE).ok()?;
        Some((self.devices.get(number)?, offset % REGISTERS_SIZE))
    }

    /// Register accesses that the virtio standard forbids, of all devices.
    pub(super) fn violations(&self) -> u64 {
        self.devices.iter().map(MmioTransport::violations).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_announced_with_its_address_and_line() {
        assert_eq!(
            DeviceSlot(1).command_line_word(),
            "virtio_mmio.device=4K@0xd0001000:17"
        );
    }
}
