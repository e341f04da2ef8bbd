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
}

/// Why a text names no disk.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' names no file: write FILE, FILE,ro to read only, or FILE,direct to pass by the page cache"
)]
pub struct InvalidDisk(String);

impl FromStr for DiskSpec {
    type Err = InvalidDisk;

    /// `FILE[,ro][,direct]`. A comma before anything else belongs to the file's name.
    fn from_str(text: &str) -> Result<Self, InvalidDisk> {
        let (mut path, mut read_only, mut direct) = (text, false, false);
        while let Some((before, word)) = path.rsplit_once(',') {
            match word {
                "ro" => read_only = true,
                "direct" => direct = true,
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
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> (String, bool, bool) {
        let spec: DiskSpec = text.parse().unwrap();
        (
            spec.path.to_str().unwrap().into(),
            spec.read_only,
            spec.direct,
        )
    }

    #[test]
    fn options_follow_the_file_in_any_order() {
        assert_eq!(words("a"), ("a".into(), false, false));
        assert_eq!(words("a,ro"), ("a".into(), true, false));
        assert_eq!(words("a,direct,ro"), ("a".into(), true, true));
        assert_eq!(words("a,b,ro"), ("a,b".into(), true, false));
        assert_eq!(words("a,ro,b"), ("a,ro,b".into(), false, false));
    }

    #[test]
    fn a_disk_without_a_file_is_refused() {
        for text in ["", ",ro", ",direct,ro"] {
            assert!(text.parse::<DiskSpec>().is_err(), "{text}");
        }
    }
}
