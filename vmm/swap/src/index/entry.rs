//! What the index says of one page, in 14 bytes.
//!
//! ```text
//!  0 ┬ 2 ──────────── 50 ───────── 74 ───────── 95 ──────── 108   bits
//!    state  generation    segment      offset       length
//!    state  word ─────────────── 66
//!    state  hash ─────────────── 66 page ────────── 106 disk ── 112
//! ```

use crate::disk_page::{DISK_BITS, DiskPage, PAGE_BITS};
use crate::record::Generation;

pub(crate) const BYTES: usize = 14;
/// Segments that can be told apart.
pub(crate) const MOST_SEGMENTS: u32 = 1 << SEGMENT.bits;

const STATE: Field = Field { at: 0, bits: 2 };
const WORD: Field = Field { at: 2, bits: 64 };
const GENERATION: Field = Field { at: 2, bits: 48 };
const SEGMENT: Field = Field { at: 50, bits: 24 };
const OFFSET: Field = Field { at: 74, bits: 21 };
const LENGTH: Field = Field { at: 95, bits: 13 };
const DISK_PAGE: Field = Field {
    at: 66,
    bits: PAGE_BITS,
};
const DISK: Field = Field {
    at: 106,
    bits: DISK_BITS,
};

const FILLED: u64 = 0;
const NEEDED: u64 = 1;
const KEPT: u64 = 2;
const ON_DISK: u64 = 3;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    /// Bytes from the segment's start.
    pub(crate) offset: u32,
    /// Bytes of the whole record.
    pub(crate) length: u16,
    pub(crate) generation: Generation,
}

/// What is known of a page that is out or kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It is this word again and again.
    Filled(u64),
    /// It is in the record and nowhere else.
    Needed(Place),
    /// It is in guest memory, and was not written since; the record may be dropped.
    Kept(Place),
    /// A disk of the guest has it.
    OnDisk(DiskPage),
}

impl Entry {
    pub(crate) fn place(self) -> Option<Place> {
        match self {
            Self::Filled(_) | Self::OnDisk(_) => None,
            Self::Needed(place) | Self::Kept(place) => Some(place),
        }
    }

    pub(crate) fn pack(&self) -> Packed {
        let bits = match *self {
            Self::Filled(word) => STATE.put(FILLED) | WORD.put(word),
            Self::Needed(place) => STATE.put(NEEDED) | pack_place(place),
            Self::Kept(place) => STATE.put(KEPT) | pack_place(place),
            Self::OnDisk(page) => STATE.put(ON_DISK) | pack_disk_page(page),
        };
        let bytes = bits.to_le_bytes();
        Packed(*bytes.first_chunk().expect("16 bytes are more than 14"))
    }
}

fn pack_place(place: Place) -> u128 {
    GENERATION.put(place.generation.0)
        | SEGMENT.put(place.segment.into())
        | OFFSET.put(place.offset.into())
        | LENGTH.put(place.length.into())
}

fn pack_disk_page(page: DiskPage) -> u128 {
    WORD.put(page.hash) | DISK_PAGE.put(page.page()) | DISK.put(page.disk().into())
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Packed([u8; BYTES]);

impl Packed {
    pub(crate) fn unpack(self) -> Entry {
        let mut bytes = [0; 16];
        bytes[..BYTES].copy_from_slice(&self.0);
        let bits = u128::from_le_bytes(bytes);
        match STATE.get(bits) {
            FILLED => Entry::Filled(WORD.get(bits)),
            NEEDED => Entry::Needed(unpack_place(bits)),
            KEPT => Entry::Kept(unpack_place(bits)),
            ON_DISK => Entry::OnDisk(unpack_disk_page(bits)),
            state => unreachable!("state {state} of two bits"),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "each field has fewer bits than its type"
)]
fn unpack_place(bits: u128) -> Place {
    Place {
        segment: SEGMENT.get(bits) as u32,
        offset: OFFSET.get(bits) as u32,
        length: LENGTH.get(bits) as u16,
        generation: Generation(GENERATION.get(bits)),
    }
}

fn unpack_disk_page(bits: u128) -> DiskPage {
    let disk = u8::try_from(DISK.get(bits)).expect("the field has fewer bits");
    let page = DiskPage::new(disk, DISK_PAGE.get(bits), WORD.get(bits));
    page.expect("it was one when it was packed")
}

/// A range of bits.
struct Field {
    at: u32,
    bits: u32,
}

impl Field {
    fn put(&self, value: u64) -> u128 {
        assert!(
            u128::from(value) >> self.bits == 0,
            "{value} in {} bits",
            self.bits
        );
        u128::from(value) << self.at
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "no field has more than 64 bits"
    )]
    fn get(&self, bits: u128) -> u64 {
        (bits >> self.at & ((1 << self.bits) - 1)) as u64
    }
}
