//! What libvirt says of its running domains, all at once: `list` and `domstats`.

use crate::host::vm::Reported;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

/// What is typed for that. Whoever cannot answer at once is left out, so that one hung QEMU holds up nobody.
pub(super) const ASK_ALL: &str =
    "list --uuid --name; domstats --raw --state --balloon --block --nowait --list-active";

/// libvirt's number for a domain that runs (`virDomainState`).
const RUNNING: u64 = 1;
const IDLE: u64 = 2;

/// A domain's, for as long as it is defined or runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(in crate::host) struct Uuid(u128);

/// Why a text is no UUID.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("that is no UUID")]
pub(in crate::host) struct InvalidUuid;

impl TryFrom<String> for Uuid {
    type Error = InvalidUuid;

    fn try_from(text: String) -> Result<Self, InvalidUuid> {
        text.parse()
    }
}

impl std::str::FromStr for Uuid {
    type Err = InvalidUuid;

    fn from_str(text: &str) -> Result<Self, InvalidUuid> {
        let digits: String = text.split('-').collect();
        let is_hex = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(&digits, 16).ok();
        let uuid = number.filter(|_| is_hex).map(Self).ok_or(InvalidUuid)?;
        match uuid.to_string().eq_ignore_ascii_case(text) {
            true => Ok(uuid),
            false => Err(InvalidUuid),
        }
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        f.write_str(&parts.join("-"))
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> Self {
        uuid.to_string()
    }
}

/// A domain that is there, running or paused.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::host) struct Domain {
    pub(in crate::host) name: String,
    pub(in crate::host) is_running: bool,
    /// What its balloon leaves its guest, and what that reported; none if its QEMU could not be asked now.
    pub(in crate::host) memory: Option<(u64, Reported)>,
}

/// Those of an answer. The list pads names with spaces, so those that differ by spaces at their ends alone are not told apart,
/// and are left out.
pub(super) fn domains(answer: &str) -> BTreeMap<Uuid, Domain> {
    let mut uuids: BTreeMap<&str, Vec<Uuid>> = BTreeMap::new();
    let mut domains = BTreeMap::new();
    let mut figures: Option<(&str, BTreeMap<&str, u64>)> = None;
    for line in answer.lines() {
        if let Some((uuid, name)) = line.trim().split_once(' ')
            && let Ok(uuid) = uuid.parse()
        {
            uuids.entry(name.trim()).or_default().push(uuid);
        } else if let Some(name) = line.strip_prefix("Domain: '") {
            close(figures.take(), &uuids, &mut domains);
            figures = name.strip_suffix('\'').map(|name| (name, BTreeMap::new()));
        } else if let Some((_, figures)) = &mut figures
            && let Some((key, value)) = line.trim().split_once('=')
            && let Ok(value) = value.parse()
        {
            figures.insert(key, value);
        }
    }
    close(figures, &uuids, &mut domains);
    domains
}

fn close(
    figures: Option<(&str, BTreeMap<&str, u64>)>,
    uuids: &BTreeMap<&str, Vec<Uuid>>,
    domains: &mut BTreeMap<Uuid, Domain>,
) {
    let Some((name, figures)) = figures else {
        return;
    };
    let Some(&[uuid]) = uuids.get(name.trim()).map(Vec::as_slice) else {
        // It has ended or begun in between.
        return;
    };
    let balloon = |key: &str| figures.get(format!("balloon.{key}").as_str()).copied();
    let state = figures.get("state.state");
    // It stands there only if libvirt could look after it.
    let is_asked = balloon("rss").is_some();
    let current = balloon("current").filter(|_| is_asked);
    let domain = Domain {
        name: name.to_owned(),
        is_running: state.is_some_and(|state| [RUNNING, IDLE].contains(state)),
        memory: current.map(|kibibytes| {
            let of_disks = figures
                .iter()
                .filter(|(key, _)| key.starts_with("block.") && key.ends_with(".rd.bytes"));
            let read = of_disks.map(|(_, &bytes)| bytes);
            (
                kibibytes.saturating_mul(1024),
                Reported::of_libvirt(balloon).with_reads(read),
            )
        }),
    };
    domains.insert(uuid, domain);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAID: &str = "virsh # list --uuid --name; domstats\n\
        5bb3b54a-7025-4c58-8201-d8ab02dfad30 web                           \n\
        5bb3b54a-7025-4c58-8201-d8ab02dfad31 hung one\n\n\
        Domain: 'web'\n  state.state=1\n  state.reason=5\n  balloon.current=131072\n  balloon.maximum=262144\n  \
        balloon.unused=1000\n  balloon.last-update=7\n  balloon.minor_fault=12\n  balloon.rss=206144\n  block.count=2\n  \
        block.0.name=a.rd.bytes\n  block.0.rd.bytes=8192\n  block.1.rd.bytes=4096\n\n\
        Domain: 'hung one'\n  state.state=3\n  balloon.current=262144\n  balloon.maximum=262144\n\
        Domain: 'of no UUID'\n  state.state=1\nvirsh # ";

    #[test]
    fn all_domains_are_read_at_once() {
        let all = domains(SAID);
        assert_eq!(all.len(), 2);
        let web = &all[&"5bb3b54a-7025-4c58-8201-d8ab02dfad30".parse().unwrap()];
        let (bytes, reported) = web.memory.unwrap();
        assert_eq!(
            (web.name.as_str(), web.is_running, bytes),
            ("web", true, 128 << 20)
        );
        assert_eq!(
            (reported.at_s, reported.statistics.free),
            (7, Some(1000 << 10))
        );
        assert_eq!(reported.statistics.minor_faults, Some(12));
        assert_eq!(reported.faulted_since(&Reported::default()).0, 12 + 3);
        let hung = &all[&"5bb3b54a-7025-4c58-8201-d8ab02dfad31".parse().unwrap()];
        assert_eq!(
            (hung.name.as_str(), hung.is_running, &hung.memory),
            ("hung one", false, &None)
        );
    }

    #[test]
    fn domains_that_differ_by_spaces_alone_are_not_taken_for_each_other() {
        let (one, other) = (
            "5bb3b54a-7025-4c58-8201-d8ab02dfad30",
            "5bb3b54a-7025-4c58-8201-d8ab02dfad31",
        );
        let figures = "state.state=1\n balloon.current=9\n balloon.rss=7\n";
        let both = format!(
            "{one} web   \n{other} web   \n\nDomain: 'web'\n {figures}Domain: 'web '\n {figures}"
        );
        assert!(domains(&both).is_empty());
        let alone = domains(&format!("{one} web   \n\nDomain: 'web '\n {figures}"));
        assert_eq!(alone[&one.parse().unwrap()].name, "web ");
    }

    #[test]
    fn a_uuid_is_read_as_it_is_written() {
        let text = "5bb3b54a-7025-4c58-8201-d8ab02dfad30";
        assert_eq!(text.parse::<Uuid>().unwrap().to_string(), text);
        for none in [
            "",
            "web",
            "5bb3b54a70254c588201d8ab02dfad30",
            "+bb3b54a-7025-4c58-8201-d8ab02dfad30",
            "5bb3b54a-7025-4c58-8201-d8ab02dfad3; rm",
        ] {
            assert_eq!(none.parse::<Uuid>(), Err(InvalidUuid), "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(lines in prop::collection::vec("(Domain: '[a-z]*'|  balloon\\.(current|rss)=[0-9]{0,30}|\\PC*)", 0..20)) {
            domains(&lines.join("\n"));
        }
    }
}
