//! What is in a page: patterns that say whose page it is.
//!
//! Every word of a page depends on all that names the page, so one wrong byte anywhere shows,
//! and the first two words can be read by a person who wants to know where the page came from.

use core::sync::atomic::AtomicU64;

use crate::Gfn;
use crate::random::{GOLDEN, mix};

/// 64-bit words in a page.
pub const WORDS: usize = 512;
/// The contents of a page.
pub type Page = [u64; WORDS];

const MAGIC: u32 = 0x424e_4c54;
pub(super) const HEADER_WORDS: usize = 2;

/// Access to the guest's pages: to one page at a time for one processor, or to words for many
/// processors at a time.
pub trait Memory: Sync {
    /// The page with this number.
    fn page(&mut self, gfn: Gfn) -> &mut Page;
    /// A word of the page.
    ///
    /// # Panics
    /// If a page has fewer than [`WORDS`] words before it.
    fn word(&self, gfn: Gfn, index: usize) -> &AtomicU64;
}

/// Whose page it is, and which version of its content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    /// The guest's identity.
    pub guest: u32,
    /// The page's number in that guest.
    pub gfn: Gfn,
    /// Counts up with each rewriting.
    pub version: u32,
}

impl Stamp {
    pub(super) fn header(self) -> [u64; HEADER_WORDS] {
        let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        [join(MAGIC, self.guest), join(self.gfn, self.version)]
    }

    fn seed(self) -> u64 {
        let [first, second] = self.header();
        mix(first ^ mix(second))
    }

    /// Writes the whole page.
    pub fn write(self, page: &mut Page) {
        fill(page, self.seed());
        page[..HEADER_WORDS].copy_from_slice(&self.header());
    }

    /// The first word that is not as this stamp says.
    #[must_use]
    pub fn first_wrong_word(self, page: &Page) -> Option<usize> {
        let header = self.header();
        let mut wrong = (page[0] ^ header[0]) | (page[1] ^ header[1]);
        let mut expected = body_start(self.seed());
        for word in &page[HEADER_WORDS..] {
            wrong |= word ^ expected;
            expected = expected.wrapping_add(GOLDEN);
        }
        if wrong == 0 {
            return None;
        }
        let mut right = [0; WORDS];
        self.write(&mut right);
        page.iter()
            .zip(&right)
            .position(|(found, expected)| found != expected)
    }

    /// What the page's first words say, whether true or not.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "halves of words")]
    pub const fn read(page: &Page) -> Self {
        Self {
            guest: page[0] as u32,
            gfn: (page[1] >> 32) as u32,
            version: page[1] as u32,
        }
    }
}

/// Whether every byte is zero.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    page.iter().fold(0, |all, word| all | word) == 0
}

/// What the words of a page follow from that is equal in all guests with the same `seed`.
pub(super) const fn common_seed(seed: u32, index: u32) -> u64 {
    mix((seed as u64) << 32 | index as u64)
}

/// The word that [`fill`] writes at `index`.
pub(super) const fn word_of(seed: u64, index: usize) -> u64 {
    seed.wrapping_add(GOLDEN.wrapping_mul(index as u64))
}

/// Fills a page with words that follow from `seed`, each different.
pub fn fill(page: &mut Page, seed: u64) {
    let mut value = seed;
    for word in page {
        *word = value;
        value = value.wrapping_add(GOLDEN);
    }
}

/// The value of the first word after the header.
const fn body_start(seed: u64) -> u64 {
    word_of(seed, HEADER_WORDS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAMP: Stamp = Stamp {
        guest: 3,
        gfn: 0x1234,
        version: 9,
    };

    proptest! {
        #[test]
        fn one_wrong_bit_anywhere_is_found(word in 0..WORDS, bit in 0_u32..64) {
            let mut page = [0; WORDS];
            STAMP.write(&mut page);
            prop_assert_eq!(STAMP.first_wrong_word(&page), None);
            page[word] ^= 1_u64 << bit;
            prop_assert_eq!(STAMP.first_wrong_word(&page), Some(word));
        }

        #[test]
        fn pages_of_different_stamps_differ_in_every_part(guest in 0_u32..9, gfn: u32, version: u32) {
            let other = Stamp { guest, gfn, version };
            prop_assume!(other != STAMP);
            let (mut a, mut b) = ([0; WORDS], [0; WORDS]);
            STAMP.write(&mut a);
            other.write(&mut b);
            prop_assert!(a.iter().zip(&b).skip(HEADER_WORDS).all(|(a, b)| a != b));
        }
    }

    #[test]
    fn the_header_can_be_read() {
        let mut page = [0; WORDS];
        STAMP.write(&mut page);
        assert_eq!(Stamp::read(&page), STAMP);
    }
}
