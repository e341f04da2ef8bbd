//! What clients ask for.

use super::RestartPolicy;
use page::{InvalidSize, Size};
use policy::{SharesSpec, TaxRate};
use protocol::{DiskSpec, InvalidMac, InvalidTapName, MacAddress, OnHostDeath, TapName, VmName};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use sharing::TrustGroup;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

/// A VM that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Its name; `vm-N` if none is given.
    #[serde(default)]
    pub name: Option<VmName>,
    /// What it is promised.
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub memory_bytes: u64,
    /// Processors; 1 if none are given.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 8)]
    pub vcpus: Option<u8>,
    /// What it can count on at any time.
    #[serde(default)]
    #[schema(minimum = 0, multiple_of = 4096)]
    pub min_bytes: Option<u64>,
    /// What it may hold at most.
    #[serde(default)]
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub max_bytes: Option<u64>,
    /// Its weight; `normal` if none is given.
    #[serde(default)]
    pub shares: Option<SharesSpec>,
    /// What its idle memory is taxed, in thousandths, instead of as that of all VMs of the host.
    #[serde(default)]
    pub idle_tax_permille: Option<TaxRate>,
    /// Whether its memory is made large pages, where the host makes any; it is if nothing is said.
    #[serde(default)]
    pub large_pages: Option<bool>,
    /// For how many seconds it may wait to be admitted. It is refused at once if none are given.
    #[serde(default)]
    pub wait_s: Option<u64>,
    /// Who it may share pages with.
    #[serde(default)]
    pub trust_group: Option<TrustGroup>,
    /// A kernel to boot instead of the embedded guest; a path on the host.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk of that kernel; a path on the host.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// Its network cards.
    #[serde(default, deserialize_with = "objects")]
    #[schema(max_items = 4)]
    pub nets: Vec<NetRequest>,
    /// More for the kernel's command line.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// Disks; paths on the host.
    #[serde(default, deserialize_with = "objects")]
    pub disks: Vec<DiskSpec>,
    /// What the embedded guest does.
    #[serde(default)]
    pub workload: Option<String>,
    /// A file that keeps what the VM prints, up to a mebibyte, and the mebibyte before in one beside it; a path on the
    /// host.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub console_log: Option<PathBuf>,
    /// What the VM does when the host dies.
    #[serde(default)]
    pub on_host_death: OnHostDeath,
    /// When it is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
}

/// A network card that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetRequest {
    /// The tap that it is connected to, which must be there; an interface of the host.
    pub tap: TapName,
    /// Its address; one that follows from the VM's name if none is given.
    #[serde(default)]
    pub mac: Option<MacAddress>,
    /// The most bytes a second in each direction; no bound if none is given.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub bytes_per_s: Option<u64>,
}

/// Why a text describes no network card.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it, with the text")]
pub enum InvalidNet {
    #[error("'{0}' is no part of a network card: write tap=NAME[,mac=ADDRESS][,rate=SIZE]")]
    Word(String),
    #[error("'{0}' is there twice: write it once")]
    Twice(String),
    #[error("a network card needs a tap: write tap=NAME, as in tap=tap0")]
    NoTap,
    #[error("rate={0} lets nothing through: give some bytes a second, as in rate=10M")]
    NoRate(String),
    #[error(transparent)]
    Tap(#[from] InvalidTapName),
    #[error(transparent)]
    Mac(#[from] InvalidMac),
    #[error(transparent)]
    Rate(#[from] InvalidSize),
}

/// The card as it is typed: `tap=NAME[,mac=ADDRESS][,rate=SIZE]`.
impl FromStr for NetRequest {
    type Err = InvalidNet;

    fn from_str(text: &str) -> Result<Self, InvalidNet> {
        let (mut tap, mut mac, mut rate) = (None, None, None);
        for word in text.split(',') {
            let place = match word.split_once('=') {
                Some(("tap", value)) => tap.replace(value),
                Some(("mac", value)) => mac.replace(value),
                Some(("rate", value)) => rate.replace(value),
                _ => return Err(InvalidNet::Word(word.chars().take(80).collect())),
            };
            if place.is_some() {
                return Err(InvalidNet::Twice(word.chars().take(80).collect()));
            }
        }
        Ok(Self {
            tap: tap.ok_or(InvalidNet::NoTap)?.parse()?,
            mac: mac.map(str::parse).transpose()?,
            bytes_per_s: rate.map(bytes_per_s).transpose()?,
        })
    }
}

fn bytes_per_s(text: &str) -> Result<u64, InvalidNet> {
    match text.parse::<Size>()?.0.bytes() {
        0 => Err(InvalidNet::NoRate(text.into())),
        bytes => Ok(bytes),
    }
}

/// A running QEMU that is to be managed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptRequest {
    /// The Unix socket of its monitor (`-qmp unix:PATH,server=on,wait=off`); a path on the host. Either this or `domain` is given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// The name or UUID that libvirt has for it.
    #[serde(default)]
    pub domain: Option<String>,
    /// Its name; the one that QEMU or libvirt has for it if none is said, else `vm-N`.
    #[serde(default)]
    pub name: Option<VmName>,
    /// What it can count on at any time.
    #[serde(default)]
    #[schema(minimum = 0, multiple_of = 4096)]
    pub min_bytes: Option<u64>,
    /// What it may hold at most.
    #[serde(default)]
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub max_bytes: Option<u64>,
    /// Its weight; `normal` if none is given.
    #[serde(default)]
    pub shares: Option<SharesSpec>,
    /// What its idle memory is taxed, in thousandths, instead of as that of all VMs of the host.
    #[serde(default)]
    pub idle_tax_permille: Option<TaxRate>,
    /// Whether the kernel may take pages of it into its own swap (memory.reclaim of its cgroup) where its balloon does not follow; its
    /// min is protected then (memory.low).
    #[serde(default)]
    pub reclaim: bool,
}

/// How large a VM's balloon should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonRequest {
    /// What the balloon should take from the guest; `null` leaves it to the policy again.
    #[schema(minimum = 0, multiple_of = 4096)]
    pub balloon_bytes: Option<u64>,
}

/// Reads an object, and no list of its fields in their order, which serde takes as well: what the document of
/// the interface does not allow is refused.
///
/// # Errors
/// When it is no object, or not that of a `T`.
pub fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<T, D::Error> {
    let object = Map::deserialize(from)?;
    T::deserialize(Value::Object(object)).map_err(D::Error::custom)
}

fn objects<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Vec<T>, D::Error> {
    let objects = Vec::<Map<String, Value>>::deserialize(from)?;
    let read = |object| T::deserialize(Value::Object(object)).map_err(D::Error::custom);
    objects.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Result<NetRequest, InvalidNet> {
        text.parse()
    }

    #[test]
    fn a_card_is_read_as_it_is_typed() {
        let all = net("tap=tap0,mac=52:54:00:12:34:56,rate=10M").unwrap();
        assert_eq!(all.tap, "tap0".parse().unwrap());
        assert_eq!(all.mac, Some("52:54:00:12:34:56".parse().unwrap()));
        assert_eq!(all.bytes_per_s, Some(10 << 20));
        let least = net("tap=br.7").unwrap();
        assert_eq!((least.mac, least.bytes_per_s), (None, None));
    }

    #[test]
    fn what_is_no_card_is_refused_with_the_part_that_is_wrong() {
        assert_eq!(net("mac=52:54:00:12:34:56"), Err(InvalidNet::NoTap));
        assert_eq!(net("tap0"), Err(InvalidNet::Word("tap0".into())));
        assert_eq!(net(""), Err(InvalidNet::Word(String::new())));
        assert_eq!(net("tap=a,tap=b"), Err(InvalidNet::Twice("tap=b".into())));
        assert_eq!(net("tap=a,rate=0"), Err(InvalidNet::NoRate("0".into())));
        for text in [
            "tap=",
            "tap=a/b",
            "tap=a,mac=1",
            "tap=a,rate=fast",
            "tap=a,mtu=9",
        ] {
            assert!(net(text).is_err(), "{text}");
        }
    }
}
