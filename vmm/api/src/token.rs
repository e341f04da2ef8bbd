//! Tokens: who comes over TCP with one may do what its role allows.

use protocol::VmName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

/// What somebody may do. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See everything.
    Read,
    /// Change, stop and restart VMs that are there, and type on their consoles.
    Operate,
    /// Everything: start VMs, for which the host opens the files that are named, forget them, change the host and its tokens.
    Admin,
}

impl Role {
    /// All of them, as they are written.
    const WORDS: [(Self, &str); 3] = [
        (Self::Read, "read"),
        (Self::Operate, "operate"),
        (Self::Admin, "admin"),
    ];

    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        let mut words = Self::WORDS.into_iter();
        let word = words.find(|(role, _)| *role == self);
        word.map_or("admin", |(_, word)| word)
    }
}

/// A text that names no role.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no role: write read, operate or admin")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        let mut words = Self::WORDS.into_iter();
        let found = words.find(|(_, word)| *word == text);
        found
            .map(|(role, _)| role)
            .ok_or_else(|| InvalidRole(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// The name of a token, by the rules for names of VMs: `host` is the name of the one that a host makes itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(
    pattern = r"^(?!\.+$)(?!host$)[A-Za-z0-9._][A-Za-z0-9._-]{0,63}$",
    example = "ci"
)]
pub struct TokenName(String);

/// Why a text is no name of a token.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' cannot name a token: use 1 to 64 letters, digits, '-', '_' or '.', no '-' at the beginning, not only dots, and not 'host'"
)]
pub struct InvalidTokenName(String);

impl TokenName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TokenName {
    type Error = InvalidTokenName;

    fn try_from(name: String) -> Result<Self, InvalidTokenName> {
        match VmName::try_from(name.clone()) {
            Ok(_) => Ok(Self(name)),
            Err(_) => Err(InvalidTokenName(name.chars().take(64).collect())),
        }
    }
}

page::checked_text!(TokenName, InvalidTokenName);

/// A token that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Its name; token-N if none is given.
    #[serde(default)]
    pub name: Option<TokenName>,
    /// What it allows.
    pub role: Role,
    /// After so many seconds it is worth nothing; never, if none are given.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3_153_600_000_u64, example = 2_592_000)]
    pub expires_s: Option<u64>,
}

/// What is known of a token. The token itself is known to nobody but who was given it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its name.
    #[schema(example = "ci")]
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
    /// From when on it is worth nothing, in milliseconds since 1970; never, if that is absent.
    pub expires_ms: Option<u64>,
    /// When it was last used, in milliseconds since 1970; absent if it was not since the host started.
    pub used_ms: Option<u64>,
    /// Whether it allows anything still: its time is not over, and it was not withdrawn.
    pub valid: bool,
    /// Whether it is known to the next host, too.
    pub kept: bool,
}

/// A token that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// The token, to be sent as `Authorization: Bearer TOKEN`. It is told this once.
    #[schema(example = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")]
    pub token: String,
    /// What is known of it from now on.
    pub view: TokenView,
}

/// What who asks may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccessView {
    /// The role.
    pub role: Role,
    /// The token that was sent; absent where none was needed.
    pub token: Option<TokenView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_includes_those_before_it_and_is_read_as_it_is_written() {
        assert!(Role::Read < Role::Operate && Role::Operate < Role::Admin);
        for (role, word) in Role::WORDS {
            assert_eq!(word.parse(), Ok(role));
            assert_eq!(serde_json::to_value(role).unwrap(), word);
        }
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn no_token_can_have_the_name_of_the_hosts_own() {
        assert!("ci".parse::<TokenName>().is_ok());
        for text in ["host", "", "a/b", "-x"] {
            let error = text.parse::<TokenName>().unwrap_err();
            assert!(error.to_string().contains("cannot name a token"));
        }
    }
}
