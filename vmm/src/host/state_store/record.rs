//! What is kept, and what changes it.

use crate::host::libvirt::{Claims, LibvirtUri, Uuid};
use crate::host::tokens::TokenRecord;
use api::{HostChange, RestartPolicy, RunRequest, TokenName};
use page::PageCount;
use policy::VmSettings;
use protocol::VmName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The version of what is kept. One that is newer than this is not read; an older one is read as far as it goes, which
/// the defaults of fields see to that came later.
pub(super) const VERSION: u32 = 1;

/// All that is kept of a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::host) struct Kept {
    /// What `set host` changed, all of it as one change.
    pub(in crate::host) settings: HostChange,
    /// VMs that are to come back.
    pub(in crate::host) definitions: BTreeMap<VmName, (Definition, Standing)>,
    /// QEMUs that were adopted.
    pub(in crate::host) adoptions: BTreeMap<VmName, Adoption>,
    /// Who may do what over TCP.
    pub(in crate::host) tokens: BTreeMap<TokenName, TokenRecord>,
}

/// A VM that is to come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::host) struct Definition {
    /// Its place among all: who was defined first is started first.
    pub(in crate::host) order: u64,
    /// What was asked for, with its name and all changes since.
    pub(in crate::host) request: RunRequest,
    /// What an administrator fixed that its balloon takes.
    #[serde(default)]
    pub(in crate::host) balloon_bytes: Option<u64>,
}

impl Definition {
    pub(in crate::host) fn policy(&self) -> RestartPolicy {
        self.request.restart
    }
}

/// A QEMU that was adopted: how it is found again, what was agreed, and what it was like before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::host) struct Adoption {
    pub(in crate::host) name: VmName,
    /// How it is reached.
    #[serde(flatten)]
    pub(in crate::host) way: Way,
    pub(in crate::host) pid: u32,
    /// When that process started, in the kernel's ticks.
    pub(in crate::host) started: u64,
    /// What of its process was not its guest's.
    pub(in crate::host) besides: PageCount,
    pub(in crate::host) vcpus: u8,
    pub(in crate::host) settings: VmSettings,
    /// What an administrator fixed that it holds.
    #[serde(default)]
    pub(in crate::host) pinned: Option<PageCount>,
    /// What its balloon left it before,
    pub(in crate::host) held_bytes: u64,
    /// and how often QEMU asked for its guest's figures. Never, if that is zero.
    pub(in crate::host) polling_interval_s: u64,
    /// Whether it was released since, so that nobody takes it again who only finds it.
    #[serde(default)]
    pub(in crate::host) is_released: bool,
    /// If the kernel may take pages of it: its cgroup, and what was protected there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::host) low_before: Option<LowBefore>,
}

/// What a cgroup protected (memory.low) before that was changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::host) struct LowBefore {
    /// The cgroup's path, from the mount point.
    pub(in crate::host) path: String,
    /// As the kernel has written it.
    pub(in crate::host) low: String,
}

/// How an adopted QEMU is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::host) enum Way {
    /// By its monitor, whose socket is there.
    #[serde(rename = "socket")]
    Monitor(PathBuf),
    /// By libvirt.
    #[serde(rename = "domain")]
    Domain(KeptDomain),
}

/// A domain of libvirt's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::host) struct KeptDomain {
    pub(in crate::host) uri: LibvirtUri,
    pub(in crate::host) uuid: Uuid,
    pub(in crate::host) name: String,
    /// What its description claimed when it was last read.
    pub(in crate::host) claims: Claims,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Monitor(socket) => write!(f, "the QEMU at {}", socket.display()),
            Self::Domain(domain) => write!(f, "libvirt's domain '{}'", domain.name),
        }
    }
}

/// Whether a VM that is defined is to run. Kept apart from its definition, for it changes without anybody's asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::host) enum Standing {
    /// It runs or is to be started.
    #[default]
    Wanted,
    /// Somebody stopped it.
    Stopped,
    /// Its guest switched itself off.
    SwitchedOff,
}

impl Standing {
    /// Whether a host that starts is to start it.
    pub(in crate::host) fn comes_back(self, policy: RestartPolicy) -> bool {
        match policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure => self == Self::Wanted,
            RestartPolicy::Always => true,
        }
    }
}

/// A step from what is kept to what is to be kept. Steps that are committed together are all kept or none of them.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::host) enum Step {
    /// Keep this as the change of the host's settings.
    Settings(HostChange),
    /// Keep a definition, in place of one of that name.
    Define(VmName, Box<Definition>),
    /// A VM that is defined stands so now. One that is not is not.
    Stand(VmName, Standing),
    /// Keep nothing of that VM.
    Forget(VmName),
    /// Keep an adopted QEMU, in place of one of that name.
    Adopt(Box<Adoption>),
    /// Keep nothing of that QEMU.
    Release(VmName),
    /// Keep a token, in place of one of that name.
    AddToken(TokenName, TokenRecord),
    /// Keep nothing of that token.
    RemoveToken(TokenName),
}

impl Kept {
    /// Takes a step.
    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Settings(settings) => self.settings = settings,
            Step::Define(name, definition) => {
                let entry = self.definitions.entry(name);
                let standing = entry.or_insert_with(|| ((*definition).clone(), Standing::Wanted));
                standing.0 = *definition;
            }
            Step::Stand(name, standing) => {
                if let Some(entry) = self.definitions.get_mut(&name) {
                    entry.1 = standing;
                }
            }
            Step::Forget(name) => drop(self.definitions.remove(&name)),
            Step::Adopt(adoption) => {
                drop(self.adoptions.insert(adoption.name.clone(), *adoption));
            }
            Step::Release(name) => drop(self.adoptions.remove(&name)),
            Step::AddToken(name, record) => drop(self.tokens.insert(name, record)),
            Step::RemoveToken(name) => drop(self.tokens.remove(&name)),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first version has written it: who changes what this means makes a new version.
    #[test]
    fn what_an_older_program_has_kept_is_read() {
        let json = r#"{"order":7,"request":{"name":"a","memory_bytes":4096,"shares":"high","restart":"on-failure",
            "disks":[{"path":"/d","read_only":true}]},"balloon_bytes":4096}"#;
        let definition: Definition = serde_json::from_str(json).unwrap();
        assert_eq!(
            (definition.order, definition.balloon_bytes),
            (7, Some(4096))
        );
        assert_eq!(definition.policy(), RestartPolicy::OnFailure);
        assert_eq!(definition.request.disks.len(), 1);
        let written = serde_json::to_string(&definition).unwrap();
        assert_eq!(
            serde_json::from_str::<Definition>(&written).unwrap(),
            definition
        );
        for (json, standing) in [
            ("\"wanted\"", Standing::Wanted),
            ("\"stopped\"", Standing::Stopped),
            ("\"switched_off\"", Standing::SwitchedOff),
        ] {
            assert_eq!(serde_json::from_str::<Standing>(json).unwrap(), standing);
        }
        let adoption = r#"{"name":"web","socket":"/run/web.qmp","pid":7,"started":9,"besides":5,"vcpus":1,"settings":{"size":65536,
            "min":4096,"max":65536,"shares":"normal","idle_tax":null,"large_pages":false},"held_bytes":268435456,"polling_interval_s":0}"#;
        let adoption: Adoption = serde_json::from_str(adoption).unwrap();
        assert_eq!(adoption.way, Way::Monitor("/run/web.qmp".into()));
        assert!(!adoption.is_released);
        let of_libvirt = Adoption {
            way: Way::Domain(KeptDomain {
                uri: LibvirtUri::default(),
                uuid: "5bb3b54a-7025-4c58-8201-d8ab02dfad30".parse().unwrap(),
                name: "web".into(),
                claims: Claims::default(),
            }),
            ..adoption
        };
        let written = serde_json::to_string(&of_libvirt).unwrap();
        let read: Adoption = serde_json::from_str(&written).unwrap();
        assert_eq!(read, of_libvirt);
        let token = r#"{"hash":"00ff","role":"operate","made_ms":7}"#;
        assert!(serde_json::from_str::<TokenRecord>(token).is_ok());
        let settings =
            r#"{"memory_bytes":4096,"sharing":false,"scan":{"pass_s":9},"idle_tax_permille":500}"#;
        let settings: HostChange = serde_json::from_str(settings).unwrap();
        assert_eq!(settings.words().len(), 4);
    }
}
