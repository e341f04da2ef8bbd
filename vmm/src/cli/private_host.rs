//! A host for one command alone, in a folder that goes with it: no user's host is touched, and nothing is
//! left behind, also when the command is interrupted.

use crate::host::runtime_dir::{Claim, make_private_folder, temporary_folder};
use crate::host::{Host, HostOptions, serve};
use anyhow::{Context, Result, anyhow};
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;

/// A folder that is removed with all that is in it.
#[derive(Debug)]
pub(super) struct PrivateFolder(PathBuf);

impl PrivateFolder {
    /// One for a command of that name.
    pub(super) fn make(command: &str) -> Result<Self> {
        let name = format!("ballonet-{command}-{}", std::process::id());
        let path = temporary_folder().join(name);
        make_private_folder(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("{} stays behind: {error}", self.0.display());
        }
    }
}

/// A signal broke the command off: this one. It ends with the status that shells give to whom one has ended.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted(pub(super) c_int);

/// Does something with a host of its own, which ends with it. Breaks off when a signal comes from `interrupt`.
pub(super) async fn with_private_host<T>(
    folder: &PrivateFolder,
    options: &HostOptions,
    interrupt: impl Future<Output = c_int>,
    script: impl AsyncFnOnce(&Host) -> Result<T>,
) -> Result<T> {
    let (send_host, host) = oneshot::channel();
    // Fails only if nobody waits for the host any more.
    let ready = |host: &Host| drop(send_host.send(host.clone()));
    let mut result = Err(anyhow!("the host has ended"));
    let play = async {
        let Ok(host) = host.await else { return };
        tokio::select! {
            ended = script(&host) => result = ended,
            signal = interrupt => result = Err(Interrupted(signal).into()),
        }
    };
    let claim = Claim::take(&folder.path().join("host.sock"))?;
    serve(options, &claim, ready, play).await?;
    result
}
