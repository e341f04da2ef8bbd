//! `ballonet host`: the daemon.

use super::host_args::HostArgs;
use super::http::HttpAddress;
use crate::host::rotating::RotatingFile;
use crate::host::runtime_dir::{Claim, PlaceError};
use crate::host::state_store;
use crate::host::{Host, HostOptions, HttpOptions, MachineMemory, serve};
use crate::memory::large_page_hindrance;
use crate::service_manager::{self, NotifyState};
use crate::signals::{ENDING, SignalStream, first_of, harmless, listen};
use anyhow::{Context, Result, bail};
use page::{PAGE_SIZE, PageCount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

pub(super) async fn host(mut args: HostArgs, socket: &Path) -> Result<()> {
    let file = args.in_file()?;
    args.complete(&file);
    let end = end_at(match args.background {
        true => OnHangup::GoOn,
        false => OnHangup::End,
    })?;
    let taken = match args.replace {
        true => Claim::take_from_another(socket),
        false => Claim::take(socket),
    };
    let claim = match taken {
        // A background host is started to have one there: so it is.
        Err(PlaceError::Taken { .. }) if args.background => return Ok(()),
        other => other?,
    };
    // The log of another host at this socket must not be cut, so it is opened after the claim.
    let log = args.background.then(|| claim.place().log());
    start_log(log.clone())?;
    let end = async {
        let _which = end.await;
    };
    let ended = serve_as_told(&args, &file, &claim, end).await;
    match (&ended, log) {
        // All went well: there is nothing to look up. Another host may come once the claim is dropped.
        (Ok(()), _) => claim.forget(),
        // It did not start: whoever started it is told why.
        (Err(_), Some(log)) => drop(std::fs::remove_file(log)),
        (Err(_), None) => {}
    }
    ended
}

async fn serve_as_told(
    args: &HostArgs,
    file: &HostArgs,
    claim: &Claim,
    end: impl Future<Output = ()>,
) -> Result<()> {
    let default = HostOptions::new(default_budget()?);
    let given = file.change().then(&args.change());
    let options = HostOptions {
        settings: default.settings.with(&given)?,
        given,
        state: state(args)?,
        interval: args
            .interval_ms
            .map_or(default.interval, Duration::from_millis),
        exit_when_empty: args.exit_when_empty,
        console_log: absolute(args.console_log.as_deref())?,
        swap: absolute(args.swap.as_deref())?,
        jail: args.jail.unwrap_or_default(),
        libvirt: args.libvirt.clone(),
        qmp_dir: absolute(args.qmp_dir.as_deref())?,
        leave: default.leave,
        http: http(args)?,
        socket_group: args.socket_group.clone(),
    };
    let socket = claim.place().socket();
    let ready = |host: &Host| {
        let view = host.overview().host;
        let budget = PageCount(view.budget_bytes / PAGE_SIZE);
        tracing::info!("serving {} with a budget of {budget}", socket.display());
        service_manager::tell(NotifyState::Ready);
        if view.large_pages
            && let Some(hindrance) = large_page_hindrance()
        {
            tracing::info!("{hindrance}");
        }
        if args.background {
            leave_terminal();
        }
    };
    serve(&options, claim, ready, end).await?;
    tracing::info!("ended");
    Ok(())
}

/// Where to serve on TCP, if at all. Others than this machine's own programs must be wanted.
fn http(args: &HostArgs) -> Result<Option<HttpOptions>> {
    let Some(typed) = &args.http else {
        return Ok(None);
    };
    let address = typed
        .resolve(args.http_remote)
        .with_context(|| match typed {
            HttpAddress::Name(name, port) => {
                format!(
                    "--http: nobody knows an address of '{name}': give one, as in 127.0.0.1:{port}"
                )
            }
            _ => "--http has no address".into(),
        })?;
    if !address.ip().is_loopback() && !args.http_remote {
        bail!(
            "--http {address} is open to other machines, unencrypted: give a loopback address such as 127.0.0.1:{}, or --http-remote as well",
            address.port()
        );
    }
    Ok(Some(HttpOptions {
        address,
        names: args.http_name.clone(),
        log_token: !args.background,
    }))
}

/// Where what outlives the host is kept, if it is.
fn state(args: &HostArgs) -> Result<Option<PathBuf>> {
    match &args.state {
        Some(none) if none.as_os_str() == "none" => Ok(None),
        Some(folder) => absolute(Some(folder)),
        None => {
            let folder = state_store::default_folder();
            if folder.is_none() {
                tracing::warn!(
                    "this user has no home: what outlives a host is not kept without --state"
                );
            }
            Ok(folder)
        }
    }
}

fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>> {
    path.map(std::path::absolute)
        .transpose()
        .context("cannot find this folder")
}

/// From here on nobody reads what a background host prints.
fn leave_terminal() {
    let null = File::options().write(true).open("/dev/null");
    let silenced = null.and_then(|null| Ok(rustix::stdio::dup2_stderr(&null)?));
    silenced.unwrap_or_else(|error| tracing::warn!("errors are still printed: {error}"));
}

/// 80 % of what is available now: the rest is for the machine's own programs.
fn default_budget() -> Result<PageCount> {
    let available = MachineMemory::read()
        .context("cannot read this machine's memory")?
        .available;
    Ok(PageCount(available.0 / 5 * 4))
}

/// Done when a signal tells the process to end: this one.
pub(super) fn end_signal() -> Result<impl Future<Output = c_int>> {
    end_at(OnHangup::End)
}

/// What a closed terminal is to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnHangup {
    End,
    /// One in the background has no terminal.
    GoOn,
}

fn end_at(on_hangup: OnHangup) -> Result<impl Future<Output = c_int>> {
    let ends = |signal: &c_int| *signal != libc::SIGHUP || on_hangup == OnHangup::End;
    let (ending, also_harmless): (Vec<_>, Vec<_>) = ENDING.into_iter().partition(ends);
    // What was listened for once ends nothing any more, listened for or not.
    drop(listen_for(&harmless())?);
    drop(listen_for(&also_harmless)?);
    let mut ending = listen_for(&ending)?;
    Ok(async move { first_of(&mut ending).await })
}

fn listen_for(signals: &[c_int]) -> Result<Vec<SignalStream>> {
    listen(signals).context("cannot listen for signals")
}

/// Logs to the terminal, or to a file of bounded size. `RUST_LOG` chooses what. Nothing that cannot be logged ends
/// or holds up who logs it.
pub(super) fn start_log(file: Option<PathBuf>) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        // They would be printed, to where perhaps nothing can be written.
        .log_internal_errors(false);
    match file {
        Some(path) => {
            let log_file = LogFile::create(path)?;
            log.with_ansi(false)
                .with_writer(move || log_file.clone())
                .init();
        }
        None => log.with_writer(|| Stderr).init(),
    }
    Ok(())
}

/// The error output, as far as it takes what is written: a terminal that was stopped with Ctrl-S, or a pipe whose
/// reader does not read, would make the host wait.
#[derive(Clone, Copy, Debug)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stderr = rustix::stdio::stderr();
        let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
        let now = Timespec::default();
        if matches!(poll(&mut ready, Some(&now)), Ok(1..)) {
            // It may be full, or its reader gone: there is nobody to be told.
            rustix::io::write(stderr, line).ok();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log of bounded size, so that no guest or client can fill the disk.
#[derive(Clone, Debug)]
struct LogFile(Arc<Mutex<RotatingFile>>);

impl LogFile {
    fn create(path: PathBuf) -> Result<Self> {
        let failed = format!("cannot write the log {}", path.display());
        let file = RotatingFile::create(path).context(failed)?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The disk may be full: the next line is tried again.
        drop(log.append(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
