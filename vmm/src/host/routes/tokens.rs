//! Routes about who may do what.

use super::answer::{Named, parse};
use super::document::{AddsToken, RemovesToken};
use crate::host::tokens::Access;
use crate::host::{Host, HostError};
use api::{AccessView, NewToken, TokenRequest, TokenView};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};

/// What who asks may do.
#[utoipa::path(get, path = "/v1/access", tag = "host", responses((status = OK, body = AccessView)))]
pub(super) async fn access(
    State(host): State<Host>,
    Extension(access): Extension<Access>,
) -> Json<AccessView> {
    let token = access
        .grant
        .and_then(|grant| host.tokens().view(&grant.name));
    Json(AccessView {
        role: access.role,
        token,
    })
}

/// All tokens, by name. What they are themselves is known to nobody but who was given them.
#[utoipa::path(get, path = "/v1/tokens", tag = "host", responses((status = OK, body = Vec<TokenView>)))]
pub(super) async fn list(State(host): State<Host>) -> Json<Vec<TokenView>> {
    Json(host.tokens().views())
}

/// Makes a token. The answer is the only one that has it.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "host",
    request_body(content = TokenRequest, example = json!({"name": "ci", "role": "read", "expires_s": 2_592_000})),
    responses((status = CREATED, body = NewToken), AddsToken)
)]
pub(super) async fn add(
    State(host): State<Host>,
    Extension(access): Extension<Access>,
    body: Bytes,
) -> Result<(StatusCode, Json<NewToken>), HostError> {
    let made = host
        .add_token(parse::<TokenRequest>(&body)?, &access)
        .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Withdraws a token: it is worth nothing from now on, and what was opened with it ends.
#[utoipa::path(
    delete, path = "/v1/tokens/{name}", tag = "host",
    params(("name" = String, Path, description = "The token's name.", example = "ci")),
    responses((status = NO_CONTENT, description = "It is worth nothing any more."), RemovesToken)
)]
pub(super) async fn remove(
    State(host): State<Host>,
    Named(name): Named,
    Extension(access): Extension<Access>,
) -> Result<StatusCode, HostError> {
    host.remove_token(&name, &access).await?;
    Ok(StatusCode::NO_CONTENT)
}
