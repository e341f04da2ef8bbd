//! The virtio block device's wire format (virtio 1.2, section 5.2), as far as a driver of whole blocks
//! needs it.

use bitflags::bitflags;

use super::{Action, Block, DiskError};
use crate::PAGE_SIZE;

/// Offset in the configuration space of the `u64` number of sectors.
pub const CONFIG_SECTORS: usize = 0;
/// Bytes of a sector.
const SECTOR_BYTES: u64 = 512;
/// Sectors of a block.
const SECTORS: u64 = PAGE_SIZE / SECTOR_BYTES;
/// Bytes of a request's header.
pub const HEADER_BYTES: usize = 16;
/// What the status is before the device writes it.
pub const STATUS_NONE: u8 = 0xff;

bitflags! {
    /// Feature bits.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub struct Features: u64 {
        /// The disk can only be read.
        const READ_ONLY = 1 << 5;
        /// What was written is safe only after a flush.
        const FLUSH = 1 << 9;
        /// The device follows virtio 1.0 or later.
        const VERSION_1 = 1 << 32;
    }
}

/// Whole blocks of a disk with that many sectors; what is beyond the numbers of blocks is left out.
#[must_use]
pub fn blocks_of(sectors: u64) -> u32 {
    u32::try_from(sectors / SECTORS).unwrap_or(u32::MAX)
}

/// A request's header.
#[must_use]
pub fn header(action: Action, first: Block) -> [u8; HEADER_BYTES] {
    let kind: u32 = match action {
        Action::Read => 0,
        Action::Write => 1,
        Action::Flush => 4,
    };
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&(u64::from(first) * SECTORS).to_le_bytes());
    bytes
}

/// What a status says.
///
/// # Errors
/// Anything but success.
pub const fn result_of(status: u8) -> Result<(), DiskError> {
    match status {
        0 => Ok(()),
        2 => Err(DiskError::Unsupported),
        _ => Err(DiskError::Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_kind_and_sector_in_little_endian() {
        let bytes = header(Action::Write, 0x20_0001);
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(header(Action::Flush, 0)[0], 4);
    }

    #[test]
    fn a_part_of_a_block_at_the_end_is_left_out() {
        assert_eq!((blocks_of(7), blocks_of(8), blocks_of(15)), (0, 1, 1));
        assert_eq!(blocks_of(u64::MAX), u32::MAX);
    }

    #[test]
    fn a_status_that_was_not_written_is_a_failure() {
        assert_eq!(result_of(STATUS_NONE), Err(DiskError::Failed));
        assert_eq!(result_of(0), Ok(()));
    }
}
