//! What all routes have in common: how a request is taken apart, and how one that is refused is answered.

use crate::host::HostError;
use api::{Problem, ProblemKind};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts, Path, Query, Request};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::time::Duration;

/// Largest body of a request in bytes.
const LARGEST_BODY: usize = 64 << 10;
/// How long a client may take to send a request's body.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// What is repeated of a path that a client sent.
const LONGEST_INSTANCE: usize = 256;

/// What goes wrong with any request, before a route sees it.
pub(super) const BEFORE_ROUTES: [ProblemKind; 7] = [
    ProblemKind::InvalidRequest,
    ProblemKind::TokenNeeded,
    ProblemKind::RoleNeeded,
    ProblemKind::WrongAddress,
    ProblemKind::AnotherSite,
    ProblemKind::TooSlow,
    ProblemKind::BodyTooLarge,
];

impl IntoResponse for HostError {
    fn into_response(self) -> Response {
        refuse(self.kind(), crate::error_chain(&self))
    }
}

/// An error that is still to be written, where it is known what was asked for.
#[derive(Clone, Debug)]
struct Refusal {
    kind: ProblemKind,
    detail: String,
}

/// Refuses a request. [`write_problems`] writes the answer.
pub(in crate::host) fn refuse(kind: ProblemKind, detail: String) -> Response {
    let mut response = kind.status().into_response();
    response.extensions_mut().insert(Refusal { kind, detail });
    response
}

/// Does what was asked for to its end: it would be left half done if the client hung up meanwhile.
pub(super) async fn to_its_end<T: Send + 'static>(
    deed: impl Future<Output = Result<T, HostError>> + Send + 'static,
) -> Result<T, HostError> {
    match tokio::spawn(deed).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_its_runtime_ends) => Err(HostError::Stopping),
        },
    }
}

/// The outermost layer: gives every error its one form.
pub(in crate::host) async fn write_problems(request: Request, next: Next) -> Response {
    let path = beginning(request.uri().path()).to_owned();
    let mut response = next.run(request).await;
    let Some(Refusal { kind, detail }) = response.extensions_mut().remove() else {
        return response;
    };
    let problem = Problem::new(kind, detail, &path);
    let json = serde_json::to_vec(&problem).expect("a problem has only text keys");
    let is_overloaded = response.status() == StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    if is_overloaded {
        // Its place is wanted by others.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    headers.remove(CONTENT_LENGTH);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    *response.body_mut() = Body::from(json);
    response
}

/// A path as far as it is short and one by RFC 3986: servers take more than that.
fn beginning(path: &str) -> &str {
    let bytes = path.as_bytes();
    let mut end = 0;
    while let Some(&byte) = bytes.get(end) {
        let escape = bytes.get(end + 1..end + 3);
        let length = match byte {
            b'%' if escape.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) => 3,
            b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' | b'!' | b'$' => 1,
            b'&'..=b',' | b';' | b'=' => 1,
            _ if byte.is_ascii_alphanumeric() => 1,
            _ => break,
        };
        if end + length > LONGEST_INSTANCE {
            break;
        }
        end += length;
    }
    &path[..end]
}

/// A body that is too large or comes too slowly is refused before anything is done.
pub(super) async fn read_body_in_time(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(BODY_PATIENCE, to_bytes(body, LARGEST_BODY)).await {
        Ok(Ok(bytes)) => {
            next.run(Request::from_parts(parts, Body::from(bytes)))
                .await
        }
        Ok(Err(error)) if is_too_large(&error) => refuse(
            ProblemKind::BodyTooLarge,
            format!("the body is above {LARGEST_BODY} bytes: send less"),
        ),
        Ok(Err(error)) => refuse(
            ProblemKind::InvalidRequest,
            format!("the body is broken: {}", crate::error_chain(&error)),
        ),
        Err(_) => refuse(
            ProblemKind::TooSlow,
            format!(
                "the body did not come within {} s: send it at once",
                BODY_PATIENCE.as_secs()
            ),
        ),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    error
        .source()
        .is_some_and(|source| source.is::<LengthLimitError>())
}

pub(super) async fn no_such_route(request: Request) -> Response {
    let detail = format!(
        "{} is not offered: /v1/openapi.json lists what is, such as /v1/overview, /v1/figures and /v1/vms",
        request.uri().path()
    );
    refuse(ProblemKind::NoSuchRoute, detail)
}

pub(super) async fn method_not_offered(request: Request) -> Response {
    let detail = format!(
        "{} is not offered for {}: the answer's header Allow lists what is",
        request.method(),
        request.uri().path()
    );
    refuse(ProblemKind::MethodNotOffered, detail)
}

/// A body as a JSON object.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, HostError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let object = api::object(&mut json).and_then(|object| json.end().map(|()| object));
    object.map_err(|error| HostError::BadRequest(format!("the body is not understood: {error}")))
}

/// The name of a VM in a path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = HostError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HostError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(name) = path.map_err(|rejection| HostError::BadRequest(rejection.body_text()))?;
        Ok(Self(name))
    }
}

/// What is asked for behind a path's question mark.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = HostError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HostError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        let Query(asked) = query.map_err(|rejection| {
            let why = rejection.body_text();
            HostError::BadRequest(format!(
                "{why}: /v1/openapi.json lists what may be asked for"
            ))
        })?;
        Ok(Self(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    #[test]
    fn what_is_repeated_of_a_path_is_one() {
        assert_eq!(
            beginning("/v1/vms/a-b_c~'(1),;=@:%2f"),
            "/v1/vms/a-b_c~'(1),;=@:%2f"
        );
        assert_eq!(beginning("/v1/%zz"), "/v1/");
        assert_eq!(beginning("/v1/%4"), "/v1/");
        assert_eq!(beginning("/a\"b"), "/a");
        assert_eq!(beginning("/ä"), "/");
        // An escape is not cut in its middle.
        let long = format!("/v1/vms/{}", "%F0%9D%93%A3".repeat(40));
        let kept = beginning(&long);
        assert!(kept.len() <= LONGEST_INSTANCE && kept.len() > LONGEST_INSTANCE - 3);
        assert_eq!((kept.len() - "/v1/vms/".len()) % 3, 0);
    }

    /// By itself, serde takes a list for an object, by the order of its fields.
    #[test]
    fn a_list_is_no_object() {
        use api::{HostChange, RunRequest, VmChange};
        let body = |text: &'static str| Bytes::from_static(text.as_bytes());
        assert!(parse::<VmChange>(&body("{}")).is_ok());
        assert!(parse::<VmChange>(&body("[null, null]")).is_err());
        assert!(parse::<HostChange>(&body(r#"{"scan": {"pass_s": 7}}"#)).is_ok());
        assert!(parse::<HostChange>(&body(r#"{"scan": [7]}"#)).is_err());
        let wanted = [r#"{"path": "/x"}"#, r#"["/x"]"#]
            .map(|disk| format!(r#"{{"memory_bytes": 4096, "disks": [{disk}]}}"#))
            .map(Bytes::from);
        assert!(parse::<RunRequest>(&wanted[0]).is_ok());
        assert!(parse::<RunRequest>(&wanted[1]).is_err());
        assert!(parse::<VmChange>(&body("{} {}")).is_err());
    }

    #[tokio::test]
    async fn an_error_says_its_kind_and_where_it_happened() {
        let router = axum::Router::new()
            .fallback(no_such_route)
            .layer(axum::middleware::from_fn(write_problems));
        let request = Request::get("/v1/nowhere?a=b").body(Body::empty()).unwrap();
        let response = TowerToHyperService::new(router)
            .call(request)
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let body = to_bytes(response.into_body(), LARGEST_BODY).await.unwrap();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.r#type, "/v1/problems#no-such-route");
        assert_eq!(problem.instance, "/v1/nowhere");
        assert_eq!(problem.status, 404);
    }
}
