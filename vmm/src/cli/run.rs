//! `ballonet run`: starts a VM, and a host in the background if none runs.

use super::args::RunArgs;
use super::{console, show, tell};
use crate::cli::client::{Client, ClientError};
use crate::host::runtime_dir::log_of;
use anyhow::{Context, Result, bail};
use api::{ProblemKind, QueuedView, RunRequest, VmView};
use protocol::{DiskSpec, VmName};
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long a host may take until it serves.
const HOST_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// How often one that waits to be admitted looks why.
const QUEUE_POLL: Duration = Duration::from_millis(500);

pub(super) async fn run(args: RunArgs, client: &Client, socket: &Path) -> Result<()> {
    let (console_wanted, json) = (args.console, args.json);
    let vm = ask_host(&request(args)?, client, socket).await?;
    if console_wanted {
        return console::console(client, &vm.name, usize::MAX, false).await;
    }
    show(json, &vm, |vm| format!("{}\n", vm.name))
}

fn request(args: RunArgs) -> Result<RunRequest> {
    // The host may have another working folder.
    let absolute = |path: PathBuf| {
        std::path::absolute(&path).with_context(|| format!("cannot find {}", path.display()))
    };
    Ok(RunRequest {
        name: args.name,
        memory_bytes: args.memory.0.bytes(),
        vcpus: Some(args.vcpus),
        min_bytes: args.min.map(|size| size.0.bytes()),
        max_bytes: args.max.map(|size| size.0.bytes()),
        shares: Some(args.shares),
        idle_tax_permille: args.idle_tax,
        large_pages: args.large_pages,
        wait_s: args.wait,
        trust_group: args.trust_group,
        kernel: args.kernel.map(absolute).transpose()?,
        initrd: args.initrd.map(absolute).transpose()?,
        nets: args.nets,
        disks: args
            .disk
            .into_iter()
            .map(|disk| {
                Ok(DiskSpec {
                    path: absolute(disk.path)?,
                    ..disk
                })
            })
            .collect::<Result<_>>()?,
        cmdline: args.cmdline,
        workload: args.workload,
        console_log: args.console_log.map(absolute).transpose()?,
        restart: args.restart,
        ..RunRequest::default()
    })
}

/// Asks the host for the VM. One that is just ending is waited out, and another takes its place.
async fn ask_host(request: &RunRequest, client: &Client, socket: &Path) -> Result<VmView> {
    let begin = Instant::now();
    loop {
        ensure_host(client, socket).await?;
        match call(request, client).await {
            Err(error) if is_ending(&error) && begin.elapsed() < HOST_PATIENCE => sleep(POLL).await,
            answer => return Ok(answer?),
        }
    }
}

/// While it waits to be admitted, says why.
async fn call(request: &RunRequest, client: &Client) -> Result<VmView, ClientError> {
    let answer = client.run(request);
    if request.wait_s.is_none() {
        return answer.await;
    }
    tokio::select! {
        answer = answer => answer,
        never = tell_why(request, client) => match never {},
    }
}

/// A client that is told to end takes its request back: the host drops what nobody waits for.
async fn tell_why(request: &RunRequest, client: &Client) -> Infallible {
    let mut told = String::new();
    loop {
        sleep(QUEUE_POLL).await;
        // A host that does not answer now will answer the request itself.
        let Ok(overview) = client.overview().await else {
            continue;
        };
        let mut queue = overview.queue.into_iter().rev();
        let is_ours = |name: &VmName| request.name.as_ref().is_none_or(|own| own == name);
        if let Some(QueuedView { name, why, .. }) = queue.find(|queued| is_ours(&queued.name))
            && why != told
        {
            tell(&format!("ballonet: VM '{name}' waits: {why}\n"));
            told = why;
        }
    }
}

fn is_ending(error: &ClientError) -> bool {
    match error {
        ClientError::NoHost { .. } | ClientError::Http(_) => true,
        ClientError::Refused(problem) => problem.is(ProblemKind::Stopping),
        _ => false,
    }
}

async fn ensure_host(client: &Client, socket: &Path) -> Result<()> {
    let begin = Instant::now();
    let mut started: Option<Child> = None;
    while begin.elapsed() < HOST_PATIENCE {
        if answers(client).await? {
            return Ok(());
        }
        match &mut started {
            None => started = Some(start_host(socket)?),
            Some(host) => match host.try_wait().context("cannot wait for the host")? {
                Some(status) if !status.success() => {
                    bail!("the host did not start: {}", printed_by(host))
                }
                // Another host was there, or it has ended again already.
                Some(_) => started = None,
                None => {}
            },
        }
        sleep(POLL).await;
    }
    bail!(
        "the host at {} does not answer: see its log {}",
        socket.display(),
        log_of(socket).display()
    )
}

/// What a host that has ended printed, without the program's name before it.
fn printed_by(host: &mut Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut host.stderr
        && stderr.read_to_string(&mut text).is_err()
    {
        text.push_str("it printed something unreadable");
    }
    text.trim().trim_start_matches("ballonet: ").to_owned()
}

async fn answers(client: &Client) -> Result<bool> {
    match client.overview().await {
        Ok(_) => Ok(true),
        Err(error) if error.is_no_host() => Ok(false),
        Err(ClientError::Http(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A host in a process group of its own: it outlives this command, and ends with its last VM.
fn start_host(socket: &Path) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    // In one word, for a path may begin as an option does.
    let mut place = OsString::from("--socket=");
    place.push(socket);
    command
        .arg(place)
        .args(["host", "--exit-when-empty", "--background"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    command.spawn().context("cannot start a host")
}
