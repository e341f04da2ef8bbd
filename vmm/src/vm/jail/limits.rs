//! What a process that lost its mind may use up: no more descriptors than it has, no file larger than its largest, and of memory
//! besides its guest's no more than a VM needs.
//!
//! Of processes there is no limit here, for seccomp lets none be made: the kernel holds threads of its own against that
//! limit, which KVM and io_uring start in this process's name.
#![expect(
    unsafe_code,
    reason = "descriptors are looked at that others of this process own"
)]

use super::held;
use page::{PAGE_SIZE, PageCount};
use protocol::Holding;
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, SeekFrom, fstat, seek};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs::{self, File, ReadDir};
use std::io::{self, Read};

/// Descriptors that may still come: those of a packet, and what is open for a moment.
const MORE_DESCRIPTORS: u64 = 16;
/// What may still come of memory of its own, besides what grows with the guest: a VM process takes some 10 MiB.
const MORE_MEMORY: u64 = 128 << 20;
/// With the guest grow what may be mapped of the store, which the kernel counts whole for it could all be written to, and the pool
/// of compressed pages.
const POOL_DIVISOR: u64 = swap::POOL_DIVISOR as u64;

/// The process's files about itself, which it could not look up any more once it is jailed.
#[derive(Debug)]
pub(super) struct OwnFiles {
    descriptors: ReadDir,
    memory: File,
}

impl OwnFiles {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            descriptors: fs::read_dir("/proc/self/fd")?,
            memory: File::open("/proc/self/statm")?,
        })
    }

    /// Bytes of memory of its own that are mapped: the sixth number of proc_pid_statm(5), in pages.
    fn mapped(&mut self) -> io::Result<u64> {
        let mut text = String::new();
        self.memory.read_to_string(&mut text)?;
        let pages = text.split(' ').nth(5).and_then(|pages| pages.parse().ok());
        let pages: u64 = pages.ok_or(io::ErrorKind::InvalidData)?;
        Ok(pages * PAGE_SIZE)
    }
}

/// What a process has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Open {
    /// Its highest descriptor.
    highest: u64,
    /// Bytes of its largest file or disk.
    largest: u64,
}

/// Sets all limits, of the process of a guest of that size.
pub(super) fn set(own: Option<OwnFiles>, guest: PageCount) -> Holding {
    let fixed = held("limits", limit(Resource::Core, 0));
    match (fixed, own) {
        (Holding::Whole, Some(mut own)) => {
            let memory = own.mapped().map_err(|_unknown| Errno::NODATA);
            let memory = memory.and_then(|mapped| {
                let more = guest.bytes() + guest.bytes() / POOL_DIVISOR + MORE_MEMORY;
                limit(Resource::Data, mapped.saturating_add(more))
            });
            let open = look(own.descriptors);
            held("limits", memory.and_then(|()| set_by(open)))
        }
        (Holding::Whole, None) => Holding::Part,
        (other, _) => other,
    }
}

fn set_by(open: Open) -> Result<(), Errno> {
    limit(Resource::Nofile, open.highest + 1 + MORE_DESCRIPTORS)?;
    limit(Resource::Fsize, open.largest)
}

fn limit(resource: Resource, most: u64) -> Result<(), Errno> {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(resource, limit)
}

fn look(descriptors: ReadDir) -> Open {
    let numbers = descriptors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.fold(Open::default(), |open, number: u32| Open {
        highest: open.highest.max(number.into()),
        largest: open.largest.max(size(number)),
    })
}

/// Of a file or disk.
fn size(number: u32) -> u64 {
    // SAFETY: the kernel is asked about that number alone, and answers with an error if nothing is open there.
    let file = unsafe { BorrowedFd::borrow_raw(number.cast_signed()) };
    let Ok(stat) = fstat(file) else { return 0 };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
        // Where it stands does not matter: it is read and written at places that are named.
        FileType::BlockDevice => seek(file, SeekFrom::End(0)).unwrap_or(0),
        _ => 0,
    }
}
