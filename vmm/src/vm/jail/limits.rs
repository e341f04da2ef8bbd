//! What a process that lost its mind may use up: no more descriptors than it has, no file larger than its largest.
//!
//! Of memory there is no limit here: the host counts what each VM holds. Nor of processes, of which seccomp lets none be
//! made: the kernel holds threads of its own against that limit, which KVM and io_uring start in this process's name.
#![expect(
    unsafe_code,
    reason = "descriptors are looked at that others of this process own"
)]

use super::held;
use protocol::Holding;
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, SeekFrom, fstat, seek};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs::ReadDir;

/// Descriptors that may still come: those of a packet, and what is open for a moment.
const MORE_DESCRIPTORS: u64 = 16;

/// What a process has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Open {
    /// Its highest descriptor.
    highest: u64,
    /// Bytes of its largest file or disk.
    largest: u64,
}

/// Sets all limits, with the process's own descriptors as the kernel lists them.
pub(super) fn set(descriptors: Option<ReadDir>) -> Holding {
    let fixed = held("limits", limit(Resource::Core, 0));
    match (fixed, descriptors.map(look)) {
        (Holding::Whole, Some(open)) => held("limits", set_by(open)),
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
