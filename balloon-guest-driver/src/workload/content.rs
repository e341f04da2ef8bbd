//! What `verify` writes to a page: the guest's own stamp or, for a part of the writes, one of a few
//! contents that are equal in all guests, so that the host finds pages to share, and finds them
//! broken again.
//!
//! Which one follows from guest, frame and version: nothing is kept beside the version, and a page
//! goes from common to own and back as its version counts up.

use crate::held::Slot;
use crate::page::{Page, Stamp, is_zero};
use crate::random::mix;

/// How many common contents there are. The first is all zeros.
const COMMON_CONTENTS: u8 = 64;
/// Common contents carry the stamp of a guest that there is not; the frame is their number.
const NOBODY: u32 = u32::MAX;

/// What is in a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Content {
    /// What no other page has.
    Own(Stamp),
    /// What many pages of all guests have; by number.
    Common(u8),
}

impl Content {
    /// What belongs in a page of the guest, if `common` percent of the writes are common.
    pub(super) fn of(guest: u32, slot: Slot, common: u8) -> Self {
        let Slot { gfn, version } = slot;
        let place = u64::from(guest) << 32 | u64::from(gfn);
        let chance = mix(mix(place).wrapping_add(u64::from(version)));
        let [number, .., a, b, c, d] = chance.to_le_bytes();
        let percent = (u64::from(u32::from_le_bytes([a, b, c, d])) * 100) >> 32;
        if percent < u64::from(common) {
            Self::Common(number % COMMON_CONTENTS)
        } else {
            Self::Own(Stamp {
                guest,
                gfn,
                version,
            })
        }
    }

    /// Writes the whole page.
    pub(super) fn write(self, page: &mut Page) {
        match self.stamp() {
            Some(stamp) => stamp.write(page),
            None => page.fill(0),
        }
    }

    /// The first word that is not as it should be.
    pub(super) fn first_wrong_word(self, page: &Page) -> Option<usize> {
        match self.stamp() {
            Some(stamp) => stamp.first_wrong_word(page),
            None if is_zero(page) => None,
            None => page.iter().position(|&word| word != 0),
        }
    }

    /// The stamp that all words follow from; `None` for zeros.
    const fn stamp(self) -> Option<Stamp> {
        match self {
            Self::Own(stamp) => Some(stamp),
            Self::Common(0) => None,
            Self::Common(number) => Some(Stamp {
                guest: NOBODY,
                gfn: number as u32,
                version: 0,
            }),
        }
    }
}

/// Whether the page has one of the common contents, to the last byte.
pub(super) fn is_common(page: &Page) -> bool {
    let number = u8::try_from(Stamp::read(page).gfn).unwrap_or(COMMON_CONTENTS);
    number < COMMON_CONTENTS && Content::Common(number).first_wrong_word(page).is_none()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::page::WORDS;

    const GUEST: u32 = 7;

    fn page_of(content: Content) -> Page {
        let mut page = [!0; WORDS];
        content.write(&mut page);
        page
    }

    fn any_content() -> impl Strategy<Value = Content> {
        let own = (any::<u32>(), any::<u32>()).prop_map(|(gfn, version)| {
            Content::Own(Stamp {
                guest: GUEST,
                gfn,
                version,
            })
        });
        prop_oneof![own, (0..COMMON_CONTENTS).prop_map(Content::Common)]
    }

    fn versions(gfn: u32, common: u8) -> Vec<Content> {
        let content = |version| Content::of(GUEST, Slot { gfn, version }, common);
        (0..10_000).map(content).collect()
    }

    const fn is_common_kind(content: &Content) -> bool {
        matches!(content, Content::Common(_))
    }

    proptest! {
        #[test]
        fn one_wrong_bit_anywhere_is_found_in_both_kinds(
            content in any_content(), word in 0..WORDS, bit in 0_u32..64,
        ) {
            let mut page = page_of(content);
            prop_assert_eq!(content.first_wrong_word(&page), None);
            prop_assert_eq!(is_common(&page), is_common_kind(&content));
            page[word] ^= 1_u64 << bit;
            prop_assert_eq!(content.first_wrong_word(&page), Some(word));
            prop_assert!(!is_common(&page));
        }

        #[test]
        fn no_content_passes_for_another(a in any_content(), b in any_content()) {
            prop_assert_eq!(a.first_wrong_word(&page_of(b)).is_none(), a == b);
        }

        #[test]
        fn without_common_all_is_own_and_with_all_common_nothing(gfn: u32, version: u32) {
            let slot = Slot { gfn, version };
            let own = Stamp { guest: GUEST, gfn, version };
            prop_assert_eq!(Content::of(GUEST, slot, 0), Content::Own(own));
            prop_assert!(is_common_kind(&Content::of(GUEST, slot, 100)));
        }
    }

    #[test]
    fn the_given_part_is_common_and_every_common_content_is_used() {
        for common in [10, 50, 90] {
            let contents = versions(5, common);
            let count = contents
                .iter()
                .filter(|content| is_common_kind(content))
                .count();
            assert!(
                count.abs_diff(usize::from(common) * 100) < 200,
                "{count} for {common} %"
            );
            let pages: BTreeSet<Page> = contents
                .into_iter()
                .filter(is_common_kind)
                .map(page_of)
                .collect();
            assert_eq!(pages.len(), usize::from(COMMON_CONTENTS));
            assert!(pages.contains(&[0; WORDS]));
        }
    }

    #[test]
    fn a_page_goes_from_common_to_own_and_back_all_the_time() {
        let contents = versions(9, 50);
        let turns = contents
            .windows(2)
            .filter(|pair| is_common_kind(&pair[0]) != is_common_kind(&pair[1]))
            .count();
        assert!(turns.abs_diff(5_000) < 300, "{turns} of 10000");
    }
}
