//! Speaks to a host over its socket.

use crate::host::runtime_dir::{self, PlaceError};
use crate::host::sharing::Audit;
use api::{
    AdoptRequest, BalloonRequest, CONSOLE_PROTOCOL, EventView, ExplanationView, Figures,
    HistoryView, HostChange, HostView, NewToken, Overview, Problem, RunRequest, TokenRequest,
    TokenView, VmChange, VmView,
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use protocol::VmName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tokio::net::UnixStream;

/// Why a host did not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    #[error("no host answers at {}: start one with `ballonet host`, or `ballonet run` which starts it", .socket.display())]
    NoHost { socket: PathBuf, source: io::Error },
    #[error("this user may not use the socket {}: ask as the user whose host it is, or give another --socket", .0.display())]
    Forbidden(PathBuf),
    #[error("cannot reach a host at {}: is it a host's socket, and not too busy?", .socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("the host broke off")]
    Http(#[from] hyper::Error),
    #[error("{}", .0.detail)]
    Refused(Problem),
    #[error("that cannot be asked for: give paths that are UTF-8 text")]
    Unsayable(#[source] serde_json::Error),
    #[error("the host's answer is not understood: use one version of ballonet for both")]
    NotUnderstood(#[source] serde_json::Error),
    #[error("the host at {} does not speak as a host does", .0.display())]
    NotAHost(PathBuf),
}

impl ClientError {
    /// Whether no host is there, so that starting one helps.
    #[must_use]
    pub fn is_no_host(&self) -> bool {
        matches!(self, Self::NoHost { .. })
    }
}

/// A host at a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The host at `socket`; nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// All that there is to see.
    pub async fn overview(&self) -> Result<Overview, ClientError> {
        self.get("/v1/overview").await
    }

    /// All that is counted.
    pub async fn figures(&self) -> Result<Figures, ClientError> {
        self.get("/v1/figures").await
    }

    /// What was counted of the host or of a VM in the last ten minutes.
    pub async fn history(&self, vm: Option<&VmName>) -> Result<HistoryView, ClientError> {
        match vm {
            Some(vm) => self.get(&format!("/v1/history?vm={vm}")).await,
            None => self.get("/v1/history").await,
        }
    }

    /// What happened last.
    pub async fn events(&self) -> Result<Vec<EventView>, ClientError> {
        self.get("/v1/events").await
    }

    /// Changes the host.
    pub async fn change_host(&self, change: &HostChange) -> Result<HostView, ClientError> {
        self.call(Method::PATCH, "/v1/host", change).await
    }

    /// Compares the host's books of shared pages with the kernel's.
    pub async fn audit(&self) -> Result<Audit, ClientError> {
        self.call(Method::POST, "/v1/host/audit", &()).await
    }

    /// All tokens.
    pub async fn tokens(&self) -> Result<Vec<TokenView>, ClientError> {
        self.get("/v1/tokens").await
    }

    /// Makes a token.
    pub async fn add_token(&self, request: &TokenRequest) -> Result<NewToken, ClientError> {
        self.call(Method::POST, "/v1/tokens", request).await
    }

    /// Withdraws a token, whose name has only characters that a path may have.
    pub async fn remove_token(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/tokens/{name}");
        self.call(Method::DELETE, &path, &()).await
    }

    /// A VM.
    pub async fn vm(&self, name: &VmName) -> Result<VmView, ClientError> {
        self.get(&format!("/v1/vms/{name}")).await
    }

    /// Starts a VM.
    pub async fn run(&self, request: &RunRequest) -> Result<VmView, ClientError> {
        self.call(Method::POST, "/v1/vms", request).await
    }

    /// Puts a running QEMU under the host.
    pub async fn adopt(&self, request: &AdoptRequest) -> Result<VmView, ClientError> {
        self.call(Method::POST, "/v1/adoptions", request).await
    }

    /// Lets one go.
    pub async fn release(&self, name: &VmName, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/adoptions/{name}?force={force}");
        self.call(Method::DELETE, &path, &()).await
    }

    /// Changes a VM.
    pub async fn change_vm(&self, name: &VmName, change: &VmChange) -> Result<VmView, ClientError> {
        let path = format!("/v1/vms/{name}");
        self.call(Method::PATCH, &path, change).await
    }

    /// Stops a VM.
    pub async fn stop(&self, name: &VmName) -> Result<(), ClientError> {
        let path = format!("/v1/vms/{name}");
        self.call(Method::DELETE, &path, &()).await
    }

    /// Stops a VM and starts it anew.
    pub async fn restart(&self, name: &VmName) -> Result<VmView, ClientError> {
        let path = format!("/v1/vms/{name}/restart");
        self.call(Method::POST, &path, &()).await
    }

    /// Forgets a VM that is to come back.
    pub async fn forget(&self, name: &VmName, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/definitions/{name}?force={force}");
        self.call(Method::DELETE, &path, &()).await
    }

    /// Fixes what a VM's balloon takes, or leaves it to the policy again.
    pub async fn balloon(
        &self,
        name: &VmName,
        request: &BalloonRequest,
    ) -> Result<VmView, ClientError> {
        let path = format!("/v1/vms/{name}/balloon");
        self.call(Method::PUT, &path, request).await
    }

    /// Why a VM holds what it holds, and what would bring it `more` bytes more.
    pub async fn explanation(
        &self,
        name: &VmName,
        more: Option<u64>,
    ) -> Result<ExplanationView, ClientError> {
        let query = more.map_or_else(String::new, |bytes| format!("?more_bytes={bytes}"));
        self.get(&format!("/v1/vms/{name}/explanation{query}"))
            .await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, &()).await
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let response = self.send(request(method, path, body)?).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            return serde_json::from_slice(bytes).map_err(ClientError::NotUnderstood);
        }
        Err(self.refusal(&bytes))
    }

    /// Connects to a VM's console; up to `replay` bytes of what it printed before come first.
    ///
    /// # Errors
    /// When no host is there, or it has no such VM.
    pub async fn console(
        &self,
        name: &VmName,
        replay: usize,
    ) -> Result<TokioIo<Upgraded>, ClientError> {
        let path = format!("/v1/vms/{name}/console?replay={replay}");
        let mut request = request(Method::GET, &path, &())?;
        let headers = request.headers_mut();
        headers.insert(
            CONNECTION,
            hyper::header::HeaderValue::from_static("upgrade"),
        );
        headers.insert(
            UPGRADE,
            hyper::header::HeaderValue::from_static(CONSOLE_PROTOCOL),
        );
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let bytes = response.into_body().collect().await?.to_bytes();
            return Err(self.refusal(&bytes));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        runtime_dir::check(&self.socket)?;
        let connected = UnixStream::connect(&self.socket).await;
        let stream = connected.map_err(|source| self.not_connected(source))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // What goes wrong on the connection is told to the request that is under way.
            connection
                .with_upgrades()
                .await
                .unwrap_or_else(|error| tracing::debug!("connection: {error}"));
        });
        Ok(sender.send_request(request).await?)
    }

    fn not_connected(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoHost { socket, source }
            }
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(socket),
            _ => ClientError::Unreachable { socket, source },
        }
    }

    fn refusal(&self, bytes: &[u8]) -> ClientError {
        match serde_json::from_slice(bytes) {
            Ok(problem) => ClientError::Refused(problem),
            Err(_) => ClientError::NotAHost(self.socket.clone()),
        }
    }
}

fn request<B: Serialize>(
    method: Method,
    path: &str,
    body: &B,
) -> Result<Request<Full<Bytes>>, ClientError> {
    let json = serde_json::to_vec(body).map_err(ClientError::Unsayable)?;
    let body = if method == Method::GET {
        Bytes::new()
    } else {
        json.into()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "ballonet")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .expect("a VM's name has only characters that a path may have");
    Ok(request)
}
