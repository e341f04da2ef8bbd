//! The memory areas of a process, as the kernel lists them.

use crate::memory::MemoryError;
use page::{PAGE_BYTES, PAGE_SIZE};
use rustix::fd::AsFd;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

/// A line of `/proc/PID/maps` (proc_pid_maps(5)): `start-end perms offset dev inode path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its addresses.
    pub addresses: Range<u64>,
    /// Whether what is written there stays with the process.
    pub is_private: bool,
    /// Where in its file it begins, in bytes.
    pub offset: u64,
    /// Which file it is of: memory files may lie in file systems of their own, each with its own numbers.
    pub file: FileId,
}

/// A file, by the numbers of its device, major and minor, and of its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    device: (u32, u32),
    inode: u64,
}

impl FileId {
    /// That of an open file.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of(file: impl AsFd) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self::by_numbers(stat.st_dev, stat.st_ino))
    }

    /// That of a file of which this is known.
    #[must_use]
    pub fn of_metadata(metadata: &Metadata) -> Self {
        Self::by_numbers(metadata.dev(), metadata.ino())
    }

    fn by_numbers(device: u64, inode: u64) -> Self {
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        Self { device, inode }
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.device;
        write!(f, "{major}-{minor}-{}", self.inode)
    }
}

/// The memory areas of this process, whatever it may open later.
#[derive(Debug)]
pub(crate) struct AreaList {
    file: File,
}

impl AreaList {
    /// # Errors
    /// When the kernel does not let this process have it.
    pub(crate) fn open() -> Result<Self, MemoryError> {
        let file = File::open("/proc/self/maps").map_err(MemoryError::ReadAreas)?;
        Ok(Self { file })
    }

    /// A line for each area.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn read(&self) -> io::Result<String> {
        let mut text = Vec::new();
        let mut piece = [0; 4 * PAGE_BYTES];
        rustix::fs::seek(&self.file, SeekFrom::Start(0))?;
        // Not by the standard library: it asks for the file's size first, by a call that a jailed process has not.
        while let bytes @ 1.. = rustix::io::read(&self.file, &mut piece)? {
            text.extend_from_slice(&piece[..bytes]);
        }
        String::from_utf8(text).map_err(io::Error::other)
    }
}

impl Area {
    /// None for what is no such line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let is_private = words.next()?.ends_with('p');
        let offset = hexadecimal(words.next()?)?;
        let (major, minor) = words.next()?.split_once(':')?;
        let number = |text| u32::from_str_radix(text, 16).ok();
        let file = FileId {
            device: (number(major)?, number(minor)?),
            inode: words.next()?.parse().ok()?,
        };
        Some(Self {
            addresses: hexadecimal(start)?..hexadecimal(end)?,
            is_private,
            offset,
            file,
        })
    }

    /// The pages of the file that are there.
    #[must_use]
    pub fn file_pages(&self) -> Range<u64> {
        let first = self.offset / PAGE_SIZE;
        first..first + (self.addresses.end - self.addresses.start) / PAGE_SIZE
    }

    /// The addresses of its pages, each with the page of the file that is there.
    pub fn pages(&self) -> impl Iterator<Item = (u64, u64)> {
        let addresses = self.addresses.clone().step_by(PAGE_BYTES);
        addresses.zip(self.file_pages())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_understood() {
        let line =
            "7f1c00200000-7f1c00202000 rw-p 00600000 00:01 1029  /memfd:ballonet-store (deleted)";
        let area = Area::parse(line).unwrap();
        let expected = Area {
            addresses: 0x7f1c_0020_0000..0x7f1c_0020_2000,
            is_private: true,
            offset: 0x60_0000,
            file: FileId {
                device: (0, 1),
                inode: 1029,
            },
        };
        assert_eq!(area, expected);
        let pages: Vec<(u64, u64)> = area.pages().collect();
        assert_eq!(
            pages,
            [(0x7f1c_0020_0000, 0x600), (0x7f1c_0020_1000, 0x601)]
        );
        assert_eq!(Area::parse("nonsense"), None);
        let line = "7f1c00200000-7f1c00202000 rw-s 00000000 00:2f 1029  /ballonet-ram (deleted)";
        assert_ne!(Area::parse(line).unwrap().file, area.file);
    }
}
