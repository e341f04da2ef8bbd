//! Pages become records, and records pages again: compressed by LZ4, then sealed by AES-256-GCM.
//!
//! Both are functions apart from the log, so that they run while others use it: seal, take the log, append; take the log,
//! find, leave it, open. The key is one VM process' and lives only there. A nonce is a generation, which a counter gives out
//! once; where it ends so does sealing, after 2^48 pages, 1 EiB.
//!
//! What a record is opened for is known before: this page in this generation. Whatever else is met is an error that names
//! the page: a bit that flipped, a record of another page or VM, an older one, one cut short.

use crate::record::{
    Generation, HEADER_BYTES, Kind, MOST_NUMBER, OVERHEAD_BYTES, RecordHeader, TAG_BYTES,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};
use page::{Gfn, PAGE_BYTES};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// A page's contents.
pub type PageBytes = [u8; PAGE_BYTES];

/// Bodies up to so long are worth being compressed for: beyond, memory would hold little more than the page saves, so the
/// page is stored as it is, and in the file.
pub const MOST_COMPRESSED_BYTES: usize = 3072;

/// What LZ4 wants to have before it begins.
const ROOM_FOR_COMPRESSED: usize = get_maximum_output_size(PAGE_BYTES);

/// 256 bits from the kernel's generator of random numbers, new for every VM process.
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// The counter has come to its end: no nonce is used twice, so nothing can be sealed any more.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("all {MOST_NUMBER} generations of the swap log are used: restart the VM")]
pub struct GenerationsExhausted;

/// Why a record is not what was looked for. The page it should have held is lost.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it, with the values")]
pub enum Damaged {
    #[error("record of page {:#x}: {bytes} bytes where a record has {expected}", gfn.0)]
    WrongLength {
        gfn: Gfn,
        bytes: usize,
        expected: usize,
    },
    #[error("record of page {:#x}: its header is none", gfn.0)]
    NoHeader { gfn: Gfn },
    #[error("record of page {:#x}: found one of page {:#x}", gfn.0, found.0)]
    OtherPage { gfn: Gfn, found: Gfn },
    #[error("record of page {:#x}: found generation {} instead of {}", gfn.0, found.0, expected.0)]
    OtherGeneration {
        gfn: Gfn,
        expected: Generation,
        found: Generation,
    },
    #[error("record of page {:#x}, generation {}: not what this VM sealed", gfn.0, generation.0)]
    NotAuthentic { gfn: Gfn, generation: Generation },
    #[error("record of page {:#x}, generation {}: sealed, but no page", gfn.0, generation.0)]
    NoPage { gfn: Gfn, generation: Generation },
}

impl Damaged {
    /// The page that is lost.
    #[must_use]
    pub const fn gfn(&self) -> Gfn {
        match self {
            Self::WrongLength { gfn, .. }
            | Self::NoHeader { gfn }
            | Self::OtherPage { gfn, .. }
            | Self::OtherGeneration { gfn, .. }
            | Self::NotAuthentic { gfn, .. }
            | Self::NoPage { gfn, .. } => *gfn,
        }
    }
}

/// A page on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// One word of 8 bytes, repeated: there is nothing to store.
    Filled(Gfn, u64),
    /// Anything else.
    Record(Record),
}

impl Sealed {
    /// The page.
    #[must_use]
    pub const fn gfn(&self) -> Gfn {
        match self {
            Self::Filled(gfn, _) => *gfn,
            Self::Record(record) => record.header.gfn,
        }
    }
}

/// A sealed page, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub(crate) header: RecordHeader,
    pub(crate) bytes: Vec<u8>,
}

impl Record {
    /// What it says of itself.
    #[must_use]
    pub const fn header(&self) -> RecordHeader {
        self.header
    }

    /// Header, body and tag.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Seals and opens with one key. One for a VM process: a second of the same key would use its nonces again.
#[derive(Debug)]
pub struct Sealer {
    key: LessSafeKey,
    next: AtomicU64,
}

impl Sealer {
    /// Begins with generation 1.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        Self::starting_at(key, Generation(1))
    }

    fn starting_at(key: &Key, first: Generation) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &key.0).expect("a key of AES-256 has 32 bytes");
        Self {
            key: LessSafeKey::new(key),
            next: AtomicU64::new(first.0),
        }
    }

    /// Makes a page ready for the log. The page must not change meanwhile.
    ///
    /// # Errors
    /// When all generations are used.
    ///
    /// # Panics
    /// If the gfn has more than 48 bits.
    pub fn seal(&self, gfn: Gfn, page: &PageBytes) -> Result<Sealed, GenerationsExhausted> {
        assert!(gfn.0 <= MOST_NUMBER, "gfn {:#x} is of no machine", gfn.0);
        if let Some(word) = repeated_word(page) {
            return Ok(Sealed::Filled(gfn, word));
        }
        let generation = self.next_generation()?;
        let mut bytes = vec![0; OVERHEAD_BYTES + ROOM_FOR_COMPRESSED];
        let (kind, length) = compress(page, &mut bytes[HEADER_BYTES..]);
        let header = RecordHeader {
            gfn,
            generation,
            length: u16::try_from(length).expect("no body is longer than a page"),
            kind,
        };
        self.seal_in_place(header, &mut bytes);
        bytes.truncate(header.record_bytes());
        Ok(Sealed::Record(Record { header, bytes }))
    }

    fn next_generation(&self) -> Result<Generation, GenerationsExhausted> {
        let after = |generation| (generation <= MOST_NUMBER).then(|| generation + 1);
        // Nothing else is ordered by it: that each is given out once is all.
        let given = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        given.map(Generation).map_err(|_last| GenerationsExhausted)
    }

    fn seal_in_place(&self, header: RecordHeader, bytes: &mut [u8]) {
        let said = header.encode();
        bytes[..HEADER_BYTES].copy_from_slice(&said);
        let (body, tag) = bytes[HEADER_BYTES..].split_at_mut(usize::from(header.length));
        let sealed = self
            .key
            .seal_in_place_separate_tag(nonce(header.generation), Aad::from(said), body)
            .expect("AES-GCM takes 4 KiB");
        tag[..TAG_BYTES].copy_from_slice(sealed.as_ref());
    }

    /// Opens the record of `gfn` in `generation`, which the log said lies in `record`, into `page`. What is left in `record`
    /// is of no use, and neither is `page` after an error.
    ///
    /// # Errors
    /// When it is anything but that record, whole and as it was sealed.
    pub fn open(
        &self,
        (gfn, generation): (Gfn, Generation),
        record: &mut [u8],
        page: &mut PageBytes,
    ) -> Result<(), Damaged> {
        let header = check_header(gfn, generation, record)?;
        let not_authentic = |_| Damaged::NotAuthentic { gfn, generation };
        let (said, sealed) = record.split_at_mut(HEADER_BYTES);
        let body = self
            .key
            .open_in_place(nonce(generation), Aad::from(&*said), sealed)
            .map_err(not_authentic)?;
        let length = match header.kind {
            Kind::Plain => copy(body, page),
            Kind::Lz4 => decompress_into(body, page).unwrap_or(0),
        };
        (length == PAGE_BYTES)
            .then_some(())
            .ok_or(Damaged::NoPage { gfn, generation })
    }
}

fn check_header(gfn: Gfn, expected: Generation, record: &[u8]) -> Result<RecordHeader, Damaged> {
    let header = RecordHeader::decode(record).ok_or(Damaged::NoHeader { gfn })?;
    if header.gfn != gfn {
        let found = header.gfn;
        return Err(Damaged::OtherPage { gfn, found });
    }
    if header.generation != expected {
        let found = header.generation;
        return Err(Damaged::OtherGeneration {
            gfn,
            expected,
            found,
        });
    }
    if header.record_bytes() != record.len() {
        return Err(Damaged::WrongLength {
            gfn,
            bytes: record.len(),
            expected: header.record_bytes(),
        });
    }
    Ok(header)
}

/// The page's contents, if they are one word again and again.
#[must_use]
pub fn repeated_word(page: &PageBytes) -> Option<u64> {
    let (words, _) = page.as_chunks::<8>();
    let first = words[0];
    words
        .iter()
        .all(|&word| word == first)
        .then(|| u64::from_le_bytes(first))
}

/// The page that is one word again and again.
#[must_use]
pub fn filled_page(word: u64) -> PageBytes {
    let mut page = [0; PAGE_BYTES];
    let (words, _) = page.as_chunks_mut::<8>();
    words.fill(word.to_le_bytes());
    page
}

fn compress(page: &PageBytes, body: &mut [u8]) -> (Kind, usize) {
    match compress_into(page, body) {
        Ok(length) if length <= MOST_COMPRESSED_BYTES => (Kind::Lz4, length),
        Ok(_) | Err(_) => {
            body[..PAGE_BYTES].copy_from_slice(page);
            (Kind::Plain, PAGE_BYTES)
        }
    }
}

fn copy(body: &[u8], page: &mut PageBytes) -> usize {
    if body.len() == PAGE_BYTES {
        page.copy_from_slice(body);
    }
    body.len()
}

fn nonce(generation: Generation) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&generation.0.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests;
