//! Trust groups: who may learn, by timing, that a neighbour holds an equal page.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// Longest name of a group, in bytes.
const LONGEST_NAME: usize = 64;

/// VMs that may share pages with each other, by name. A VM without one shares with nobody, because
/// the time of a copy-on-write tells a guest what its neighbour holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(pattern = "^[A-Za-z0-9._-]{1,64}$", example = "shop")]
pub struct TrustGroup(String);

/// Why a text names no trust group.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "trust group '{0}' is not 1 to {LONGEST_NAME} letters, digits, '-', '_' or '.': choose another name"
)]
pub struct InvalidTrustGroup(String);

impl TryFrom<String> for TrustGroup {
    type Error = InvalidTrustGroup;

    fn try_from(name: String) -> Result<Self, InvalidTrustGroup> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(allowed) {
            return Err(InvalidTrustGroup(name.chars().take(LONGEST_NAME).collect()));
        }
        Ok(Self(name))
    }
}

page::checked_text!(TrustGroup, InvalidTrustGroup);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_other_letters_is_refused_with_its_text() {
        assert_eq!("web-1".parse::<TrustGroup>().unwrap().to_string(), "web-1");
        assert!("".parse::<TrustGroup>().is_err());
        assert!(
            "a b"
                .parse::<TrustGroup>()
                .unwrap_err()
                .to_string()
                .contains("'a b'")
        );
        assert!("x".repeat(65).parse::<TrustGroup>().is_err());
    }
}
