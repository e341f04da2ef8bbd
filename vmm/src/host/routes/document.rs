//! The OpenAPI document: what no route says of itself, because it is true of all of them.

use super::answer::BEFORE_ROUTES;
use api::{Moment, Problem, ProblemKind};
use axum::Extension;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use std::collections::BTreeMap;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr};
use utoipa::{IntoResponses, OpenApi as _};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Ballonet",
        description = "Who holds how much memory, who uses it, and what the host does about it. Sizes are bytes. \
            The same interface is served on the host's Unix socket, whose owner may do everything, and with \
            `ballonet host --http` on TCP: there whoever changes something needs the token that the host printed \
            at its start and keeps in its folder beside its socket, and a host that other machines can reach wants it for reading, \
            too. Errors are problem details (RFC 9457); /v1/problems lists their kinds.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/")),
    tags(
        (name = "host", description = "The host, and all VMs at once."),
        (name = "vms", description = "Single VMs."),
    ),
    components(schemas(Problem, Moment)),
    security((), ("token" = [])),
)]
struct Frame;

/// What the routes are described in.
pub(super) fn frame() -> OpenApi {
    let mut openapi = Frame::openapi();
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The token of the host, on TCP."))
        .build();
    if let Some(components) = &mut openapi.components {
        components.add_security_scheme("token", SecurityScheme::Http(token));
    }
    openapi
}

/// The finished document as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Document(Bytes);

impl Document {
    /// Adds what happens to every request before its route sees it.
    pub(super) fn new(mut openapi: OpenApi) -> Self {
        for path in openapi.paths.paths.values_mut() {
            let operations = [
                &mut path.get,
                &mut path.put,
                &mut path.post,
                &mut path.delete,
                &mut path.patch,
            ];
            operations.into_iter().flatten().for_each(add_common);
        }
        let json = openapi
            .to_json()
            .expect("a document of text keys can be written");
        Self(json.into())
    }
}

fn add_common(operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    for (status, response) in described(&BEFORE_ROUTES) {
        responses.entry(status).or_insert(response);
    }
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "host", responses((status = OK, body = Object)))]
pub(super) async fn openapi(Extension(Document(json)): Extension<Document>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], json)
}

/// Problems by their status.
fn described(kinds: &[ProblemKind]) -> BTreeMap<String, RefOr<Response>> {
    let mut titles: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kind in kinds {
        let status = kind.status().as_str().to_owned();
        titles.entry(status).or_default().push(kind.title());
    }
    let content = || {
        let schema = Ref::from_schema_name("Problem");
        ContentBuilder::new().schema(Some(schema)).build()
    };
    let response = |titles: Vec<&str>| {
        ResponseBuilder::new()
            .description(titles.join(", or "))
            .content("application/problem+json", content())
            .build()
    };
    titles
        .into_iter()
        .map(|(status, titles)| (status, response(titles).into()))
        .collect()
}

/// Names for what routes refuse.
macro_rules! refusals {
    ($($name:ident: $($kind:ident),+;)+) => {$(
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                described(&[$(ProblemKind::$kind),+])
            }
        }
    )+};
}

refusals! {
    OfVm: UnknownVm;
    OfHistory: UnknownVm;
    Explains: UnknownVm, NotDecidedYet;
    PinsBalloon: UnknownVm, NotKept;
    ChangesVm: UnknownVm, NotAdmitted, NotKept;
    ChangesHost: NotAdmitted, NotKept;
    Audits: NoAudit;
    Starts: NameInUse, NotAdmitted, NoMemoryInTime, DidNotStart, Stopping, HostEnded, QueueFull, NotKept;
    Stops: UnknownVm, NotRunningYet, NotKept;
    Restarts: UnknownVm, NameInUse, NotAdmitted, NoMemoryInTime, NotRunningYet, DidNotStart, Stopping, HostEnded, QueueFull,
        NotKept;
    Forgets: UnknownVm, StillRuns, NotRunningYet, NotKept;
    OpensConsole: UnknownVm, NotRunningYet, TooManyConsoles;
}

/// Refusals of routes elsewhere.
pub(super) struct Follows;

impl IntoResponses for Follows {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        described(&[ProblemKind::TooManyStreams])
    }
}
