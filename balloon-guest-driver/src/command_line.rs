//! The kernel command line: words, of which those that mean nothing here are let pass.

use crate::size;

/// Virtio devices that are looked at.
pub const DEVICES_MAX: usize = 8;
/// Page numbers in a batch, if nothing else is said: as many as there is room for.
const BATCH_PAGES: u32 = 4096;

/// A virtio-mmio device: `virtio_mmio.device=<size>@<address>:<irq>`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MmioDevice {
    /// Bytes of registers.
    pub size: u64,
    /// Their address.
    pub address: u64,
    /// The interrupt's number: the pin of the I/O APIC.
    pub irq: u8,
}

/// What the command line says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CommandLine<'a> {
    /// `id=`: which guest this is; 0 if it is not said.
    pub id: u32,
    /// `cpus=`: how many CPUs there are; 1 if it is not said.
    pub cpus: u32,
    /// `workload=`: what to run from the start.
    pub workload: Option<&'a str>,
    /// `balloon_batch=`: the most page numbers in one buffer.
    pub batch_pages: u32,
    /// `balloon=off`: the balloon is left alone, as by a guest that has no driver for it.
    pub has_balloon: bool,
    /// `lie=needs`: statistics claim that no memory is free or could be given up, for tests of hosts.
    pub claims_need: bool,
    /// `quiet`: no prompt and no messages but for errors.
    pub quiet: bool,
    devices: [Option<MmioDevice>; DEVICES_MAX],
}

impl<'a> CommandLine<'a> {
    /// Reads the words. What has no meaning or no sense is let pass, as is the custom.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        let mut line = Self {
            id: 0,
            cpus: 1,
            workload: None,
            batch_pages: BATCH_PAGES,
            has_balloon: true,
            claims_need: false,
            quiet: false,
            devices: [None; DEVICES_MAX],
        };
        for word in text.split_ascii_whitespace() {
            line.take(word);
        }
        line
    }

    fn take(&mut self, word: &'a str) {
        match word.split_once('=') {
            Some(("id", value)) => self.id = number(value).unwrap_or(self.id),
            Some(("cpus", value)) => self.cpus = number(value).unwrap_or(self.cpus),
            Some(("workload", value)) => self.workload = Some(value),
            Some(("balloon_batch", value)) => {
                self.batch_pages = number(value).unwrap_or(self.batch_pages);
            }
            Some(("balloon", value)) => self.has_balloon = value != "off",
            Some(("lie", value)) => self.claims_need = value == "needs",
            Some(("virtio_mmio.device", value)) => self.add_device(value),
            None if word == "quiet" => self.quiet = true,
            _ => {}
        }
    }

    fn add_device(&mut self, value: &str) {
        if let Some(free) = self.devices.iter_mut().find(|device| device.is_none()) {
            *free = parse_device(value);
        }
    }

    /// The devices, in order.
    pub fn devices(&self) -> impl Iterator<Item = MmioDevice> {
        self.devices.into_iter().flatten()
    }
}

fn number(text: &str) -> Option<u32> {
    size::number(text)?.try_into().ok()
}

/// `<size>@<address>:<irq>`, with an optional `:<id>` after it, as Linux has it.
fn parse_device(text: &str) -> Option<MmioDevice> {
    let (bytes, rest) = text.split_once('@')?;
    let mut rest = rest.split(':');
    let address = hexadecimal(rest.next()?)?;
    let irq = size::number(rest.next()?)?.try_into().ok()?;
    Some(MmioDevice {
        size: hexadecimal(bytes)?,
        address,
        irq,
    })
}

fn hexadecimal(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => size::parse(text),
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn the_words_are_found_among_others() {
        let line = CommandLine::parse(
            "console=ttyS0 id=3 workload=verify:size=64M quiet virtio_mmio.device=512@0xfeb00e00:12 \
             virtio_mmio.device=4K@0xd0000000:5 cpus=2 id=x",
        );
        assert_eq!((line.id, line.cpus, line.quiet), (3, 2, true));
        assert!(line.has_balloon && !CommandLine::parse("balloon=off").has_balloon);
        assert!(!line.claims_need && CommandLine::parse("lie=needs").claims_need);
        assert_eq!(line.workload, Some("verify:size=64M"));
        let devices: Vec<_> = line.devices().collect();
        assert_eq!(
            devices,
            [
                MmioDevice {
                    size: 512,
                    address: 0xfeb0_0e00,
                    irq: 12
                },
                MmioDevice {
                    size: 4096,
                    address: 0xd000_0000,
                    irq: 5
                },
            ]
        );
    }

    #[test]
    fn devices_without_sense_and_too_many_are_let_pass() {
        let line = CommandLine::parse("virtio_mmio.device=x virtio_mmio.device=512@1:999");
        assert_eq!(line.devices().count(), 0);
        let many = "virtio_mmio.device=512@0x1000:3 ".repeat(20);
        assert_eq!(CommandLine::parse(&many).devices().count(), DEVICES_MAX);
    }
}
