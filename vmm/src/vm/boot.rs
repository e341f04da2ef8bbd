//! Puts a kernel and what it must know into guest memory, by the PVH boot protocol: 32-bit
//! protected mode without paging, EBX pointing to a start-info block
//! (Xen's public/arch-x86/hvm/start_info.h).

use crate::memory::ram::GuestRam;
use crate::protocol::VmConfig;
use crate::vm::bus::DeviceSlot;
use crate::vm::error::VmError;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use page::PAGE_SIZE;
use std::fs::File;
use std::io::Cursor;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};

/// Longest kernel command line in bytes, with the terminating zero.
pub const COMMAND_LINE_LIMIT: usize = 4096;

const START_INFO: GuestAddress = GuestAddress(0x6000);
const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;
const MEMORY_TYPE_RAM: u32 = 1;

/// The embedded guest: see `balloon-guest-driver/guest`.
pub static EMBEDDED_GUEST: &[u8] = include_bytes!(env!("GUEST_ELF"));

/// Where a processor begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Its first instruction.
    pub(super) address: GuestAddress,
    /// The start-info block.
    pub(super) start_info: GuestAddress,
}

/// Loads the VM's kernel and all it is told.
pub(super) fn load(
    config: &VmConfig,
    ram: &GuestRam,
    devices: &[DeviceSlot],
) -> Result<Entry, VmError> {
    let address = match &config.kernel {
        Some(path) => load_file(path, ram)?,
        None => load_embedded(ram)?,
    };
    write_command_line(&command_line(config, devices), ram)?;
    write_start_info(ram).map_err(VmError::TouchRam)?;
    Ok(Entry {
        address,
        start_info: START_INFO,
    })
}

fn load_file(path: &Path, ram: &GuestRam) -> Result<GuestAddress, VmError> {
    let mut file = File::open(path).map_err(|source| VmError::OpenKernel {
        path: path.into(),
        source,
    })?;
    let loaded =
        Elf::load(ram.memory(), None, &mut file, None).map_err(|source| VmError::LoadKernel {
            path: path.into(),
            source,
        })?;
    pvh_entry(&loaded).ok_or_else(|| VmError::NoPvhEntry(path.into()))
}

fn load_embedded(ram: &GuestRam) -> Result<GuestAddress, VmError> {
    let path = || Path::new("embedded guest").to_path_buf();
    let loaded = Elf::load(ram.memory(), None, &mut Cursor::new(EMBEDDED_GUEST), None).map_err(
        |source| VmError::LoadKernel {
            path: path(),
            source,
        },
    )?;
    pvh_entry(&loaded).ok_or_else(|| VmError::NoPvhEntry(path()))
}

fn pvh_entry(loaded: &KernelLoaderResult) -> Option<GuestAddress> {
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Some(address),
        _ => None,
    }
}

/// What the user gave, then the devices, then what the embedded guest wants to know.
fn command_line(config: &VmConfig, devices: &[DeviceSlot]) -> String {
    let mut words = vec![config.cmdline.trim().to_owned()];
    words.extend(devices.iter().map(DeviceSlot::command_line_word));
    if config.kernel.is_none() {
        words.push(format!("id={} cpus={}", config.id, config.vcpus));
    }
    words.join(" ").trim().to_owned()
}

fn write_command_line(words: &str, ram: &GuestRam) -> Result<(), VmError> {
    let length = words.len() + 1;
    if length > COMMAND_LINE_LIMIT {
        return Err(VmError::CommandLineTooLong {
            length,
            limit: COMMAND_LINE_LIMIT,
        });
    }
    let bytes = [words.as_bytes(), &[0]].concat();
    ram.memory()
        .write_slice(&bytes, COMMAND_LINE)
        .map_err(VmError::TouchRam)
}

fn write_start_info(ram: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    let pieces = ram.layout().pieces();
    let mut at = MEMORY_MAP;
    for piece in &pieces {
        let entry = hvm_memmap_table_entry {
            addr: piece.pages.start.0 * PAGE_SIZE,
            size: piece.pages.count.bytes(),
            type_: MEMORY_TYPE_RAM,
            reserved: 0,
        };
        ram.memory().write_obj(entry, at)?;
        at = GuestAddress(at.0 + size_of::<hvm_memmap_table_entry>() as u64);
    }
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        cmdline_paddr: COMMAND_LINE.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: u32::try_from(pieces.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    ram.memory().write_obj(info, START_INFO)
}
