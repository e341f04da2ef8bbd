//! What a domain's description says of its memory: the only door from it to what this host does.
//!
//! | of the description | is |
//! | --- | --- |
//! | `<memory>` | the size |
//! | `<currentMemory>` | the max where nothing else says one: its administrator has given it that much |
//! | `<memtune><hard_limit>` below the size | a max, less what QEMU has besides: above it the kernel swaps or kills QEMU |
//! | `<memtune><min_guarantee>` | the min, where a libvirt's driver takes it (today's QEMU driver does not) |
//! | `<memtune><soft_limit>` | nothing: it says whose memory the kernel takes first when it is short, and no guest is kept from more |
//! | `<metadata><ballonet:memory min= max= shares= idle-tax= adopt=>` | what it says, before all of these |

use super::domain::Uuid;
use page::{PAGE_SIZE, Size};
use policy::{SharesSpec, TaxRate};
use roxmltree::{Document, Node};
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::str::FromStr;
use thiserror::Error;

/// The namespace of this program's element.
const NAMESPACE: &str = "urn:ballonet:memory";
/// Elements, attributes and texts of a description. libvirt's own has some hundred.
const MOST_NODES: u32 = 200_000;
/// Characters of a text that are repeated.
const SHOWN: usize = 80;

/// Why a domain is not managed. What is said of it is a line that names what is to be changed.
#[derive(Debug, Error)]
pub(in crate::host) enum Unfit {
    #[error("its description is no XML that is understood")]
    NotXml(#[from] roxmltree::Error),
    #[error("its description says no <{0}>")]
    Lacks(&'static str),
    #[error("its <{element}> is '{text}', which is no size in KiB")]
    NoSize { element: String, text: String },
    #[error("its <ballonet:memory {attribute}=\"{text}\">: {why}; `virsh metadata` changes it")]
    Attribute {
        attribute: String,
        text: String,
        why: String,
    },
    #[error(
        "its metadata has ballonet:{0}: write <ballonet:memory> with min, max, shares, idle-tax or adopt"
    )]
    Element(String),
    #[error(
        "it has no balloon: give it <memballoon model='virtio' autodeflate='on' freePageReporting='on'/>"
    )]
    NoBalloon,
    #[error(
        "its memory is locked or in huge pages, of which a balloon gives nothing back: take <locked/> and <hugepages/> out of its <memoryBacking>, or \
         write adopt=\"no\" in its metadata"
    )]
    Pinned,
    #[error(
        "a device of the machine is passed to it (<hostdev>), for which all of its memory is held: take that out, or write adopt=\"no\" in its metadata"
    )]
    Device,
}

/// What is claimed for a domain, as far as its description says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::host) struct Claims {
    pub(in crate::host) min_bytes: Option<u64>,
    pub(in crate::host) max_bytes: Option<u64>,
    pub(in crate::host) shares: Option<SharesSpec>,
    pub(in crate::host) idle_tax: Option<TaxRate>,
    /// What its process may hold.
    pub(in crate::host) hard_limit_bytes: Option<u64>,
}

impl Claims {
    /// The most that it may hold: a domain of that size, which had so much when it was found, and whose QEMU has so much besides.
    pub(in crate::host) fn max_bytes(&self, size: u64, current: u64, besides: u64) -> Option<u64> {
        let limit = self.hard_limit_bytes.filter(|&limit| limit < size);
        let limit = limit.map(|limit| limit.saturating_sub(besides) / PAGE_SIZE * PAGE_SIZE);
        let given = self
            .max_bytes
            .or((current < size).then_some(current / PAGE_SIZE * PAGE_SIZE));
        match (limit, given) {
            (Some(limit), Some(given)) => Some(limit.min(given)),
            (limit, given) => limit.or(given),
        }
    }
}

/// A domain by its description.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::host) struct Definition {
    pub(in crate::host) uuid: Uuid,
    pub(in crate::host) size_bytes: u64,
    pub(in crate::host) vcpus: u64,
    /// How often libvirt has its guest asked for its figures; never, if that is zero.
    pub(in crate::host) period_s: u64,
    /// The user whose process it is.
    pub(in crate::host) owner: Option<u32>,
    pub(in crate::host) claims: Claims,
    /// Whether it is to be managed without being asked for.
    pub(in crate::host) is_wanted: bool,
}

impl Definition {
    pub(in crate::host) fn read(xml: &str) -> Result<Self, Unfit> {
        let options = roxmltree::ParsingOptions {
            allow_dtd: false,
            nodes_limit: MOST_NODES,
            ..Default::default()
        };
        let document = Document::parse_with_options(xml, options)?;
        let domain = document.root_element();
        let uuid = text(domain, "uuid").and_then(|text| text.trim().parse().ok());
        let claims = claims(domain)?;
        let (claims, is_wanted) = with_metadata(claims, domain)?;
        let definition = Self {
            uuid: uuid.ok_or(Unfit::Lacks("uuid"))?,
            size_bytes: bytes(domain, "memory")?.ok_or(Unfit::Lacks("memory"))?,
            vcpus: vcpus(domain),
            period_s: period(domain),
            owner: owner(domain),
            claims,
            is_wanted,
        };
        // Whoever does not want it is not told why it could not be.
        match is_wanted {
            true => check_balloon(domain).map(|()| definition),
            false => Ok(definition),
        }
    }
}

/// A child of that name, of no namespace.
fn child<'a, 'i>(of: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    of.children().find(|node| node.has_tag_name(name))
}

fn text<'a>(of: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(of, name)?.text()
}

/// libvirt writes all sizes in KiB.
fn bytes(of: Node<'_, '_>, name: &str) -> Result<Option<u64>, Unfit> {
    let Some(element) = child(of, name) else {
        return Ok(None);
    };
    let said = element.text().unwrap_or_default().trim();
    let is_kib = element.attribute("unit").is_none_or(|unit| unit == "KiB");
    let kibibytes: Option<u64> = said.parse().ok().filter(|_| is_kib);
    match kibibytes.and_then(|kibibytes| kibibytes.checked_mul(1024)) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(Unfit::NoSize {
            element: name.into(),
            text: shown(said),
        }),
    }
}

fn shown(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(SHOWN)
        .collect()
}

fn claims(domain: Node<'_, '_>) -> Result<Claims, Unfit> {
    let Some(memtune) = child(domain, "memtune") else {
        return Ok(Claims::default());
    };
    let whole = |bytes: u64| bytes / PAGE_SIZE * PAGE_SIZE;
    Ok(Claims {
        min_bytes: bytes(memtune, "min_guarantee")?.map(whole),
        hard_limit_bytes: bytes(memtune, "hard_limit")?,
        ..Claims::default()
    })
}

fn with_metadata(mut claims: Claims, domain: Node<'_, '_>) -> Result<(Claims, bool), Unfit> {
    let mut is_wanted = true;
    let metadata = child(domain, "metadata");
    let own = metadata
        .into_iter()
        .flat_map(|metadata| metadata.children());
    for element in own.filter(|node| node.tag_name().namespace() == Some(NAMESPACE)) {
        if element.tag_name().name() != "memory" {
            return Err(Unfit::Element(shown(element.tag_name().name())));
        }
        for attribute in element.attributes() {
            let value = (attribute.name(), attribute.value());
            match attribute.name() {
                "min" => claims.min_bytes = Some(parsed::<Size>(value)?.0.bytes()),
                "max" => claims.max_bytes = Some(parsed::<Size>(value)?.0.bytes()),
                "shares" => claims.shares = Some(parsed(value)?),
                "idle-tax" => claims.idle_tax = Some(parsed(value)?),
                "adopt" => is_wanted = yes_or_no(value)?,
                _ => {
                    let why =
                        "there is no such attribute: write min, max, shares, idle-tax or adopt";
                    return Err(wrong(value, why));
                }
            }
        }
    }
    Ok((claims, is_wanted))
}

fn wrong((attribute, text): (&str, &str), why: impl Display) -> Unfit {
    Unfit::Attribute {
        attribute: shown(attribute),
        text: shown(text),
        why: shown_long(&why.to_string()),
    }
}

fn shown_long(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(4 * SHOWN)
        .collect()
}

fn parsed<T: FromStr<Err: Display>>(value: (&str, &str)) -> Result<T, Unfit> {
    value.1.parse().map_err(|error| wrong(value, error))
}

fn yes_or_no(value: (&str, &str)) -> Result<bool, Unfit> {
    match value.1 {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(wrong(value, "write yes or no")),
    }
}

fn vcpus(domain: Node<'_, '_>) -> u64 {
    text(domain, "vcpu")
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(1)
}

fn balloon<'a, 'i>(domain: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    child(child(domain, "devices")?, "memballoon")
}

fn period(domain: Node<'_, '_>) -> u64 {
    let stats = balloon(domain).and_then(|balloon| child(balloon, "stats"));
    let period = stats.and_then(|stats| stats.attribute("period")?.parse().ok());
    period.unwrap_or(0)
}

/// As libvirt shows it of a domain that runs: `+64055:+64055`.
fn owner(domain: Node<'_, '_>) -> Option<u32> {
    let mut labels = domain
        .children()
        .filter(|node| node.has_tag_name("seclabel"));
    let dac = labels.find(|label| label.attribute("model") == Some("dac"))?;
    let (user, _) = text(dac, "label")?.split_once(':')?;
    user.trim().trim_start_matches('+').parse().ok()
}

/// Whether a balloon gives something back.
fn check_balloon(domain: Node<'_, '_>) -> Result<(), Unfit> {
    let has_model = balloon(domain).and_then(|balloon| balloon.attribute("model"));
    if has_model.is_none_or(|model| model == "none") {
        return Err(Unfit::NoBalloon);
    }
    let backing = child(domain, "memoryBacking");
    let has = |name| backing.is_some_and(|backing| child(backing, name).is_some());
    if has("locked") || has("hugepages") {
        return Err(Unfit::Pinned);
    }
    let devices = child(domain, "devices");
    let mut devices = devices.into_iter().flat_map(|devices| devices.children());
    let is_passed = |node: &Node<'_, '_>| {
        node.has_tag_name("hostdev") && matches!(node.attribute("type"), Some("pci" | "mdev"))
    };
    match devices.any(|node| is_passed(&node)) {
        true => Err(Unfit::Device),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn domain(head: &str, devices: &str) -> String {
        format!(
            "<domain type='kvm' id='3'><name>web</name><uuid>5bb3b54a-7025-4c58-8201-d8ab02dfad30</uuid>{head}\
             <vcpu placement='static'>2</vcpu><devices>{devices}</devices>\
             <seclabel type='dynamic' model='apparmor'><label>x</label></seclabel>\
             <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel></domain>"
        )
    }

    const MEMORY: &str =
        "<memory unit='KiB'>262144</memory><currentMemory unit='KiB'>131072</currentMemory>";
    const BALLOON: &str = "<memballoon model='virtio'><stats period='10'/></memballoon>";

    fn with_metadata(attributes: &str) -> Result<Definition, Unfit> {
        let element = format!(
            "{MEMORY}<metadata><other:a xmlns:other='urn:other' min='x'/><b:memory xmlns:b='urn:ballonet:memory' {attributes}/></metadata>"
        );
        Definition::read(&domain(&element, BALLOON))
    }

    #[test]
    fn a_description_says_what_a_domain_claims() {
        let memtune = "<memtune><hard_limit unit='KiB'>204800</hard_limit><soft_limit unit='KiB'>1</soft_limit></memtune>";
        let read = Definition::read(&domain(&format!("{MEMORY}{memtune}"), BALLOON)).unwrap();
        assert_eq!(
            (read.size_bytes, read.vcpus, read.period_s),
            (256 << 20, 2, 10)
        );
        assert_eq!((read.owner, read.is_wanted), (Some(64055), true));
        let claims = read.claims;
        assert_eq!(
            claims.max_bytes(256 << 20, 256 << 20, 20 << 20),
            Some(180 << 20)
        );
        assert_eq!(
            claims.max_bytes(256 << 20, 128 << 20, 20 << 20),
            Some(128 << 20)
        );
        assert_eq!(claims.max_bytes(128 << 20, 128 << 20, 20 << 20), None);

        let own = with_metadata("min='32M' max='200M' shares='high' idle-tax='50'").unwrap();
        assert_eq!(own.claims.min_bytes, Some(32 << 20));
        assert_eq!(
            own.claims.max_bytes(256 << 20, 128 << 20, 0),
            Some(200 << 20)
        );
        assert_eq!(own.claims.shares, Some(SharesSpec::High));
        assert!(!with_metadata("adopt='no'").unwrap().is_wanted);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_write() {
        for (attributes, words) in [
            ("min='12Q'", ["min=\"12Q\"", "size"]),
            ("shares='many'", ["shares=\"many\"", "virsh metadata"]),
            ("adopt='perhaps'", ["adopt=\"perhaps\"", "yes or no"]),
            ("weight='7'", ["weight=\"7\"", "min, max, shares"]),
            ("idle-tax='100'", ["idle-tax=\"100\"", "100"]),
        ] {
            let error = with_metadata(attributes).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{word} is not in: {error}");
            }
        }
        let pinned = format!("{MEMORY}<memoryBacking><locked/></memoryBacking>");
        let device = format!("{BALLOON}<hostdev mode='subsystem' type='pci'/>");
        for (head, devices, word) in [
            (MEMORY, "", "no balloon"),
            (MEMORY, "<memballoon model='none'/>", "no balloon"),
            (pinned.as_str(), BALLOON, "<locked/>"),
            (MEMORY, device.as_str(), "<hostdev>"),
            ("", BALLOON, "<memory>"),
            ("<memory unit='KiB'>much</memory>", BALLOON, "'much'"),
            (
                "<memory unit='KiB'>99999999999999999999</memory>",
                BALLOON,
                "KiB",
            ),
            (
                "<memory unit='KiB'>18446744073709551615</memory>",
                BALLOON,
                "KiB",
            ),
        ] {
            let error = Definition::read(&domain(head, devices))
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }

    #[test]
    fn deep_and_hostile_xml_is_refused() {
        for hostile in [
            "<a>".repeat(100_000),
            format!("{}{}", "<a>".repeat(50_000), "</a>".repeat(50_000)),
            "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>".into(),
            String::new(),
        ] {
            assert!(Definition::read(&hostile).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_description_makes_it_panic(head in "(<memory unit='(KiB|MiB)?'>[0-9]{0,22}</memory>|<memtune><hard_limit>[0-9]*</hard_limit></memtune>|\\PC*){0,3}") {
            drop(Definition::read(&domain(&head, BALLOON)));
        }
    }
}
