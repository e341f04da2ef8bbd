//! Routes about the host.

use super::answer::{Asked, parse, to_its_end};
use super::document::{Audits, ChangesHost, OfHistory};
use crate::host::metrics::{self, Format};
use crate::host::sharing::Audit;
use crate::host::{Host, HostError};
use api::{
    EventView, Figures, HistoryQuery, HistoryView, HostChange, HostView, Overview, ProblemKind,
    ProblemView,
};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::IntoResponse;

/// Everything there is to see of the host and its VMs.
#[utoipa::path(get, path = "/v1/overview", tag = "host", responses((status = OK, body = Overview)))]
pub(super) async fn overview(State(host): State<Host>) -> Json<Overview> {
    Json(host.overview())
}

/// All figures under esxtop's names.
#[utoipa::path(get, path = "/v1/figures", tag = "host", responses((status = OK, body = Figures)))]
pub(super) async fn figures(State(host): State<Host>) -> Json<Figures> {
    Json(host.figures())
}

/// What was counted in the last ten minutes, or in the last day.
#[utoipa::path(
    get, path = "/v1/history", tag = "host",
    params(HistoryQuery),
    responses((status = OK, body = HistoryView), OfHistory)
)]
pub(super) async fn history(
    State(host): State<Host>,
    Asked(query): Asked<HistoryQuery>,
) -> Result<Json<HistoryView>, HostError> {
    host.history(&query).map(Json)
}

/// The figures as Prometheus reads them; OpenMetrics for who asks for it in `Accept`.
#[utoipa::path(
    get, path = "/metrics", tag = "host",
    responses((status = OK, content(
        (String = "text/plain"),
        (String = "application/openmetrics-text"),
    )))
)]
pub(super) async fn metrics(State(host): State<Host>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::wanted(accept);
    let text = metrics::text(&host.figures(), format);
    ([(CONTENT_TYPE, format.content_type())], text)
}

/// The host without its VMs.
#[utoipa::path(get, path = "/v1/host", tag = "host", responses((status = OK, body = HostView)))]
pub(super) async fn host_view(State(host): State<Host>) -> Json<HostView> {
    Json(host.overview().host)
}

/// Changes the host. What is absent stays. Where sharing is turned off, the answer comes when what was
/// shared has been brought home, or when that takes too long.
#[utoipa::path(
    patch, path = "/v1/host", tag = "host",
    request_body(content = HostChange, example = json!({"memory_bytes": 4_294_967_296_u64, "idle_tax_permille": 500})),
    responses((status = OK, body = HostView), ChangesHost)
)]
pub(super) async fn change_host(
    State(host): State<Host>,
    body: Bytes,
) -> Result<Json<HostView>, HostError> {
    let change = parse::<HostChange>(&body)?;
    to_its_end(async move { host.set_host(&change).await })
        .await
        .map(Json)
}

/// Compares what the host believes of shared pages with what the kernel's page tables say.
#[utoipa::path(
    post, path = "/v1/host/audit", tag = "host",
    responses((status = OK, body = Audit), Audits)
)]
pub(super) async fn audit(State(host): State<Host>) -> Result<Json<Audit>, HostError> {
    host.audit().await.map(Json)
}

/// What happened last, oldest first.
#[utoipa::path(get, path = "/v1/events", tag = "host", responses((status = OK, body = Vec<EventView>)))]
pub(super) async fn events(State(host): State<Host>) -> Json<Vec<EventView>> {
    Json(host.overview().host.events)
}

/// The kinds of errors that there are.
#[utoipa::path(get, path = "/v1/problems", tag = "host", responses((status = OK, body = Vec<ProblemView>)))]
pub(super) async fn problems() -> Json<Vec<ProblemView>> {
    Json(ProblemKind::ALL.map(ProblemKind::view).into())
}
