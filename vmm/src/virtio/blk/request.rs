//! From a chain of buffers to a request that can be carried out, or the reason why not.
//!
//! The standard fixes what a chain holds, header, data and a status byte, and not where one buffer
//! ends and the next begins. So the buffers that the device may read are taken as one stretch of
//! bytes, and those that it may write as another.

use super::wire::{
    EXTENT_BYTES, F_DISCARD, F_WRITE_ZEROES, HEADER_BYTES, LARGEST_EXTENT, MOST_BYTES,
    MOST_EXTENTS, SECTOR, Status,
};
use crate::memory::doors::{Deed, told_in};
use crate::virtio::chain::Chain;
use std::collections::VecDeque;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A stretch of guest memory. Those of a [`Request`] lie in the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) start: GuestAddress,
    pub(super) bytes: u64,
}

/// Stretches in the order of the bytes that go through them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stretches(VecDeque<Stretch>);

/// A stretch of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What a guest asks of its disk, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    /// Where its status byte goes.
    pub(super) status: GuestAddress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read { offset: u64, data: Stretches },
    Write { offset: u64, data: Stretches },
    Flush,
    Identify { data: Stretches },
    Discard(Vec<Extent>),
    WriteZeroes(Vec<ZeroedExtent>),
}

impl Kind {
    /// Where on the disk what it touches ends, in bytes.
    pub(super) fn end(&self) -> u64 {
        let end = |extent: &Extent| extent.offset.saturating_add(extent.bytes);
        match self {
            Self::Read { offset, data } | Self::Write { offset, data } => {
                offset.saturating_add(data.bytes())
            }
            Self::Flush | Self::Identify { .. } => 0,
            Self::Discard(extents) => extents.iter().map(end).max().unwrap_or(0),
            Self::WriteZeroes(zeroed) => {
                let ends = zeroed.iter().map(|zeroed| end(&zeroed.extent));
                ends.max().unwrap_or(0)
            }
        }
    }
}

/// An extent that is to read as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZeroedExtent {
    pub(super) extent: Extent,
    /// Whether its space may be given up.
    pub(super) unmap: bool,
}

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The chain or what it says makes no sense.
    Malformed,
    /// It reaches beyond the disk, or beyond a limit that was told.
    OutOfRange,
    /// It would change a disk that is only to be read.
    ReadOnly,
    /// Nobody offered this.
    Unsupported,
}

impl Fault {
    pub(super) fn status(self) -> Status {
        match self {
            Self::Unsupported => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

/// A request that is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) fault: Fault,
    /// Where its status byte goes, if it has one.
    pub(super) status: Option<GuestAddress>,
}

/// What a disk allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    /// The features that were agreed on.
    pub(super) features: u64,
}

/// What the chain asks for.
pub(super) fn parse(chain: Chain<'_>, rules: &Rules) -> Result<Request, Refused> {
    let memory = chain.memory();
    let unanswerable = Refused {
        fault: Fault::Malformed,
        status: None,
    };
    let mut buffers = Buffers::gather(chain).ok_or(unanswerable)?;
    let status = buffers.writable.take_last_byte().ok_or(unanswerable)?;
    if !memory.address_in_range(status) {
        return Err(unanswerable);
    }
    match buffers.kind(memory, rules) {
        Ok(kind) => Ok(Request { kind, status }),
        Err(fault) => Err(Refused {
            fault,
            status: Some(status),
        }),
    }
}

/// The two halves of a chain.
struct Buffers {
    readable: Stretches,
    writable: Stretches,
    /// A buffer was empty, or to be read after one to be written.
    wrong: bool,
}

impl Buffers {
    /// `None` where the chain's end is not known, and so not its status byte.
    fn gather(chain: Chain<'_>) -> Option<Self> {
        let mut buffers = Self {
            readable: Stretches::default(),
            writable: Stretches::default(),
            wrong: false,
        };
        for descriptor in chain {
            let descriptor = descriptor.ok()?;
            let stretch = Stretch {
                start: descriptor.addr(),
                bytes: descriptor.len().into(),
            };
            buffers.wrong |= stretch.bytes == 0;
            if descriptor.is_write_only() {
                buffers.writable.0.push_back(stretch);
            } else {
                buffers.wrong |= !buffers.writable.0.is_empty();
                buffers.readable.0.push_back(stretch);
            }
        }
        Some(buffers)
    }

    /// The header and what follows from it. The status byte has been taken away.
    fn kind(mut self, memory: &GuestMemoryMmap, rules: &Rules) -> Result<Kind, Fault> {
        let wrong = self.wrong || !self.readable.lie_in(memory) || !self.writable.lie_in(memory);
        if wrong || self.writable.bytes() > MOST_BYTES {
            return Err(Fault::Malformed);
        }
        let header = self.readable.take_first(HEADER_BYTES as u64);
        let header: [u8; HEADER_BYTES] = header
            .and_then(|header| header.copy(memory))
            .ok_or(Fault::Malformed)?;
        if self.readable.bytes() > MOST_BYTES {
            return Err(Fault::Malformed);
        }
        let number = word(&header, 0);
        let sector = long(&header, 8);
        match number {
            VIRTIO_BLK_T_IN => {
                let data = only(self.writable, &self.readable)?;
                let offset = rules.check(sector, data.bytes())?;
                Ok(Kind::Read { offset, data })
            }
            VIRTIO_BLK_T_OUT => {
                rules.may_write()?;
                let data = only(self.readable, &self.writable)?;
                let offset = rules.check(sector, data.bytes())?;
                Ok(Kind::Write { offset, data })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Kind::Flush),
            VIRTIO_BLK_T_GET_ID => {
                let data = only(self.writable, &self.readable)?;
                Ok(Kind::Identify { data })
            }
            VIRTIO_BLK_T_DISCARD if rules.features & F_DISCARD != 0 => {
                rules.may_write()?;
                let extents = only(self.readable, &self.writable)?.extents(memory)?;
                let check = |claim: ClaimedExtent| rules.check_discard(claim);
                let extents: Result<_, _> = extents.into_iter().map(check).collect();
                extents.map(Kind::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if rules.features & F_WRITE_ZEROES != 0 => {
                rules.may_write()?;
                let extents = only(self.readable, &self.writable)?.extents(memory)?;
                let check = |claim: ClaimedExtent| rules.check_zeroing(claim);
                let extents: Result<_, _> = extents.into_iter().map(check).collect();
                extents.map(Kind::WriteZeroes)
            }
            _ => Err(Fault::Unsupported),
        }
    }
}

/// The data of a request, all of which goes one way.
fn only(data: Stretches, other_way: &Stretches) -> Result<Stretches, Fault> {
    match data.bytes() > 0 && other_way.bytes() == 0 {
        true => Ok(data),
        false => Err(Fault::Malformed),
    }
}

/// An extent as the guest named it.
#[derive(Clone, Copy, Debug)]
struct ClaimedExtent {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Rules {
    fn may_write(&self) -> Result<(), Fault> {
        match self.read_only {
            true => Err(Fault::ReadOnly),
            false => Ok(()),
        }
    }

    /// Where on the disk the bytes lie, if they are whole sectors of it.
    fn check(&self, sector: u64, bytes: u64) -> Result<u64, Fault> {
        if !bytes.is_multiple_of(SECTOR) {
            return Err(Fault::Malformed);
        }
        let end = sector.checked_add(bytes / SECTOR);
        match end.is_some_and(|end| end <= self.sectors) {
            true => Ok(sector * SECTOR),
            false => Err(Fault::OutOfRange),
        }
    }

    fn check_extent(&self, claim: ClaimedExtent) -> Result<Extent, Fault> {
        if claim.sectors > LARGEST_EXTENT {
            return Err(Fault::OutOfRange);
        }
        let bytes = u64::from(claim.sectors) * SECTOR;
        let offset = self.check(claim.sector, bytes)?;
        Ok(Extent { offset, bytes })
    }

    fn check_discard(&self, claim: ClaimedExtent) -> Result<Extent, Fault> {
        match claim.flags {
            0 => self.check_extent(claim),
            _ => Err(Fault::Unsupported),
        }
    }

    fn check_zeroing(&self, claim: ClaimedExtent) -> Result<ZeroedExtent, Fault> {
        let unmap = match claim.flags {
            0 => false,
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => true,
            _ => return Err(Fault::Unsupported),
        };
        let extent = self.check_extent(claim)?;
        Ok(ZeroedExtent { extent, unmap })
    }
}

impl Stretches {
    /// All bytes together. Of at most as many stretches as a queue has descriptors.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|stretch| stretch.bytes).sum()
    }

    /// The stretches, first to last.
    pub(super) fn iter(&self) -> impl Iterator<Item = Stretch> {
        self.0.iter().copied()
    }

    /// Takes bytes away from the front; `None` if there are not so many.
    pub(super) fn take_first(&mut self, bytes: u64) -> Option<Self> {
        let mut taken = Self::default();
        let mut left = bytes;
        while left > 0 {
            let first = self.0.front_mut()?;
            let count = left.min(first.bytes);
            taken.0.push_back(Stretch {
                start: first.start,
                bytes: count,
            });
            left -= count;
            first.bytes -= count;
            if first.bytes == 0 {
                self.0.pop_front();
            } else {
                first.start = first.start.checked_add(count)?;
            }
        }
        Some(taken)
    }

    fn take_last_byte(&mut self) -> Option<GuestAddress> {
        // Empty buffers are refused later; until then they hold no byte.
        while self.0.back().is_some_and(|last| last.bytes == 0) {
            self.0.pop_back();
        }
        let last = self.0.back_mut()?;
        last.bytes -= 1;
        let address = last.start.checked_add(last.bytes);
        if last.bytes == 0 {
            self.0.pop_back();
        }
        address
    }

    fn lie_in(&self, memory: &GuestMemoryMmap) -> bool {
        let lies = |stretch: &Stretch| {
            usize::try_from(stretch.bytes)
                .is_ok_and(|bytes| memory.check_range(stretch.start, bytes))
        };
        self.0.iter().all(lies)
    }

    /// All of the bytes, which must be `N`.
    fn copy<const N: usize>(&self, memory: &GuestMemoryMmap) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.copy_out(memory, &mut bytes).then_some(bytes)
    }

    /// A device is about to read or write all of them, as the guest would or without waiting for any fence.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn go_to_device(&self, waits: bool, memory: &GuestMemoryMmap) {
        for stretch in &self.0 {
            told_in(
                Deed::OfDevice { waits },
                memory,
                stretch.start,
                stretch.bytes,
            );
        }
    }

    /// Copies the bytes out of the guest. False if they are not as many as `into` has, or not RAM.
    pub(super) fn copy_out(&self, memory: &GuestMemoryMmap, into: &mut [u8]) -> bool {
        let mut rest = into;
        for stretch in &self.0 {
            let count = usize::try_from(stretch.bytes).unwrap_or(usize::MAX);
            let Some((part, after)) = rest.split_at_mut_checked(count) else {
                return false;
            };
            if memory.read_slice(part, stretch.start).is_err() {
                return false;
            }
            rest = after;
        }
        rest.is_empty()
    }

    /// Copies bytes into the guest, up to the end of either. How many; none if it is not RAM.
    pub(super) fn copy_in(&self, memory: &GuestMemoryMmap, from: &[u8]) -> Option<u64> {
        let mut rest = from;
        for stretch in &self.0 {
            let count = rest
                .len()
                .min(usize::try_from(stretch.bytes).unwrap_or(usize::MAX));
            let (part, after) = rest.split_at(count);
            memory.write_slice(part, stretch.start).ok()?;
            rest = after;
        }
        Some((from.len() - rest.len()) as u64)
    }

    fn extents(&self, memory: &GuestMemoryMmap) -> Result<Vec<ClaimedExtent>, Fault> {
        let bytes = self.bytes();
        if !bytes.is_multiple_of(EXTENT_BYTES as u64) {
            return Err(Fault::Malformed);
        }
        if bytes > u64::from(MOST_EXTENTS) * EXTENT_BYTES as u64 {
            return Err(Fault::OutOfRange);
        }
        let mut copy = vec![0; usize::try_from(bytes).unwrap_or(0)];
        if !self.copy_out(memory, &mut copy) {
            return Err(Fault::Malformed);
        }
        let extent = |bytes: &[u8; EXTENT_BYTES]| ClaimedExtent {
            sector: long(bytes, 0),
            sectors: word(bytes, 8),
            flags: word(bytes, 12),
        };
        Ok(copy
            .as_chunks::<EXTENT_BYTES>()
            .0
            .iter()
            .map(extent)
            .collect())
    }
}

fn word(bytes: &[u8; 16], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
