//! A guest's memory: one sealed memory file, mapped once for the guest and its devices.
//!
//! RAM above 3 GiB goes on at 4 GiB, because the gap below 4 GiB belongs to devices; in the file
//! the two pieces follow each other without a gap. A block of 2 MiB begins at a multiple of 2 MiB in guest memory, in
//! the file and in the process, so that one large page of the machine can be all three. The file is sealed against growing and
//! shrinking, so whoever holds its descriptor can rely on its size.

use crate::memory::MemoryError;
use crate::memory::doors::{Deed, told, told_of};
use crate::memory::large_file;
use crate::memory::mapping::Place;
use crate::memory::residency;
use page::{Gfn, GfnRange, PAGE_BYTES, PAGE_SIZE, PageCount};
use rustix::fd::AsFd;
use rustix::fs::{FallocateFlags, FileType, MemfdFlags, SealFlags};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

/// First page of the gap for devices: RAM that does not fit below goes on after the gap.
pub const GAP_START: Gfn = Gfn((3 << 30) / PAGE_SIZE);
/// First page after the gap for devices.
pub const GAP_END: Gfn = Gfn((4 << 30) / PAGE_SIZE);

/// The memory file's name in the kernel's lists.
const NAME: &str = "ballonet-ram";

/// A frame number as the guest gave it. It may name no memory at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimedGfn(pub u64);

/// Which guest-physical pages are RAM, and where in the memory file each lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    size: PageCount,
}

/// A stretch of guest-physical memory that is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamPiece {
    /// Its pages.
    pub pages: GfnRange,
    /// Where its first page lies in the memory file, in bytes.
    pub file_offset: u64,
}

impl RamLayout {
    /// The layout of a VM of `size`.
    #[must_use]
    pub const fn new(size: PageCount) -> Self {
        Self { size }
    }

    /// All pages together.
    #[must_use]
    pub const fn size(self) -> PageCount {
        self.size
    }

    /// The one or two pieces, lowest first.
    #[must_use]
    pub fn pieces(self) -> Vec<RamPiece> {
        let low = self.size.min(PageCount(GAP_START.0));
        let high = self.size - low;
        let piece = |start, count, file_offset| RamPiece {
            pages: GfnRange { start, count },
            file_offset,
        };
        let mut pieces = vec![piece(Gfn(0), low, 0)];
        if high > PageCount::ZERO {
            pieces.push(piece(GAP_END, high, low.bytes()));
        }
        pieces
    }

    /// The only way from a claim to a `Gfn`: none if the guest has no RAM there.
    #[must_use]
    pub fn check(self, claim: ClaimedGfn) -> Option<Gfn> {
        self.index_of(claim.0).map(|_| Gfn(claim.0))
    }

    /// The page's index in the memory file.
    ///
    /// # Panics
    /// If `gfn` is not RAM: a `Gfn` comes from [`RamLayout::check`] of the same VM.
    #[must_use]
    pub fn file_index(self, gfn: Gfn) -> u64 {
        match self.index_of(gfn.0) {
            Some(index) => index,
            None => panic!(
                "gfn {} of another guest (RAM of {} pages)",
                gfn.0, self.size.0
            ),
        }
    }

    /// The guest's pages that lie at `count` pages of the memory file from `start` on: one range,
    /// or two where they lie on both sides of the gap.
    pub(crate) fn pieces_of_file(self, start: u64, count: u64) -> Vec<GfnRange> {
        let end = start + count;
        let overlap = |piece: RamPiece| {
            let first = piece.file_offset / PAGE_SIZE;
            let from = start.max(first);
            let to = end.min(first + piece.pages.count.0);
            (from < to).then(|| GfnRange {
                start: Gfn(piece.pages.start.0 + (from - first)),
                count: PageCount(to - from),
            })
        };
        self.pieces().into_iter().filter_map(overlap).collect()
    }

    fn index_of(self, page: u64) -> Option<u64> {
        let low = self.size.0.min(GAP_START.0);
        if page < low {
            return Some(page);
        }
        let index = page.checked_sub(GAP_END.0)?.checked_add(GAP_START.0)?;
        (index < self.size.0).then_some(index)
    }
}

/// The memory of one guest.
#[derive(Clone, Debug)]
pub struct GuestRam {
    layout: RamLayout,
    file: Arc<File>,
    /// Where `memory` is mapped.
    place: Arc<Place>,
    memory: GuestMemoryMmap,
    takes_advice: bool,
}

impl GuestRam {
    /// Makes and maps memory for a guest of `size`; no page of it is allocated yet.
    ///
    /// # Errors
    /// When the kernel refuses the memory file or the mapping.
    pub fn new(size: PageCount) -> Result<Self, MemoryError> {
        Self::sealed(size, false)
    }

    fn sealed(size: PageCount, takes_advice: bool) -> Result<Self, MemoryError> {
        let file = sealed_memory_file(NAME, size.bytes()).map_err(MemoryError::MakeRam)?;
        Self::of(file, size, takes_advice)
    }

    /// As [`Self::new`], of blocks that a touch makes whole where that is advised, if this process can have such.
    ///
    /// # Errors
    /// When the kernel refuses the memory file or the mapping.
    pub fn with_large_pages(size: PageCount) -> Result<Self, MemoryError> {
        match large_file::memory_file(NAME, size.bytes()) {
            Ok(file) => Self::of(file, size, true),
            Err(error) => {
                tracing::debug!("no file system for large pages: {error}");
                Self::sealed(size, large_file::is_advice_heeded())
            }
        }
    }

    fn of(file: File, size: PageCount, takes_advice: bool) -> Result<Self, MemoryError> {
        let layout = RamLayout::new(size);
        let bytes = in_this_process(size, size.bytes())?;
        let place = Place::of(&file, bytes).map_err(MemoryError::MapRam)?;
        let regions = layout.pieces().into_iter().map(|piece| {
            let offset = in_this_process(size, piece.file_offset)?;
            let bytes = in_this_process(size, piece.pages.count.bytes())?;
            let mapping = region(&place, offset, bytes)?;
            let start = GuestAddress(piece.pages.start.0 * PAGE_SIZE);
            GuestRegionMmap::new(mapping, start).ok_or(MemoryError::RamTooLarge(size))
        });
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        let memory = GuestMemoryMmap::from_regions(regions).map_err(MemoryError::LayOutRam)?;
        Ok(Self {
            layout,
            file: Arc::new(file),
            place: Arc::new(place),
            memory,
            takes_advice,
        })
    }

    /// Which pages there are.
    #[must_use]
    pub const fn layout(&self) -> RamLayout {
        self.layout
    }

    /// The memory as the guest sees it, for devices and for loading a kernel.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The memory file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether a touch makes a whole block where that is advised.
    pub(crate) const fn takes_advice(&self) -> bool {
        self.takes_advice
    }

    /// Pages that the memory file holds, as the kernel counts them.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn allocated(&self) -> Result<PageCount, MemoryError> {
        allocated_pages(&self.file).map_err(MemoryError::ReadRamUse)
    }

    /// Which pages of a range the memory file holds, in the range's order. Allocates none.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub(crate) fn residency(&self, range: GfnRange) -> Result<Vec<bool>, MemoryError> {
        let address = GuestAddress(range.start.0 * PAGE_SIZE);
        let bytes = usize::try_from(range.count.bytes())
            .map_err(|_too_large| MemoryError::RamTooLarge(range.count))?;
        // The slice proves that the whole range is mapped.
        let slice = self
            .memory
            .get_slice(address, bytes)
            .map_err(MemoryError::TouchRam)?;
        residency::of(&slice).map_err(MemoryError::ReadRamUse)
    }

    /// Where pages of the memory file, by their place in it, are mapped for the guest in this process.
    ///
    /// # Panics
    /// If there are no such pages.
    #[must_use]
    pub fn addresses(&self, pages: Range<u64>) -> Range<u64> {
        let size = self.layout.size.0;
        assert!(pages.end <= size, "pages {pages:?} of {size}");
        let start = self.place.start() as u64;
        start + pages.start * PAGE_SIZE..start + pages.end * PAGE_SIZE
    }

    /// What the guest sees at a page, by its place in the memory file. Only for pages that are there:
    /// looking at a hole would allocate a page.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(crate) fn look(&self, index: u64, page: &mut [u8; PAGE_BYTES]) -> Result<(), MemoryError> {
        told(Deed::LookedAt, &self.addresses(index..index + 1));
        let gfns = self.layout.pieces_of_file(index, 1);
        let address =
            GuestAddress(gfns.first().map_or(u64::MAX, |range| range.start.0) * PAGE_SIZE);
        self.memory
            .read_slice(page, address)
            .map_err(MemoryError::TouchRam)
    }

    /// Gives the pages of a range back to the host: they read as zero from then on.
    ///
    /// # Errors
    /// When the kernel refuses; the pages then keep their content.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(crate) fn punch(&self, range: GfnRange) -> rustix::io::Result<()> {
        told_of(Deed::Punched, &self.memory, &[range]);
        let offset = self.layout.file_index(range.start) * PAGE_SIZE;
        punch(&self.file, offset, range.count.bytes())
    }
}

fn in_this_process(size: PageCount, bytes: u64) -> Result<usize, MemoryError> {
    usize::try_from(bytes).map_err(|_too_large| MemoryError::RamTooLarge(size))
}

#[expect(unsafe_code, reason = "one mapping is both regions' memory")]
fn region(place: &Place, offset: usize, bytes: usize) -> Result<MmapRegion, MemoryError> {
    let start = place.start().wrapping_byte_add(offset).cast();
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: the piece lies in the place, which nothing else ever lies in; when the last `GuestRam` is gone, it is
    // mapped still, and empty.
    let region = unsafe { MmapRegion::build_raw(start, bytes, access, flags) };
    region.map_err(MemoryError::LayOutRegion)
}

/// Pages that a memory file holds, as the kernel counts them.
///
/// # Errors
/// When the kernel does not answer.
pub fn allocated_pages(file: &File) -> rustix::io::Result<PageCount> {
    const BLOCK: u64 = 512;
    let blocks = u64::try_from(rustix::fs::fstat(file)?.st_blocks).unwrap_or(0);
    Ok(PageCount(blocks * BLOCK / PAGE_SIZE))
}

/// Frees all that a memory file holds, whoever else has it open.
///
/// # Errors
/// When the kernel refuses.
pub fn punch_all(file: &File) -> rustix::io::Result<()> {
    let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
    punch(file, 0, size)
}

/// What is punched out of a memory file reads as zero from then on.
pub(super) fn punch(file: &File, offset: u64, length: u64) -> rustix::io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, hole, offset, length)
}

/// A memory file of this size for ever.
pub(super) fn sealed_memory_file(name: &str, bytes: u64) -> rustix::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(name, flags)?;
    rustix::fs::ftruncate(&file, bytes)?;
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(File::from(file))
}

/// Why a file is no memory for a guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotMemory {
    #[error("it is no file in memory")]
    Kind,
    #[error("it has {has} bytes, and should have {should}")]
    Size { has: u64, should: u64 },
    #[error(
        "it is neither sealed against shrinking and growing, nor in a file system that holds no more than it"
    )]
    Unbounded,
    #[error("the kernel does not tell what it is")]
    Unknown(#[from] rustix::io::Errno),
}

/// Whether a file that somebody sent is memory of this size, and can never hold more: as [`sealed_memory_file`] makes it, or
/// [`large_file`]. The latter may still be cut off, for it takes no seals: who reads it must bear with that, by calls or by
/// [`crate::memory::block_window`].
pub(crate) fn check_memory(file: impl AsFd, bytes: u64) -> Result<(), NotMemory> {
    // From the kernel's include/uapi/linux/magic.h.
    const TMPFS: i64 = 0x0102_1994;
    let stat = rustix::fs::fstat(&file)?;
    let system = rustix::fs::fstatfs(&file)?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || system.f_type != TMPFS {
        return Err(NotMemory::Kind);
    }
    match u64::try_from(stat.st_size).unwrap_or(0) {
        has if has == bytes => {}
        has => return Err(NotMemory::Size { has, should: bytes }),
    }
    let sealed = SealFlags::GROW | SealFlags::SHRINK;
    let is_sealed = rustix::fs::fcntl_get_seals(&file)?.contains(sealed);
    let most = system.f_blocks.saturating_mul(PAGE_SIZE);
    match is_sealed || most == large_file::most_bytes(bytes) {
        true => Ok(()),
        false => Err(NotMemory::Unbounded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_memory_that_holds_no_more_than_its_size_passes() {
        let bytes = 3 * PAGE_SIZE;
        let sealed = sealed_memory_file("sealed", bytes).unwrap();
        assert!(check_memory(&sealed, bytes).is_ok());
        let other_size = check_memory(&sealed, 2 * bytes);
        assert!(matches!(other_size, Err(NotMemory::Size { .. })));
        // Needs the right to mount, as the whole-guest tests do.
        let large = large_file::memory_file("large", bytes).unwrap();
        assert!(check_memory(&large, bytes).is_ok());
        large.set_len(1 << 30).unwrap();
        let in_small = check_memory(&large, 1 << 30);
        assert!(matches!(in_small, Err(NotMemory::Unbounded)));
        for flags in [MemfdFlags::ALLOW_SEALING, MemfdFlags::CLOEXEC] {
            let memfd = File::from(rustix::fs::memfd_create("unsealed", flags).unwrap());
            memfd.set_len(bytes).unwrap();
            let unsealed = check_memory(&memfd, bytes);
            assert!(matches!(unsealed, Err(NotMemory::Unbounded)), "{flags:?}");
        }
        let (pipe, _end) = std::io::pipe().unwrap();
        let others = [
            File::open("/dev/zero").unwrap().into(),
            File::open("/proc/self/exe").unwrap().into(),
            File::open("/").unwrap().into(),
            rustix::fd::OwnedFd::from(pipe),
        ];
        for other in others {
            assert!(check_memory(other, bytes).is_err());
        }
    }

    proptest! {
        /// Every page that a piece lists passes the check, has its own place in the file, and no
        /// other claim passes.
        #[test]
        fn a_claim_passes_exactly_where_a_piece_has_ram(
            size in 1u64..(6 << 18), claim in prop_oneof![0u64..(8 << 18), Just(u64::MAX)]
        ) {
            let layout = RamLayout::new(PageCount(size));
            let holder = layout.pieces().into_iter().find(|piece| {
                claim >= piece.pages.start.0 && claim < piece.pages.end().0
            });
            prop_assert_eq!(layout.check(ClaimedGfn(claim)).is_some(), holder.is_some());
            if let Some(piece) = holder {
                let expected = piece.file_offset / PAGE_SIZE + (claim - piece.pages.start.0);
                prop_assert_eq!(layout.file_index(Gfn(claim)), expected);
                prop_assert!(expected < size);
            }
            prop_assert_eq!(layout.pieces().iter().map(|piece| piece.pages.count).sum::<PageCount>(), PageCount(size));
        }
    }

    #[test]
    fn a_vm_above_three_gibibytes_has_two_pieces() {
        let pieces = RamLayout::new(PageCount::from_mebibytes(5 * 1024)).pieces();
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[1].pages.start, GAP_END);
        assert_eq!(pieces[1].pages.count, PageCount::from_mebibytes(2 * 1024));
        assert_eq!(pieces[1].file_offset, 3 << 30);
    }

    #[test]
    fn a_punched_page_reads_zero_and_costs_nothing() {
        let ram = GuestRam::new(PageCount(16)).unwrap();
        ram.memory()
            .write_obj(0x1122_3344_u32, GuestAddress(3 * PAGE_SIZE))
            .unwrap();
        assert_eq!(ram.allocated().unwrap(), PageCount(1));
        ram.punch(GfnRange {
            start: Gfn(2),
            count: PageCount(4),
        })
        .unwrap();
        assert_eq!(ram.allocated().unwrap(), PageCount(0));
        assert_eq!(
            ram.memory()
                .read_obj::<u32>(GuestAddress(3 * PAGE_SIZE))
                .unwrap(),
            0
        );
    }

    #[test]
    fn a_block_of_the_guest_is_a_block_of_the_file_and_of_the_process() {
        let ram = GuestRam::new(PageCount(GAP_START.0 + 1024)).unwrap();
        for gfn in [Gfn(0), Gfn(512), GAP_END, Gfn(GAP_END.0 + 512)] {
            let index = ram.layout().file_index(gfn);
            let address = GuestAddress(gfn.0 * PAGE_SIZE);
            let host = ram.memory().get_host_address(address).unwrap() as u64;
            assert_eq!(ram.addresses(index..index + 512).start, host);
            assert_eq!(
                [index % 512, host % (2 << 20)],
                [0, 0],
                "guest page {}",
                gfn.0
            );
        }
    }

    #[test]
    fn nobody_can_resize_a_guests_memory_file() {
        let ram = GuestRam::new(PageCount(4)).unwrap();
        assert!(rustix::fs::ftruncate(ram.file(), 0).is_err());
        assert!(rustix::fs::ftruncate(ram.file(), 8 * PAGE_SIZE).is_err());
        assert!(rustix::fs::fcntl_add_seals(ram.file(), SealFlags::WRITE).is_err());
    }
}
