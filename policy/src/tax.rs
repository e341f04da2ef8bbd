//! The idle tax: how much dearer a page that its VM does not touch is than one that it does.
//!
//! At a tax rate τ an idle page costs its VM k = 1/(1 − τ) times as much as an active one (ESX.md,
//! Allocation). So of what a VM's shares earn it beyond its active set, it keeps the part 1 − τ. At τ = 0
//! idle memory belongs to whoever has the shares for it; near 1 nearly all of it can be had by others.
//! τ = 1 would make k infinite and is refused.
//!
//! A rate is a whole number of thousandths, so that everything made of it is an exact fraction.

use page::PageCount;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

/// The whole, in the unit of rates.
pub(crate) const PERMILLE: u64 = 1000;

/// Which part of its idle memory a VM is taxed, below 100 %.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "u16", into = "u16")]
#[schema(minimum = 0, maximum = 999, example = 750)]
pub struct TaxRate(u16);

impl TaxRate {
    /// Pure shares: idle pages cost what others do.
    pub const NONE: Self = Self(0);

    /// A rate of so many thousandths.
    pub fn from_permille(permille: u16) -> Result<Self, InvalidTaxRate> {
        if u64::from(permille) < PERMILLE {
            return Ok(Self(permille));
        }
        Err(InvalidTaxRate::TooHigh {
            percent: tenths(permille.into()),
        })
    }

    /// In thousandths, below 1000.
    #[must_use]
    pub const fn permille(self) -> u16 {
        self.0
    }

    /// What is not taxed, in thousandths: never zero.
    pub(crate) fn kept_permille(self) -> u64 {
        PERMILLE - u64::from(self.0)
    }
}

/// 75 %, as in ESX: most idle memory can be had, but a VM keeps some for the next rise of its activity.
impl Default for TaxRate {
    fn default() -> Self {
        Self(750)
    }
}

/// In percent: `75 %`, `12.5 %`.
impl fmt::Display for TaxRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", tenths(self.0.into()))
    }
}

/// Thousandths as percent with a decimal where there is one.
pub(crate) fn tenths(permille: u64) -> String {
    match (permille / 10, permille % 10) {
        (percent, 0) => percent.to_string(),
        (percent, tenth) => format!("{percent}.{tenth}"),
    }
}

/// Why a rate was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum InvalidTaxRate {
    #[error(
        "an idle tax of {percent} % would leave a VM no idle page at any price: \
         give less than 100 %, for example 75%"
    )]
    TooHigh { percent: String },
    #[error(
        "{value:?} is not an idle tax: give percent with at most one decimal, for example 75% or 12.5%"
    )]
    NotPercent { value: String },
}

/// Reads percent, with or without the sign: `75`, `75%`, `12.5 %`.
impl FromStr for TaxRate {
    type Err = InvalidTaxRate;

    fn from_str(text: &str) -> Result<Self, InvalidTaxRate> {
        let number = text.strip_suffix('%').unwrap_or(text).trim_end();
        let permille = parse_permille(number).ok_or_else(|| InvalidTaxRate::NotPercent {
            // Cut off, because the text can come from any client and the message may be logged.
            value: text.chars().take(40).collect(),
        })?;
        Self::from_permille(permille)
    }
}

fn parse_permille(number: &str) -> Option<u16> {
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(tenth) || tenth.len() != 1 {
        return None;
    }
    let whole: u16 = whole.parse().ok()?;
    whole.checked_mul(10)?.checked_add(tenth.parse().ok()?)
}

impl TryFrom<u16> for TaxRate {
    type Error = InvalidTaxRate;
    fn try_from(permille: u16) -> Result<Self, InvalidTaxRate> {
        Self::from_permille(permille)
    }
}

impl From<TaxRate> for u16 {
    fn from(rate: TaxRate) -> Self {
        rate.0
    }
}

/// The pages of a VM that cost it their plain price, and the rate for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taxed {
    pub(crate) active: PageCount,
    pub(crate) rate: TaxRate,
}

impl Taxed {
    /// Of a VM whose activity is not known, or that is not taxed: every page has its plain price.
    pub(crate) const NOTHING: Self = Self {
        active: PageCount(0),
        rate: TaxRate::NONE,
    };

    /// What so many pages, at most 2^40, cost: an active page `kept_permille`, an idle one 1000, which is k
    /// times as much. `cost / kept_permille` is the number of pages that the VM's shares must earn it.
    pub(crate) fn cost(self, pages: PageCount) -> u64 {
        let active = pages.min(self.active);
        let idle = pages - active;
        active.0 * self.rate.kept_permille() + idle.0 * PERMILLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_is_three_quarters() {
        assert_eq!(TaxRate::default(), "75%".parse().unwrap());
        let taxed = Taxed {
            active: PageCount(10),
            rate: TaxRate::default(),
        };
        // Ten active pages and two idle ones at four times the price: 18 pages' worth, times 250.
        assert_eq!(taxed.cost(PageCount(12)), 18 * 250);
    }

    #[test]
    fn a_tax_of_everything_is_refused() {
        let message = "100".parse::<TaxRate>().unwrap_err().to_string();
        assert!(
            message.starts_with("an idle tax of 100 % would"),
            "{message}"
        );
        assert!(message.contains("give less than 100 %"), "{message}");
        assert!(serde_json::from_str::<TaxRate>("1000").is_err());
        assert!("99.9".parse::<TaxRate>().is_ok());
    }

    #[test]
    fn nothing_else_is_a_rate() {
        for text in [
            "", "%", "-1", "1e1", "7.55", ".5", "5.", "+7", "70000", "half",
        ] {
            assert!(text.parse::<TaxRate>().is_err(), "{text:?}");
        }
        let long = "x".repeat(1_000_000).parse::<TaxRate>().unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_read_back(permille in 0u16..1000) {
            let rate = TaxRate::from_permille(permille).unwrap();
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
            let json = serde_json::to_string(&rate).unwrap();
            prop_assert_eq!(serde_json::from_str::<TaxRate>(&json).unwrap(), rate);
        }
    }
}
