//! Routes about VMs.

use super::answer::{Asked, Named, parse, to_its_end};
use super::document::{
    Adopts, ChangesVm, Explains, Forgets, OfVm, PinsBalloon, Releases, Restarts, Starts, Stops,
};
use crate::host::{Host, HostError};
use api::{
    AdoptRequest, BalloonRequest, DefinitionView, ExplanationView, RunRequest, VmChange, VmView,
};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use protocol::VmName;
use serde::Deserialize;
use utoipa::IntoParams;

/// All VMs, oldest first.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", responses((status = OK, body = Vec<VmView>)))]
pub(super) async fn list(State(host): State<Host>) -> Json<Vec<VmView>> {
    Json(host.overview().vms)
}

/// Starts a VM. The answer comes when its guest runs, which may have to wait for memory.
#[utoipa::path(
    post, path = "/v1/vms", tag = "vms",
    request_body(content = RunRequest, example = json!({"name": "web", "memory_bytes": 67_108_864, "shares": "high"})),
    responses((status = CREATED, body = VmView), Starts)
)]
pub(super) async fn run(
    State(host): State<Host>,
    body: Bytes,
) -> Result<(StatusCode, Json<VmView>), HostError> {
    let view = host.run(parse::<RunRequest>(&body)?).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// One VM.
#[utoipa::path(
    get, path = "/v1/vms/{name}", tag = "vms",
    params(("name" = VmName, Path, description = "The VM's name.")),
    responses((status = OK, body = VmView), OfVm)
)]
pub(super) async fn show(
    State(host): State<Host>,
    Named(name): Named,
) -> Result<Json<VmView>, HostError> {
    host.vm(&name).map(Json)
}

/// Changes a VM's claims on memory. What is absent stays.
#[utoipa::path(
    patch, path = "/v1/vms/{name}", tag = "vms",
    params(("name" = VmName, Path, description = "The VM's name.")),
    request_body(content = VmChange, example = json!({"shares": "high", "min_bytes": 16_777_216})),
    responses((status = OK, body = VmView), ChangesVm)
)]
pub(super) async fn change(
    State(host): State<Host>,
    Named(name): Named,
    body: Bytes,
) -> Result<Json<VmView>, HostError> {
    let change = parse::<VmChange>(&body)?;
    to_its_end(async move { host.set(&name, &change).await })
        .await
        .map(Json)
}

/// Fixes a VM's balloon, or leaves it to the policy again.
#[utoipa::path(
    put, path = "/v1/vms/{name}/balloon", tag = "vms",
    params(("name" = VmName, Path, description = "The VM's name.")),
    request_body(content = BalloonRequest, example = json!({"balloon_bytes": null})),
    responses((status = OK, body = VmView), PinsBalloon)
)]
pub(super) async fn set_balloon(
    State(host): State<Host>,
    Named(name): Named,
    body: Bytes,
) -> Result<Json<VmView>, HostError> {
    let request = parse::<BalloonRequest>(&body)?;
    to_its_end(async move { host.set_balloon(&name, request).await })
        .await
        .map(Json)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExplainQuery {
    /// Memory that the VM should have beyond its target; the answer says what would bring it.
    #[param(minimum = 0, multiple_of = 4096, example = 67_108_864)]
    more_bytes: Option<u64>,
}

/// Why a VM holds what it holds.
#[utoipa::path(
    get, path = "/v1/vms/{name}/explanation", tag = "vms",
    params(("name" = VmName, Path, description = "The VM's name."), ExplainQuery),
    responses((status = OK, body = ExplanationView), Explains)
)]
pub(super) async fn explain(
    State(host): State<Host>,
    Named(name): Named,
    Asked(query): Asked<ExplainQuery>,
) -> Result<Json<ExplanationView>, HostError> {
    host.explain(&name, query.more_bytes).map(Json)
}

/// Ends a VM: in order if its guest listens, by force if it does not. The answer comes when nothing of it is
/// left.
#[utoipa::path(
    delete, path = "/v1/vms/{name}", tag = "vms",
    params(("name" = VmName, Path, description = "The VM's name.")),
    responses((status = NO_CONTENT, description = "Nothing of it is left."), Stops)
)]
pub(super) async fn stop(
    State(host): State<Host>,
    Named(name): Named,
) -> Result<StatusCode, HostError> {
    host.stop(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stops a VM and starts it anew, with all that was asked for when it was run and changed since; starts one that is to come
/// back and does not run. The answer comes when its guest runs.
#[utoipa::path(
    post, path = "/v1/vms/{name}/restart", tag = "vms",
    params(("name" = VmName, Path, description = "The VM's name.")),
    responses((status = OK, body = VmView), Restarts)
)]
pub(super) async fn restart(
    State(host): State<Host>,
    Named(name): Named,
) -> Result<Json<VmView>, HostError> {
    host.restart(&name).await.map(Json)
}

/// Puts a running QEMU under this host. The answer comes when it has said what it is; nothing of it is changed if it is refused.
#[utoipa::path(
    post, path = "/v1/adoptions", tag = "vms",
    request_body(content = AdoptRequest, example = json!({"socket": "/run/web.qmp", "name": "web"})),
    responses((status = CREATED, body = VmView), Adopts)
)]
pub(super) async fn adopt(
    State(host): State<Host>,
    body: Bytes,
) -> Result<(StatusCode, Json<VmView>), HostError> {
    let request = parse::<AdoptRequest>(&body)?;
    let view = to_its_end(async move { host.adopt(request).await }).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReleaseQuery {
    /// Whether it is let go as it is if it does not answer.
    #[serde(default)]
    force: bool,
}

/// Lets an adopted QEMU go, as it was before.
#[utoipa::path(
    delete, path = "/v1/adoptions/{name}", tag = "vms",
    params(("name" = VmName, Path, description = "The VM's name."), ReleaseQuery),
    responses((status = NO_CONTENT, description = "It is as it was."), Releases)
)]
pub(super) async fn release(
    State(host): State<Host>,
    Named(name): Named,
    Asked(query): Asked<ReleaseQuery>,
) -> Result<StatusCode, HostError> {
    to_its_end(async move { host.release(&name, query.force).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// VMs that are to come back, whether they run or not, in the order in which they are started.
#[utoipa::path(get, path = "/v1/definitions", tag = "vms", responses((status = OK, body = Vec<DefinitionView>)))]
pub(super) async fn definitions(State(host): State<Host>) -> Json<Vec<DefinitionView>> {
    Json(host.definitions())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ForgetQuery {
    /// Whether one that runs is stopped first. It is refused otherwise.
    #[serde(default)]
    force: bool,
}

/// Forgets a VM that is to come back.
#[utoipa::path(
    delete, path = "/v1/definitions/{name}", tag = "vms",
    params(("name" = VmName, Path, description = "The VM's name."), ForgetQuery),
    responses((status = NO_CONTENT, description = "It does not come back."), Forgets)
)]
pub(super) async fn forget(
    State(host): State<Host>,
    Named(name): Named,
    Asked(query): Asked<ForgetQuery>,
) -> Result<StatusCode, HostError> {
    host.forget(&name, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}
