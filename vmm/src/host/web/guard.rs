//! Who may do what over TCP, decided from a request's head alone.

use super::Token;
use api::ProblemKind;
use axum::http::Method;
use axum::http::uri::Authority;
use std::net::{IpAddr, SocketAddr};
use thiserror::Error;

/// The head of a request, as far as it matters here. All of it is the client's word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) host: Option<&'a str>,
    pub(super) origin: Option<&'a str>,
    /// `Sec-Fetch-Site`: what a browser says of where the request comes from.
    pub(super) site: Option<&'a str>,
    pub(super) authorization: Option<&'a str>,
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
        "this needs the host's token, as `Authorization: Bearer TOKEN`: the host printed it at its start and keeps it in its folder beside its socket"
    )]
    Token,
}

impl Denial {
    pub(super) fn kind(&self) -> ProblemKind {
        match self {
            Self::Host(_) => ProblemKind::WrongAddress,
            Self::Site(_) => ProblemKind::AnotherSite,
            Self::Token => ProblemKind::TokenNeeded,
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
    pub(super) token: Token,
}

impl Guard {
    pub(super) fn check(&self, asked: &Asked<'_>) -> Result<(), Denial> {
        let host = asked.host.unwrap_or_default();
        let is_named = self.is_named(host);
        if !is_named && !self.is_own(host) {
            return Err(Denial::Host(shortened(host)));
        }
        let is_static = !asked.path.starts_with("/v1/") && asked.path != "/metrics";
        self.check_site(asked, host, is_static)?;
        // A console is opened by reading, and then typed into.
        let is_read = matches!(*asked.method, Method::GET | Method::HEAD)
            && !asked.path.ends_with("/console");
        let is_near = self.address.ip().is_loopback() && !is_named;
        if is_read && (is_static || is_near) {
            return Ok(());
        }
        let given = asked
            .authorization
            .and_then(|text| text.strip_prefix("Bearer "));
        match given {
            Some(given) if self.token.is(given) => Ok(()),
            _ => Err(Denial::Token),
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

    const TOKEN: &str = "secret";

    fn guard(address: &str) -> Guard {
        Guard {
            address: address.parse().unwrap(),
            names: vec!["vms.example.com".into()],
            token: Token::from_text(TOKEN),
        }
    }

    fn get(path: &str) -> Asked<'_> {
        Asked {
            method: &Method::GET,
            path,
            host: Some("127.0.0.1:9000"),
            origin: None,
            site: None,
            authorization: None,
        }
    }

    fn change<'a>(authorization: &'a str) -> Asked<'a> {
        Asked {
            method: &Method::PATCH,
            authorization: Some(authorization),
            ..get("/v1/vms/a")
        }
    }

    #[test]
    fn reads_on_loopback_need_no_token_and_changes_do() {
        let guard = guard("127.0.0.1:9000");
        for path in ["/", "/v1/overview", "/metrics", "/v1/events/stream"] {
            assert_eq!(guard.check(&get(path)), Ok(()));
        }
        assert_eq!(guard.check(&change("Bearer secret")), Ok(()));
        for wrong in [
            "",
            "Bearer ",
            "Bearer secre",
            "Bearer secret ",
            "Bearer Secret",
            "secret",
            "Basic secret",
        ] {
            assert_eq!(guard.check(&change(wrong)), Err(Denial::Token), "{wrong}");
        }
        let methods = [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS];
        for method in &methods {
            let asked = Asked {
                method,
                ..get("/v1/vms")
            };
            assert_eq!(guard.check(&asked), Err(Denial::Token));
        }
    }

    /// It is opened with GET, but what is typed there changes the guest.
    #[test]
    fn a_console_needs_the_token() {
        let asked = get("/v1/vms/a/console");
        assert_eq!(guard("127.0.0.1:9000").check(&asked), Err(Denial::Token));
    }

    #[test]
    fn beyond_loopback_reads_need_the_token_too_but_the_page_that_asks_for_it_does_not() {
        let guard = guard("0.0.0.0:9000");
        let from_afar = |path| Asked {
            host: Some("192.0.2.1:9000"),
            ..get(path)
        };
        assert_eq!(guard.check(&from_afar("/")), Ok(()));
        assert_eq!(guard.check(&from_afar("/v1/overview")), Err(Denial::Token));
        assert_eq!(guard.check(&from_afar("/metrics")), Err(Denial::Token));
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
                ..change("Bearer secret")
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
                ..change("Bearer secret")
            };
            assert_eq!(guard.check(&asked), Ok(()), "{host}");
        }
        assert!(matches!(
            guard.check(&Asked {
                host: None,
                ..get("/")
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
            assert_eq!(guard.check(&by_name(get("/"))), Ok(()), "{host}");
            assert_eq!(guard.check(&by_name(change("Bearer secret"))), Ok(()));
            // Who comes through a proxy may be anybody.
            let read = guard.check(&by_name(get("/v1/overview")));
            assert_eq!(read, Err(Denial::Token));
        }
        for host in ["example.com", "x.vms.example.com", "a@vms.example.com"] {
            let asked = Asked {
                host: Some(host),
                ..change("Bearer secret")
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
                ..change("Bearer secret")
            };
            for origin in ["https://vms.example.com", "http://vms.example.com:8080"] {
                assert_eq!(guard.check(&asked(origin)), Ok(()), "{host}, {origin}");
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
                ..change("Bearer secret")
            };
            assert!(
                matches!(guard.check(&asked), Err(Denial::Site(_))),
                "{origin}"
            );
        }
        let own = Asked {
            origin: Some("http://127.0.0.1:9000"),
            ..change("Bearer secret")
        };
        assert_eq!(guard.check(&own), Ok(()));
        let embedded = Asked {
            site: Some("cross-site"),
            ..get("/v1/overview")
        };
        assert!(matches!(guard.check(&embedded), Err(Denial::Site(_))));
        assert_eq!(
            guard.check(&Asked {
                site: Some("cross-site"),
                ..get("/")
            }),
            Ok(())
        );
    }
}
