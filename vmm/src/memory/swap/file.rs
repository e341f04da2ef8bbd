//! The VM's swap file, by direct access where its file system has that: what is swapped out is not to stay in the kernel's cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
#[cfg(test)]
use std::sync::Mutex;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

/// What direct access wants of addresses, positions and lengths, on any disk.
const SECTOR: usize = 4096;

#[derive(Debug)]
pub(super) struct SwapFile {
    file: Arc<File>,
    /// What is read from, if it is not the file.
    #[cfg(test)]
    pub(super) instead: Mutex<Option<Arc<File>>>,
    /// Of so many writes one fails; of none, if 0.
    #[cfg(test)]
    pub(super) fails_one_of: AtomicU64,
    #[cfg(test)]
    writes: AtomicU64,
}

impl SwapFile {
    pub(super) fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            #[cfg(test)]
            instead: Mutex::default(),
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

    /// The file, for those who read it.
    pub(super) fn to_read(&self) -> Arc<File> {
        #[cfg(test)]
        if let Some(instead) = &*crate::lock::lock(&self.instead) {
            return Arc::clone(instead);
        }
        Arc::clone(&self.file)
    }

    #[cfg(test)]
    pub(super) fn cut(&self) {
        self.file.set_len(0).unwrap();
    }
}

/// Reads whole sectors and returns what was asked for of them.
pub(super) fn read(file: &File, position: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut sectors = Sectors::of(position, length);
    let (start, bytes) = sectors.left();
    file.read_exact_at(bytes, start)?;
    Ok(sectors.into_bytes())
}

/// Room for the whole sectors that some bytes of the file are in, as direct access wants it.
#[derive(Debug)]
pub(super) struct Sectors {
    bytes: Vec<u8>,
    /// Where the sectors begin in memory and in the file, and how many bytes they are.
    at: usize,
    start: u64,
    whole: usize,
    /// What is there of them.
    came: usize,
    /// Which bytes of them were asked for.
    before: usize,
    length: usize,
}

impl Sectors {
    pub(super) fn of(position: u64, length: usize) -> Self {
        let sector = SECTOR as u64;
        let start = position / sector * sector;
        let before = usize::try_from(position - start).expect("less than a sector");
        let whole = (before + length).next_multiple_of(SECTOR);
        let bytes = vec![0; whole + SECTOR];
        Self {
            at: bytes.as_ptr().align_offset(SECTOR),
            bytes,
            start,
            whole,
            came: 0,
            before,
            length,
        }
    }

    /// What is to be read yet, and where.
    pub(super) fn left(&mut self) -> (u64, &mut [u8]) {
        let left = self.at + self.came..self.at + self.whole;
        (self.start + self.came as u64, &mut self.bytes[left])
    }

    /// So many bytes more are there. Whether these are all.
    ///
    /// # Errors
    /// When the file has no more.
    pub(super) fn came(&mut self, count: usize) -> io::Result<bool> {
        // What is left must begin at a sector.
        let reached = (self.came + count).min(self.whole) / SECTOR * SECTOR;
        if reached == self.came {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.came = reached;
        Ok(reached == self.whole)
    }

    /// What was asked for.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        self.bytes.drain(..self.at + self.before);
        self.bytes.truncate(self.length);
        self.bytes
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
            let read = read(&file.to_read(), position as u64, length).unwrap();
            assert!(
                read == content[position..position + length],
                "{position} {length}"
            );
        }
        let beyond = read(&file.to_read(), 3 * SECTOR as u64 - 1, 2);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
