//! The VM's swap file, by direct access where its file system has that: what is swapped out is not to stay in the kernel's cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What direct access wants of addresses, positions and lengths, on any disk.
const SECTOR: usize = 4096;

#[derive(Debug)]
pub(super) struct SwapFile(pub(super) File);

impl SwapFile {
    /// Writes bytes that begin at a multiple of 4 KiB in memory, to one in the file, and are a multiple of that long.
    pub(super) fn write(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, position)
    }

    /// Reads whole sectors and returns what was asked for of them.
    pub(super) fn read(&self, position: u64, length: usize) -> io::Result<Vec<u8>> {
        let sector = SECTOR as u64;
        let start = position / sector * sector;
        let before = usize::try_from(position - start).map_err(io::Error::other)?;
        let whole = (before + length).next_multiple_of(SECTOR);
        let mut bytes = vec![0; whole + SECTOR];
        let at = bytes.as_ptr().align_offset(SECTOR);
        self.0.read_exact_at(&mut bytes[at..at + whole], start)?;
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
        let file = SwapFile(tempfile::tempfile().unwrap());
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
