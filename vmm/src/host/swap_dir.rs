//! Where VMs' swap files lie. Each is made and reserved before its VM starts, so that a full disk refuses a VM and is never met
//! later, and has no name: no VM can find another's, and nothing is left behind.

use page::{PAGE_SIZE, PageCount};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open, statvfs};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;

/// Why there is no swap file, in words, with the remedy.
pub(super) type NoSwapFile = String;

/// Makes one that always has room for so many pages of a VM of that size.
///
/// # Errors
/// When the folder's file system has no room, or no such files.
pub(super) fn make_file(
    folder: &Path,
    size: PageCount,
    may_be_out: PageCount,
) -> Result<File, NoSwapFile> {
    let config = swap::Config::of_vm(size, 0).with_file_for(may_be_out);
    let bytes = config.file_bytes();
    let file = unnamed(folder).map_err(|error| {
        let folder = folder.display();
        format!("no swap file can be made in {folder}: {error}; give the host a folder on a disk as --swap")
    })?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(file),
        Err(error) => Err(no_room(folder, bytes, error)),
    }
}

/// Whether such files can be made there at all.
///
/// # Errors
/// When they cannot.
pub(super) fn try_out(folder: &Path) -> io::Result<()> {
    unnamed(folder).map(drop).map_err(io::Error::from)
}

/// By direct access, where the file system has that.
fn unnamed(folder: &Path) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    open(folder, flags | OFlags::DIRECT, mode)
        .or_else(|_| open(folder, flags, mode))
        .map(File::from)
}

fn no_room(folder: &Path, bytes: u64, error: Errno) -> NoSwapFile {
    let pages = |bytes: u64| PageCount(bytes.div_ceil(PAGE_SIZE));
    let free = statvfs(folder).map(|it| it.f_bavail.saturating_mul(it.f_frsize));
    let free = free.map_or_else(|_| "an unknown part".into(), |free| pages(free).to_string());
    format!(
        "its swap file needs {} in {}, where {free} is free: make room there, give the VM a higher --min, or the host another \
         folder as --swap ({error})",
        pages(bytes),
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_as_large_as_it_must_be_and_all_of_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = make_file(folder.path(), PageCount(1 << 14), PageCount(1 << 13)).unwrap();
        let about = file.metadata().unwrap();
        assert!(about.len() > (1 << 13) * PAGE_SIZE, "{} bytes", about.len());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&about);
        assert!(blocks * 512 >= about.len());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn where_there_is_no_room_it_is_said_how_much_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let size = PageCount(1 << 33);
        let why = make_file(folder.path(), size, size).unwrap_err();
        assert!(
            why.contains("its swap file needs") && why.contains("--min"),
            "{why}"
        );
        assert!(try_out(folder.path()).is_ok() && try_out(Path::new("/proc")).is_err());
        let why = make_file(Path::new("/proc"), PageCount(512), PageCount(512)).unwrap_err();
        assert!(why.contains("/proc") && why.contains("--swap"), "{why}");
    }
}
