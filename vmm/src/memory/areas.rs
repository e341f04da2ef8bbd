//! The memory areas of a process, as the kernel lists them.

use page::PAGE_SIZE;
use std::ops::Range;

/// A line of `/proc/PID/maps` (proc_pid_maps(5)): `start-end perms offset dev inode path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its addresses.
    pub addresses: Range<u64>,
    /// Whether what is written there stays with the process.
    pub is_private: bool,
    /// Where in its file it begins, in bytes.
    pub offset: u64,
    /// Its file's.
    pub inode: u64,
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
        let inode = words.nth(1)?.parse().ok()?;
        Some(Self {
            addresses: hexadecimal(start)?..hexadecimal(end)?,
            is_private,
            offset,
            inode,
        })
    }

    /// The addresses of its pages, each with the page of the file that is there.
    pub fn pages(&self) -> impl Iterator<Item = (u64, u64)> {
        let (start, first) = (self.addresses.start, self.offset / PAGE_SIZE);
        let count = (self.addresses.end - start) / PAGE_SIZE;
        (0..count).map(move |number| (start + number * PAGE_SIZE, first + number))
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
            inode: 1029,
        };
        assert_eq!(area, expected);
        let pages: Vec<(u64, u64)> = area.pages().collect();
        assert_eq!(
            pages,
            [(0x7f1c_0020_0000, 0x600), (0x7f1c_0020_1000, 0x601)]
        );
        assert_eq!(Area::parse("nonsense"), None);
    }
}
