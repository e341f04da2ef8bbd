//! What a disk of the guest has already need not be stored (`VSwapper`: Amit, Tsafrir and Schuster 2014).

use std::num::NonZero;

/// Bits of a disk's number,
pub(crate) const DISK_BITS: u32 = 6;
/// and of a page's on it: disks of 4 PiB.
pub(crate) const PAGE_BITS: u32 = 40;

/// A page of a disk that the guest can only read, and what it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskPage {
    /// The disk's number and the page's, and 1, so that none of them takes no more room than one.
    place: NonZero<u64>,
    /// Of its contents: the disk may be changed from outside.
    pub hash: u64,
}

impl DiskPage {
    /// The page that begins at byte 4096 × `page` of a disk. None where numbers are so large that the index has no room for them.
    #[must_use]
    pub fn new(disk: u8, page: u64, hash: u64) -> Option<Self> {
        let fits = u32::from(disk) >> DISK_BITS == 0 && page >> PAGE_BITS == 0;
        let place = || NonZero::new((u64::from(disk) << PAGE_BITS | page) + 1);
        fits.then(place).flatten().map(|place| Self { place, hash })
    }

    /// The disk's number in its VM.
    #[must_use]
    pub fn disk(&self) -> u8 {
        u8::try_from(self.number() >> PAGE_BITS).expect("6 bits")
    }

    /// The page's number on its disk.
    #[must_use]
    pub const fn page(&self) -> u64 {
        self.number() & ((1 << PAGE_BITS) - 1)
    }

    const fn number(&self) -> u64 {
        self.place.get() - 1
    }
}
