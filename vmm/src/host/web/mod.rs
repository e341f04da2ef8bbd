//! The host on TCP: the dashboard, the interface under /v1 and /metrics, for browsers and scrapers.
//!
//! What comes here may be any page that a person has open in a browser. So every request must name this
//! host by address or by a name that it was given, not by one that somebody's server resolves to it; must
//! not come from another site; and must carry a token whose role allows what it asks for, but for reading on a loopback address.

mod dashboard;
mod guard;

use super::Host;
use super::routes::{self, needed, refuse, write_problems};
use super::tokens::{Access, Grant, Worthless};
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::Response;
use guard::{Asked, Given, Guard};
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
pub(super) fn router(host: Host, address: SocketAddr, names: Vec<String>) -> Router {
    let guard = Arc::new(Guard { address, names });
    routes::router(host.clone())
        .merge(dashboard::router())
        .layer(middleware::from_fn_with_state((guard, host), admit))
        .layer(middleware::from_fn(write_problems))
        .layer(middleware::map_response(with_headers))
}

async fn admit(
    State((guard, host)): State<(Arc<Guard>, Host)>,
    mut request: Request,
    next: Next,
) -> Response {
    let grant = bearer(&request).map(|given| host.tokens().grant(given));
    match guard.check(&asked(&request, grant.as_ref())) {
        Ok(role) => {
            let grant = grant.and_then(Result::ok);
            let access = Access::over_tcp(role, grant);
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(denial) => {
            let mut response = refuse(denial.kind(), denial.to_string());
            if let Some(challenge) = denial.challenge() {
                let challenge = HeaderValue::from_static(challenge);
                let headers = response.headers_mut();
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            response
        }
    }
}

/// The token that a request carries.
fn bearer(request: &Request) -> Option<&str> {
    let given = text(request.headers(), &header::AUTHORIZATION)?;
    given.strip_prefix("Bearer ")
}

fn asked<'a>(request: &'a Request, grant: Option<&Result<Grant, Worthless>>) -> Asked<'a> {
    let headers = request.headers();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map(MatchedPath::as_str);
    Asked {
        needs: needed(request.method(), route, request.uri().path()),
        host: text(headers, &header::HOST),
        origin: text(headers, &header::ORIGIN),
        site: text(headers, &HeaderName::from_static("sec-fetch-site")),
        given: match grant {
            None => Given::Nothing,
            Some(Ok(grant)) => Given::Role(grant.role),
            Some(Err(Worthless::Unknown)) => Given::Wrong,
            Some(Err(Worthless::Expired)) => Given::Expired,
        },
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
