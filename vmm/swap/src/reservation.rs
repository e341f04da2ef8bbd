//! How large a VM's swap file must be, so that a page that must go out always can.
//!
//! The worst that guests can do is pages that no compression makes smaller: a record has 4,128 bytes then. The cleaner takes no
//! segment of which it would win less than a 32nd and a record ([`gain_is_worth_it`]), so one that it leaves alone holds
//! more than `least = payload - payload / 32 - 4,128` bytes of needed records. Suppose nothing but the cleaner's own
//! slots is free, and it leaves all others alone: then more than `least` bytes times their number are needed. With
//! `pages * 4,128 / least` slots beside the cleaner's, rounded up, that is more than all pages can need: it cannot be. So
//! there is always a slot to write to, or a segment to clean.
//!
//! An eighth more keeps the cleaner from working for hardly any gain when the worst comes. Pages that shrink to 45 %, as most
//! do, fill less than half of it.

use crate::record::MOST_RECORD_BYTES;
use crate::segment::SEGMENT_HEADER_BYTES;
use page::PageCount;

/// Free slots that only what the cleaner moved is written to: one for each of its two streams, and one for the segment that
/// it closed last.
pub(crate) const CLEANING_SLOTS: usize = 3;
/// Free slots beyond these at which it begins, so that pages need not wait for it.
const SLOTS_AHEAD: usize = 2;
/// For a large file, one of so many slots, too.
const SLOTS_AHEAD_DIVISOR: usize = 128;
/// Room for cleaning, as a part of the slots that could be needed.
const ROOM_DIVISOR: u64 = 8;
/// A segment of which less than this part would be won is not cleaned.
const LEAST_GAIN_DIVISOR: usize = 32;

/// Bytes of a segment that records can take.
pub(crate) const fn payload(segment_bytes: usize) -> usize {
    segment_bytes - SEGMENT_HEADER_BYTES
}

/// Whether a segment with so many bytes of needed records is worth being cleaned at all. What it is moved to may end with a
/// gap that no record fits in: that must be won, too.
pub(crate) const fn gain_is_worth_it(needed: usize, segment_bytes: usize) -> bool {
    needed <= most_worth_cleaning(segment_bytes)
}

const fn most_worth_cleaning(segment_bytes: usize) -> usize {
    let payload = payload(segment_bytes);
    payload.saturating_sub(MOST_RECORD_BYTES + payload / LEAST_GAIN_DIVISOR)
}

/// The number of free slots at which cleaning must begin.
pub(crate) fn clean_at(slots: u32) -> usize {
    CLEANING_SLOTS + SLOTS_AHEAD + slots as usize / SLOTS_AHEAD_DIVISOR
}

/// Segments that a VM's swap file must have room for, when up to `pages` of it may be out at once: its size less its min.
/// The file has `segment_bytes` for each.
///
/// # Panics
/// If a segment has no room for four pages that do not shrink, or so many slots cannot be counted.
#[must_use]
pub fn reserved_slots(pages: PageCount, segment_bytes: usize) -> u32 {
    assert!(
        segment_bytes >= LEAST_SEGMENT_BYTES,
        "segments of {segment_bytes} bytes"
    );
    if pages == PageCount::ZERO {
        return 0;
    }
    let bytes = pages.0 * MOST_RECORD_BYTES as u64;
    let needed = bytes.div_ceil(most_worth_cleaning(segment_bytes) as u64);
    let slots = needed + needed.div_ceil(ROOM_DIVISOR);
    let slots = u32::try_from(slots).expect("a VM's pages fit the log");
    slots + u32::try_from(clean_at(slots) + 1).expect("a part of them")
}

/// Four pages that do not shrink.
pub(crate) const LEAST_SEGMENT_BYTES: usize = 4 * MOST_RECORD_BYTES + SEGMENT_HEADER_BYTES;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    proptest! {
        #[test]
        fn if_the_cleaner_leaves_all_alone_there_is_a_slot_for_new_pages(
            pages in 1u64..1 << 30, segment_bytes in LEAST_SEGMENT_BYTES..2 * MIB
        ) {
            let slots = u64::from(reserved_slots(PageCount(pages), segment_bytes));
            let left_alone = most_worth_cleaning(segment_bytes) as u64 + 1;
            let most_in_use = pages * MOST_RECORD_BYTES as u64 / left_alone;
            prop_assert!(most_in_use < slots - CLEANING_SLOTS as u64);
        }
    }

    #[test]
    fn a_file_is_a_sixth_larger_than_what_may_be_out() {
        let pages = PageCount(1 << 18);
        let file = u64::from(reserved_slots(pages, MIB)) * MIB as u64;
        let ratio = file as f64 / (pages.0 * page::PAGE_SIZE) as f64;
        assert!((1.17..1.2).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_vm_that_keeps_all_needs_no_file() {
        assert_eq!(reserved_slots(PageCount::ZERO, MIB), 0);
    }
}
