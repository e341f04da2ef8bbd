//! Pages and the words for them, shared by every crate that decides or acts, with the chance and the
//! rates that several decide by.
//!
//! `Gfn`, `PageCount` and `VmId` are three kinds of number that are easily mixed up, so each is a
//! type. Nothing here does I/O or knows a guest.

#![forbid(unsafe_code)]

mod checked_text;
mod random;
mod range;
mod size;
mod states;
mod token_bucket;

pub use random::{Random, mix};
pub use range::{GfnRange, join_into_ranges};
pub use size::{InvalidSize, Size};
pub use states::{PageState, PageStates};
pub use token_bucket::TokenBucket;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use utoipa::ToSchema;

/// Bytes in a page of guest memory.
pub const PAGE_SIZE: u64 = PAGE_BYTES as u64;
/// The same, where memory of this process is counted.
pub const PAGE_BYTES: usize = 4096;

/// A guest frame number: which 4 KiB page of guest-physical memory (ESX: PPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Gfn(pub u64);

/// A number of pages.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(transparent)]
pub struct PageCount(pub u64);

impl PageCount {
    /// No pages.
    pub const ZERO: Self = Self(0);

    /// As many pages as `mebibytes` MiB hold.
    #[must_use]
    pub const fn from_mebibytes(mebibytes: u64) -> Self {
        Self(mebibytes * (1024 * 1024 / PAGE_SIZE))
    }

    /// As many pages as `bytes` touch: a started page counts whole.
    #[must_use]
    pub const fn from_bytes_up(bytes: u64) -> Self {
        Self(bytes.div_ceil(PAGE_SIZE))
    }

    /// The size of these pages in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 * PAGE_SIZE
    }

    /// `self - other`, or zero where `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for PageCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for PageCount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Sub for PageCount {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl Sum for PageCount {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::ZERO, Add::add)
    }
}

/// A sum that saturates at the largest count. [`Sum`] is for counts known to be small: it panics on overflow
/// where that is checked.
#[must_use]
pub fn total(counts: impl IntoIterator<Item = PageCount>) -> PageCount {
    counts.into_iter().fold(PageCount::ZERO, |sum, count| {
        PageCount(sum.0.saturating_add(count.0))
    })
}

/// Mebibytes with one decimal where it is not whole, as people read it: `120 MiB`, `7.5 MiB`.
impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (u128::from(self.0) * 10).div_ceil(256);
        if self.0.is_multiple_of(256) {
            write!(f, "{} MiB", self.0 / 256)
        } else {
            write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
        }
    }
}

/// Which VM, for as long as its host lives. Never reused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct VmId(pub u32);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_count_prints_as_mebibytes() {
        assert_eq!(PageCount::from_mebibytes(120).to_string(), "120 MiB");
        assert_eq!(PageCount(1).to_string(), "0.1 MiB");
        assert_eq!(PageCount(256 * 7 + 128).to_string(), "7.5 MiB");
    }

    #[test]
    fn a_total_saturates() {
        assert_eq!(total([PageCount(3), PageCount(4)]), PageCount(7));
        assert_eq!(
            total([PageCount(u64::MAX), PageCount(1)]),
            PageCount(u64::MAX)
        );
    }

    #[test]
    fn a_started_page_counts_whole() {
        assert_eq!(PageCount::from_bytes_up(0), PageCount(0));
        assert_eq!(PageCount::from_bytes_up(1), PageCount(1));
        assert_eq!(PageCount::from_bytes_up(4097), PageCount(2));
    }
}
