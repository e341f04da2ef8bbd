//! What a process has open, by the kernel's word.

use crate::memory::areas::FileId;
use std::path::PathBuf;
use std::{fs, io};

/// Where a file of a process can be opened anew, known by its numbers. None if it has no such file open.
///
/// # Errors
/// When the process has ended, or may not be looked into.
pub(super) fn find(pid: u32, is_wanted: impl Fn(FileId) -> bool) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        // It opens and closes files meanwhile.
        let found = fs::metadata(&path).map(|metadata| FileId::of_metadata(&metadata));
        if found.is_ok_and(&is_wanted) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_found_by_its_numbers() {
        let (own, file) = (std::process::id(), tempfile::tempfile().unwrap());
        let id = FileId::of(&file).unwrap();
        let path = find(own, |other| other == id).unwrap().unwrap();
        assert_eq!(FileId::of(fs::File::open(path).unwrap()).unwrap(), id);
        drop(file);
        assert_eq!(find(own, |other| other == id).unwrap(), None);
    }
}
