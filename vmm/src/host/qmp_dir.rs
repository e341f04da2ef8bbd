//! A folder of sockets of QEMUs' monitors: what appears there is put under the host, and what disappears is let go.
//!
//! The folder is read every second: that costs less than 0.1 ms, sees what was missed as well, and works on any file system,
//! where inotify is one more queue that overflows. Sockets that are none, hang, or speak something else are tried again with
//! growing pauses, a few at a time, so that they hold up no other.

use super::asides::Asides;
use super::state_store::Way;
use super::{Host, HostError};
use api::AdoptRequest;
use protocol::VmName;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const INTERVAL: Duration = Duration::from_secs(1);
/// Entries of the folder that are looked at.
const MOST_ENTRIES: usize = 1024;
/// Monitors that are tried at the same time.
const TRIED_AT_ONCE: usize = 16;

/// What lies in the folder.
#[derive(Debug, Default, PartialEq, Eq)]
struct Contents {
    sockets: BTreeSet<PathBuf>,
    /// Something that is no socket. A symbolic link is none, wherever it leads: who may write there could lead it anywhere.
    other: Option<PathBuf>,
    /// Whether there is more than is looked at.
    is_cut: bool,
}

fn read(folder: &Path) -> io::Result<Contents> {
    let mut contents = Contents::default();
    for (place, entry) in fs::read_dir(folder)?.enumerate() {
        if place == MOST_ENTRIES {
            contents.is_cut = true;
            break;
        }
        let entry = entry?;
        match entry.file_type() {
            Ok(kind) if kind.is_socket() => drop(contents.sockets.insert(entry.path())),
            Ok(_) => contents.other = Some(entry.path()),
            // It has disappeared.
            Err(_) => {}
        }
    }
    Ok(contents)
}

/// For as long as the host lives.
pub(super) async fn watch(host: Host, folder: PathBuf) {
    let mut watcher = Watcher {
        host,
        asides: Asides::default(),
        tried: BTreeSet::new(),
        told: BTreeSet::new(),
    };
    let mut tries = JoinSet::new();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let place = folder.clone();
                let reading = tokio::task::spawn_blocking(move || read(&place));
                let contents = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
                watcher.look(&folder, contents, &mut tries);
            }
            Some(Ok(tried)) = tries.join_next() => watcher.was_tried(tried),
        }
    }
}

/// What is done about a socket.
enum Try {
    Adopt,
    /// It has gone, and its QEMU, which has this name, has not, so far.
    LetGo(VmName),
}

type Tried = (PathBuf, Try, Result<(), HostError>);

struct Watcher {
    host: Host,
    asides: Asides<PathBuf>,
    /// Those that are being tried.
    tried: BTreeSet<PathBuf>,
    /// What was told of the folder, each once.
    told: BTreeSet<&'static str>,
}

impl Watcher {
    fn look(&mut self, folder: &Path, contents: io::Result<Contents>, tries: &mut JoinSet<Tried>) {
        let contents = match contents {
            Ok(contents) => contents,
            Err(error) => {
                let what = format!("cannot be read: {error}; it is tried again");
                return self.tell_once("unreadable", folder, &what);
            }
        };
        self.told.remove("unreadable");
        if let Some(other) = &contents.other {
            let name = other.file_name().unwrap_or_default().display();
            let what = format!("has what is no socket, as '{name}': that is left alone");
            self.tell_once("other", folder, &what);
        }
        if contents.is_cut {
            let what = format!("has more than {MOST_ENTRIES} entries: the rest is left alone");
            self.tell_once("cut", folder, &what);
        }
        let sockets = contents.sockets;
        let adopted = self.host.adopted_in(folder);
        self.asides
            .keep(|socket| sockets.contains(socket) || adopted.contains_key(socket));
        // One that was cut off may still be there.
        if !contents.is_cut {
            for (socket, name) in &adopted {
                if !sockets.contains(socket) {
                    self.spawn(tries, socket.clone(), Try::LetGo(name.clone()));
                }
            }
        }
        for socket in sockets {
            if !adopted.contains_key(&socket) {
                self.spawn(tries, socket, Try::Adopt);
            }
        }
    }

    /// Tries it, if it is time for that and no other is tried there: one that hangs holds up nobody.
    fn spawn(&mut self, tries: &mut JoinSet<Tried>, socket: PathBuf, what: Try) {
        let is_due = self.asides.is_due(&socket, Instant::now());
        if is_due && tries.len() < TRIED_AT_ONCE && self.tried.insert(socket.clone()) {
            let host = self.host.clone();
            tries.spawn(async move {
                let result = match &what {
                    Try::Adopt => adopt(&host, &socket).await,
                    Try::LetGo(name) => host.release_found(name).await,
                };
                (socket, what, result)
            });
        }
    }

    fn was_tried(&mut self, (socket, tried, result): Tried) {
        self.tried.remove(&socket);
        let Err(error) = result else {
            return self.asides.forget(&socket);
        };
        let why = crate::error_chain(&error);
        let what = match &error {
            HostError::NotAdopted { .. } => why,
            _ if matches!(tried, Try::LetGo(_)) => format!("{} is gone: {why}", socket.display()),
            _ => format!("the QEMU at {} is not adopted: {why}", socket.display()),
        };
        if !self.asides.put(socket, &what, Instant::now()) || error.is_wanted_so() {
            return;
        }
        let mut state = self.host.lock();
        match &tried {
            Try::Adopt => state.events.warn_of_all(what),
            Try::LetGo(name) => state.events.warn(name, what),
        }
    }

    fn tell_once(&mut self, kind: &'static str, folder: &Path, what: &str) {
        if self.told.insert(kind) {
            let what = format!("the folder {} {what}", folder.display());
            self.host.lock().events.warn_of_all(what);
        }
    }
}

async fn adopt(host: &Host, socket: &Path) -> Result<(), HostError> {
    let stem = socket.file_stem().and_then(|stem| stem.to_str());
    let stem: Option<VmName> = stem.and_then(|stem| stem.parse().ok());
    let wishes = AdoptRequest::default();
    let adopted = host.adopt_by_monitor(socket, wishes, Some(stem)).await;
    adopted.map(drop)
}

impl Host {
    /// QEMUs that were adopted by sockets in this folder.
    fn adopted_in(&self, folder: &Path) -> BTreeMap<PathBuf, VmName> {
        let state = self.lock();
        let here = state
            .adoptions()
            .filter_map(|adoption| match &adoption.way {
                Way::Monitor(socket) if socket.parent() == Some(folder) => {
                    Some((socket.clone(), adoption.name.clone()))
                }
                _ => None,
            });
        here.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_sockets_are_seen_and_no_more_than_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let _listener = UnixListener::bind(path("a.qmp")).unwrap();
        symlink(path("a.qmp"), path("link.qmp")).unwrap();
        let seen = read(folder.path()).unwrap();
        assert_eq!(
            seen.sockets.into_iter().collect::<Vec<_>>(),
            [path("a.qmp")]
        );
        assert_eq!((seen.other, seen.is_cut), (Some(path("link.qmp")), false));
        for number in 0..2 * MOST_ENTRIES {
            fs::write(path(&number.to_string()), "").unwrap();
        }
        assert!(read(folder.path()).unwrap().is_cut);
        assert!(read(&path("missing")).is_err());
    }
}
