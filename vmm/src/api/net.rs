//! Network cards, as clients wish for and see them.

use crate::protocol::{
    InvalidMac, InvalidTapName, MacAddress, NetConfig, NetCounters, NetState, TapName,
};
use crate::size::{InvalidSize, Size};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

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

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetView {
    /// The tap that it is connected to.
    pub tap: TapName,
    /// Its address.
    pub mac: MacAddress,
    /// The most bytes a second in each direction.
    pub bytes_per_s: Option<u64>,
    /// Whether the guest has a driver that is ready.
    pub has_driver: bool,
    /// What went through it.
    pub counters: NetCounters,
}

impl NetView {
    /// A card, as it is set up and as it was last seen.
    #[must_use]
    pub fn new(config: &NetConfig, state: NetState) -> Self {
        Self {
            tap: config.tap.clone(),
            mac: config.mac,
            bytes_per_s: config.bytes_per_s,
            has_driver: state.has_driver,
            counters: state.counters,
        }
    }
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
