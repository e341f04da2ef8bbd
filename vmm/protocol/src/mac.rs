//! Addresses on an Ethernet.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;
use xxhash_rust::xxh3::xxh3_64;

/// An address of one station, that no other on its network may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(
    value_type = String,
    pattern = "^(?!00(:00){5}$)[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$",
    example = "02:00:00:12:34:56"
)]
pub struct MacAddress([u8; 6]);

/// Why a text is no address.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' is not the address of a network card: give six bytes such as 02:00:00:12:34:56, the first one even and not all zero"
)]
pub struct InvalidMac(String);

/// A bit of the first byte: many stations.
const GROUP: u8 = 1;
/// A bit of the first byte: given by whoever runs the network, not by a manufacturer.
const LOCAL: u8 = 2;

impl MacAddress {
    /// The address of a VM's network card that was given none: the same for each VM of this name,
    /// and another for each of its cards.
    #[must_use]
    pub fn of_vm(name: &str, index: usize) -> Self {
        let [a, b, c, d, e, f, ..] = xxh3_64(format!("{name}/{index}").as_bytes()).to_le_bytes();
        Self([a & !GROUP | LOCAL, b, c, d, e, f])
    }

    /// Its bytes in the order in which they are sent.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.chars().take(40).collect());
        let two_digits = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(two_digits).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        let one_station = |bytes: &[u8; 6]| bytes[0] & GROUP == 0 && *bytes != [0; 6];
        bytes.filter(one_station).map(Self).ok_or_else(invalid)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let address: MacAddress = "52:54:00:Ab:cd:09".parse().unwrap();
        assert_eq!(address.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 9]);
        assert_eq!(address.to_string(), "52:54:00:ab:cd:09");
    }

    #[test]
    fn what_cannot_be_one_stations_address_is_refused() {
        let texts = [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:09:01",
            "52:54:00:ab:cd:+9",
            "5254:00:ab:cd:09",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ];
        for text in texts {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_card_of_each_vm_has_an_address_of_its_own_that_stays() {
        let address = MacAddress::of_vm("a", 0);
        assert_eq!(address, MacAddress::of_vm("a", 0));
        assert_ne!(address, MacAddress::of_vm("a", 1));
        assert_ne!(address, MacAddress::of_vm("b", 0));
        for name in ["a", "b", "db", "web-1"] {
            let address = MacAddress::of_vm(name, 0);
            assert_eq!(address.bytes()[0] & (GROUP | LOCAL), LOCAL, "{address}");
            assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
}
