//! A file of settings for a host: what a command line would say every time.

use super::args::HostArgs;
use super::http::{self, HttpAddress};
use crate::api::{HostChange, ScanChange, ScanPriority, on_or_off};
use crate::regular_file::read_text;
use crate::size::Size;
use anyhow::{Context, Result};
use policy::TaxRate;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Bytes of a file of settings, many times more than all of them need.
const LARGEST: u64 = 1 << 20;

/// The settings that a file gives, each in the forms that the command line takes, or as TOML has it.
/// vmm/systemd/host.toml explains each.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    #[serde(deserialize_with = "parsed")]
    memory: Option<Size>,
    #[serde(deserialize_with = "number")]
    interval_ms: Option<u64>,
    #[serde(deserialize_with = "parsed")]
    http: Option<HttpAddress>,
    #[serde(deserialize_with = "switch")]
    http_remote: Option<bool>,
    #[serde(deserialize_with = "names")]
    http_names: Vec<String>,
    #[serde(deserialize_with = "switch")]
    exit_when_empty: Option<bool>,
    console_log: Option<PathBuf>,
    #[serde(deserialize_with = "switch")]
    sharing: Option<bool>,
    #[serde(deserialize_with = "parsed")]
    idle_tax: Option<TaxRate>,
    #[serde(deserialize_with = "number")]
    sample_period_s: Option<u32>,
    #[serde(deserialize_with = "number")]
    rebalance_interval_s: Option<u32>,
    scan: ScanFile,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ScanFile {
    #[serde(deserialize_with = "number")]
    pass_s: Option<u64>,
    #[serde(deserialize_with = "number")]
    vm_pages_per_s: Option<u64>,
    #[serde(deserialize_with = "number")]
    host_pages_per_s: Option<u64>,
    #[serde(deserialize_with = "number")]
    core_share_permille: Option<u64>,
    priority: Option<ScanPriority>,
}

impl ConfigFile {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = read_text(path, LARGEST)
            .with_context(|| format!("cannot read {}: give another --config", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not understood", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let file: Self = toml::from_str(text)?;
        if let Some(interval_ms) = file.interval_ms
            && !(50..=60_000).contains(&interval_ms)
        {
            anyhow::bail!("interval_ms = {interval_ms}: give 50 to 60000");
        }
        Ok(file)
    }

    /// Fills in what the command line does not say.
    pub(super) fn complete(&self, args: &mut HostArgs) {
        args.interval_ms = args.interval_ms.or(self.interval_ms);
        args.http = args.http.take().or_else(|| self.http.clone());
        args.http_remote |= self.http_remote.unwrap_or_default();
        if args.http_name.is_empty() {
            args.http_name.clone_from(&self.http_names);
        }
        args.console_log = args.console_log.take().or_else(|| self.console_log.clone());
        args.exit_when_empty |= self.exit_when_empty.unwrap_or_default();
    }

    /// The host's settings that it gives; the host checks them.
    pub(super) fn change(&self) -> HostChange {
        let scan = self.scan;
        HostChange {
            memory_bytes: self.memory.map(|size| size.0.bytes()),
            sharing: self.sharing,
            scan: ScanChange {
                pass_s: scan.pass_s,
                vm_pages_per_s: scan.vm_pages_per_s,
                host_pages_per_s: scan.host_pages_per_s,
                core_share_permille: scan.core_share_permille,
                priority: scan.priority,
            },
            idle_tax_permille: self.idle_tax,
            sample_period_s: self.sample_period_s,
            rebalance_interval_s: self.rebalance_interval_s,
        }
    }
}

/// A value as it would be typed.
fn typed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(is_on) => Ok(is_on.to_string()),
        other => Err(D::Error::custom(format!(
            "{} is no value here: write a text or a number",
            other.type_str()
        ))),
    }
}

fn parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = typed(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

fn number<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text = typed(deserializer)?;
    let number = text.parse().map(Some);
    number.map_err(|_not_one| D::Error::custom(format!("'{text}' is not a whole number")))
}

fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    let text = typed(deserializer)?;
    let is_on = on_or_off(&text).map(Some);
    is_on.ok_or_else(|| D::Error::custom(format!("'{text}': write \"on\" or \"off\"")))
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let checked = names.iter().map(|text| http::name(text));
    checked.collect::<Result<_, _>>().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_has_every_setting() {
        let file = ConfigFile::parse(include_str!("../../systemd/host.toml")).unwrap();
        assert!(!file.http_names.is_empty());
        let ConfigFile {
            memory: Some(_),
            interval_ms: Some(_),
            http: Some(_),
            http_remote: Some(_),
            http_names: _,
            exit_when_empty: Some(_),
            console_log: Some(_),
            sharing: Some(_),
            idle_tax: Some(_),
            sample_period_s: Some(_),
            rebalance_interval_s: Some(_),
            scan:
                ScanFile {
                    pass_s: Some(_),
                    vm_pages_per_s: Some(_),
                    host_pages_per_s: Some(_),
                    core_share_permille: Some(_),
                    priority: Some(_),
                },
        } = file
        else {
            panic!("a setting is not explained: {file:?}");
        };
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, word) in [
            ("memroy = \"1G\"", "memroy"),
            ("memory = \"much\"", "'much'"),
            ("memory = 5", "memory"),
            ("interval_ms = 1", "interval_ms = 1"),
            ("sample_period_s = -1", "'-1'"),
            ("idle_tax = \"100\"", "100"),
            ("[scan]\nfast = true", "fast"),
            ("[scan]\npriority = \"high\"", "high"),
            ("http = \"nowhere\"", "'nowhere'"),
            ("http_names = [\"http://a\"]", "'http://a'"),
            ("sharing = \"perhaps\"", "'perhaps'"),
            ("sharing = 1", "'1'"),
            ("interval_ms = \"1s\"", "'1s'"),
            ("interval_ms = -1", "'-1'"),
            ("memory = [1]", "memory"),
        ] {
            let error = format!("{:#}", ConfigFile::parse(text).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_setting_has_the_forms_of_the_command_line_and_those_of_the_file() {
        let same = [
            ["sharing = false", "sharing = \"off\""],
            ["http_remote = true", "http_remote = \"on\""],
            ["idle_tax = 75", "idle_tax = \"75%\""],
            ["idle_tax = 12.5", "idle_tax = \"12.5\""],
            ["memory = 1073741824", "memory = \"1G\""],
            ["interval_ms = 100", "interval_ms = \"100\""],
            ["http = 9100", "http = \":9100\""],
            ["[scan]\npass_s = 7", "[scan]\npass_s = \"7\""],
        ];
        for texts in same {
            let [one, other] = texts.map(|text| ConfigFile::parse(text).unwrap());
            assert_eq!(one, other, "{texts:?}");
            assert_ne!(one, ConfigFile::default(), "{texts:?}");
        }
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        let file = ConfigFile::parse("").unwrap();
        assert_eq!(file, ConfigFile::default());
        assert_eq!(file.change(), HostChange::default());
    }
}
