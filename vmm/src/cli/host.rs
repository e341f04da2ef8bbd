//! `ballonet host`: the daemon.

use super::args::HostArgs;
use super::config::ConfigFile;
use super::http;
use crate::host::runtime_dir::{Claim, ClaimError, log_of};
use crate::host::{HostOptions, MachineMemory, serve};
use anyhow::{Context, Result};
use page::PageCount;
use policy::{REBALANCE_INTERVAL, SAMPLE_PERIOD};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Size in bytes at which the log starts anew; the one before is kept beside it.
const LOG_LIMIT: u64 = 1 << 20;

/// Time between rounds, unless told otherwise.
const INTERVAL_MS: u64 = 1000;

pub(super) async fn host(mut args: HostArgs, socket: &Path) -> Result<()> {
    let file = match &args.config {
        Some(path) => ConfigFile::read(path)?,
        None => ConfigFile::default(),
    };
    file.complete(&mut args);
    let claim = match Claim::take(socket) {
        // A background host is started to have one there: so it is.
        Err(ClaimError::Taken { .. }) if args.background => return Ok(()),
        other => other?,
    };
    raise_descriptor_limit();
    // The log of another host at this socket must not be cut, so it is opened after the claim.
    let log = args.background.then(|| log_of(socket));
    start_log(log.clone())?;
    let budget = match args.memory {
        Some(size) => size.0,
        None => default_budget()?,
    };
    let options = HostOptions {
        budget,
        interval: Duration::from_millis(args.interval_ms.unwrap_or(INTERVAL_MS)),
        exit_when_empty: args.exit_when_empty,
        sharing: args.sharing.unwrap_or(true),
        rates: file.rates(),
        scan_priority: file.scan_priority(),
        idle_tax: args.idle_tax.unwrap_or_default(),
        sample_period: seconds_or(args.sample_period, SAMPLE_PERIOD),
        rebalance_interval: seconds_or(args.rebalance_interval, REBALANCE_INTERVAL),
        socket: socket.into(),
        http: http::options(&args)?,
    };
    let ready = |_: &_| {
        tracing::info!("serving {} with a budget of {budget}", socket.display());
        if args.background {
            leave_terminal();
        }
    };
    serve(&options, &claim, ready, end_signal()?).await?;
    tracing::info!("ended");
    // All went well: there is nothing to look up. Another host may come once the claim is dropped.
    log.iter()
        .flat_map(|log| [log.clone(), older(log)])
        .for_each(|log| drop(std::fs::remove_file(log)));
    Ok(())
}

fn seconds_or(given: Option<u64>, otherwise: Duration) -> Duration {
    given.map_or(otherwise, Duration::from_secs)
}

/// From here on nobody reads what a background host prints.
fn leave_terminal() {
    let null = File::options().write(true).open("/dev/null");
    let silenced = null.and_then(|null| Ok(rustix::stdio::dup2_stderr(&null)?));
    silenced.unwrap_or_else(|error| tracing::warn!("errors are still printed: {error}"));
}

/// Every VM and every client takes some descriptors: as many as this user may have.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files stays low: {error}");
    }
}

/// 80 % of what is available now: the rest is for the machine's own programs.
fn default_budget() -> Result<PageCount> {
    let available = MachineMemory::read()
        .context("cannot read this machine's memory")?
        .available;
    Ok(PageCount(available.0 / 5 * 4))
}

/// Done at Ctrl-C, SIGTERM or a hang-up.
pub(super) fn end_signal() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Logs to the terminal, or to a file of bounded size. `RUST_LOG` chooses what.
pub(super) fn start_log(file: Option<PathBuf>) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    match file {
        Some(path) => {
            let log_file = BoundedLog::open(path)?;
            log.with_ansi(false)
                .with_writer(move || log_file.clone())
                .init();
        }
        None => log.with_writer(io::stderr).init(),
    }
    Ok(())
}

/// A log file that starts anew when it is full, so that no guest or client can fill the disk.
#[derive(Clone, Debug)]
struct BoundedLog(Arc<Mutex<(PathBuf, File, u64)>>);

impl BoundedLog {
    fn open(path: PathBuf) -> Result<Self> {
        let make = || -> io::Result<File> {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            File::create(&path)
        };
        let file = make().with_context(|| format!("cannot write the log {}", path.display()))?;
        Ok(Self(Arc::new(Mutex::new((path, file, 0)))))
    }
}

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, file, size) = &mut *log;
        if *size > LOG_LIMIT {
            std::fs::rename(&*path, older(path))?;
            *file = File::create(&*path)?;
            *size = 0;
        }
        let count = file.write(bytes)?;
        *size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a full log is kept.
fn older(log: &Path) -> PathBuf {
    log.with_extension("log.old")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_never_grows_beyond_twice_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.log");
        let mut log = BoundedLog::open(path.clone()).unwrap();
        for _ in 0..5000 {
            log.write_all(&[b'x'; 1024]).unwrap();
        }
        let total: u64 = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(total <= 2 * (LOG_LIMIT + 2048), "{total} bytes");
        assert!(path.exists());
    }
}
