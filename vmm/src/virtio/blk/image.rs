//! The file behind a disk: opened, locked against other VMs, and measured, before a guest sees it.

use super::format::{Format, HEAD_BYTES, TAIL_BYTES};
use super::wire::{Geometry, SECTOR, SERIAL_BYTES};
use protocol::DiskSpec;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Why a file cannot be a VM's disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiskError {
    #[error("cannot open the disk '{}': {}; {}", .path.display(), io::Error::from(*.source), open_remedy(*.source, .path, *.read_only))]
    Open {
        path: PathBuf,
        source: Errno,
        read_only: bool,
    },
    #[error("the disk '{}' is {what}: give a raw image or a block device", .path.display())]
    NoDisk { path: PathBuf, what: &'static str },
    #[error("the disk '{}' is {format}, which the guest would take for the disk itself: make a raw image of it with `{remedy}`, or insist on it as it stands with ',raw'", .path.display())]
    NotRaw {
        path: PathBuf,
        format: &'static str,
        remedy: String,
    },
    #[error("the disk '{path}' is in use by another VM, or given twice: stop that VM, copy the file, or give it to all as '{}'", .0.shared(), path = .0.path.display())]
    InUse(DiskSpec),
    #[error("the disk '{}' has {bytes} bytes, and the smallest has {block_size}: {}", .path.display(), small_remedy(.path, *.bytes))]
    TooSmall {
        path: PathBuf,
        bytes: u64,
        block_size: u32,
    },
    #[error("the disk '{}' has {bytes} bytes, not a multiple of its blocks of {block_size}: give a raw image, or lengthen it with `truncate -s %{block_size} {}`", .path.display(), .path.display())]
    NotWholeBlocks {
        path: PathBuf,
        bytes: u64,
        block_size: u32,
    },
    #[error("the file system of the disk '{}' knows no direct access: leave ',direct' out", .0.display())]
    NoDirectAccess(PathBuf),
    #[error("cannot examine the disk '{}'", .path.display())]
    Examine { path: PathBuf, source: Errno },
    #[error("cannot start the thread of the disk '{}'", .path.display())]
    StartThread { path: PathBuf, source: io::Error },
}

const GIVE_A_DISK: &str = "give a raw image or a block device";

fn open_remedy(errno: Errno, path: &Path, read_only: bool) -> String {
    match errno {
        Errno::NOENT => missing_remedy(path),
        Errno::ACCESS | Errno::PERM if read_only => "let this user read it".into(),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            let path = path.display();
            format!("let this user read and write it, or give it as '{path},ro'")
        }
        // A name that leads nowhere, a folder, a socket or a device behind which is nothing.
        Errno::NOTDIR | Errno::ISDIR | Errno::NXIO => GIVE_A_DISK.into(),
        _ => "see that it can be read and written".into(),
    }
}

/// Where there is no file of that name.
fn missing_remedy(path: &Path) -> String {
    match misspelt_option(path) {
        Some(word) => format!("if ',{word}' is an option, there are ,ro ,direct and ,raw"),
        None if can_be_made(path) => make_one(path),
        None => GIVE_A_DISK.into(),
    }
}

fn small_remedy(path: &Path, bytes: u64) -> String {
    match can_be_made(path) {
        true if bytes == 0 => make_one(path),
        // What is in it is somebody's.
        true => "give a raw image".into(),
        false => "give a block device with a medium in it".into(),
    }
}

fn make_one(path: &Path) -> String {
    format!("make one with `truncate -s 1G {}`", path.display())
}

/// What follows the last comma of a name, where a file is without it.
fn misspelt_option(path: &Path) -> Option<String> {
    let (mut before, option) = path.to_str()?.rsplit_once(',')?;
    while !Path::new(before).exists() {
        (before, _) = before.rsplit_once(',')?;
    }
    Some(option.into())
}

/// Whether a file may be made there: what is in /dev is not made by people.
fn can_be_made(path: &Path) -> bool {
    !path.starts_with("/dev") && path.parent().is_some_and(Path::is_dir)
}

/// A file that is this VM's disk for as long as this lives.
#[derive(Clone, Debug)]
pub struct DiskImage {
    pub(super) file: Arc<File>,
    pub(super) spec: DiskSpec,
    pub(super) geometry: Geometry,
    pub(super) serial: [u8; SERIAL_BYTES],
}

impl DiskImage {
    /// The file, if its guest can only read it.
    #[must_use]
    pub fn read_only_file(&self) -> Option<Arc<File>> {
        self.spec.read_only.then(|| Arc::clone(&self.file))
    }

    /// Opens and locks it.
    ///
    /// # Errors
    /// Says what is wrong with the file, and the remedy.
    pub fn open(spec: &DiskSpec) -> Result<Self, DiskError> {
        let path = &spec.path;
        let mut file = open(spec)?;
        let examine = |source| DiskError::Examine {
            path: path.clone(),
            source,
        };
        let stat = rustix::fs::fstat(&file).map_err(examine)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if let Some(what) = why_no_disk(file_type) {
            let path = path.clone();
            return Err(DiskError::NoDisk { path, what });
        }
        lock(&file, spec)?;
        let cannot_read = |error| examine(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let bytes = file.seek(SeekFrom::End(0)).map_err(cannot_read)?;
        if !spec.raw
            && let Some(format) = format(&mut file, bytes).map_err(cannot_read)?
        {
            return Err(DiskError::NotRaw {
                path: path.clone(),
                format: format.name,
                remedy: format.remedy(path),
            });
        }
        rustix::fs::fcntl_setfl(&file, cache(spec)).map_err(examine)?;
        let block_size = block_size(&file, file_type, spec.direct).map_err(examine)?;
        Ok(Self {
            geometry: measure(path, bytes, block_size)?,
            serial: serial([stat.st_dev, stat.st_rdev, stat.st_ino]),
            file: Arc::new(file),
            spec: spec.clone(),
        })
    }

    /// Bytes of it that are there: all of them, unless somebody has cut the file since it was opened.
    pub(super) fn bytes_left(&self) -> u64 {
        let bytes = self.geometry.sectors * SECTOR;
        // Not by the standard library: it asks by a call that takes paths, which a jailed process has not.
        let stat = rustix::fs::fstat(&self.file).ok();
        let of_file =
            stat.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        let left = of_file.map(|stat| u64::try_from(stat.st_size).unwrap_or(0));
        left.map_or(bytes, |left| bytes.min(left))
    }

    /// Lets other VMs have it. The kernel may hold the file open for some time after it is closed here.
    pub(super) fn unlock(&self) {
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            tracing::debug!("a disk was not unlocked: {error}");
        }
    }
}

/// The file, through the page cache for now.
fn open(spec: &DiskSpec) -> Result<File, DiskError> {
    let access = match spec.read_only {
        true => OFlags::RDONLY,
        false => OFlags::RDWR,
    };
    // Not blocking: a pipe would wait for its other end.
    let flags = access | cache(spec) | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let cannot_open = |source| match source {
        Errno::INVAL if spec.direct => DiskError::NoDirectAccess(spec.path.clone()),
        _ => DiskError::Open {
            path: spec.path.clone(),
            source,
            read_only: spec.read_only,
        },
    };
    let file = rustix::fs::open(&spec.path, flags, Mode::empty()).map_err(cannot_open)?;
    // From here on waiting is right: io_uring would give up where a disk makes it wait.
    rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(cannot_open)?;
    Ok(File::from(file))
}

fn cache(spec: &DiskSpec) -> OFlags {
    match spec.direct {
        true => OFlags::DIRECT,
        false => OFlags::empty(),
    }
}

/// Which kind of file it is, if it is certainly no raw image.
fn format(file: &mut File, bytes: u64) -> io::Result<Option<&'static Format>> {
    let mut read = |from, count| {
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(count).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    let head = read(0, HEAD_BYTES)?;
    let tail = read(bytes.saturating_sub(TAIL_BYTES), TAIL_BYTES)?;
    Ok(Format::recognize(&head, &tail))
}

fn why_no_disk(file_type: FileType) -> Option<&'static str> {
    match file_type {
        FileType::RegularFile | FileType::BlockDevice => None,
        FileType::Directory => Some("a directory"),
        FileType::Fifo => Some("a pipe"),
        FileType::CharacterDevice => Some("a character device"),
        FileType::Socket => Some("a socket"),
        _ => Some("no file with contents"),
    }
}

/// Many may read one file, or one write it. The lock ends with the process.
fn lock(file: &File, spec: &DiskSpec) -> Result<(), DiskError> {
    let operation = match spec.read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    rustix::fs::flock(file, operation).map_err(|source| match source {
        Errno::WOULDBLOCK => DiskError::InUse(spec.clone()),
        _ => DiskError::Examine {
            path: spec.path.clone(),
            source,
        },
    })
}

/// The unit in which the file can be read and written: a sector, where nothing asks for more.
fn block_size(file: &File, file_type: FileType, direct: bool) -> rustix::io::Result<u32> {
    if file_type == FileType::BlockDevice {
        return rustix::fs::ioctl_blksszget(file);
    }
    if !direct {
        return Ok(SMALLEST_BLOCK);
    }
    let statx = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    // A kernel older than 6.1 does not say.
    let said = StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::DIOALIGN);
    match statx.stx_dio_offset_align {
        align if said && align.is_power_of_two() => Ok(align.max(SMALLEST_BLOCK)),
        _ => Ok(UNSAID_DIRECT_BLOCK),
    }
}

const SMALLEST_BLOCK: u32 = 512;
/// Direct access in these works on every disk that is made.
const UNSAID_DIRECT_BLOCK: u32 = 4096;

fn measure(path: &Path, bytes: u64, block_size: u32) -> Result<Geometry, DiskError> {
    let path = path.to_path_buf();
    if bytes < u64::from(block_size) {
        return Err(DiskError::TooSmall {
            path,
            bytes,
            block_size,
        });
    }
    if !bytes.is_multiple_of(block_size.into()) {
        return Err(DiskError::NotWholeBlocks {
            path,
            bytes,
            block_size,
        });
    }
    Ok(Geometry {
        sectors: bytes / SECTOR,
        block_size,
    })
}

/// The same for the same file for as long as it is on its file system, whatever it is called.
fn serial(identity: [u64; 3]) -> [u8; SERIAL_BYTES] {
    let bytes: Vec<u8> = identity.into_iter().flat_map(u64::to_le_bytes).collect();
    let text = format!("bln-{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes));
    let mut serial = [0; SERIAL_BYTES];
    serial.copy_from_slice(text.as_bytes());
    serial
}

#[cfg(test)]
mod tests;
