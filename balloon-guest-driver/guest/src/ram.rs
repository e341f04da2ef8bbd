//! The guest's RAM: mapping it, cutting off what lasts forever, and access to its pages.

use core::mem;
use core::slice;
use core::sync::atomic::AtomicU64;

use balloon_guest_driver::page::{Memory, Page, WORDS};
use balloon_guest_driver::{Gfn, PAGE_SIZE};

use crate::start_info::Ram;

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
const TABLE_ENTRIES: usize = 512;
/// The start's page tables reach so far.
const GIB_AT_START: usize = 4;
/// Present, writable, user, accessed, and for a large page dirty and large.
const TABLE: u64 = 0x67;
const LARGE: u64 = 0xe7;

unsafe extern "C" {
    static mut image_end: u8;
    static mut pdpt: [u64; TABLE_ENTRIES];
}

/// Memory behind the image from which things are cut that are never given back.
#[derive(Debug)]
pub(crate) struct Arena {
    next: u64,
    end: u64,
}

impl Arena {
    /// The rest of the RAM piece that the image is in. There must be only one.
    pub(crate) fn behind_image(ram: &[Ram]) -> Self {
        let next = &raw const image_end as u64;
        let piece = ram
            .iter()
            .find(|piece| piece.start < next && next <= piece.end);
        Self {
            next,
            end: piece.map_or(next, |piece| piece.end),
        }
    }

    /// Cuts off room for `count` values, whole pages. It is not cleared, so that nothing is
    /// touched before it is used.
    ///
    /// # Safety
    /// Any contents must be a valid `T`.
    pub(crate) unsafe fn cut<T>(&mut self, count: usize) -> &'static mut [T] {
        let start = self.next;
        let bytes = (count * size_of::<T>()) as u64;
        self.next = (start + bytes).next_multiple_of(PAGE_SIZE);
        assert!(
            self.next <= self.end,
            "not enough memory: {} KiB lacking",
            (self.next - self.end) >> 10
        );
        // SAFETY: RAM behind the image that `next` has passed over just now, page-aligned, and
        // any contents are valid.
        unsafe { slice::from_raw_parts_mut(start as *mut T, count) }
    }

    /// The first byte that is nobody's.
    pub(crate) const fn next(&self) -> u64 {
        self.next
    }
}

/// Maps RAM from 4 GiB on where it is, in pages of 2 MiB.
pub(crate) fn map_above_4_gib(arena: &mut Arena, end: u64) {
    // The first entries are the start's own tables.
    for (gib, number) in (0..end.div_ceil(GIB))
        .zip(0..TABLE_ENTRIES)
        .skip(GIB_AT_START)
    {
        // SAFETY: any number is a valid number.
        let directory: &mut [u64] = unsafe { arena.cut(TABLE_ENTRIES) };
        for (entry, large_page) in directory.iter_mut().zip(0..) {
            *entry = (gib * GIB + large_page * LARGE_PAGE) | LARGE;
        }
        let entry = directory.as_ptr() as u64 | TABLE;
        let table = &raw mut pdpt;
        // SAFETY: the CPU's own table; an entry that was empty becomes valid, so nothing that is
        // in use changes.
        unsafe { (*table)[number] = entry };
    }
}

/// Access to the pages of the RAM. There is one.
#[derive(Debug)]
pub(crate) struct Pages(());

impl Pages {
    /// # Safety
    /// Once only, after [`map_above_4_gib`], and only pages behind the arena may be asked for.
    pub(crate) const unsafe fn new() -> Self {
        Self(())
    }
}

impl Memory for Pages {
    fn page(&mut self, gfn: Gfn) -> &mut Page {
        let address = u64::from(gfn) * PAGE_SIZE;
        // SAFETY: `new` was promised that pages are RAM that is mapped and nobody else's; the
        // borrow of `self` keeps it the only reference.
        unsafe { &mut *(address as *mut Page) }
    }

    fn word(&self, gfn: Gfn, index: usize) -> &AtomicU64 {
        assert!(index < WORDS, "word {index}");
        let address = u64::from(gfn) * PAGE_SIZE + 8 * index as u64;
        // SAFETY: as above; the borrow of `self` keeps everyone from a reference to the page that
        // is not atomic.
        unsafe { AtomicU64::from_ptr(address as *mut u64) }
    }
}

/// The frames that lie wholly in the piece and behind `first_free`.
pub(crate) fn frames_of(piece: Ram, first_free: u64) -> core::ops::Range<Gfn> {
    let start = piece.start.max(first_free).div_ceil(PAGE_SIZE);
    let end = piece.end / PAGE_SIZE;
    gfn(start)..gfn(end).max(gfn(start))
}

fn gfn(number: u64) -> Gfn {
    Gfn::try_from(number).expect("the page tables reach 512 GiB")
}

const _: () = assert!(mem::size_of::<Page>() as u64 == PAGE_SIZE);
