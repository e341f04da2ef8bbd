//! Files that users name, to be read to their end. A pipe would be waited for, and a device may have no end, so
//! neither is opened for long.

use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Opens a file for reading.
///
/// # Errors
/// When it cannot be opened, or is a folder, a pipe or a device.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let kind = match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => return Ok(File::from(file)),
        FileType::Directory => "a directory",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "a device",
    };
    Err(io::Error::other(format!("it is no file but {kind}")))
}

/// Reads a text of up to `most` bytes.
///
/// # Errors
/// When it cannot be read, is larger, or no text.
pub(crate) fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    // What a file says of its length may change while it is read.
    let read = open(path)?.take(most + 1).read_to_string(&mut text)?;
    if read as u64 > most {
        return Err(io::Error::other(format!(
            "it has more than {most} bytes, which are the most that is read"
        )));
    }
    Ok(text)
}

/// Writes a file in one step: whoever dies meanwhile leaves the old one or the new.
///
/// # Errors
/// When it cannot be written: then the old one is there.
pub(crate) fn replace(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    let new = path.with_added_extension("new");
    std::fs::write(&new, content)?;
    std::fs::rename(new, path)
}

/// None where there was no such file.
///
/// # Errors
/// Any other error.
pub(crate) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        let error = read_text(&path, 3).unwrap_err().to_string();
        assert!(error.contains("more than 3 bytes"), "{error}");
        for (path, kind) in [
            (folder.path(), "directory"),
            (Path::new("/dev/zero"), "device"),
        ] {
            let error = read_text(path, 4).unwrap_err().to_string();
            assert!(error.contains(kind), "{error}");
        }
    }
}
