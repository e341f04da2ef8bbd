//! The OpenAPI document: what no route says of itself, because it is true of all of them.

use super::answer::BEFORE_ROUTES;
use super::roles;
use api::{Moment, Problem, ProblemKind, Role};
use axum::Extension;
use axum::body::Bytes;
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use std::collections::BTreeMap;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr};
use utoipa::{IntoResponses, OpenApi as _};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Ballonet",
        description = "Who holds how much memory, who uses it, and what the host does about it. Sizes are bytes. \
            The same interface is served on the host's Unix socket, where whoever may use it may do everything, and with \
            `ballonet host --http` on TCP: there each operation needs a token with a role, `read`, `operate` or `admin`, of which \
            each includes those before it; only a host on a loopback address lets who is on its machine read without one. \
            `ballonet token add` makes tokens; the host's own, an `admin`, is printed \
            at its start and lies in its folder beside its socket. Errors are problem details (RFC 9457); /v1/problems lists their kinds.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/")),
    tags(
        (name = "host", description = "The host, and all VMs at once."),
        (name = "vms", description = "Single VMs."),
    ),
    components(schemas(Problem, Moment)),
)]
struct Frame;

/// What the routes are described in.
pub(super) fn frame() -> OpenApi {
    let mut openapi = Frame::openapi();
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A token, on TCP. What an operation needs is the name of a role.",
        ))
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
        for (path, item) in &mut openapi.paths.paths {
            for (method, operation) in operations_mut(item) {
                add_common(operation);
                if let Some(role) = roles::of_route(&method, path) {
                    add_role(operation, role);
                }
            }
        }
        let json = openapi
            .to_json()
            .expect("a document of text keys can be written");
        Self(json.into())
    }
}

/// What a path offers, by methods.
#[cfg(test)]
pub(super) fn operations(item: &PathItem) -> Vec<(Method, &Operation)> {
    let operations = [
        (Method::GET, &item.get),
        (Method::PUT, &item.put),
        (Method::POST, &item.post),
        (Method::DELETE, &item.delete),
        (Method::PATCH, &item.patch),
    ];
    let offered = operations.into_iter();
    offered
        .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
        .collect()
}

fn operations_mut(item: &mut PathItem) -> Vec<(Method, &mut Operation)> {
    let operations = [
        (Method::GET, &mut item.get),
        (Method::PUT, &mut item.put),
        (Method::POST, &mut item.post),
        (Method::DELETE, &mut item.delete),
        (Method::PATCH, &mut item.patch),
    ];
    let offered = operations.into_iter();
    offered
        .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
        .collect()
}

/// Which role it needs, for programs and for people. Who is on a loopback host's own machine may read without a token.
fn add_role(operation: &mut Operation, role: Role) {
    let token = SecurityRequirement::new("token", [role.word()]);
    operation.security = Some(match role {
        Role::Read => vec![SecurityRequirement::default(), token],
        _ => vec![token],
    });
    let description = operation.description.get_or_insert_default();
    let between = if description.is_empty() { "" } else { "\n\n" };
    description.push_str(&format!("{between}Over TCP it needs the role `{role}`."));
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
    Adopts: NotAdopted, NameInUse, NotAdmitted, Stopping, QueueFull, NotKept;
    Releases: UnknownVm, NotReleased, NotKept;
    Stops: UnknownVm, NotRunningYet, NotKept, NotOurs;
    Restarts: NotOurs, UnknownVm, NameInUse, NotAdmitted, NoMemoryInTime, NotRunningYet, DidNotStart, Stopping, HostEnded, QueueFull,
        NotKept;
    AddsToken: NameInUse, TooManyTokens, NotKept;
    RemovesToken: UnknownToken, NotKept;
    Forgets: NotOurs, UnknownVm, StillRuns, NotRunningYet, NotKept;
    OpensConsole: NotOurs, UnknownVm, NotRunningYet, TooManyConsoles;
}

/// Refusals of routes elsewhere.
pub(super) struct Follows;

impl IntoResponses for Follows {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        described(&[ProblemKind::TooManyStreams])
    }
}
