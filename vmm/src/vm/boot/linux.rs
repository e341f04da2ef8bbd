//! Linux's own boot protocol for 64-bit kernels: a bzImage starts in long mode with identity-mapped
//! memory, RSI pointing to a page of parameters (Documentation/arch/x86/boot.rst, "64-bit Boot
//! Protocol").

use super::memory_map::{FIRMWARE_END, Stretch};
use super::{Boot, COMMAND_LINE, Initrd, acpi, check_room, write_command_line};
use crate::memory::ram::GuestRam;
use crate::vm::error::VmError;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use page::PAGE_SIZE;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

const PARAMETERS: GuestAddress = GuestAddress(0x7000);
/// Page tables that map the first 4 GiB to themselves: one page, one page, four pages.
const PAGE_TABLES: u64 = 0x9000;
const DESCRIPTORS: u64 = 0x8000;
/// Where the 64-bit entry lies in what was loaded.
const ENTRY_64_OFFSET: u64 = 0x200;
const XLF_KERNEL_64: u16 = 1 << 0;
const UNDEFINED_LOADER: u8 = 0xff;
/// The unit of `syssize`.
const PARAGRAPH: u64 = 16;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// A newtype, because the parameters may be written to guest memory as they are.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Parameters(boot_params);

#[expect(unsafe_code, reason = "ByteValued is a promise about the layout")]
// SAFETY: a C structure of plain numbers, packed, so that every byte of it is initialized.
unsafe impl ByteValued for Parameters {}

/// How a 64-bit kernel begins.
#[derive(Clone, Copy, Debug)]
pub(in crate::vm) struct LongModeEntry {
    /// Its first instruction.
    pub(in crate::vm) address: u64,
    /// The page of parameters, for RSI.
    pub(in crate::vm) parameters: u64,
    /// The page tables, for CR3.
    pub(in crate::vm) page_tables: u64,
    /// Descriptor table of four entries: none, none, code, data.
    pub(in crate::vm) descriptors: u64,
}

/// Whether a file is a bzImage: `HdrS` at its place in the first sector but one.
pub(super) fn is_bzimage(start: &[u8]) -> bool {
    start.get(0x202..0x206) == Some(b"HdrS")
}

/// Loads a bzImage with all that it is told.
pub(super) fn load(
    path: &Path,
    file: &mut File,
    boot: Boot<'_>,
    ram: &GuestRam,
) -> Result<LongModeEntry, VmError> {
    let cannot_load = |source| VmError::LoadKernel {
        path: path.into(),
        source,
    };
    if let Some(end) = announced_end(file) {
        check_room(path, end, ram)?;
    }
    let start = Some(GuestAddress(FIRMWARE_END));
    let loaded = BzImage::load(ram.memory(), start, file, start).map_err(cannot_load)?;
    let header = loaded.setup_header.ok_or(VmError::Not64Bit(path.into()))?;
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(VmError::Not64Bit(path.into()));
    }
    check_whole(path, &header, loaded.kernel_end - loaded.kernel_load.0)?;
    let kernel_end = end_of_kernel(&header).max(loaded.kernel_end);
    check_room(path, kernel_end, ram)?;
    let limit = usize::try_from(header.cmdline_size).unwrap_or(usize::MAX);
    write_command_line(&boot.command_line, limit.saturating_add(1), ram)?;
    let highest = header.initrd_addr_max.into();
    let initrd = boot
        .initrd
        .map(|file| file.load(ram, kernel_end, highest))
        .transpose()?;
    write_parameters(header, initrd, boot.map, ram).map_err(VmError::TouchRam)?;
    write_page_tables(ram).map_err(VmError::TouchRam)?;
    write_descriptors(ram).map_err(VmError::TouchRam)?;
    Ok(LongModeEntry {
        address: loaded.kernel_load.0 + ENTRY_64_OFFSET,
        parameters: PARAMETERS.0,
        page_tables: PAGE_TABLES,
        descriptors: DESCRIPTORS,
    })
}

/// Where a 64-bit kernel ends by its header alone, as it is in memory. None if there is no such header.
fn announced_end(file: &File) -> Option<u64> {
    let mut start = [0; 0x264];
    file.read_exact_at(&mut start, 0).ok()?;
    let number = |at: usize| Some(u32::from_le_bytes(start.get(at..at + 4)?.try_into().ok()?));
    let wide = |at| Some(u64::from(number(at)?) | u64::from(number(at + 4)?) << 32);
    let header = setup_header {
        syssize: number(0x1f4)?,
        pref_address: wide(0x258)?,
        init_size: number(0x260)?,
        ..setup_header::default()
    };
    let is_64_bit = number(0x236)? & u32::from(XLF_KERNEL_64) != 0;
    let loaded = FIRMWARE_END + u64::from(header.syssize) * PARAGRAPH;
    is_64_bit.then(|| end_of_kernel(&header).max(loaded))
}

/// Nothing but the header tells whether all of the file was there: a guest with half a kernel would
/// die without a word.
fn check_whole(path: &Path, header: &setup_header, bytes: u64) -> Result<(), VmError> {
    let announced = u64::from(header.syssize) * PARAGRAPH;
    if bytes >= announced {
        return Ok(());
    }
    Err(VmError::KernelCutShort {
        path: path.into(),
        missing: announced - bytes,
    })
}

/// Where the memory ends that the kernel needs before it knows what memory there is. It unpacks
/// itself to the address that it prefers, if that is above where it was loaded.
fn end_of_kernel(header: &setup_header) -> u64 {
    let start = header.pref_address.max(FIRMWARE_END);
    start.saturating_add(header.init_size.into())
}

fn write_parameters(
    mut header: setup_header,
    initrd: Option<Initrd>,
    map: &[Stretch],
    ram: &GuestRam,
) -> Result<(), GuestMemoryError> {
    let low = |number: u64| u32::try_from(number).expect("below 4 GiB");
    header.type_of_loader = UNDEFINED_LOADER;
    header.cmd_line_ptr = low(COMMAND_LINE.0);
    if let Some(initrd) = initrd {
        header.ramdisk_image = low(initrd.start);
        header.ramdisk_size = low(initrd.bytes);
    }
    let mut parameters = boot_params {
        hdr: header,
        acpi_rsdp_addr: acpi::RSDP.0,
        e820_entries: u8::try_from(map.len()).expect("a handful of stretches"),
        ..boot_params::default()
    };
    for (entry, stretch) in parameters.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: stretch.start,
            size: stretch.bytes,
            r#type: stretch.kind as u32,
        };
    }
    ram.memory().write_obj(Parameters(parameters), PARAMETERS)
}

fn write_page_tables(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    let directories = PAGE_TABLES + PAGE_SIZE;
    let tables = directories + PAGE_SIZE;
    let memory = ram.memory();
    memory.write_obj(directories | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    for gib in 0..4 {
        let table = tables + gib * PAGE_SIZE;
        memory.write_obj(
            table | PRESENT_WRITABLE,
            GuestAddress(directories + gib * 8),
        )?;
        for entry in 0..512 {
            let target = gib << 30 | entry << 21;
            let entry_address = GuestAddress(table + entry * 8);
            memory.write_obj(target | PRESENT_WRITABLE | LARGE, entry_address)?;
        }
    }
    Ok(())
}

/// The selectors that the protocol wants: code at 0x10, data at 0x18.
fn write_descriptors(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    const CODE_64: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    ram.memory()
        .write_obj([0, 0, CODE_64, DATA], GuestAddress(DESCRIPTORS))
}
