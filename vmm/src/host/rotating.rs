//! A file of lines that starts anew when it is full. The one before is kept beside it, so the disk holds no more
//! than two.

use super::runtime_dir::{create_private_file, older};
use crate::regular_file;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes after which the file starts anew.
pub(crate) const LIMIT: u64 = 1 << 20;

/// The file.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    heading: &'static str,
    /// None before anything is written.
    file: Option<File>,
    size: u64,
}

impl RotatingFile {
    /// A new one in a folder of the host's. What an earlier host has left there is kept beside it.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        let mut file = Self::new(path, "");
        file.append(&[]).map(|()| file)
    }

    /// One that is made when something is written to it. With a heading, where people keep files too: it begins
    /// with that line by which it is known again, and nothing is moved or written over that does not.
    pub(super) fn new(path: PathBuf, heading: &'static str) -> Self {
        Self {
            path,
            heading,
            file: None,
            size: 0,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line whole, or, if the disk is full, nothing of it.
    pub(crate) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) if self.size <= LIMIT && is_there(&file) => file,
            _ => {
                let file = start_anew(&self.path, self.heading)?;
                self.size = self.heading.len() as u64;
                file
            }
        };
        let file = self.file.insert(file);
        let written = file.write_all(line);
        match written {
            Ok(()) => self.size += line.len() as u64,
            // Half a line goes again; where even that fails, it stays.
            Err(_) => drop(file.set_len(self.size)),
        }
        written
    }
}

/// False once it was removed: what is written then is lost.
fn is_there(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

/// Whether a file with this heading may be made at the path.
pub(super) fn check(path: &Path, heading: &str) -> io::Result<()> {
    for path in [path, &older(path)] {
        let why = match regular_file::if_there(fs::symlink_metadata(path))? {
            Some(there) if !there.is_file() => "is no regular file",
            Some(there) if there.len() > 0 && !begins_with(path, heading)? => {
                "is there already, and not of this kind"
            }
            _ => continue,
        };
        let text = format!("{} {why}", path.display());
        return Err(io::Error::other(text));
    }
    Ok(())
}

fn begins_with(path: &Path, heading: &str) -> io::Result<bool> {
    let mut beginning = Vec::new();
    let file = regular_file::open(path)?;
    file.take(heading.len() as u64)
        .read_to_end(&mut beginning)?;
    Ok(beginning == heading.as_bytes())
}

fn start_anew(path: &Path, heading: &str) -> io::Result<File> {
    if !heading.is_empty() {
        check(path, heading)?;
    }
    regular_file::if_there(fs::rename(path, older(path)))?;
    let mut file = create_private_file(path)?;
    file.write_all(heading.as_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_it_was_removed_goes_into_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        let path = kept.join("log");
        fs::create_dir(&kept).unwrap();
        let mut file = RotatingFile::new(path.clone(), "");
        file.append(b"one").unwrap();
        fs::remove_file(&path).unwrap();
        file.append(b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::remove_dir_all(&kept).unwrap();
        assert!(file.append(b"lost, and said to be").is_err());
        fs::create_dir(&kept).unwrap();
        file.append(b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
    }

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
