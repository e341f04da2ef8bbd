//! How much memory an ELF kernel takes, by its headers (elf(5)): the loader says no more than that
//! something did not fit.

use std::io::{Read, Seek, SeekFrom};

const MAGIC_64_BIT: &[u8] = b"\x7fELF\x02";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const LOADED: u32 = 1;

/// Where the highest segment ends. None if these are no headers of a 64-bit ELF file: the loader finds
/// out what they are.
pub(super) fn end(file: &mut (impl Read + Seek)) -> Option<u64> {
    file.rewind().ok()?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header).ok()?;
    let (first, bytes, count) = (
        wide(&header, 32)?,
        number_16(&header, 54)?,
        number_16(&header, 56)?,
    );
    if !header.starts_with(MAGIC_64_BIT) || bytes != PROGRAM_HEADER_BYTES {
        return None;
    }
    file.seek(SeekFrom::Start(first)).ok()?;
    let mut highest = None;
    for _ in 0..count {
        let mut segment = [0; PROGRAM_HEADER_BYTES as usize];
        file.read_exact(&mut segment).ok()?;
        if number_32(&segment, 0)? == LOADED {
            let end = wide(&segment, 24)?.checked_add(wide(&segment, 40)?)?;
            highest = highest.max(Some(end));
        }
    }
    highest
}

fn number_16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number_32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn wide(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
