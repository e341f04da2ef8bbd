//! The host on TCP: the dashboard, the interface under /v1 and /metrics, for browsers and scrapers.
//!
//! What comes here may be any page that a person has open in a browser. So every request must name this
//! host by address or by a name that it was given, not by one that somebody's server resolves to it; must
//! not come from another site; and, if it changes anything, must carry the [`Token`], which only the owner of the socket's
//! folder can read.

mod dashboard;
mod guard;
mod token;

pub(super) use token::{Token, TokenFile};

use super::Host;
use super::routes::{self, refuse, write_problems};
use api::ProblemKind;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::Response;
use guard::{Asked, Guard};
use std::net::SocketAddr;
use std::sync::Arc;

/// Sent with everything: a page may load and do only what comes from here.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// All routes of `host` for clients that come to `address`, or by one of `names`.
pub(super) fn router(host: Host, address: SocketAddr, names: Vec<String>, token: Token) -> Router {
    let guard = Arc::new(Guard {
        address,
        names,
        token,
    });
    routes::router(host)
        .merge(dashboard::router())
        .layer(middleware::from_fn_with_state(guard, admit))
        .layer(middleware::from_fn(write_problems))
        .layer(middleware::map_response(with_headers))
}

async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.check(&asked(&request)) {
        Ok(()) => next.run(request).await,
        Err(denial) => {
            let kind = denial.kind();
            let mut response = refuse(kind, denial.to_string());
            if kind == ProblemKind::TokenNeeded {
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

fn asked(request: &Request) -> Asked<'_> {
    let headers = request.headers();
    Asked {
        method: request.method(),
        path: request.uri().path(),
        host: text(headers, &header::HOST),
        origin: text(headers, &header::ORIGIN),
        site: text(headers, &HeaderName::from_static("sec-fetch-site")),
        authorization: text(headers, &header::AUTHORIZATION),
    }
}

/// A header as text; one that is none, or comes twice, is like no other text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    match values.next() {
        None => Some(first.to_str().unwrap_or("?")),
        Some(_) => Some("?"),
    }
}

async fn with_headers(mut response: Response) -> Response {
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
