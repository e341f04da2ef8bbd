//! `ballonet run`: starts a VM, and a host in the background if none runs.

use super::args::RunArgs;
use super::{console, print, print_json};
use crate::api::client::{Client, ClientError};
use crate::api::{Overview, RunRequest, VmView};
use crate::host::runtime_dir::log_of;
use anyhow::{Context, Result, bail};
use hyper::Method;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long a host may take until it serves.
const HOST_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

pub(super) async fn run(args: RunArgs, client: &Client, socket: &Path) -> Result<()> {
    ensure_host(client, socket).await?;
    let (console_wanted, json) = (args.console, args.json);
    let vm: VmView = client
        .call(Method::POST, "/v1/vms", &request(args)?)
        .await?;
    if console_wanted {
        return console::console(client, &vm.name, usize::MAX).await;
    }
    if json {
        print_json(&vm)
    } else {
        print(&format!("{}\n", vm.name))
    }
}

fn request(args: RunArgs) -> Result<RunRequest> {
    // The host may have another working folder.
    let kernel = args.kernel.map(|path| {
        std::path::absolute(&path).with_context(|| format!("cannot find {}", path.display()))
    });
    Ok(RunRequest {
        name: args.name,
        memory_bytes: args.memory.0.bytes(),
        vcpus: Some(args.vcpus),
        min_bytes: args.min.map(|size| size.0.bytes()),
        max_bytes: args.max.map(|size| size.0.bytes()),
        shares: Some(args.shares),
        trust_group: args.trust_group,
        kernel: kernel.transpose()?,
        cmdline: args.cmdline,
        workload: args.workload,
        ..RunRequest::default()
    })
}

async fn ensure_host(client: &Client, socket: &Path) -> Result<()> {
    if answers(client).await? {
        return Ok(());
    }
    let mut host = start_host(socket)?;
    let begin = Instant::now();
    while begin.elapsed() < HOST_PATIENCE {
        if answers(client).await? {
            return Ok(());
        }
        // Another `run` may have been faster: then its host serves us.
        if host
            .try_wait()
            .is_ok_and(|status| status.is_some_and(|status| !status.success()))
            && !socket.exists()
        {
            break;
        }
        sleep(POLL).await;
    }
    let log = log_of(socket);
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    bail!(
        "the host did not start; its log {} says: {}",
        log.display(),
        said.trim()
    );
}

async fn answers(client: &Client) -> Result<bool> {
    match client.get::<Overview>("/v1/overview").await {
        Ok(_) => Ok(true),
        Err(error) if error.is_no_host() => Ok(false),
        Err(ClientError::Http(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A host of its own session: it outlives this command and its terminal, and ends with its last
/// VM.
fn start_host(socket: &Path) -> Result<std::process::Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("--socket")
        .arg(socket)
        .args(["host", "--exit-when-empty", "--background"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command.spawn().context("cannot start a host")
}
