//! Sizes of memory as people type and read them: `512M`, `2G`.

use super::{PAGE_SIZE, PageCount};
use std::str::FromStr;
use thiserror::Error;

/// Why a text is no size.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it, with the text")]
pub enum InvalidSize {
    #[error("'{0}' is not a size: give a number with K, M, G or T, as in 512M or 2G")]
    NotASize(String),
    #[error("'{0}' is not a multiple of a page: give a multiple of {PAGE_SIZE} bytes, as in 512M")]
    NotWholePages(String),
    #[error("'{0}' is more than any machine has: give a smaller size")]
    TooLarge(String),
}

/// A size of memory in whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub PageCount);

impl FromStr for Size {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let bytes = bytes(text)?;
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(InvalidSize::NotWholePages(text.into()));
        }
        Ok(Self(PageCount(bytes / PAGE_SIZE)))
    }
}

fn bytes(text: &str) -> Result<u64, InvalidSize> {
    let not_a_size = || InvalidSize::NotASize(text.into());
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match trimmed[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(not_a_size()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(not_a_size());
    }
    let count: Option<u64> = digits.parse().ok();
    count
        .and_then(|count| count.checked_mul(unit))
        .filter(|&bytes| bytes <= 1 << 50)
        .ok_or_else(|| InvalidSize::TooLarge(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!("512M".parse(), Ok(Size(PageCount::from_mebibytes(512))));
        assert_eq!("2g".parse(), Ok(Size(PageCount::from_mebibytes(2048))));
        assert_eq!("8192".parse(), Ok(Size(PageCount(2))));
        assert_eq!("0".parse(), Ok(Size(PageCount(0))));
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_text() {
        for text in ["", "M", "-1M", "1.5G", "12X", "0x10", "1 0M"] {
            assert_eq!(
                text.parse::<Size>(),
                Err(InvalidSize::NotASize(text.into()))
            );
        }
        assert_eq!(
            "4097".parse::<Size>(),
            Err(InvalidSize::NotWholePages("4097".into()))
        );
        assert_eq!(
            "99999999999T".parse::<Size>(),
            Err(InvalidSize::TooLarge("99999999999T".into()))
        );
    }
}
