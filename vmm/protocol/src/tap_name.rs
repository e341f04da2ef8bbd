//! Names of network interfaces.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// Bytes of an interface's name, with the terminating zero.
pub const NAME_BYTES: usize = 16;

/// An interface's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(pattern = r"^(?!\.+$)[A-Za-z0-9._@-]{1,15}$", example = "tap0")]
pub struct TapName(String);

/// Why a text is no interface's name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' cannot name a tap: use 1 to {most} letters, digits, '-', '_', '.' or '@'", most = NAME_BYTES - 1)]
pub struct InvalidTapName(String);

impl TapName {
    /// Its letters, fewer than [`NAME_BYTES`].
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TapName {
    type Error = InvalidTapName;

    fn try_from(name: String) -> Result<Self, InvalidTapName> {
        // Not '%': the kernel would take the name for a pattern and make an interface.
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        let dots = name.chars().all(|c| c == '.');
        if dots || name.len() >= NAME_BYTES || !name.chars().all(allowed) {
            return Err(InvalidTapName(name.chars().take(40).collect()));
        }
        Ok(Self(name))
    }
}

page::checked_text!(TapName, InvalidTapName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_kernel_would_take_for_a_pattern_or_a_path_is_refused() {
        for name in ["tap0", "br-lan.7", "vm_1@x", "fifteen-letters"] {
            assert_eq!(name.parse(), Ok(TapName(name.into())));
        }
        for name in [
            "",
            ".",
            "..",
            "tap%d",
            "a/b",
            "a b",
            "sixteen-letters-",
            "ä",
        ] {
            assert!(name.parse::<TapName>().is_err(), "{name}");
        }
    }
}
