//! A page is one word in the model's memory, and 4 KiB that begin with it in the log.

use page::{PAGE_BYTES, Random};
use swap::{PageBytes, filled_page};

/// What a page of the model holds.
pub(crate) type Word = u64;

/// The kinds of pages, by the word's remainder.
pub(crate) const KINDS: u64 = 3;
/// One word again and again.
pub(crate) const FILLED: u64 = 0;
/// Noise: not worth being compressed, so it goes to the file.
pub(crate) const PLAIN: u64 = 1;
/// Noise, and then zeros.
pub(crate) const COMPRESSED: u64 = 2;

const WORD_BYTES: usize = size_of::<Word>();
/// The rest of what can be compressed is zeros.
const NOISE_BYTES: usize = 512;

/// The word of so many that is a page of noise.
pub(crate) fn plain(number: u64) -> Word {
    number * KINDS + PLAIN
}

pub(crate) fn contents(word: Word) -> PageBytes {
    let noise = match word % KINDS {
        FILLED => return filled_page(word),
        PLAIN => PAGE_BYTES,
        _ => NOISE_BYTES,
    };
    let mut random = Random::new(word);
    let mut page = [0; PAGE_BYTES];
    for bytes in page[..noise].chunks_exact_mut(WORD_BYTES) {
        bytes.copy_from_slice(&random.next().to_le_bytes());
    }
    page[..WORD_BYTES].copy_from_slice(&word.to_le_bytes());
    page
}

/// # Panics
/// If the page is not what it began as.
pub(crate) fn word_of(page: &PageBytes) -> Word {
    let (first, _) = page.split_first_chunk().expect("a page has words");
    let word = Word::from_le_bytes(*first);
    assert!(*page == contents(word), "a page of {word} is another");
    word
}
