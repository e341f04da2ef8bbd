//! What a host is told when it starts: on the command line, and in a file of settings, which says what a command line
//! would say every time.

use super::http::{self, HttpAddress};
use crate::host::state_store::STATE_VARIABLE;
use crate::host::{Group, LibvirtUri};
use crate::regular_file::read_text;
use anyhow::{Context, Result};
use api::{HostChange, ScanChange, ScanPriority, on_or_off};
use clap::ValueHint;
use page::Size;
use policy::TaxRate;
use protocol::JailMode;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of a file of settings, many times more than all of them need.
const LARGEST: u64 = 1 << 20;
/// Milliseconds that may be between two rounds.
const INTERVAL_MS: RangeInclusive<u64> = 50..=60_000;

/// As it is typed; and as a file has it, with each value in the forms that the command line takes, or as TOML has it.
/// vmm/systemd/host.toml explains each.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostArgs {
    /// Settings in a file (TOML); what is given here wins.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip)]
    pub(super) config: Option<PathBuf>,
    /// Machine memory for all VMs together; 80 % of what is available if none is given.
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "parsed")]
    memory: Option<Size>,
    /// Whether equal pages are shared: on, as without this, or off.
    #[arg(long, value_name = "on|off", value_parser = typed_switch)]
    #[serde(deserialize_with = "switch")]
    sharing: Option<bool>,
    /// Whether guests' memory is made large pages (2 MiB), as long as there is enough for all: on, as without this,
    /// or off.
    #[arg(long, value_name = "on|off", value_parser = typed_switch)]
    #[serde(deserialize_with = "switch")]
    large_pages: Option<bool>,
    /// Whether pages that a VM may not hold are compressed, where its balloon does not bring that: off, as without this, or on.
    /// What a VM keeps compressed takes up to a quarter of its size, and up to two fifths of what it may hold.
    #[arg(long, value_name = "on|off", value_parser = typed_switch)]
    #[serde(deserialize_with = "switch")]
    compression: Option<bool>,
    /// Milliseconds between rounds of observing, deciding and acting; 1000 if none are given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(INTERVAL_MS))]
    #[serde(deserialize_with = "number")]
    pub(super) interval_ms: Option<u64>,
    /// A group of this machine's users, by name or number, whose members may use the host's socket as its owner may: others
    /// cannot connect. They can have the host open any file that it may open.
    #[arg(long, value_name = "GROUP")]
    #[serde(deserialize_with = "parsed")]
    pub(super) socket_group: Option<Group>,
    /// Serve the dashboard, the interface under /v1 and /metrics at this address, as in 127.0.0.1:9000,
    /// localhost:9000 or 9000. Changes there need a token: `ballonet token` makes them, and one is printed and lies in the host's folder.
    /// /v1/openapi.json describes the interface.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "parsed")]
    pub(super) http: Option<HttpAddress>,
    /// Let --http serve other machines as well; they need a token for everything. A port alone is then
    /// served at all addresses of this machine.
    #[arg(long)]
    #[serde(deserialize_with = "flag")]
    pub(super) http_remote: bool,
    /// A name by which --http is reached, as in box.lan, or behind a reverse proxy vms.example.com; may be
    /// given again. Who comes by it needs a token for everything.
    #[arg(long, value_name = "NAME", value_parser = http::name)]
    #[serde(rename = "http_names", deserialize_with = "names")]
    pub(super) http_name: Vec<String>,
    /// How much dearer idle memory is to a VM than memory that it uses, in percent below 100; at 0 it is
    /// not. 75 if none is given.
    #[arg(long, value_name = "PERCENT")]
    #[serde(deserialize_with = "parsed")]
    idle_tax: Option<TaxRate>,
    /// Seconds for which each sample of a VM's pages is watched; 30 if none are given.
    #[arg(long, value_name = "SECONDS")]
    #[serde(rename = "sample_period_s", deserialize_with = "number")]
    sample_period: Option<u32>,
    /// Seconds for which targets hold if nothing happens; 15 if none are given.
    #[arg(long, value_name = "SECONDS")]
    #[serde(rename = "rebalance_interval_s", deserialize_with = "number")]
    rebalance_interval: Option<u32>,
    /// Keep what each VM prints in a file NAME.log in this folder: up to a mebibyte, and the mebibyte before in
    /// NAME.log.old.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) console_log: Option<PathBuf>,
    /// A folder on a disk for VMs' swap files: what neither balloons bring nor memory holds compressed goes there. Each is made,
    /// as large as it may have to be, before its VM starts. Pages are compressed then, too.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) swap: Option<PathBuf>,
    /// How VM processes are jailed: enforce, as without this; log, where system calls that are none of theirs are left to the
    /// kernel's audit log and done; or off.
    #[arg(long, value_name = "enforce|log|off")]
    #[serde(deserialize_with = "parsed")]
    pub(super) jail: Option<JailMode>,
    /// The folder in which is kept what outlives the host: what `set host` changed, and VMs with `run --restart`; none keeps
    /// nothing. Without this it is /var/lib/ballonet for root, and for others ballonet in $XDG_STATE_HOME or ~/.local/state. What
    /// is given to the host wins over what was kept.
    #[arg(long, value_name = "DIR|none", env = STATE_VARIABLE, value_hint = ValueHint::DirPath)]
    pub(super) state: Option<PathBuf>,
    /// Put libvirt's running QEMU domains under the host as they appear, by virsh: qemu:///system, or the URI that is given,
    /// which must be of this machine. vmm/docs/qemu.md explains what a domain's description says to it.
    #[arg(long, value_name = "URI", num_args = 0..=1, require_equals = true, default_missing_value = LibvirtUri::SYSTEM)]
    #[serde(deserialize_with = "parsed")]
    pub(super) libvirt: Option<LibvirtUri>,
    /// Put QEMUs under the host whose monitors' sockets appear in this folder, and let them go when these disappear.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) qmp_dir: Option<PathBuf>,
    /// Take the place of a host that lives at this socket, as for an upgrade: it ends, its VMs run on and are this host's.
    #[arg(long)]
    #[serde(skip)]
    pub(super) replace: bool,
    /// End when the last VM has ended.
    #[arg(long)]
    #[serde(deserialize_with = "flag")]
    pub(super) exit_when_empty: bool,
    /// Log to a file of bounded size in the host's folder instead of the terminal.
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(super) background: bool,
    #[arg(skip)]
    scan: ScanFile,
}

/// How fast memory is scanned, in a file.
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

impl HostArgs {
    /// What the file says that is named, if one is.
    pub(super) fn in_file(&self) -> Result<Self> {
        let Some(path) = &self.config else {
            return Ok(Self::default());
        };
        let text = read_text(path, LARGEST)
            .with_context(|| format!("cannot read {}: give another --config", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not understood", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let file: Self = toml::from_str(text)?;
        match file.interval_ms {
            Some(ms) if !INTERVAL_MS.contains(&ms) => {
                let (least, most) = INTERVAL_MS.into_inner();
                anyhow::bail!("interval_ms = {ms}: give {least} to {most}")
            }
            _ => Ok(file),
        }
    }

    /// Takes from a file what is not typed, but for the host's settings: these are changes, of which the last wins.
    pub(super) fn complete(&mut self, file: &Self) {
        self.interval_ms = self.interval_ms.or(file.interval_ms);
        self.socket_group = self
            .socket_group
            .take()
            .or_else(|| file.socket_group.clone());
        self.http = self.http.take().or_else(|| file.http.clone());
        self.http_remote |= file.http_remote;
        if self.http_name.is_empty() {
            self.http_name.clone_from(&file.http_name);
        }
        self.console_log = self.console_log.take().or_else(|| file.console_log.clone());
        self.swap = self.swap.take().or_else(|| file.swap.clone());
        self.jail = self.jail.or(file.jail);
        self.state = self.state.take().or_else(|| file.state.clone());
        self.libvirt = self.libvirt.take().or_else(|| file.libvirt.clone());
        self.qmp_dir = self.qmp_dir.take().or_else(|| file.qmp_dir.clone());
        self.exit_when_empty |= file.exit_when_empty;
    }

    /// The host's settings that are given; the host checks them.
    pub(super) fn change(&self) -> HostChange {
        let scan = self.scan;
        HostChange {
            memory_bytes: self.memory.map(|size| size.0.bytes()),
            sharing: self.sharing,
            large_pages: self.large_pages,
            compression: self.compression,
            scan: ScanChange {
                pass_s: scan.pass_s,
                vm_pages_per_s: scan.vm_pages_per_s,
                host_pages_per_s: scan.host_pages_per_s,
                core_share_permille: scan.core_share_permille,
                priority: scan.priority,
            },
            idle_tax_permille: self.idle_tax,
            sample_period_s: self.sample_period,
            rebalance_interval_s: self.rebalance_interval,
        }
    }
}

pub(super) fn typed_switch(text: &str) -> Result<bool, String> {
    on_or_off(text).ok_or_else(|| "write on or off".into())
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

fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(switch(deserializer)?.unwrap_or_default())
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
        let file = HostArgs::parse(include_str!("../../systemd/host.toml")).unwrap();
        assert!(!file.http_name.is_empty());
        let text = include_str!("../../systemd/host.toml");
        for flag in ["http_remote", "exit_when_empty"] {
            assert!(text.contains(&format!("\n{flag} = ")));
        }
        let HostArgs {
            config: None,
            background: false,
            replace: false,
            memory: Some(_),
            interval_ms: Some(_),
            socket_group: Some(_),
            http: Some(_),
            http_remote: _,
            http_name: _,
            exit_when_empty: _,
            console_log: Some(_),
            swap: Some(_),
            jail: Some(_),
            state: Some(_),
            libvirt: Some(_),
            qmp_dir: Some(_),
            sharing: Some(_),
            large_pages: Some(_),
            compression: Some(_),
            idle_tax: Some(_),
            sample_period: Some(_),
            rebalance_interval: Some(_),
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
            ("jail = \"on\"", "'on'"),
            ("[scan]\nfast = true", "fast"),
            ("[scan]\npriority = \"high\"", "high"),
            ("http = \"nowhere\"", "'nowhere'"),
            ("socket_group = \"no group\"", "groupadd"),
            ("http_names = [\"http://a\"]", "'http://a'"),
            ("sharing = \"perhaps\"", "'perhaps'"),
            ("sharing = 1", "'1'"),
            ("interval_ms = \"1s\"", "'1s'"),
            ("interval_ms = -1", "'-1'"),
            ("memory = [1]", "memory"),
            ("libvirt = true", "qemu:///system"),
            ("libvirt = \"qemu+ssh://box/system\"", "on this machine"),
        ] {
            let error = format!("{:#}", HostArgs::parse(text).unwrap_err());
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
            let [one, other] = texts.map(|text| HostArgs::parse(text).unwrap());
            assert_eq!(one, other, "{texts:?}");
            assert_ne!(one, HostArgs::default(), "{texts:?}");
        }
    }

    #[test]
    fn an_empty_file_changes_nothing() {
        let file = HostArgs::parse("").unwrap();
        assert_eq!(file, HostArgs::default());
        assert_eq!(file.change(), HostChange::default());
    }
}
