//! Names of VMs.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// Longest name in bytes.
const LONGEST: usize = 64;
/// A name that commands understand as the host itself.
const HOST: &str = "host";

/// The name of a VM: it can stand in a path, a command line and a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(
    pattern = r"^(?!\.+$)(?!host$)[A-Za-z0-9._][A-Za-z0-9._-]{0,63}$",
    example = "web"
)]
pub struct VmName(String);

/// Why a text is no name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' cannot name a VM: use 1 to {LONGEST} letters, digits, '-', '_' or '.', no '-' at the beginning, not only dots, and not 'host'"
)]
pub struct InvalidName(String);

impl VmName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VmName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let dots = name.chars().all(|c| c == '.');
        // What begins so is taken for an option.
        let option = name.starts_with('-');
        if dots || option || name == HOST || name.len() > LONGEST || !name.chars().all(allowed) {
            return Err(InvalidName(name.chars().take(LONGEST).collect()));
        }
        Ok(Self(name))
    }
}

page::checked_text!(VmName, InvalidName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_stand_in_a_path_and_a_command_line_and_is_not_the_host() {
        assert!("web-1.a_B".parse::<VmName>().is_ok());
        for text in [
            "",
            "a/b",
            "a b",
            "..",
            "host",
            "ü",
            "-x",
            "--",
            &"x".repeat(65),
        ] {
            assert!(text.parse::<VmName>().is_err(), "{text}");
        }
    }
}
