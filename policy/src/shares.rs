//! Shares: a VM's weight when memory is divided, and how people write them.

use page::PageCount;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64, ParseIntError};
use std::str::FromStr;
use thiserror::Error;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// All shares of one VM. Only their ratio to other VMs' shares means anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shares(pub NonZeroU64);

/// Shares as an administrator gives them: `low`, `normal`, `high`, or a number.
///
/// The three levels count per MiB of size (5, 10 and 20; ESX.md, Allocation), so that a larger VM of
/// the same level weighs more. A number is the whole VM's, whatever its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SharesSpec {
    /// 5 per MiB.
    Low,
    /// 10 per MiB.
    #[default]
    Normal,
    /// 20 per MiB.
    High,
    /// This many for the whole VM.
    Count(NonZeroU32),
}

impl SharesSpec {
    /// The shares of a VM of this size.
    #[must_use]
    pub fn resolve(self, size: PageCount) -> Shares {
        match self {
            Self::Low => per_mebibyte(5, size),
            Self::Normal => per_mebibyte(10, size),
            Self::High => per_mebibyte(20, size),
            Self::Count(count) => Shares(count.into()),
        }
    }
}

/// Rounded up, so that the smallest VM still has a share.
fn per_mebibyte(count: u64, size: PageCount) -> Shares {
    let pages_per_mebibyte = PageCount::from_mebibytes(1).0;
    let shares = size.0.saturating_mul(count).div_ceil(pages_per_mebibyte);
    Shares(NonZeroU64::new(shares).unwrap_or(NonZeroU64::MIN))
}

/// As it is written: a text.
impl PartialSchema for SharesSpec {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "A VM's weight: low, normal or high (5, 10 or 20 for each MiB of its size), or a number from 1 to \
                 4294967295 for the whole VM.",
            ))
            .pattern(Some(r"^(low|normal|high|\+?0*[1-9][0-9]{0,9})$"))
            .examples(["normal", "4000"])
            .into()
    }
}

impl ToSchema for SharesSpec {}

/// Why a text names no shares.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{value:?} is not a number of shares: give low, normal, high, or a number from 1 to {max}",
    max = u32::MAX
)]
pub struct InvalidShares {
    /// What was given; its start, if it was long.
    value: String,
    source: ParseIntError,
}

impl InvalidShares {
    /// Cut off, because the text can come from any client and the message may be logged.
    fn new(text: &str, source: ParseIntError) -> Self {
        Self {
            value: text.chars().take(40).collect(),
            source,
        }
    }
}

impl FromStr for SharesSpec {
    type Err = InvalidShares;

    fn from_str(text: &str) -> Result<Self, InvalidShares> {
        match text {
            "low" => Ok(Self::Low),
            "normal" => Ok(Self::Normal),
            "high" => Ok(Self::High),
            _ => text
                .parse()
                .map(Self::Count)
                .map_err(|source| InvalidShares::new(text, source)),
        }
    }
}

impl TryFrom<String> for SharesSpec {
    type Error = InvalidShares;
    fn try_from(text: String) -> Result<Self, InvalidShares> {
        text.parse()
    }
}

impl fmt::Display for SharesSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Low => f.write_str("low"),
            Self::Normal => f.write_str("normal"),
            Self::High => f.write_str("high"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

impl From<SharesSpec> for String {
    fn from(spec: SharesSpec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;
    use proptest::prelude::*;

    fn resolved(text: &str, mebibytes: u64) -> u64 {
        let spec: SharesSpec = text.parse().unwrap();
        spec.resolve(PageCount::from_mebibytes(mebibytes)).0.get()
    }

    #[test]
    fn levels_count_per_mebibyte_and_numbers_for_the_whole_vm() {
        assert_eq!(resolved("low", 256), 1280);
        assert_eq!(resolved("normal", 256), 2560);
        assert_eq!(resolved("high", 256), 5120);
        assert_eq!(resolved("1234", 256), 1234);
    }

    #[test]
    fn a_vm_smaller_than_a_mebibyte_has_shares() {
        assert_eq!(SharesSpec::Low.resolve(PageCount(1)).0.get(), 1);
        assert_eq!(SharesSpec::Low.resolve(PageCount(0)).0.get(), 1);
    }

    #[test]
    fn a_refusal_names_the_value_and_the_remedy() {
        let message = "0".parse::<SharesSpec>().unwrap_err().to_string();
        assert!(message.starts_with("\"0\" is not"), "{message}");
        assert!(message.contains("low, normal, high, or a number from 1"));
    }

    #[test]
    fn nothing_else_is_shares() {
        for text in ["", "-1", "Low", "1.5", "4294967296", "10 "] {
            assert!(text.parse::<SharesSpec>().is_err(), "{text:?}");
        }
        let long = "x".repeat(1_000_000).parse::<SharesSpec>().unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_read_back(spec in generate::shares()) {
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
            let json = serde_json::to_string(&spec).unwrap();
            prop_assert_eq!(&json, &format!("\"{spec}\""));
            prop_assert_eq!(serde_json::from_str::<SharesSpec>(&json).unwrap(), spec);
        }
    }
}
