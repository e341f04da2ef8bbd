//! What keeps a VM process in its place, should its guest ever take it over: what a host wants of it, and what the
//! process says came of that.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

/// How VM processes are jailed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JailMode {
    /// All layers. A system call that is none of a VM process's ends it.
    #[default]
    Enforce,
    /// All layers, but such a system call is done, and told to the kernel's audit log.
    Log,
    /// None.
    Off,
}

/// A text that names no mode.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no jail: write enforce, log or off")]
pub struct InvalidJail(String);

impl FromStr for JailMode {
    type Err = InvalidJail;

    fn from_str(text: &str) -> Result<Self, InvalidJail> {
        match text {
            "enforce" => Ok(Self::Enforce),
            "log" => Ok(Self::Log),
            "off" => Ok(Self::Off),
            _ => Err(InvalidJail(text.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for JailMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

/// A layer of a jail. What one lets through another stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JailLayer {
    /// A network without interfaces, an empty file tree, and System V objects of its own.
    Namespaces,
    /// No capability, and no way to get one; where its host is root, a user of its own, who owns nothing.
    Capabilities,
    /// No other process of the same user may look into it.
    Undumpable,
    /// No file is opened, no TCP port reached, no process outside sent a signal.
    Landlock,
    /// Limits of descriptors, file sizes, memory and core dumps.
    Limits,
    /// No system call but those that each of its threads needs.
    Seccomp,
}

impl JailLayer {
    /// All of them, in the order in which they are entered.
    pub const ALL: [Self; 6] = [
        Self::Namespaces,
        Self::Capabilities,
        Self::Undumpable,
        Self::Landlock,
        Self::Limits,
        Self::Seccomp,
    ];

    /// As documents call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Capabilities => "capabilities",
            Self::Undumpable => "undumpable",
            Self::Landlock => "landlock",
            Self::Limits => "limits",
            Self::Seccomp => "seccomp",
        }
    }
}

/// Whether a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Holding {
    /// It does.
    Whole,
    /// As far as this machine can.
    Part,
    /// It does not, on this machine.
    No,
}

/// What holds of the jail of a VM process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JailReport {
    /// What was wanted.
    pub mode: JailMode,
    /// By layer, whether it holds. Empty where none was wanted.
    pub layers: BTreeMap<JailLayer, Holding>,
}

impl JailReport {
    /// What this machine cannot do, in words; none if all holds that was wanted.
    #[must_use]
    pub fn lack(&self) -> Option<String> {
        let words = self.layers.iter().filter_map(|(layer, holding)| {
            let name = layer.name();
            match holding {
                Holding::Whole => None,
                Holding::Part => Some(format!("{name} in part only")),
                Holding::No => Some(format!("{name} not at all")),
            }
        });
        let words: Vec<_> = words.collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_read_as_it_is_written() {
        for mode in [JailMode::Enforce, JailMode::Log, JailMode::Off] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let error = "on".parse::<JailMode>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "'on' is no jail: write enforce, log or off"
        );
    }

    #[test]
    fn what_is_lacking_is_named_and_nothing_else() {
        let mut report = JailReport::default();
        assert_eq!(report.lack(), None);
        let all = JailLayer::ALL.map(|layer| (layer, Holding::Whole));
        report.layers.extend(all);
        assert_eq!(report.lack(), None);
        report.layers.insert(JailLayer::Landlock, Holding::Part);
        report.layers.insert(JailLayer::Namespaces, Holding::No);
        assert_eq!(
            report.lack().unwrap(),
            "namespaces not at all, landlock in part only"
        );
    }
}
