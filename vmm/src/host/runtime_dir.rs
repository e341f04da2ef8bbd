//! Where a host's socket and log lie, and how two hosts keep out of each other's way.

use rustix::fs::FlockOperation;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "BALLONET_SOCKET";

/// The socket of this user's host, unless told otherwise.
#[must_use]
pub fn default_socket() -> PathBuf {
    let user = rustix::process::geteuid();
    let base = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(directory) if !user.is_root() => PathBuf::from(directory),
        _ if user.is_root() => PathBuf::from("/run"),
        _ => std::env::temp_dir().join(format!("ballonet-{}", user.as_raw())),
    };
    base.join("ballonet/host.sock")
}

/// Where a host that runs in the background logs.
#[must_use]
pub fn log_of(socket: &Path) -> PathBuf {
    socket.with_extension("log")
}

/// The right to be the host at a socket, held until it is dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
    lock_path: PathBuf,
    socket: PathBuf,
}

/// Why a socket cannot be claimed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message says what it is")]
pub enum ClaimError {
    #[error("a host already serves {}{}: use it, stop it, or give another --socket", .socket.display(), .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Taken { socket: PathBuf, pid: Option<u32> },
    #[error("cannot prepare {}: give another --socket", .path.display())]
    Prepare { path: PathBuf, source: io::Error },
}

impl Claim {
    /// Claims a socket, and removes what a host that died has left there.
    ///
    /// # Errors
    /// When another host lives there, or its folder cannot be made.
    pub fn take(socket: &Path) -> Result<Self, ClaimError> {
        let lock_path = socket.with_extension("lock");
        let failed = |source| ClaimError::Prepare {
            path: socket.into(),
            source,
        };
        make_private_folder(socket).map_err(failed)?;
        let mut lock = loop {
            let mut lock = open_lock(&lock_path).map_err(failed)?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(ClaimError::Taken {
                    socket: socket.into(),
                    pid: pid_in(&mut lock),
                });
            }
            // A host that just ended may have removed the file that was opened here.
            if lock.metadata().map_err(failed)?.nlink() > 0 {
                break lock;
            }
        };
        lock.set_len(0).map_err(failed)?;
        write!(lock, "{}", std::process::id()).map_err(failed)?;
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        Ok(Self {
            _lock: lock,
            lock_path,
            socket: socket.into(),
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Files that are gone already are what is wanted. The lock is held until its file is
        // closed, after this, so what is removed here is this host's own.
        drop(fs::remove_file(&self.socket));
        drop(fs::remove_file(&self.lock_path));
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn make_private_folder(socket: &Path) -> io::Result<()> {
    match socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.exists() => {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)
        }
        _ => Ok(()),
    }
}

fn pid_in(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_one_host_at_a_time_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("deep/host.sock");
        let claim = Claim::take(&socket).unwrap();
        let error = Claim::take(&socket).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(claim);
        assert_eq!(fs::read_dir(folder.path().join("deep")).unwrap().count(), 0);
        assert!(Claim::take(&socket).is_ok());
    }
}
