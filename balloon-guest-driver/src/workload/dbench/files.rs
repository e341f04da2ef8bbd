//! The files: how long each is, and which version of each block was written last.

use super::FILE_BLOCKS;
use crate::disk::Block;

/// The files of a disk. File n has the 16 blocks from 16 n on.
#[derive(Debug)]
pub struct Files<'a> {
    /// By block.
    versions: &'a mut [u32],
    /// By file, in blocks; 0 for one that is not there.
    lengths: &'a mut [u8],
}

impl<'a> Files<'a> {
    /// How many lengths files in that many blocks need.
    #[must_use]
    pub const fn lengths_for(blocks: u32) -> usize {
        (blocks / FILE_BLOCKS) as usize
    }

    /// Files in storage lent by the owner: a number for each block, and a length for each file.
    #[must_use]
    pub const fn new(versions: &'a mut [u32], lengths: &'a mut [u8]) -> Self {
        Self { versions, lengths }
    }

    /// No file is there in that many blocks.
    pub(in crate::workload) fn clear(&mut self, blocks: u32) {
        self.versions[..blocks as usize].fill(0);
        self.lengths[..Self::lengths_for(blocks)].fill(0);
    }

    pub(super) fn length(&self, file: u32) -> u32 {
        self.lengths[file as usize].into()
    }

    pub(super) fn set_length(&mut self, file: u32, blocks: u32) {
        debug_assert!(blocks <= FILE_BLOCKS, "file {file} of {blocks} blocks");
        self.lengths[file as usize] = u8::try_from(blocks).unwrap_or(u8::MAX);
    }

    /// Where the file is.
    pub(super) fn blocks(&self, file: u32) -> core::ops::Range<Block> {
        let first = file * FILE_BLOCKS;
        first..first + self.length(file)
    }

    pub(super) const fn version(&self, block: Block) -> u32 {
        self.versions[block as usize]
    }

    /// The block is written once more.
    pub(super) const fn next_version(&mut self, block: Block) {
        let version = &mut self.versions[block as usize];
        *version = version.wrapping_add(1);
    }
}
