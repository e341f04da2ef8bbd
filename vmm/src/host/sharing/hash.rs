//! What pages hold, in short.
//!
//! The hash is xxh3 (64 bits, of long inputs), by Yann Collet: <https://github.com/Cyan4973/xxHash>, `doc/xxhash_spec.md`.
//! It is written out here because memory that others write to meanwhile can be read by volatile loads only, once each,
//! and no library takes its input so.

use crate::memory::block_window::{MappedPage, PAGE_STRIPES, STRIPE_BYTES, Stripe};
use page::PAGE_BYTES;
use rustix::rand::{GetRandomFlags, getrandom};
use sharing::{Content, ContentHash};
use std::io;

/// The length of secret that xxh3 mixes in.
const SECRET_BYTES: usize = 192;
/// Stripes between two scrambles: for each the key begins 8 bytes further on.
const ROUND_STRIPES: usize = (SECRET_BYTES - STRIPE_BYTES) / 8;
const SCRAMBLE_KEY_AT: usize = SECRET_BYTES - STRIPE_BYTES;
const LAST_KEY_AT: usize = SECRET_BYTES - STRIPE_BYTES - 7;
const MERGE_KEY_AT: usize = 11;

const PRIME_32: [u64; 3] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d];
const PRIME_64: [u64; 5] = [
    0x9e37_79b1_85eb_ca87,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];
const AVALANCHE_PRIME: u64 = 0x1656_6791_9e37_79f9;
const FIRST_SUMS: [u64; 8] = [
    PRIME_32[2],
    PRIME_64[0],
    PRIME_64[1],
    PRIME_64[2],
    PRIME_64[3],
    PRIME_32[1],
    PRIME_64[4],
    PRIME_32[0],
];

/// A page that can be hashed.
pub(super) trait Stripes {
    /// 64 bytes of it.
    fn stripe(&self, index: usize) -> Stripe;
}

impl Stripes for MappedPage<'_> {
    #[inline]
    fn stripe(&self, index: usize) -> Stripe {
        MappedPage::stripe(self, index)
    }
}

impl Stripes for [u8; PAGE_BYTES] {
    #[inline]
    fn stripe(&self, index: usize) -> Stripe {
        stripe_at(self, index * STRIPE_BYTES)
    }
}

/// Hashes the pages of one domain. Its secret is random and leaves the host in no form, so that no
/// guest can make pages that collide, or learn from the time of a scan what others hold.
#[derive(Debug)]
pub(super) struct PageHash(Box<Keys>);

/// The parts of a secret.
#[derive(Debug)]
struct Keys {
    rounds: [Stripe; ROUND_STRIPES],
    scramble: Stripe,
    last: Stripe,
    merge: [u64; 8],
}

impl PageHash {
    pub(super) fn new() -> io::Result<Self> {
        let mut secret = [0; SECRET_BYTES];
        let mut filled = 0;
        while filled < SECRET_BYTES {
            filled += getrandom(&mut secret[filled..], GetRandomFlags::empty())?;
        }
        Ok(Self::with(&secret))
    }

    fn with(secret: &[u8; SECRET_BYTES]) -> Self {
        Self(Box::new(Keys {
            rounds: std::array::from_fn(|place| stripe_at(secret, place * 8)),
            scramble: stripe_at(secret, SCRAMBLE_KEY_AT),
            last: stripe_at(secret, LAST_KEY_AT),
            merge: std::array::from_fn(|lane| word(secret, MERGE_KEY_AT + lane * 8)),
        }))
    }

    /// Of a page's bytes.
    ///
    /// # Panics
    /// If they are not those of one page.
    pub(super) fn content(&self, page: &[u8]) -> Content {
        let bytes: Result<&[u8; PAGE_BYTES], _> = page.try_into();
        self.content_of(bytes.expect("a page"))
    }

    /// Of a page. If it changes meanwhile, it is of a page that may never have been.
    pub(super) fn content_of(&self, page: &impl Stripes) -> Content {
        match (0..PAGE_STRIPES).all(|index| is_zero(page.stripe(index))) {
            true => Content::Zero,
            false => Content::Hash(ContentHash(self.xxh3(page))),
        }
    }

    fn xxh3(&self, page: &impl Stripes) -> u64 {
        let keys = &*self.0;
        let mut sums = FIRST_SUMS;
        for first in (0..PAGE_STRIPES).step_by(ROUND_STRIPES) {
            let is_last = first + ROUND_STRIPES == PAGE_STRIPES;
            let count = ROUND_STRIPES - usize::from(is_last);
            for (place, key) in keys.rounds[..count].iter().enumerate() {
                add(&mut sums, page.stripe(first + place), key);
            }
            if !is_last {
                scramble(&mut sums, &keys.scramble);
            }
        }
        add(&mut sums, page.stripe(PAGE_STRIPES - 1), &keys.last);
        merge(sums, &keys.merge)
    }
}

/// Of these loops the compiler makes SSE2, which every x86-64 has: reading memory takes longer than the sums.
#[inline]
fn add(sums: &mut Stripe, data: Stripe, key: &Stripe) {
    for lane in 0..sums.len() {
        let mixed = data[lane] ^ key[lane];
        let product = (mixed & u64::from(u32::MAX)) * (mixed >> 32);
        sums[lane] = sums[lane]
            .wrapping_add(data[lane ^ 1])
            .wrapping_add(product);
    }
}

#[inline]
fn scramble(sums: &mut Stripe, key: &Stripe) {
    for (sum, key) in sums.iter_mut().zip(key) {
        let mixed = *sum ^ (*sum >> 47) ^ key;
        *sum = mixed.wrapping_mul(PRIME_32[0]);
    }
}

fn merge(sums: Stripe, keys: &[u64; 8]) -> u64 {
    let mut hash = (PAGE_BYTES as u64).wrapping_mul(PRIME_64[0]);
    for (sums, keys) in sums.chunks_exact(2).zip(keys.chunks_exact(2)) {
        hash = hash.wrapping_add(folded_product(sums[0] ^ keys[0], sums[1] ^ keys[1]));
    }
    let hash = (hash ^ (hash >> 37)).wrapping_mul(AVALANCHE_PRIME);
    hash ^ (hash >> 32)
}

/// Both halves of the product of 128 bits, one over the other.
fn folded_product(one: u64, other: u64) -> u64 {
    let (low, high) = one.carrying_mul(other, 0);
    low ^ high
}

fn is_zero(stripe: Stripe) -> bool {
    stripe.into_iter().fold(0, |all, word| all | word) == 0
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[inline]
fn stripe_at(bytes: &[u8], at: usize) -> Stripe {
    let bytes = &bytes[at..at + STRIPE_BYTES];
    std::array::from_fn(|lane| word(bytes, lane * 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64_with_secret;

    #[test]
    fn equal_pages_hash_alike_in_one_domain_and_not_in_two() {
        let (one, other) = (PageHash::new().unwrap(), PageHash::new().unwrap());
        let page = [7; 4096];
        assert_eq!(one.content(&page), one.content(&page));
        assert_ne!(one.content(&page), other.content(&page));
        assert_eq!(one.content(&[0; 4096]), Content::Zero);
    }

    #[test]
    fn a_page_with_one_bit_anywhere_is_not_zero() {
        let hash = PageHash::new().unwrap();
        for byte in 0..PAGE_BYTES {
            let mut page = [0; PAGE_BYTES];
            page[byte] = 1 << (byte % 8);
            assert_ne!(hash.content(&page), Content::Zero, "byte {byte}");
        }
    }

    proptest! {
        #[test]
        fn the_hash_is_xxh3(seed: [u8; 32], secret in proptest::collection::vec(any::<u8>(), SECRET_BYTES)) {
            let secret: [u8; SECRET_BYTES] = secret.try_into().unwrap();
            // Pages all of random bytes, and mostly of zeros.
            for period in [1, 97] {
                let byte = |place: usize| match place % period {
                    0 => seed[place / period % 32].wrapping_mul(u8::try_from(place % 251).unwrap()) | 1,
                    _ => 0,
                };
                let page: [u8; PAGE_BYTES] = std::array::from_fn(byte);
                let right = xxh3_64_with_secret(&page, &secret);
                prop_assert_eq!(PageHash::with(&secret).content(&page), Content::Hash(ContentHash(right)));
            }
        }
    }
}
