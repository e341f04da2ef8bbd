//! A file of lines that starts anew when it is full. The one before is kept beside it, so the disk holds no more
//! than two.

use super::runtime_dir::create_private_file;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes after which the file starts anew.
pub(crate) const LIMIT: u64 = 1 << 20;

/// The file.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl RotatingFile {
    /// A new one. What an earlier host has left there is kept beside it.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            file: start_anew(&path)?,
            path,
            size: 0,
        })
    }

    /// Appends a line whole, or, if the disk is full, nothing of it.
    pub(crate) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > LIMIT {
            self.file = start_anew(&self.path)?;
            self.size = 0;
        }
        let written = self.file.write_all(line);
        match written {
            Ok(()) => self.size += line.len() as u64,
            // Half a line goes again; where even that fails, it stays.
            Err(_) => drop(self.file.set_len(self.size)),
        }
        written
    }
}

/// Where a full file is kept.
pub(super) fn older(path: &Path) -> PathBuf {
    path.with_added_extension("old")
}

fn start_anew(path: &Path) -> io::Result<File> {
    match fs::rename(path, older(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create_private_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_grows_beyond_twice_its_limit_and_keeps_what_was_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "earlier").unwrap();
        let mut file = RotatingFile::create(path.clone()).unwrap();
        assert_eq!(fs::read(older(&path)).unwrap(), b"earlier");
        for _ in 0..5000 {
            file.append(&[b'x'; 1024]).unwrap();
        }
        let sizes = fs::read_dir(folder.path()).unwrap();
        let total: u64 = sizes
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(total <= 2 * (LIMIT + 2048), "{total} bytes");
        assert!(path.exists());
    }
}
