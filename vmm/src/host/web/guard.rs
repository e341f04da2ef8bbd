//! Who may do what over TCP, decided from a request's head alone.

use api::{ProblemKind, Role};
use axum::http::uri::Authority;
use std::net::{IpAddr, SocketAddr};
use thiserror::Error;

/// The head of a request, as far as it matters here. All of it is the client's word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The role that it needs; none if anybody may send it.
    pub(super) needs: Option<Role>,
    pub(super) host: Option<&'a str>,
    pub(super) origin: Option<&'a str>,
    /// `Sec-Fetch-Site`: what a browser says of where the request comes from.
    pub(super) site: Option<&'a str>,
    pub(super) given: Given,
}

/// The token that a request carries, as far as it was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    Nothing,
    /// None that there is.
    Wrong,
    Expired,
    Role(Role),
}

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Denial {
    #[error(
        "'{0}' is not how this host is addressed: write its address and port, as in http://127.0.0.1:9000/, or start it with --http-name and that name"
    )]
    Host(String),
    #[error("requests from other sites ('{0}') are not served: open the dashboard itself")]
    Site(String),
    #[error(
        "this needs a token with the role {0}, as `Authorization: Bearer TOKEN`: `ballonet token add` makes one, and the host's own was printed at its start and lies in its folder beside its socket"
    )]
    NoToken(Role),
    #[error(
        "this host knows no such token: it was withdrawn, or is another host's; `ballonet token add` makes one"
    )]
    WrongToken,
    #[error("this token has expired: `ballonet token add` makes another")]
    Expired,
    #[error(
        "this needs a token with the role {needed}, and the one that was sent has the role {has}"
    )]
    Role { needed: Role, has: Role },
}

impl Denial {
    /// What the header `WWW-Authenticate` says, by RFC 6750; none where no token would help.
    pub(super) fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Host(_) | Self::Site(_) => None,
            Self::NoToken(_) => Some("Bearer"),
            Self::WrongToken | Self::Expired => Some("Bearer error=\"invalid_token\""),
            Self::Role { .. } => Some("Bearer error=\"insufficient_scope\""),
        }
    }

    pub(super) fn kind(&self) -> ProblemKind {
        match self {
            Self::Host(_) => ProblemKind::WrongAddress,
            Self::Site(_) => ProblemKind::AnotherSite,
            Self::NoToken(_) | Self::WrongToken | Self::Expired => ProblemKind::TokenNeeded,
            Self::Role { .. } => ProblemKind::RoleNeeded,
        }
    }
}

/// What requests are checked against.
#[derive(Debug)]
pub(super) struct Guard {
    /// Where the host listens.
    pub(super) address: SocketAddr,
    /// Names that it was given, in lower case. Behind them may be a proxy, and behind that anybody.
    pub(super) names: Vec<String>,
}

impl Guard {
    /// The role in which a request is let in.
    pub(super) fn check(&self, asked: &Asked<'_>) -> Result<Role, Denial> {
        let host = asked.host.unwrap_or_default();
        let is_named = self.is_named(host);
        if !is_named && !self.is_own(host) {
            return Err(Denial::Host(shortened(host)));
        }
        self.check_site(asked, host, asked.needs.is_none())?;
        let Some(needed) = asked.needs else {
            return Ok(Role::Read);
        };
        let is_near = self.address.ip().is_loopback() && !is_named;
        match asked.given {
            Given::Wrong => Err(Denial::WrongToken),
            Given::Expired => Err(Denial::Expired),
            Given::Role(has) if has >= needed => Ok(has),
            Given::Role(has) => Err(Denial::Role { needed, has }),
            Given::Nothing if is_near && needed == Role::Read => Ok(Role::Read),
            Given::Nothing => Err(Denial::NoToken(needed)),
        }
    }

    /// Whether a `Host` header names this host in a way that no foreign name server can bring about.
    fn is_own(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        if authority.as_str().contains('@')
            || authority.port_u16().unwrap_or(80) != self.address.port()
        {
            return false;
        }
        let name = authority.host();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || !self.address.ip().is_loopback(),
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Whether a `Host` header has a name that this host was given, with any port: a proxy has its own.
    fn is_named(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority.host();
        let name = name.strip_suffix('.').unwrap_or(name);
        let mut names = self.names.iter();
        !authority.as_str().contains('@') && names.any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Whether a page comes from here. A proxy may encrypt, and need not pass on by which name it was reached.
    fn is_own_site(&self, origin: &str, host: &str) -> bool {
        let named = ["http://", "https://"]
            .into_iter()
            .find_map(|scheme| origin.strip_prefix(scheme));
        origin.eq_ignore_ascii_case(&format!("http://{host}"))
            || named.is_some_and(|host| self.is_named(host))
    }

    /// A browser says where a request comes from; other programs need not.
    fn check_site(&self, asked: &Asked<'_>, host: &str, is_static: bool) -> Result<(), Denial> {
        if let Some(origin) = asked.origin
            && !self.is_own_site(origin, host)
        {
            return Err(Denial::Site(shortened(origin)));
        }
        match asked.site {
            None | Some("same-origin" | "none") => Ok(()),
            // Somebody followed a link to the dashboard.
            Some(_) if is_static => Ok(()),
            Some(site) => Err(Denial::Site(shortened(site))),
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(address: &str) -> Guard {
        Guard {
            address: address.parse().unwrap(),
            names: vec!["vms.example.com".into()],
        }
    }

    /// A request for a file of the dashboard.
    fn page() -> Asked<'static> {
        Asked {
            needs: None,
            host: Some("127.0.0.1:9000"),
            origin: None,
            site: None,
            given: Given::Nothing,
        }
    }

    fn read() -> Asked<'static> {
        Asked {
            needs: Some(Role::Read),
            ..page()
        }
    }

    /// A change, with what it needs.
    fn change() -> Asked<'static> {
        Asked {
            needs: Some(Role::Operate),
            given: Given::Role(Role::Operate),
            ..page()
        }
    }

    #[test]
    fn reads_on_loopback_need_no_token_and_changes_do() {
        let guard = guard("127.0.0.1:9000");
        assert!(guard.check(&page()).is_ok());
        assert_eq!(guard.check(&read()), Ok(Role::Read));
        assert_eq!(guard.check(&change()), Ok(Role::Operate));
        let without = Asked {
            given: Given::Nothing,
            ..change()
        };
        assert_eq!(guard.check(&without), Err(Denial::NoToken(Role::Operate)));
    }

    #[test]
    fn each_role_may_what_those_below_it_may() {
        let roles = [Role::Read, Role::Operate, Role::Admin];
        for needed in roles {
            for has in roles {
                let asked = Asked {
                    needs: Some(needed),
                    given: Given::Role(has),
                    ..page()
                };
                let expected = match has >= needed {
                    true => Ok(has),
                    false => Err(Denial::Role { needed, has }),
                };
                assert_eq!(guard("127.0.0.1:9000").check(&asked), expected);
            }
        }
    }

    /// Who sends one wants to be more than nobody, and is told that he is not.
    #[test]
    fn a_token_that_is_worth_nothing_is_refused_also_where_none_is_needed() {
        let guard = guard("127.0.0.1:9000");
        for (given, denial) in [
            (Given::Wrong, Denial::WrongToken),
            (Given::Expired, Denial::Expired),
        ] {
            for asked in [read(), change()] {
                assert_eq!(guard.check(&Asked { given, ..asked }), Err(denial.clone()));
            }
            assert!(guard.check(&Asked { given, ..page() }).is_ok());
        }
    }

    #[test]
    fn beyond_loopback_reads_need_a_token_too_but_the_page_that_asks_for_it_does_not() {
        let guard = guard("0.0.0.0:9000");
        let from_afar = |asked| Asked {
            host: Some("192.0.2.1:9000"),
            ..asked
        };
        assert!(guard.check(&from_afar(page())).is_ok());
        assert_eq!(
            guard.check(&from_afar(read())),
            Err(Denial::NoToken(Role::Read))
        );
        let given = Given::Role(Role::Read);
        let with_token = Asked { given, ..read() };
        assert_eq!(guard.check(&from_afar(with_token)), Ok(Role::Read));
    }

    /// A name that a foreign server points at 127.0.0.1 makes the browser think that page and host are
    /// one site; only the Host header tells.
    #[test]
    fn a_rebound_name_is_refused_even_with_the_token() {
        let guard = guard("127.0.0.1:9000");
        let names = [
            "evil.example:9000",
            "127.0.0.1",
            "127.0.0.1:9001",
            "localhost",
            "192.0.2.1:9000",
            "localhost.evil.example:9000",
            "user@127.0.0.1:9000",
            "",
            "?",
            "127.0.0.1:9000/x",
            "[::1:9000",
        ];
        for host in names {
            let asked = Asked {
                host: Some(host),
                ..change()
            };
            assert!(
                matches!(guard.check(&asked), Err(Denial::Host(_))),
                "{host}"
            );
        }
        for host in [
            "localhost:9000",
            "LOCALHOST:9000",
            "[::1]:9000",
            "127.0.0.1:9000",
        ] {
            let asked = Asked {
                host: Some(host),
                ..change()
            };
            assert!(guard.check(&asked).is_ok(), "{host}");
        }
        assert!(matches!(
            guard.check(&Asked {
                host: None,
                ..page()
            }),
            Err(Denial::Host(_))
        ));
    }

    #[test]
    fn a_name_that_the_host_was_given_is_as_good_as_an_address_from_afar() {
        let guard = guard("127.0.0.1:9000");
        for host in ["vms.example.com", "VMs.Example.com:8443"] {
            let by_name = |asked| Asked {
                host: Some(host),
                ..asked
            };
            assert!(guard.check(&by_name(page())).is_ok(), "{host}");
            assert!(guard.check(&by_name(change())).is_ok());
            // Who comes through a proxy may be anybody.
            let read = guard.check(&by_name(read()));
            assert_eq!(read, Err(Denial::NoToken(Role::Read)));
        }
        for host in ["example.com", "x.vms.example.com", "a@vms.example.com"] {
            let asked = Asked {
                host: Some(host),
                ..change()
            };
            assert!(
                matches!(guard.check(&asked), Err(Denial::Host(_))),
                "{host}"
            );
        }
    }

    /// It encrypts for others, and may ask by the host's address.
    #[test]
    fn a_page_behind_a_proxy_may_change_what_its_reader_may() {
        let guard = guard("127.0.0.1:9000");
        for host in ["127.0.0.1:9000", "vms.example.com"] {
            let asked = |origin| Asked {
                host: Some(host),
                origin: Some(origin),
                site: Some("same-origin"),
                ..change()
            };
            for origin in ["https://vms.example.com", "http://vms.example.com:8080"] {
                assert!(guard.check(&asked(origin)).is_ok(), "{host}, {origin}");
            }
            for origin in ["https://example.com", "ftp://vms.example.com", "null"] {
                let refused = guard.check(&asked(origin));
                assert!(matches!(refused, Err(Denial::Site(_))), "{host}, {origin}");
            }
        }
    }

    #[test]
    fn another_site_is_refused_even_with_the_token() {
        let guard = guard("127.0.0.1:9000");
        for origin in [
            "http://evil.example",
            "null",
            "https://127.0.0.1:9000",
            "http://127.0.0.1:9001",
            "http://localhost:9000",
        ] {
            let asked = Asked {
                origin: Some(origin),
                ..change()
            };
            assert!(
                matches!(guard.check(&asked), Err(Denial::Site(_))),
                "{origin}"
            );
        }
        let own = Asked {
            origin: Some("http://127.0.0.1:9000"),
            ..change()
        };
        assert!(guard.check(&own).is_ok());
        let embedded = Asked {
            site: Some("cross-site"),
            ..read()
        };
        assert!(matches!(guard.check(&embedded), Err(Denial::Site(_))));
        let followed = Asked {
            site: Some("cross-site"),
            ..page()
        };
        assert!(guard.check(&followed).is_ok());
    }
}
