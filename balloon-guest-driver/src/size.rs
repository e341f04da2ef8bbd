//! Sizes as people write them: `512`, `4K`, `64M`, `1G`.

/// Bytes for a decimal number with an optional suffix K, M or G (powers of 1024, either case).
/// `None` for anything else, also when it does not fit.
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

/// A decimal number, digits only.
#[must_use]
pub fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes() {
        assert_eq!(parse("512"), Some(512));
        assert_eq!(parse("4K"), Some(4096));
        assert_eq!(parse("64M"), Some(64 << 20));
        assert_eq!(parse("1g"), Some(1 << 30));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5G",
            "0x10",
            "1T",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
