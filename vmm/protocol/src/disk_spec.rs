//! Which disk is wanted, as people and programs say it.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

/// A disk that a VM is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// A raw image or a block device; a path on the host.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the host's page cache is left out.
    #[serde(default)]
    pub direct: bool,
    /// Whether the guest gets the file as it stands even where that looks like no raw image.
    #[serde(default)]
    pub raw: bool,
}

/// Why a text names no disk.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' names no file: write FILE, FILE,ro to read only, FILE,direct to pass by the page cache, or FILE,raw to give it as it stands"
)]
pub struct InvalidDisk(String);

impl DiskSpec {
    /// How it is written where several VMs read it.
    #[must_use]
    pub fn shared(&self) -> String {
        let raw = if self.raw { ",raw" } else { "" };
        format!("{}{raw},ro", self.path.display())
    }
}

impl FromStr for DiskSpec {
    type Err = InvalidDisk;

    /// `FILE[,ro][,direct][,raw]`. A comma before anything else belongs to the file's name.
    fn from_str(text: &str) -> Result<Self, InvalidDisk> {
        let (mut path, mut read_only, mut direct, mut raw) = (text, false, false, false);
        while let Some((before, word)) = path.rsplit_once(',') {
            match word {
                "ro" => read_only = true,
                "direct" => direct = true,
                "raw" => raw = true,
                _ => break,
            }
            path = before;
        }
        if path.is_empty() {
            return Err(InvalidDisk(text.into()));
        }
        Ok(Self {
            path: path.into(),
            read_only,
            direct,
            raw,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_file_in_any_order() {
        let cases: [(&str, &str, [bool; 3]); 7] = [
            ("a", "a", [false, false, false]),
            ("a,ro", "a", [true, false, false]),
            ("a,direct,ro", "a", [true, true, false]),
            ("a,raw", "a", [false, false, true]),
            ("a,raw,direct", "a", [false, true, true]),
            ("a,b,ro", "a,b", [true, false, false]),
            ("a,ro,b", "a,ro,b", [false, false, false]),
        ];
        for (text, path, [read_only, direct, raw]) in cases {
            let meant = DiskSpec {
                path: path.into(),
                read_only,
                direct,
                raw,
            };
            assert_eq!(text.parse(), Ok(meant), "{text}");
        }
    }

    #[test]
    fn a_disk_without_a_file_is_refused() {
        for text in ["", ",ro", ",direct,ro", ",raw"] {
            assert!(text.parse::<DiskSpec>().is_err(), "{text}");
        }
    }
}
