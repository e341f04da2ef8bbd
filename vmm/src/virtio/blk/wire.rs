//! What of the virtio standard (virtio 1.2, section 5.2) this device speaks, and the layout of its
//! configuration space.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

/// The device's number.
pub(super) const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

/// Feature: the longest buffer is said.
pub(super) const F_SIZE_MAX: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX;
/// Feature: the most buffers of a request are said.
pub(super) const F_SEG_MAX: u64 = 1 << VIRTIO_BLK_F_SEG_MAX;
/// Feature: the disk cannot be written.
pub(super) const F_READ_ONLY: u64 = 1 << VIRTIO_BLK_F_RO;
/// Feature: the size of a block is said.
pub(super) const F_BLOCK_SIZE: u64 = 1 << VIRTIO_BLK_F_BLK_SIZE;
/// Feature: what was written is safe only after a flush.
pub(super) const F_FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
/// Feature: which transfers are fast is said.
pub(super) const F_TOPOLOGY: u64 = 1 << VIRTIO_BLK_F_TOPOLOGY;
/// Feature: sectors can be given up.
pub(super) const F_DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
/// Feature: sectors can be zeroed without sending zeros.
pub(super) const F_WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// Bytes of a sector, whatever the size of a block.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a request's header: its type, something reserved, and its sector.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes by which a request names sectors to give up or to zero.
pub(super) const EXTENT_BYTES: usize = 16;
/// Bytes of a disk's serial number.
pub(super) const SERIAL_BYTES: usize = 20;

/// Data buffers of a request: with header and status they fill a queue of 128 descriptors.
pub(super) const MOST_SEGMENTS: u32 = 126;
/// Bytes of one buffer, as Linux cuts them anyway.
pub(super) const LARGEST_SEGMENT: u32 = 64 << 10;
/// Bytes of data of one request.
pub(super) const MOST_BYTES: u64 = MOST_SEGMENTS as u64 * LARGEST_SEGMENT as u64;
/// Extents that one request may give up or zero.
pub(super) const MOST_EXTENTS: u32 = 16;
/// Sectors of one extent: 1 GiB, which an old disk zeroes in seconds.
pub(super) const LARGEST_EXTENT: u32 = 1 << 21;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the standard's numbers are 0 to 2"
)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a driver must know of a disk before it uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) sectors: u64,
    /// Bytes of a block: transfers must be whole blocks.
    pub(super) block_size: u32,
}

/// Bytes of the configuration space up to the last field that is offered.
pub(super) const CONFIG_BYTES: usize = 60;
/// Bytes in which the machine itself moves data.
const PHYSICAL_BLOCK: u32 = 4096;

impl Geometry {
    /// The configuration space (virtio 1.2, section 5.2.4). Fields of features that are not offered
    /// stay zero.
    pub(super) fn config_space(self) -> [u8; CONFIG_BYTES] {
        let mut space = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        let physical = PHYSICAL_BLOCK.max(self.block_size);
        let blocks = physical / self.block_size;
        let granule = u64::from(physical) / SECTOR;
        put(0, &self.sectors.to_le_bytes());
        put(8, &LARGEST_SEGMENT.to_le_bytes());
        put(12, &MOST_SEGMENTS.to_le_bytes());
        put(20, &self.block_size.to_le_bytes());
        put(24, &blocks.ilog2().to_le_bytes()[..1]);
        put(26, &blocks.to_le_bytes()[..2]);
        put(34, &1u16.to_le_bytes());
        put(36, &LARGEST_EXTENT.to_le_bytes());
        put(40, &MOST_EXTENTS.to_le_bytes());
        put(44, &granule.to_le_bytes()[..4]);
        put(48, &LARGEST_EXTENT.to_le_bytes());
        put(52, &MOST_EXTENTS.to_le_bytes());
        // Zeroing may give up the space.
        put(56, &[1]);
        space
    }
}
