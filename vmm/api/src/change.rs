//! What clients change, and the words of a change on the command line.

use super::ScanPriority;
use super::request::object;
use page::{PageCount, Size};
use policy::{SharesSpec, TaxRate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;
use utoipa::ToSchema;

/// Changes to a running VM; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmChange {
    /// What it can count on.
    #[serde(default)]
    #[schema(minimum = 0, multiple_of = 4096)]
    pub min_bytes: Option<u64>,
    /// What it may hold at most.
    #[serde(default)]
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub max_bytes: Option<u64>,
    /// Its weight.
    #[serde(default)]
    pub shares: Option<SharesSpec>,
    /// What its idle memory is taxed.
    #[serde(default)]
    pub idle_tax: Option<VmIdleTax>,
    /// Whether its memory is made large pages, where the host makes any.
    #[serde(default)]
    pub large_pages: Option<bool>,
}

/// What idle memory of a VM is taxed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmIdleTax {
    /// As that of all VMs of the host.
    Host,
    /// At a rate of its own, in thousandths.
    Permille(TaxRate),
}

/// Changes to the host; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// Machine memory for all VMs together.
    #[serde(default)]
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub memory_bytes: Option<u64>,
    /// Whether equal pages are shared. When they are no more, what was shared is brought home.
    #[serde(default)]
    pub sharing: Option<bool>,
    /// Whether memory is made large pages where there is enough of it.
    #[serde(default)]
    pub large_pages: Option<bool>,
    /// Whether VMs that start from now on may have pages compressed that they may not hold.
    #[serde(default)]
    pub compression: Option<bool>,
    /// How fast memory is scanned.
    #[serde(default, deserialize_with = "object")]
    pub scan: ScanChange,
    /// The tax on idle memory, in thousandths.
    #[serde(default)]
    pub idle_tax_permille: Option<TaxRate>,
    /// How long each sample of a VM's pages is watched.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3600)]
    pub sample_period_s: Option<u32>,
    /// How long targets hold if nothing happens.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3600)]
    pub rebalance_interval_s: Option<u32>,
}

/// Changes to how fast memory is scanned; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScanChange {
    /// The time in which every page is to be looked at once, in seconds.
    #[schema(minimum = 1)]
    pub pass_s: Option<u64>,
    /// The most pages a second of one VM.
    #[schema(minimum = 1)]
    pub vm_pages_per_s: Option<u64>,
    /// The most pages a second in all.
    #[schema(minimum = 1)]
    pub host_pages_per_s: Option<u64>,
    /// The most of a core, in thousandths.
    #[schema(minimum = 1, maximum = 1000)]
    pub core_share_permille: Option<u64>,
    /// The scanner's place among all that want a core.
    pub priority: Option<ScanPriority>,
}

impl HostChange {
    /// This change and a later one, as one.
    #[must_use]
    pub fn then(self, later: &Self) -> Self {
        let or = |later: ScanChange, earlier: ScanChange| ScanChange {
            pass_s: later.pass_s.or(earlier.pass_s),
            vm_pages_per_s: later.vm_pages_per_s.or(earlier.vm_pages_per_s),
            host_pages_per_s: later.host_pages_per_s.or(earlier.host_pages_per_s),
            core_share_permille: later.core_share_permille.or(earlier.core_share_permille),
            priority: later.priority.or(earlier.priority),
        };
        Self {
            memory_bytes: later.memory_bytes.or(self.memory_bytes),
            sharing: later.sharing.or(self.sharing),
            large_pages: later.large_pages.or(self.large_pages),
            compression: later.compression.or(self.compression),
            scan: or(later.scan, self.scan),
            idle_tax_permille: later.idle_tax_permille.or(self.idle_tax_permille),
            sample_period_s: later.sample_period_s.or(self.sample_period_s),
            rebalance_interval_s: later.rebalance_interval_s.or(self.rebalance_interval_s),
        }
    }

    /// What it changes, as it is typed for `set host`: keys and values.
    #[must_use]
    pub fn words(&self) -> Vec<(&'static str, String)> {
        let Self {
            memory_bytes,
            sharing,
            large_pages,
            compression,
            scan,
            idle_tax_permille,
            sample_period_s,
            rebalance_interval_s,
        } = *self;
        let ScanChange {
            pass_s,
            vm_pages_per_s,
            host_pages_per_s,
            core_share_permille,
            priority,
        } = scan;
        let percent = |permille: u64| permille / 10;
        let words = [
            ("memory", memory_bytes.map(typed_size)),
            ("sharing", sharing.map(typed_switch)),
            ("large-pages", large_pages.map(typed_switch)),
            ("compression", compression.map(typed_switch)),
            ("idle-tax", typed(idle_tax_permille)),
            ("sample-period", typed(sample_period_s)),
            ("rebalance-interval", typed(rebalance_interval_s)),
            ("scan-pass", typed(pass_s)),
            ("scan-vm", typed(vm_pages_per_s)),
            ("scan-host", typed(host_pages_per_s)),
            ("scan-core", typed(core_share_permille.map(percent))),
            ("scan-priority", priority.map(typed_priority)),
        ];
        let given = |(key, value): (_, Option<String>)| Some((key, value?));
        words.into_iter().filter_map(given).collect()
    }
}

fn typed(value: Option<impl Display>) -> Option<String> {
    value.map(|value| value.to_string().replace(' ', ""))
}

fn typed_size(bytes: u64) -> String {
    match bytes.is_multiple_of(1 << 20) {
        true => format!("{}M", bytes >> 20),
        false => format!("{}K", bytes >> 10),
    }
}

fn typed_switch(is_on: bool) -> String {
    if is_on { "on" } else { "off" }.into()
}

fn typed_priority(priority: ScanPriority) -> String {
    match priority {
        ScanPriority::Idle => "idle",
        ScanPriority::Normal => "normal",
    }
    .into()
}

/// The words of a change on the command line, `KEY=VALUE`, as a change to a VM.
///
/// # Errors
/// Names the key or value that is not understood.
pub fn parse_vm_change(words: &[String]) -> Result<VmChange, String> {
    let mut change = VmChange::default();
    for (key, value) in split_words(words)? {
        match key {
            "min" => change.min_bytes = Some(parse_size(value)?.bytes()),
            "max" => change.max_bytes = Some(parse_size(value)?.bytes()),
            "shares" => {
                change.shares = Some(
                    value
                        .parse()
                        .map_err(|error: policy::InvalidShares| error.to_string())?,
                )
            }
            "idle-tax" => {
                change.idle_tax = Some(match value {
                    "host" => VmIdleTax::Host,
                    _ => VmIdleTax::Permille(parse_tax(value)?),
                });
            }
            "large-pages" => change.large_pages = Some(parse_switch(key, value)?),
            _ => {
                return Err(format!(
                    "'{key}' cannot be set on a VM: set min, max, shares, idle-tax or large-pages"
                ));
            }
        }
    }
    Ok(change)
}

/// The words of a change on the command line as a change to the host.
///
/// # Errors
/// Names the key or value that is not understood.
pub fn parse_host_change(words: &[String]) -> Result<HostChange, String> {
    let mut change = HostChange::default();
    for (key, value) in split_words(words)? {
        match key {
            "memory" => change.memory_bytes = Some(parse_size(value)?.bytes()),
            "sharing" => change.sharing = Some(parse_switch(key, value)?),
            "large-pages" => change.large_pages = Some(parse_switch(key, value)?),
            "compression" => change.compression = Some(parse_switch(key, value)?),
            "scan-pass" => change.scan.pass_s = Some(parse_count(key, value)?),
            "scan-vm" => change.scan.vm_pages_per_s = Some(parse_count(key, value)?),
            "scan-host" => change.scan.host_pages_per_s = Some(parse_count(key, value)?),
            "scan-core" => {
                let percent: u64 = parse_count(key, value)?;
                change.scan.core_share_permille = Some(percent.saturating_mul(10));
            }
            "scan-priority" => {
                change.scan.priority = Some(match value {
                    "idle" => ScanPriority::Idle,
                    "normal" => ScanPriority::Normal,
                    _ => return Err(format!("{key}={value}: write {key}=idle or {key}=normal")),
                });
            }
            "idle-tax" => change.idle_tax_permille = Some(parse_tax(value)?),
            "sample-period" => change.sample_period_s = Some(parse_seconds(key, value)?),
            "rebalance-interval" => change.rebalance_interval_s = Some(parse_seconds(key, value)?),
            _ => {
                return Err(format!(
                    "'{key}' cannot be set on the host: set memory, sharing, large-pages, compression, idle-tax, sample-period, rebalance-interval, scan-pass, scan-vm, scan-host, scan-core or scan-priority"
                ));
            }
        }
    }
    Ok(change)
}

fn split_words(words: &[String]) -> Result<BTreeMap<&str, &str>, String> {
    let mut values = BTreeMap::new();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("'{word}' is not KEY=VALUE: write for example shares=high"))?;
        if values.insert(key, value).is_some() {
            return Err(format!("'{key}' is given twice: give it once"));
        }
    }
    Ok(values)
}

fn parse_seconds(key: &str, value: &str) -> Result<u32, String> {
    let seconds = parse_count(key, value)?;
    let too_many = |_| format!("{key}={value}: these are more seconds than there can be");
    u32::try_from(seconds).map_err(too_many)
}

fn parse_switch(key: &str, value: &str) -> Result<bool, String> {
    on_or_off(value).ok_or_else(|| format!("{key}={value}: write {key}=on or {key}=off"))
}

/// A switch as people write it.
#[must_use]
pub fn on_or_off(text: &str) -> Option<bool> {
    match text {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

fn parse_count(key: &str, value: &str) -> Result<u64, String> {
    let count = value.parse().ok().filter(|&count| count > 0);
    count.ok_or_else(|| format!("{key}={value}: write a whole number above zero"))
}

fn parse_tax(text: &str) -> Result<TaxRate, String> {
    text.parse()
        .map_err(|error: policy::InvalidTaxRate| error.to_string())
}

fn parse_size(text: &str) -> Result<PageCount, String> {
    text.parse::<Size>()
        .map(|size| size.0)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_given_once() {
        let words = |texts: &[&str]| texts.iter().map(|&text| text.into()).collect::<Vec<_>>();
        let error = parse_host_change(&words(&["sharing=on", "sharing=off"])).unwrap_err();
        assert_eq!(error, "'sharing' is given twice: give it once");
        let error = parse_vm_change(&words(&["min=1M", "max=2M", "min=2M"])).unwrap_err();
        assert!(error.contains("'min'"), "{error}");
        let change = parse_vm_change(&words(&["large-pages=off", "min=1M"])).unwrap();
        assert_eq!(
            (change.large_pages, change.min_bytes),
            (Some(false), Some(1 << 20))
        );
    }

    #[test]
    fn a_change_is_written_as_it_is_typed() {
        let typed = "memory=200M sharing=off large-pages=on compression=on idle-tax=12.5 sample-period=7 \
            rebalance-interval=9 scan-pass=60 scan-vm=2 scan-host=3 scan-core=50 scan-priority=normal";
        let words: Vec<String> = typed.split_whitespace().map(Into::into).collect();
        let change = parse_host_change(&words).unwrap();
        let written = change.words().into_iter();
        let written: Vec<String> = written
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(written.len(), words.len());
        assert_eq!(parse_host_change(&written).unwrap(), change);
    }

    #[test]
    fn of_two_changes_the_later_counts() {
        let change = |word: &str| parse_host_change(&[word.into()]).unwrap();
        let both = change("scan-vm=1").then(&change("scan-host=2"));
        let both = both.then(&change("sharing=on")).then(&change("scan-vm=3"));
        let scan = ScanChange {
            vm_pages_per_s: Some(3),
            host_pages_per_s: Some(2),
            ..ScanChange::default()
        };
        assert_eq!((both.scan, both.sharing), (scan, Some(true)));
    }
}
