//! Which libvirt is meant.

use serde::{Deserialize, Serialize};
use thiserror::Error;

const LONGEST: usize = 500;
/// libvirt's QEMU driver of this machine, by its usual socket or by one that is named.
const LOCAL: [&str; 2] = ["qemu:///", "qemu+unix:///"];

/// A URI of libvirt's QEMU driver on this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LibvirtUri(String);

/// Why a text is no such URI.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no URI of libvirt's QEMU driver on this machine: write one as qemu:///system")]
pub struct InvalidUri(String);

impl LibvirtUri {
    /// The one for virtual machines of the whole machine.
    pub const SYSTEM: &str = "qemu:///system";

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its daemon is a user's own.
    pub(super) fn is_session(&self) -> bool {
        let path = LOCAL.iter().find_map(|local| self.0.strip_prefix(local));
        path.is_some_and(|path| path.starts_with("session"))
    }
}

impl Default for LibvirtUri {
    fn default() -> Self {
        Self(Self::SYSTEM.into())
    }
}

impl TryFrom<String> for LibvirtUri {
    type Error = InvalidUri;

    fn try_from(text: String) -> Result<Self, InvalidUri> {
        let is_local = LOCAL.iter().any(|local| text.starts_with(local));
        let is_plain = text.chars().all(|c| c.is_ascii_graphic());
        match is_local && is_plain && text.len() <= LONGEST {
            true => Ok(Self(text)),
            false => Err(InvalidUri(text.chars().take(80).collect())),
        }
    }
}

page::checked_text!(LibvirtUri, InvalidUri);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_qemu_of_this_machine_is_taken() {
        for text in [
            "qemu:///system",
            "qemu:///session",
            "qemu+unix:///system?socket=/run/a.sock",
        ] {
            let uri: LibvirtUri = text.parse().unwrap();
            assert_eq!(uri.is_session(), text.ends_with("session"));
        }
        for text in [
            "",
            "qemu://box/system",
            "qemu+ssh://box/system",
            "xen:///system",
            "true",
            "qemu:///a b",
        ] {
            assert!(text.parse::<LibvirtUri>().is_err(), "{text}");
        }
    }
}
