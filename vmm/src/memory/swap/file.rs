//! The VM's swap file, by direct access where its file system has that: what is swapped out is not to stay in the kernel's cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

/// What direct access wants of addresses, positions and lengths, on any disk.
const SECTOR: usize = 4096;

#[derive(Debug)]
pub(super) struct SwapFile {
    file: File,
    /// Of so many writes one fails; of none, if 0.
    #[cfg(test)]
    pub(super) fails_one_of: AtomicU64,
    #[cfg(test)]
    writes: AtomicU64,
}

impl SwapFile {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(test)]
            fails_one_of: AtomicU64::new(0),
            #[cfg(test)]
            writes: AtomicU64::new(0),
        }
    }

    /// Writes bytes that begin at a multiple of 4 KiB in memory, to one in the file, and are a multiple of that long.
    pub(super) fn write(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.fail(position, bytes)?;
        self.file.write_all_at(bytes, position)
    }

    /// As disks do: for want of room, for good, and after a part was written.
    #[cfg(test)]
    fn fail(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        let one_of = self.fails_one_of.load(Ordering::Relaxed);
        if one_of == 0 || !number.is_multiple_of(one_of) {
            return Ok(());
        }
        match number / one_of % 3 {
            0 => Err(io::ErrorKind::StorageFull.into()),
            1 => Err(rustix::io::Errno::IO.into()),
            _ => {
                let part = bytes.len() / 2 / SECTOR * SECTOR;
                self.file.write_all_at(&bytes[..part], position)?;
                Err(rustix::io::Errno::IO.into())
            }
        }
    }

    /// Reads whole sectors and returns what was asked for of them.
    pub(super) fn read(&self, position: u64, length: usize) -> io::Result<Vec<u8>> {
        let sector = SECTOR as u64;
        let start = position / sector * sector;
        let before = usize::try_from(position - start).map_err(io::Error::other)?;
        let whole = (before + length).next_multiple_of(SECTOR);
        let mut bytes = vec![0; whole + SECTOR];
        let at = bytes.as_ptr().align_offset(SECTOR);
        self.file.read_exact_at(&mut bytes[at..at + whole], start)?;
        bytes.drain(..at + before);
        bytes.truncate(length);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_read_out_of_their_sectors() {
        let file = SwapFile::new(tempfile::tempfile().unwrap());
        let content: Vec<u8> = (0..3 * SECTOR)
            .map(|at| (at % 251).to_le_bytes()[0])
            .collect();
        file.write(0, &content).unwrap();
        for (position, length) in [(0, 1), (4095, 2), (100, 5000), (8192, 4096), (1, 12_287)] {
            let read = file.read(position as u64, length).unwrap();
            assert!(
                read == content[position..position + length],
                "{position} {length}"
            );
        }
        let beyond = file.read(3 * SECTOR as u64 - 1, 2);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
