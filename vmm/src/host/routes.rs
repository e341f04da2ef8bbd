//! The host's HTTP interface: each route turns a request into one call of [`Host`].

use super::metrics::{self, Format};
use super::sharing::Audit;
use super::web::stream;
use super::{Host, HostError};
use crate::api::{
    BalloonRequest, CONSOLE_PROTOCOL, EventView, ExplanationView, Figures, HistoryQuery,
    HistoryView, HostChange, HostView, Overview, Problem, RunRequest, VmChange, VmView,
};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast::error::RecvError;

/// Largest body of a request in bytes.
const LARGEST_BODY: usize = 64 << 10;
/// How long a client may take to send a request's body.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// All routes of `host`.
pub(super) fn router(host: Host) -> Router {
    Router::new()
        .route("/v1/overview", get(overview))
        .route("/v1/figures", get(figures))
        .route("/v1/history", get(history))
        .route("/v1/host", get(host_view).patch(change_host))
        .route("/v1/host/audit", post(audit))
        .route("/v1/events", get(events))
        .route("/v1/events/stream", get(stream))
        .route("/v1/vms", get(list).post(run))
        .route("/v1/vms/{name}", get(show).patch(change).delete(stop))
        .route("/v1/vms/{name}/balloon", put(set_balloon))
        .route("/v1/vms/{name}/explanation", get(explain))
        .route("/v1/vms/{name}/console", get(console))
        .route("/metrics", get(metrics))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_route)
        .layer(middleware::from_fn(read_body_in_time))
        .with_state(host)
}

impl IntoResponse for HostError {
    fn into_response(self) -> Response {
        let (status, title) = self.kind();
        problem(status, title, crate::error_chain(&self))
    }
}

pub(super) fn problem(status: StatusCode, title: &str, detail: String) -> Response {
    let body = Problem {
        title: title.into(),
        status: status.as_u16(),
        detail,
    };
    let mut response = (status, Json(body)).into_response();
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    response
}

/// A body that is too large or comes too slowly is refused before anything is done.
async fn read_body_in_time(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(BODY_PATIENCE, to_bytes(body, LARGEST_BODY)).await {
        Ok(Ok(bytes)) => {
            next.run(Request::from_parts(parts, Body::from(bytes)))
                .await
        }
        Ok(Err(_)) => problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body too large",
            format!("the body is broken or above {LARGEST_BODY} bytes: send less"),
        ),
        Err(_) => problem(
            StatusCode::REQUEST_TIMEOUT,
            "too slow",
            format!(
                "the body did not come within {} s: send it at once",
                BODY_PATIENCE.as_secs()
            ),
        ),
    }
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, HostError> {
    serde_json::from_slice(body)
        .map_err(|error| HostError::BadRequest(format!("the body is not understood: {error}")))
}

async fn no_such_route(request: Request) -> Response {
    let detail = format!(
        "{} {} is not offered: see /v1/overview, /v1/figures, /v1/history, /v1/host, /v1/events, /v1/vms",
        request.method(),
        request.uri().path()
    );
    problem(StatusCode::NOT_FOUND, "no such route", detail)
}

async fn overview(State(host): State<Host>) -> Json<Overview> {
    Json(host.overview())
}

async fn figures(State(host): State<Host>) -> Json<Figures> {
    Json(host.figures())
}

async fn history(
    State(host): State<Host>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Json<HistoryView>, HostError> {
    let Query(query) = query.map_err(|rejection| {
        HostError::BadRequest(format!(
            "{}: write /v1/history?vm=NAME&span=10m, or span=1d",
            rejection.body_text()
        ))
    })?;
    host.history(&query).map(Json)
}

async fn metrics(State(host): State<Host>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::wanted(accept);
    match metrics::text(&host.figures(), format) {
        Ok(text) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "host error",
            error.to_string(),
        ),
    }
}

async fn host_view(State(host): State<Host>) -> Json<HostView> {
    Json(host.overview().host)
}

async fn events(State(host): State<Host>) -> Json<Vec<EventView>> {
    Json(host.overview().host.events)
}

async fn change_host(State(host): State<Host>, body: Bytes) -> Result<Json<HostView>, HostError> {
    host.set_host(&parse::<HostChange>(&body)?).await.map(Json)
}

async fn audit(State(host): State<Host>) -> Result<Json<Audit>, HostError> {
    host.audit().await.map(Json)
}

async fn list(State(host): State<Host>) -> Json<Vec<VmView>> {
    Json(host.overview().vms)
}

async fn run(
    State(host): State<Host>,
    body: Bytes,
) -> Result<(StatusCode, Json<VmView>), HostError> {
    let view = host.run(parse::<RunRequest>(&body)?).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

async fn show(
    State(host): State<Host>,
    Path(name): Path<String>,
) -> Result<Json<VmView>, HostError> {
    host.vm(&name).map(Json)
}

async fn change(
    State(host): State<Host>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<VmView>, HostError> {
    host.set(&name, &parse::<VmChange>(&body)?).map(Json)
}

async fn set_balloon(
    State(host): State<Host>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<VmView>, HostError> {
    host.set_balloon(&name, parse::<BalloonRequest>(&body)?)
        .map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    /// Memory that the VM should have beyond its target.
    more_bytes: Option<u64>,
}

async fn explain(
    State(host): State<Host>,
    Path(name): Path<String>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<ExplanationView>, HostError> {
    host.explain(&name, query.more_bytes).map(Json)
}

async fn stop(State(host): State<Host>, Path(name): Path<String>) -> Result<StatusCode, HostError> {
    host.stop(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct ConsoleQuery {
    /// Bytes of earlier output that come first.
    #[serde(default)]
    replay: usize,
}

/// Turns the connection into the VM's console, both ways.
async fn console(
    State(host): State<Host>,
    Path(name): Path<String>,
    Query(query): Query<ConsoleQuery>,
    mut request: Request,
) -> Result<Response, HostError> {
    let console = host.console(&name)?;
    let wanted = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value == CONSOLE_PROTOCOL);
    if !wanted {
        return Err(HostError::BadRequest(format!(
            "a console needs an upgrade of the connection to {CONSOLE_PROTOCOL}: use `ballonet console`"
        )));
    }
    let place = host.console_place()?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _place = place;
        if let Ok(connection) = upgrade.await {
            attach(console, TokioIo::new(connection), query.replay).await;
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, CONSOLE_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Carries bytes both ways until either side ends.
async fn attach(
    console: super::Console,
    connection: TokioIo<hyper::upgrade::Upgraded>,
    replay: usize,
) {
    let (mut from_client, mut to_client) = tokio::io::split(connection);
    let (before, mut reader) = console.attach(replay);
    let output = async move {
        to_client.write_all(&before).await?;
        loop {
            match reader.recv().await {
                Ok(piece) => to_client.write_all(&piece).await?,
                // A reader that is too slow loses output; the guest does not wait for it.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return to_client.shutdown().await,
            }
        }
    };
    let input = async {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            console.write(&buffer[..count]).await?;
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        ended = output => ended,
        ended = input => ended,
    }
    .unwrap_or_else(|error| tracing::debug!("console: {error}"));
}
