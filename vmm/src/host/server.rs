//! Serves clients at the socket until told to end.

use super::group::Group;
use super::routes::{self, Hangup};
use super::runtime_dir::{Claim, Place};
use super::tokens::{Access, Secret, SecretFile};
use super::untrusted_stream::UntrustedStream;
use super::vm::take_over;
use super::web;
use super::{Host, HostError, HostOptions, HttpOptions, descriptors, libvirt, qmp_dir};
use axum::Router;
use axum::serve::Listener;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
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
pub enum ServerError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("VMs of an earlier host still run and cannot be taken over: {}; end them with `kill PID` first, for their memory would be missing from this host's budget", .0.join(", "))]
    Orphans(Vec<String>),
    #[error("cannot read what the host before has left in {}: move that away", .folder.display())]
    Bundles {
        folder: std::path::PathBuf,
        source: io::Error,
    },
    #[error("cannot serve HTTP at {address}: give another --http")]
    ListenHttp {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot keep the token of --http in {}: give another --socket", .folder.display())]
    Token {
        folder: std::path::PathBuf,
        source: io::Error,
    },
    #[error("{} lies in a folder that is its owner's alone, where group {group} cannot come: give a --socket elsewhere, as in /run/ballonet/host.sock", .socket.display())]
    NotForAGroup {
        socket: std::path::PathBuf,
        group: String,
    },
    #[error("{} cannot be given to group {group}: start the host as root or as a member of it, or give another --socket-group", .socket.display())]
    SocketGroup {
        socket: std::path::PathBuf,
        group: String,
        source: io::Error,
    },
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
    claim: &Claim,
    ready: impl FnOnce(&Host),
    end: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let place = claim.place();
    descriptors::raise_limit();
    let host = Host::start(options, place)?;
    take_over(&host, claim).await?;
    let left = std::mem::take(&mut host.lock().left_adopted);
    host.find_adopted(left);
    let listener = listen(place, options.socket_group.as_ref())?;
    let http = match &options.http {
        Some(http) => Some(listen_http(&host, http, place).await?),
        None => None,
    };
    host.bring_back(&[]);
    find_qemus(&host, options);
    ready(&host);
    tokio::select! {
        () = accept(listener, from_socket, routes::router(host.clone())) => {}
        () = accept_http(http) => {}
        () = empty(&host, options.exit_when_empty) => {}
        () = end => {}
    }
    host.stop_all().await;
    host.shared.store.close().await;
    Ok(())
}

/// Puts QEMUs under the host as they appear, for as long as it lives.
fn find_qemus(host: &Host, options: &HostOptions) {
    if let Some(uri) = &options.libvirt {
        tokio::spawn(libvirt::watch(host.clone(), host.libvirt(uri)));
    }
    if let Some(folder) = &options.qmp_dir {
        tokio::spawn(qmp_dir::watch(host.clone(), folder.clone()));
    }
}

async fn take_over(host: &Host, claim: &Claim) -> Result<(), ServerError> {
    let place = claim.place();
    let orphans = take_over::all(host, place, claim.epoch()).await;
    let orphans = orphans.map_err(|source| ServerError::Bundles {
        folder: place.folder(),
        source,
    })?;
    if orphans.is_empty() {
        return Ok(());
    }
    let described = orphans
        .into_iter()
        .map(|orphan| format!("'{}' (process {})", orphan.name, orphan.pid));
    Err(ServerError::Orphans(described.collect()))
}

fn listen(place: &Place, group: Option<&Group>) -> Result<UnixListener, ServerError> {
    let socket = || place.socket().into();
    if let Some(group) = group
        && place.is_own_alone()
    {
        let group = group.name.clone();
        return Err(ServerError::NotForAGroup {
            socket: socket(),
            group,
        });
    }
    let listener = place.listen(group).and_then(UnixListener::from_std);
    listener.map_err(|source| match group {
        Some(group) if source.kind() == io::ErrorKind::PermissionDenied => {
            ServerError::SocketGroup {
                socket: socket(),
                group: group.name.clone(),
                source,
            }
        }
        _ => ServerError::Listen {
            socket: socket(),
            source,
        },
    })
}

/// Done when the last VM has ended or the first was refused, or when nobody came to ask for one.
async fn empty(host: &Host, wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    let mut count = host.count();
    let is_empty = *count.borrow_and_update() == 0;
    if is_empty {
        let first = tokio::time::timeout(FIRST_CLIENT_PATIENCE, count.changed()).await;
        if first.is_err() {
            return;
        }
    }
    // An error says that the host has gone.
    drop(count.wait_for(|&count| count == 0).await);
}

/// What serves on TCP. The token's file goes with it.
struct Http {
    listener: TcpListener,
    router: Router,
    _token_file: SecretFile,
}

async fn listen_http(host: &Host, http: &HttpOptions, place: &Place) -> Result<Http, ServerError> {
    let failed = |source| ServerError::ListenHttp {
        address: http.address,
        source,
    };
    let listener = TcpListener::bind(http.address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let no_token = |source| ServerError::Token {
        folder: place.folder(),
        source,
    };
    let token = Secret::new().map_err(no_token)?;
    host.tokens().add_own(&token);
    let token_file = token.store(place.token()).map_err(no_token)?;
    tracing::info!(
        "dashboard at http://{address}/; changes there need a token, such as the one in {}",
        token_file.path().display()
    );
    if http.log_token {
        tracing::info!("token {}", token.as_str());
    }
    Ok(Http {
        listener,
        router: web::router(host.clone(), address, http.names.clone()),
        _token_file: token_file,
    })
}

async fn accept_http(http: Option<Http>) {
    match http {
        // What who comes by it may do, its router finds out for each request.
        Some(http) => accept(http.listener, |stream| (stream, None), http.router).await,
        None => std::future::pending().await,
    }
}

/// Who can connect to the host's socket may do everything.
fn from_socket(stream: UnixStream) -> (UntrustedStream, Option<Access>) {
    let user = stream.peer_cred().ok().map(|peer| peer.uid());
    (stream.into(), Some(Access::by_socket(user)))
}

async fn accept<L, S>(mut listener: L, with: fn(L::Io) -> (S, Option<Access>), router: Router)
where
    L: Listener,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(descriptors::clients(MOST_CLIENTS)));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        // When descriptors are out it waits: some come back when clients leave.
        let (stream, _) = listener.accept().await;
        let (stream, access) = with(stream);
        let router = router.clone();
        tokio::spawn(async move {
            talk(stream, access, router).await;
            drop(place);
        });
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    access: Option<Access>,
    router: Router,
) {
    let hangup = Hangup::default();
    let service = TowerToHyperService::new(router);
    let with_hangup = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(hangup.clone());
        if let Some(access) = access.clone() {
            request.extensions_mut().insert(access);
        }
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), with_hangup)
        .with_upgrades();
    tokio::select! {
        // What a client sends that is not HTTP is answered by hyper and ends the connection.
        ended = connection => ended.unwrap_or_else(|error| tracing::debug!("client: {error}")),
        () = hangup.0.notified() => tracing::debug!("a client that takes nothing is hung up on"),
    }
}
