//! What pages hold, in short.

use crate::memory::store::is_zero;
use rustix::rand::{GetRandomFlags, getrandom};
use sharing::{Content, ContentHash};
use std::io;
use xxhash_rust::xxh3::xxh3_64_with_secret;

/// The length of secret that xxh3 mixes in.
const SECRET_BYTES: usize = 192;

/// Hashes the pages of one domain. Its secret is random and leaves the host in no form, so that no
/// guest can make pages that collide, or learn from the time of a scan what others hold.
#[derive(Debug)]
pub(super) struct PageHash {
    secret: Box<[u8; SECRET_BYTES]>,
}

impl PageHash {
    pub(super) fn new() -> io::Result<Self> {
        let mut secret = Box::new([0; SECRET_BYTES]);
        let mut filled = 0;
        while filled < SECRET_BYTES {
            filled += getrandom(&mut secret[filled..], GetRandomFlags::empty())?;
        }
        Ok(Self { secret })
    }

    pub(super) fn content(&self, page: &[u8]) -> Content {
        match is_zero(page) {
            true => Content::Zero,
            false => Content::Hash(ContentHash(xxh3_64_with_secret(page, &*self.secret))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pages_hash_alike_in_one_domain_and_not_in_two() {
        let (one, other) = (PageHash::new().unwrap(), PageHash::new().unwrap());
        let page = [7; 4096];
        assert_eq!(one.content(&page), one.content(&page));
        assert_ne!(one.content(&page), other.content(&page));
        assert_eq!(one.content(&[0; 4096]), Content::Zero);
        let mut last_byte = [0; 4096];
        last_byte[4095] = 1;
        assert_ne!(one.content(&last_byte), Content::Zero);
    }
}
