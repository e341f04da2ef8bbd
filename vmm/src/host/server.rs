//! Serves clients at the socket until told to end.

use super::runtime_dir::Claim;
use super::{Host, HostError, HostOptions, orphans, recording, routes};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Clients at the same time; more wait until one leaves.
const MOST_CLIENTS: usize = 128;
/// How long a host that ends with its last VM waits for the first to be asked for.
const FIRST_CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of a request.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// Why a host cannot serve.
#[derive(Debug, Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant's message says what it is")]
pub enum ServerError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("VMs of an earlier host still run without one: {}; end them with `kill PID` first, for their memory would be missing from this host's budget", .0.join(", "))]
    Orphans(Vec<String>),
    #[error("cannot listen at {}: give another --socket", .socket.display())]
    Listen {
        socket: std::path::PathBuf,
        source: io::Error,
    },
}

/// Runs a host at the claimed socket until `end` is done, or, if so wished, until its last VM has ended. Then ends every
/// VM in order. `ready` is called once clients are served.
///
/// # Errors
/// When the host cannot start. Nothing is left behind then.
pub async fn serve(
    options: &HostOptions,
    _claim: &Claim,
    ready: impl FnOnce(&Host),
    end: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    refuse_orphans(&options.socket)?;
    let host = Host::start(options)?;
    let listener = listen(options)?;
    ready(&host);
    tokio::select! {
        () = accept(&listener, &host) => {}
        () = empty(&host, options.exit_when_empty) => {}
        () = end => {}
    }
    host.stop_all().await;
    // All went well: there is nothing to look up.
    recording::remove(&options.socket);
    Ok(())
}

fn refuse_orphans(socket: &Path) -> Result<(), ServerError> {
    let orphans = orphans::find(socket);
    if orphans.is_empty() {
        return Ok(());
    }
    let described = orphans
        .into_iter()
        .map(|orphan| format!("'{}' (process {})", orphan.name, orphan.pid));
    Err(ServerError::Orphans(described.collect()))
}

fn listen(options: &HostOptions) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Listen {
        socket: options.socket.clone(),
        source,
    };
    let listener = UnixListener::bind(&options.socket).map_err(failed)?;
    let only_owner = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&options.socket, only_owner).map_err(failed)?;
    Ok(listener)
}

/// Done when the last VM has ended or the first was refused, or when nobody came to ask for one.
async fn empty(host: &Host, wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    let mut count = host.count();
    let first = tokio::time::timeout(FIRST_CLIENT_PATIENCE, count.changed()).await;
    if first.is_err() {
        return;
    }
    // An error says that the host has gone.
    drop(count.wait_for(|&count| count == 0).await);
}

async fn accept(listener: &UnixListener, host: &Host) {
    let router = routes::router(host.clone());
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(async move {
                    talk(stream, service).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: some come back when clients leave.
                tracing::warn!("cannot accept a client: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn talk(stream: UnixStream, service: TowerToHyperService<axum::Router>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // What a client sends that is not HTTP is answered by hyper and ends the connection.
    connection
        .await
        .unwrap_or_else(|error| tracing::debug!("client: {error}"));
}
