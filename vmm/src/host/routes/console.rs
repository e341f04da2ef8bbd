//! The route to a VM's console.

use super::answer::{Asked, Named};
use super::document::OpensConsole;
use crate::host::console::Console;
use crate::host::tokens::Access;
use crate::host::{Host, HostError};
use api::CONSOLE_PROTOCOL;
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use protocol::VmName;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ConsoleQuery {
    /// Bytes of earlier output that come first, as far as they are kept.
    #[serde(default)]
    #[param(minimum = 0, example = 4096)]
    replay: u64,
}

/// Turns the connection into the VM's console. From then on it carries bytes both ways, without any frames:
/// what the guest prints and what is typed.
#[utoipa::path(
    get, path = "/v1/vms/{name}/console", tag = "vms",
    params(
        ("name" = VmName, Path, description = "The VM's name."),
        ConsoleQuery,
        ("Upgrade" = String, Header, description = "`ballonet-console`", example = "ballonet-console"),
    ),
    responses((status = SWITCHING_PROTOCOLS, description = "The console from here on."), OpensConsole)
)]
pub(super) async fn console(
    State(host): State<Host>,
    Named(name): Named,
    Asked(query): Asked<ConsoleQuery>,
    Extension(access): Extension<Access>,
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
    let replay = usize::try_from(query.replay).unwrap_or(usize::MAX);
    let place = host.console_place()?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _place = place;
        if let Ok(connection) = upgrade.await {
            tokio::select! {
                () = attach(console, TokioIo::new(connection), replay) => {}
                () = access.ends() => {}
            }
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, CONSOLE_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Carries bytes both ways until either side ends.
async fn attach(console: Console, connection: TokioIo<hyper::upgrade::Upgraded>, replay: usize) {
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
