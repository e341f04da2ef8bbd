//! Puts a kernel and what it must know into guest memory.
//!
//! Two protocols. An ELF kernel starts by PVH: 32-bit protected mode without paging, EBX pointing to
//! a start-info block (Xen's public/arch-x86/hvm/start_info.h). A bzImage starts by Linux's own
//! ([`linux`]). Either way the kernel learns of memory from a map, and of processors and devices from
//! ACPI tables. The embedded guest is told all it needs on its command line.

mod acpi;
mod elf;
mod initrd;
mod linux;
mod memory_map;
mod reset;

use crate::memory::ram::GuestRam;
use crate::regular_file;
use crate::vm::bus::DeviceSlot;
use crate::vm::error::VmError;
use initrd::{Initrd, InitrdFile};
pub(super) use linux::LongModeEntry;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use memory_map::Stretch;
use page::{PAGE_SIZE, PageCount};
use protocol::VmConfig;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

/// Longest kernel command line in bytes, with the terminating zero.
pub const COMMAND_LINE_LIMIT: usize = 4096;

const START_INFO: GuestAddress = GuestAddress(0x6000);
const MODULE_LIST: GuestAddress = GuestAddress(0x6800);
const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;

/// The embedded guest: see `balloon-guest-driver/guest`.
pub static EMBEDDED_GUEST: &[u8] = include_bytes!(env!("GUEST_ELF"));

/// How the first processor begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    /// In 32-bit protected mode without paging.
    Protected {
        /// Its first instruction.
        address: GuestAddress,
        /// The start-info block.
        start_info: GuestAddress,
    },
    /// In long mode.
    Long(LongModeEntry),
}

/// What a kernel is to be given.
#[derive(Debug)]
struct Boot<'a> {
    command_line: String,
    initrd: Option<InitrdFile>,
    map: &'a [Stretch],
}

/// A kernel that the user gave, and what it starts with: opened.
#[derive(Debug)]
pub(super) struct KernelFiles {
    path: PathBuf,
    kernel: File,
    is_bzimage: bool,
    initrd: Option<InitrdFile>,
}

impl KernelFiles {
    /// None for the embedded guest.
    pub(super) fn open(config: &VmConfig) -> Result<Option<Self>, VmError> {
        let Some(path) = &config.kernel else {
            return Ok(None);
        };
        let (kernel, start) = open(path)?;
        Ok(Some(Self {
            path: path.clone(),
            kernel,
            is_bzimage: linux::is_bzimage(&start),
            initrd: config.initrd.as_deref().map(InitrdFile::open).transpose()?,
        }))
    }
}

/// Loads the VM's kernel and all it is told.
pub(super) fn load(
    config: &VmConfig,
    files: Option<KernelFiles>,
    ram: &GuestRam,
    devices: &[DeviceSlot],
) -> Result<Entry, VmError> {
    let Some(mut files) = files else {
        let mut image = Cursor::new(EMBEDDED_GUEST);
        let boot = Boot {
            command_line: command_line(config, devices),
            initrd: None,
            map: &memory_map::plain(ram.layout()),
        };
        return load_elf(Path::new("embedded guest"), &mut image, boot, ram);
    };
    acpi::write(ram.memory(), config.vcpus, devices).map_err(VmError::TouchRam)?;
    reset::write(ram.memory()).map_err(VmError::TouchRam)?;
    let boot = Boot {
        // Linux reads ACPI; of an ELF file nobody knows what it reads.
        command_line: command_line(config, if files.is_bzimage { &[] } else { devices }),
        initrd: files.initrd,
        map: &memory_map::of_a_pc(ram.layout()),
    };
    match files.is_bzimage {
        true => linux::load(&files.path, &mut files.kernel, boot, ram).map(Entry::Long),
        false => load_elf(&files.path, &mut files.kernel, boot, ram),
    }
}

/// The file and its first two sectors, by which kinds of kernels are told apart.
fn open(path: &Path) -> Result<(File, Vec<u8>), VmError> {
    let cannot_open = |source| VmError::OpenKernel {
        path: path.into(),
        source,
    };
    let mut file = regular_file::open(path).map_err(cannot_open)?;
    let mut start = Vec::new();
    let mut first = Read::by_ref(&mut file).take(1024);
    first.read_to_end(&mut start).map_err(cannot_open)?;
    file.seek(SeekFrom::Start(0)).map_err(cannot_open)?;
    Ok((file, start))
}

fn load_elf<F: ReadVolatile + Read + Seek>(
    path: &Path,
    file: &mut F,
    boot: Boot<'_>,
    ram: &GuestRam,
) -> Result<Entry, VmError> {
    if let Some(end) = elf::end(file) {
        check_room(path, end, ram)?;
    }
    let loaded =
        Elf::load(ram.memory(), None, file, None).map_err(|source| VmError::LoadKernel {
            path: path.into(),
            source,
        })?;
    let PvhBootCapability::PvhEntryPresent(address) = loaded.pvh_boot_cap else {
        return Err(VmError::NoPvhEntry(path.into()));
    };
    check_room(path, loaded.kernel_end, ram)?;
    write_command_line(&boot.command_line, COMMAND_LINE_LIMIT, ram)?;
    let initrd = boot
        .initrd
        .map(|file| file.load(ram, loaded.kernel_end, u32::MAX.into()))
        .transpose()?;
    write_start_info(initrd, boot.map, ram).map_err(VmError::TouchRam)?;
    Ok(Entry::Protected {
        address,
        start_info: START_INFO,
    })
}

/// A kernel takes memory that its file does not hold, and does not look whether it is there.
fn check_room(path: &Path, end: u64, ram: &GuestRam) -> Result<(), VmError> {
    let size = ram.layout().size();
    if end <= size.bytes() {
        return Ok(());
    }
    Err(VmError::KernelTooLarge {
        path: path.into(),
        needed: PageCount(end.div_ceil(PAGE_SIZE)),
        size,
    })
}

/// What the user gave, then the devices for kernels that may not read ACPI, then what the embedded
/// guest wants to know.
fn command_line(config: &VmConfig, devices: &[DeviceSlot]) -> String {
    let mut words = vec![config.cmdline.trim().to_owned()];
    words.extend(devices.iter().map(DeviceSlot::command_line_word));
    if config.kernel.is_none() {
        words.push(format!("id={} cpus={}", config.id, config.vcpus));
    }
    words.join(" ").trim().to_owned()
}

/// A kernel takes no more than `limit` bytes, the terminating zero included, and cuts the rest off.
fn write_command_line(words: &str, limit: usize, ram: &GuestRam) -> Result<(), VmError> {
    let length = words.len() + 1;
    let limit = limit.min(COMMAND_LINE_LIMIT);
    if length > limit {
        return Err(VmError::CommandLineTooLong { length, limit });
    }
    let bytes = [words.as_bytes(), &[0]].concat();
    ram.memory()
        .write_slice(&bytes, COMMAND_LINE)
        .map_err(VmError::TouchRam)
}

fn write_start_info(
    initrd: Option<Initrd>,
    map: &[Stretch],
    ram: &GuestRam,
) -> Result<(), vm_memory::GuestMemoryError> {
    let mut at = MEMORY_MAP;
    for stretch in map {
        let entry = hvm_memmap_table_entry {
            addr: stretch.start,
            size: stretch.bytes,
            type_: stretch.kind as u32,
            reserved: 0,
        };
        ram.memory().write_obj(entry, at)?;
        at = GuestAddress(at.0 + size_of::<hvm_memmap_table_entry>() as u64);
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.bytes,
            ..hvm_modlist_entry::default()
        };
        ram.memory().write_obj(module, MODULE_LIST)?;
    }
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: initrd.map_or(0, |_| MODULE_LIST.0),
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: acpi::RSDP.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    ram.memory().write_obj(info, START_INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_too_small_for_its_kernel_is_told_how_much_it_needs() {
        for size in [PageCount(1), PageCount::from_mebibytes(1)] {
            let ram = GuestRam::new(size).unwrap();
            let boot = Boot {
                command_line: String::new(),
                initrd: None,
                map: &memory_map::plain(ram.layout()),
            };
            let path = Path::new("embedded guest");
            let error = load_elf(path, &mut Cursor::new(EMBEDDED_GUEST), boot, &ram).unwrap_err();
            let VmError::KernelTooLarge { needed, .. } = error else {
                panic!("{error}");
            };
            assert!(needed > PageCount::from_mebibytes(1), "{needed}");
            let text = error.to_string();
            assert!(text.contains("give it more --memory"), "{text}");
        }
    }

    #[test]
    fn what_is_no_elf_file_is_no_matter_of_memory() {
        for bytes in [&b""[..], &[0; 200], &EMBEDDED_GUEST[..50]] {
            assert_eq!(elf::end(&mut Cursor::new(bytes)), None);
        }
    }
}
