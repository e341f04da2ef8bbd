//! An initial RAM disk: at the top of the memory that a kernel can reach while it starts.

use crate::memory::ram::{GAP_START, GuestRam};
use crate::regular_file;
use crate::vm::error::VmError;
use page::{PAGE_SIZE, PageCount};
use std::fs::File;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress};

/// The file, opened.
#[derive(Debug)]
pub(super) struct InitrdFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// Where it lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Initrd {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl InitrdFile {
    pub(super) fn open(path: &Path) -> Result<Self, VmError> {
        let cannot_read = |source| VmError::ReadInitrd {
            path: path.into(),
            source,
        };
        let file = regular_file::open(path).map_err(cannot_read)?;
        let bytes = file.metadata().map_err(cannot_read)?.len();
        let path = path.to_owned();
        match bytes {
            0 => Err(VmError::EmptyInitrd(path)),
            _ => Ok(Self { path, file, bytes }),
        }
    }

    /// Loads it below `highest`, the last byte that it may use, and not below `lowest`.
    pub(super) fn load(self, ram: &GuestRam, lowest: u64, highest: u64) -> Result<Initrd, VmError> {
        let Self {
            path,
            mut file,
            bytes,
        } = self;
        let size = ram.layout().size();
        let too_large = VmError::InitrdTooLarge { path, bytes, size };
        let initrd = Initrd::place(bytes, size, lowest, highest).ok_or(too_large)?;
        let count = usize::try_from(bytes).unwrap_or(usize::MAX);
        ram.memory()
            .read_exact_volatile_from(GuestAddress(initrd.start), &mut file, count)
            .map_err(VmError::TouchRam)?;
        Ok(initrd)
    }
}

impl Initrd {
    /// None if it does not fit.
    fn place(bytes: u64, size: PageCount, lowest: u64, highest: u64) -> Option<Self> {
        let low_end = size.bytes().min(GAP_START.0 * PAGE_SIZE);
        let end = low_end.min(highest.saturating_add(1));
        let start = end.checked_sub(bytes)? / PAGE_SIZE * PAGE_SIZE;
        (start >= lowest).then_some(Self { start, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_lies_between_the_kernel_and_the_end_of_what_can_be_reached(
            bytes in 1u64..1 << 33, pages in 1u64..1 << 21, lowest in 0u64..1 << 33, highest in 0u64..1 << 33
        ) {
            let end = (pages * PAGE_SIZE).min(GAP_START.0 * PAGE_SIZE).min(highest + 1);
            match Initrd::place(bytes, PageCount(pages), lowest, highest) {
                Some(initrd) => {
                    prop_assert!(initrd.start >= lowest && initrd.start + bytes <= end);
                    prop_assert!(initrd.start.is_multiple_of(PAGE_SIZE));
                }
                None => prop_assert!(lowest + bytes + PAGE_SIZE > end),
            }
        }
    }
}
