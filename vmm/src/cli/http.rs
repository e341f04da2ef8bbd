//! Where to serve on TCP, as people write it.

use anyhow::Result;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// An address as it is typed: `127.0.0.1:9000`, `localhost:9000`, `:9000` or `9000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HttpAddress {
    /// Of an interface of this machine.
    Address(SocketAddr),
    /// A name that this machine knows.
    Name(String, u16),
    /// This machine alone, or all its interfaces if other machines are to be served.
    Port(u16),
}

impl FromStr for HttpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (name, port) = text.rsplit_once(':').unwrap_or(("", text));
        match port.parse() {
            Ok(port) if name.is_empty() => Ok(Self::Port(port)),
            Ok(port) if is_name(name) => Ok(Self::Name(name.into(), port)),
            _ => Err(format!(
                "'{text}' is no address: give one with a port, as in 127.0.0.1:9000, localhost:9000 or 9000"
            )),
        }
    }
}

/// A name by which others reach this machine, as in `box.lan`.
pub(super) fn name(text: &str) -> Result<String, String> {
    // With a dot at its end it is the same name.
    let plain = text.strip_suffix('.').unwrap_or(text);
    match is_name(plain) {
        true => Ok(plain.to_ascii_lowercase()),
        false => Err(format!(
            "'{text}' is no name: give one without http:// and without a port, as in box.lan"
        )),
    }
}

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(is_plain)
    };
    text.split('.').all(is_label)
}

impl HttpAddress {
    pub(super) fn resolve(&self, for_others: bool) -> io::Result<SocketAddr> {
        let of_port = |port| {
            let ip = match for_others {
                true => Ipv4Addr::UNSPECIFIED,
                false => Ipv4Addr::LOCALHOST,
            };
            SocketAddr::new(IpAddr::V4(ip), port)
        };
        match self {
            Self::Address(address) => Ok(*address),
            Self::Port(port) => Ok(of_port(*port)),
            Self::Name(name, port) => {
                let found: Vec<SocketAddr> = (name.as_str(), *port).to_socket_addrs()?.collect();
                let first = found.iter().find(|address| address.is_ipv4());
                let first = first.or(found.first());
                first.copied().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str, for_others: bool) -> String {
        let address: HttpAddress = text.parse().unwrap();
        address.resolve(for_others).unwrap().to_string()
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for text in ["127.0.0.1:9100", "localhost:9100", ":9100", "9100"] {
            assert_eq!(resolved(text, false), "127.0.0.1:9100", "{text}");
        }
        assert_eq!(resolved("[::1]:9100", false), "[::1]:9100");
        assert_eq!(resolved("9100", true), "0.0.0.0:9100");
        assert_eq!(resolved("localhost:9100", true), "127.0.0.1:9100");
    }

    #[test]
    fn what_is_no_address_is_told_with_an_example() {
        for text in [
            "",
            "nowhere",
            "127.0.0.1",
            "65536",
            "a b:1",
            "http://localhost:1",
            "[::1]",
            "::1:x",
        ] {
            let error = text.parse::<HttpAddress>().unwrap_err();
            assert!(
                error.contains(&format!("'{text}'")) && error.contains("localhost:9000"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_name_has_no_port_and_no_scheme() {
        assert_eq!(name("Box.Lan"), Ok("box.lan".into()));
        for text in ["", "box.lan:80", "http://box.lan", "a@b", "*.lan", "a..b"] {
            assert!(name(text).is_err(), "{text}");
        }
    }
}
