//! Which operations on its file carry out a request, one after the other.

use super::request::{Extent, Kind, Stretches, ZeroedExtent};
use rustix::fs::FallocateFlags;
use std::collections::VecDeque;

/// Bytes that go through a bounce buffer at a time.
pub(super) const BOUNCE_BYTES: usize = 128 << 10;

/// Bytes of zeros that are written at a time.
const ZEROS_BYTES: u64 = 512 << 10;

/// One operation, as far as it can be said before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Read {
        offset: u64,
        data: Stretches,
    },
    Write {
        offset: u64,
        data: Stretches,
    },
    Allocate {
        mode: FallocateFlags,
        extent: Extent,
    },
    /// Where the file cannot be told to be zero.
    WriteZeros {
        extent: Extent,
    },
    Sync,
}

/// How the disk of a request works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// Whether what is written must be safe before the guest is told.
    pub(super) write_through: bool,
    /// The most bytes of a transfer, if not all of it.
    pub(super) most_bytes: Option<usize>,
}

/// The steps. None for what the file is not needed for.
pub(super) fn steps(kind: &Kind, manner: Manner) -> VecDeque<Step> {
    let mut steps: VecDeque<Step> = match kind {
        Kind::Read { offset, data } => pieces(*offset, data, manner)
            .map(|(offset, data)| Step::Read { offset, data })
            .collect(),
        Kind::Write { offset, data } => pieces(*offset, data, manner)
            .map(|(offset, data)| Step::Write { offset, data })
            .collect(),
        Kind::Flush => [Step::Sync].into(),
        Kind::Identify { .. } => VecDeque::new(),
        Kind::Discard(extents) => extents.iter().filter_map(discard).collect(),
        Kind::WriteZeroes(extents) => extents.iter().filter_map(zero).collect(),
    };
    let writes = !matches!(kind, Kind::Read { .. } | Kind::Flush);
    if writes && manner.write_through && !steps.is_empty() {
        steps.push_back(Step::Sync);
    }
    steps
}

fn pieces(
    mut offset: u64,
    data: &Stretches,
    manner: Manner,
) -> impl Iterator<Item = (u64, Stretches)> {
    let most = manner.most_bytes.map_or(u64::MAX, |bytes| bytes as u64);
    let mut rest = data.clone();
    std::iter::from_fn(move || {
        let bytes = rest.bytes().min(most);
        if bytes == 0 {
            return None;
        }
        let piece = rest.take_first(bytes)?;
        let at = offset;
        offset += bytes;
        Some((at, piece))
    })
}

fn discard(extent: &Extent) -> Option<Step> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    allocate(mode, *extent)
}

fn zero(zeroed: &ZeroedExtent) -> Option<Step> {
    match zeroed.unmap {
        true => discard(&zeroed.extent),
        false => {
            let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            allocate(mode, zeroed.extent)
        }
    }
}

/// Nothing where there is nothing to do: the kernel refuses extents of no length.
fn allocate(mode: FallocateFlags, extent: Extent) -> Option<Step> {
    (extent.bytes > 0).then_some(Step::Allocate { mode, extent })
}

/// The first part of an extent that is to be zeroed by writing, and what is left for later.
pub(super) fn split_zeros(extent: Extent) -> (Extent, Option<Extent>) {
    let bytes = extent.bytes.min(ZEROS_BYTES);
    let first = Extent { bytes, ..extent };
    let rest = Extent {
        offset: extent.offset + bytes,
        bytes: extent.bytes - bytes,
    };
    (first, (rest.bytes > 0).then_some(rest))
}
