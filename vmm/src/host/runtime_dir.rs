//! Where a host's socket and files lie, and how two hosts keep out of each other's way.
//!
//! ```text
//!   PATH                          the socket: its owner's, and with --socket-group that group's
//!   PATH.d/lock                   held by the host that serves there, with its process's number in it
//!   PATH.d/log, log.old           what a host in the background logs
//!   PATH.d/decisions, .old        what was decided
//!   PATH.d/token                  what changes over --http need
//!   PATH.d/vms/NAME/              what a later host must know of a VM (`bundles`)
//!   PATH.d/stores/                which stores of shared pages are this place's (`sharing::store_notes`)
//!   PATH.d/epoch                  the number of this host, above those of hosts before
//! ```
//!
//! So nothing of anybody else's is ever overwritten: at PATH only a socket is replaced that nobody serves, and a
//! folder that has something in it and no lock is not a host's. Nobody else may write there: who could, could put
//! links there that lead a host to other files. Folders and files have their modes whatever the umask is.
//!
//! A place can be spelled in many ways. Its folder's true path is what processes are told, and the lock, being one
//! file, is the same by every spelling. The socket alone is used as it was given, for the kernel takes no long paths.

use super::bundles::Bundles;
use super::group::Group;
use super::open_files;
use super::sharing::StoreNotes;
use crate::memory::areas::FileId;
use crate::regular_file::{if_there, replace};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "BALLONET_SOCKET";
/// The longest path of a socket in bytes: `sun_path` has one more, for a zero.
const LONGEST_SOCKET: usize = 107;
/// Clients that wait to be accepted.
const BACKLOG: i32 = 1024;
const LOCK: &str = "lock";
const VMS: &str = "vms";
const STORES: &str = "stores";
const EPOCH: &str = "epoch";
/// What the default socket lies in.
const FOLDER: &str = "ballonet";

/// The socket of this user's host, unless told otherwise.
#[must_use]
pub fn default_socket() -> PathBuf {
    let base = match rustix::process::geteuid().is_root() {
        true => PathBuf::from("/run"),
        false => runtime_dir().unwrap_or_else(shared_base),
    };
    base.join(FOLDER).join("host.sock")
}

/// `$XDG_RUNTIME_DIR`. The specification of base directories has a relative path ignored.
fn runtime_dir() -> Option<PathBuf> {
    let directory = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    directory.filter(|directory| directory.is_absolute())
}

/// Where programs of this user keep what outlives them: `$XDG_STATE_HOME` or `~/.local/state`; root's is the machine's. None
/// if this user has no home.
pub(super) fn default_state_base() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some("/var/lib".into());
    }
    let named = |variable| std::env::var_os(variable).map(PathBuf::from);
    let absolute = |folder: &PathBuf| folder.is_absolute();
    named("XDG_STATE_HOME").filter(absolute).or_else(|| {
        let home = named("HOME").filter(absolute)?;
        Some(home.join(".local/state"))
    })
}

/// A folder of this user's among those of all users. Somebody else may have made it.
fn shared_base() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    temporary_folder().join(format!("ballonet-{user}"))
}

/// Where what is temporary is put: `$TMPDIR`, if it is an absolute path.
pub(crate) fn temporary_folder() -> PathBuf {
    let folder = std::env::var_os("TMPDIR").map(PathBuf::from);
    folder
        .filter(|folder| folder.is_absolute())
        .unwrap_or_else(|| "/tmp".into())
}

/// Where a host that runs in the background logs.
#[must_use]
pub fn log_of(socket: &Path) -> PathBuf {
    folder_of(socket).join("log")
}

fn folder_of(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".d");
    path.into()
}

/// Why no host can be at a place, or none be looked for.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("the socket's path {} has {length} bytes, and the kernel takes {LONGEST_SOCKET}: give a shorter --socket", .socket.display())]
    TooLong { socket: PathBuf, length: usize },
    #[error("{} names no file: give a --socket as in /run/ballonet/host.sock", .0.display())]
    NoName(PathBuf),
    #[error("{} is there already and is no socket: give another --socket, for this one would be lost", .0.display())]
    NotASocket(PathBuf),
    #[error("another program serves {}: give another --socket", .0.display())]
    Served(PathBuf),
    #[error("{} is there already and is not a host's: give another --socket, or move it away", .0.display())]
    NotAHosts(PathBuf),
    #[error("{} is not safe: it is {why}, and should be a folder of user {user} with mode 700; give another --socket, or move it away", .folder.display())]
    NotPrivate {
        folder: PathBuf,
        why: String,
        user: u32,
    },
    #[error("a host already serves {}{}: use it, stop it, or give another --socket", .socket.display(), .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Taken { socket: PathBuf, pid: Option<u32> },
    #[error(
        "the host that serves there (process {pid}) cannot be ended: do it as the user that it runs as"
    )]
    Replace { pid: u32, source: io::Error },
    #[error("cannot prepare {}: see that there is room, or give another --socket", .path.display())]
    Prepare { path: PathBuf, source: io::Error },
}

impl PlaceError {
    fn prepare(path: &Path, source: io::Error) -> Self {
        let path = path.into();
        Self::Prepare { path, source }
    }
}

/// What every command looks at before it uses a socket.
///
/// # Errors
/// When the kernel cannot take its path, or others could have put something else there.
pub fn check(socket: &Path) -> Result<(), PlaceError> {
    let length = socket.as_os_str().len();
    if length > LONGEST_SOCKET {
        return Err(PlaceError::TooLong {
            socket: socket.into(),
            length,
        });
    }
    if is_no_socket(socket) {
        return Err(PlaceError::NotASocket(socket.into()));
    }
    // Somebody else may have made them: those above may be everybody's.
    unasked_folders().try_for_each(|folder| match socket.starts_with(&folder) {
        true => check_private(&folder),
        false => Ok(()),
    })
}

/// Folders that are this user's without being asked for.
fn unasked_folders() -> impl Iterator<Item = PathBuf> {
    let in_runtime_dir = runtime_dir().map(|base| base.join(FOLDER));
    [Some(shared_base()), in_runtime_dir].into_iter().flatten()
}

/// Whether a group may use what lies in a folder, as far as its mode tells.
fn may_pass(folder: &Metadata, group: &Group) -> bool {
    let bit = match folder.gid() == group.gid {
        true => 0o010,
        false => 0o001,
    };
    folder.mode() & bit != 0
}

/// Whether what lies at a path, or where it leads, is there and no socket.
fn is_no_socket(path: &Path) -> bool {
    let there = fs::metadata(path).or_else(|_leads_nowhere| fs::symlink_metadata(path));
    there.is_ok_and(|metadata| !metadata.file_type().is_socket())
}

/// A folder in which others could write is worse than none.
fn check_private(folder: &Path) -> Result<(), PlaceError> {
    let user = rustix::process::geteuid().as_raw();
    let why = match if_there(fs::symlink_metadata(folder)) {
        Ok(metadata) => metadata.and_then(|metadata| why_not_private(&metadata, user)),
        Err(error) => Some(format!("not to be looked at ({error})")),
    };
    match why {
        None => Ok(()),
        Some(why) => Err(PlaceError::NotPrivate {
            folder: folder.into(),
            why,
            user,
        }),
    }
}

fn why_not_private(metadata: &Metadata, user: u32) -> Option<String> {
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_symlink() {
        Some("a symbolic link".into())
    } else if !metadata.is_dir() {
        Some("no folder".into())
    } else if metadata.uid() != user {
        Some(format!("user {}'s", metadata.uid()))
    } else if mode & 0o077 != 0 {
        Some(format!("open to others with mode {mode:o}"))
    } else {
        None
    }
}

/// Where a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    socket: PathBuf,
    true_socket: PathBuf,
}

impl Place {
    /// Finds the true path of a place, and makes the folders above it.
    pub(super) fn prepare(socket: &Path) -> Result<Self, PlaceError> {
        check(socket)?;
        let name = socket
            .file_name()
            .ok_or_else(|| PlaceError::NoName(socket.into()))?;
        let failed = |source| PlaceError::prepare(socket, source);
        let above = match socket.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        make_private_folders(above).map_err(failed)?;
        let above = above.canonicalize().map_err(failed)?;
        Ok(Self {
            socket: socket.into(),
            true_socket: above.join(name),
        })
    }

    /// The socket, as it was given.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The socket's path, the same however it was given.
    #[must_use]
    pub fn true_socket(&self) -> &Path {
        &self.true_socket
    }

    /// What all files of the host lie in.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        folder_of(&self.true_socket)
    }

    /// What a host in the background logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        log_of(&self.true_socket)
    }

    /// What was decided.
    #[must_use]
    pub fn decisions(&self) -> PathBuf {
        self.folder().join("decisions")
    }

    /// What changes over HTTP need.
    pub(super) fn token(&self) -> PathBuf {
        self.folder().join("token")
    }

    fn lock(&self) -> PathBuf {
        self.folder().join(LOCK)
    }

    /// What was agreed about VMs.
    pub(super) fn bundles(&self) -> Bundles {
        Bundles::in_folder(self.folder().join(VMS))
    }

    /// Which stores are this place's.
    pub(super) fn store_notes(&self) -> StoreNotes {
        StoreNotes::in_folder(self.folder().join(STORES))
    }

    /// Counts this host. The number is written before it is used: no two hosts have the same. By the clock it is above those
    /// of hosts before even where what they wrote is lost.
    fn next_epoch(&self) -> io::Result<u64> {
        let path = self.folder().join(EPOCH);
        let before = if_there(fs::read_to_string(&path))?;
        let before = before.and_then(|text| text.trim().parse::<u64>().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |time| time.as_millis());
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let epoch = before.unwrap_or(0).saturating_add(1).max(now);
        replace(&path, epoch.to_string())?;
        Ok(epoch)
    }

    /// Listens at the socket, which nobody but its owner and that group can connect to at any moment.
    pub(super) fn listen(&self, group: Option<&Group>) -> io::Result<UnixListener> {
        let listener = new_socket(SocketType::STREAM)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(&self.socket)?)?;
        // Until it listens nobody can connect, whatever the umask let the mode be.
        fs::set_permissions(&self.socket, Permissions::from_mode(0o600))?;
        if let Some(group) = group {
            chown(&self.socket, None, Some(group.gid))?;
            fs::set_permissions(&self.socket, Permissions::from_mode(0o660))?;
            self.let_pass(group)?;
        }
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(listener.into())
    }

    /// Whether no other user can come to the socket, whatever its mode: it lies where commands want a folder to be its
    /// owner's alone.
    pub(super) fn is_own_alone(&self) -> bool {
        unasked_folders().any(|folder| self.socket.starts_with(folder))
    }

    /// A group that may use the socket must come to it. A folder in which there is nothing else, as the host makes it, is one that
    /// the group may pass and not look into. Others are for their owners to open.
    fn let_pass(&self, group: &Group) -> io::Result<()> {
        let above = self.true_socket.parent().unwrap_or(Path::new("/"));
        let metadata = fs::metadata(above)?;
        let is_own = metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.mode() & 0o077 == 0
            && names_in(above)?.iter().all(|name| {
                let path = above.join(name);
                path == self.true_socket || path == self.folder()
            });
        if is_own {
            chown(above, None, Some(group.gid))?;
            fs::set_permissions(above, Permissions::from_mode(0o710))?;
        }
        for folder in self.true_socket.ancestors().skip(1) {
            if !may_pass(&fs::metadata(folder)?, group) {
                tracing::warn!(
                    "group {0} may not come to the socket through {1}: `chgrp {0} {1} && chmod g+x {1}` lets it",
                    group.name,
                    folder.display()
                );
            }
        }
        Ok(())
    }

    /// Makes the folder if it is not there.
    fn make_folder(&self) -> Result<(), PlaceError> {
        let folder = self.folder();
        let failed = |source| PlaceError::prepare(&folder, source);
        match make_private_folder(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map_err(failed),
        }
        check_private(&folder)?;
        // If it is not there, its host has just gone, and the folder with it.
        let names = if_there(names_in(&folder)).map_err(failed)?;
        let names = names.unwrap_or_default();
        match names.is_empty() || names.iter().any(|name| name == LOCK) {
            true => Ok(()),
            false => Err(PlaceError::NotAHosts(folder)),
        }
    }

    /// Locks the place. None if its folder went at this moment.
    fn try_lock(&self) -> Result<Option<File>, PlaceError> {
        self.make_folder()?;
        let failed = |source| PlaceError::prepare(&self.lock(), source);
        let Some(mut lock) = if_there(open_lock(&self.lock())).map_err(failed)? else {
            return Ok(None);
        };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(PlaceError::Taken {
                socket: self.socket.clone(),
                pid: pid_in(&mut lock),
            });
        }
        // A host that just ended may have removed the file that was opened here.
        let is_there = lock.metadata().map_err(failed)?.nlink() > 0;
        Ok(is_there.then_some(lock))
    }

    /// Removes the socket of a host that is gone.
    fn remove_dead_socket(&self) -> Result<(), PlaceError> {
        let failed = |source| PlaceError::prepare(&self.socket, source);
        match look_at(&self.socket).map_err(failed)? {
            Found::Nothing => Ok(()),
            Found::DeadSocket => fs::remove_file(&self.socket).map_err(failed),
            Found::Served => Err(PlaceError::Served(self.socket.clone())),
            Found::SomethingElse => Err(PlaceError::NotASocket(self.socket.clone())),
        }
    }
}

/// What lies at a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A socket that nobody serves any more.
    DeadSocket,
    Served,
    SomethingElse,
}

fn look_at(socket: &Path) -> io::Result<Found> {
    match if_there(fs::symlink_metadata(socket))? {
        Some(metadata) if metadata.file_type().is_socket() => {}
        Some(_) => return Ok(Found::SomethingElse),
        None => return Ok(Found::Nothing),
    }
    match rustix::net::connect(
        new_socket(SocketType::STREAM)?,
        &SocketAddrUnix::new(socket)?,
    ) {
        // Full, or of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(Found::Served),
        Err(Errno::CONNREFUSED) => Ok(Found::DeadSocket),
        Err(Errno::NOENT) => Ok(Found::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// One that does not block.
pub(super) fn new_socket(kind: SocketType) -> io::Result<rustix::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    Ok(socket)
}

/// The right to be the host at a place, held until it is dropped.
#[derive(Debug)]
pub struct Claim {
    place: Place,
    epoch: u64,
    _lock: File,
}

impl Claim {
    /// Claims a place, and removes the socket that a host that died has left there. Its log and its decisions stay.
    ///
    /// # Errors
    /// When another host lives there, something of somebody else's lies there, or its folder cannot be made.
    pub fn take(socket: &Path) -> Result<Self, PlaceError> {
        let place = Place::prepare(socket)?;
        // Before anything is made: the socket of a host that lives is found served, and is told of below.
        if matches!(look_at(socket), Ok(Found::SomethingElse)) {
            return Err(PlaceError::NotASocket(socket.into()));
        }
        let mut lock = loop {
            if let Some(lock) = place.try_lock()? {
                break lock;
            }
        };
        let written = lock
            .set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .and_then(|()| place.next_epoch());
        let claim = Self {
            epoch: *written.as_ref().unwrap_or(&0),
            place,
            _lock: lock,
        };
        written.map_err(|source| PlaceError::prepare(&claim.place.folder(), source))?;
        // A host that died cannot take its token with it.
        drop(fs::remove_file(claim.place.token()));
        claim.place.remove_dead_socket()?;
        Ok(claim)
    }

    /// As [`Self::take`], from the host that lives there. It is killed as it stands: what it has agreed to is written down, and
    /// its VMs run on and are taken over.
    ///
    /// # Errors
    /// As [`Self::take`], and when that host may not be killed.
    pub fn take_from_another(socket: &Path) -> Result<Self, PlaceError> {
        let mut taken = Self::take(socket);
        while let Err(PlaceError::Taken { pid: Some(pid), .. }) = taken {
            let place = Place::prepare(socket)?;
            // It lives on where this one could not.
            let counted = place.next_epoch();
            counted.map_err(|source| PlaceError::prepare(&place.folder(), source))?;
            let lock = place.lock();
            let failed = |source| PlaceError::Replace { pid, source };
            kill_holder(pid, &lock).map_err(failed)?;
            taken = Self::take(socket);
        }
        taken
    }

    /// What was claimed.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Which host of its place this is: each has a higher number than those before it.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Removes what the host has written for those who look why it ended.
    pub fn forget(&self) {
        for file in [self.place.log(), self.place.decisions()] {
            // What is not there is gone already.
            drop(fs::remove_file(older(&file)));
            drop(fs::remove_file(file));
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What is gone already, or is not a host's, is what is wanted. The lock is held until its file is closed,
        // after this, so what is removed here is this host's own. It stays where something else does, for it says
        // whose folder this is.
        drop(self.place.remove_dead_socket());
        let folder = self.place.folder();
        // As long as a VM is left, the next host must know what it shows, and how many hosts there were.
        if if_there(fs::remove_dir(folder.join(VMS))).is_ok() {
            drop(fs::remove_dir_all(folder.join(STORES)));
            drop(fs::remove_file(folder.join(EPOCH)));
        }
        if names_in(&folder).is_ok_and(|names| names == [LOCK]) {
            drop(fs::remove_file(self.place.lock()));
            drop(fs::remove_dir(folder));
        }
    }
}

/// Kills the process that holds a lock, and waits for its end. Another may have come meanwhile: then nothing is done.
fn kill_holder(pid: u32, lock: &Path) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else {
        return Ok(());
    };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        other => other?,
    };
    let lock = FileId::of_metadata(&fs::metadata(lock)?);
    let number = pid.as_raw_nonzero().get().cast_unsigned();
    if open_files::find(number, |id| id == lock)?.is_some() {
        pidfd_send_signal(&process, Signal::KILL)?;
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        poll(&mut ended, None)?;
    }
    Ok(())
}

fn names_in(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

/// The lock, if it is a file of ours alone: what a link leads to would be overwritten.
fn open_lock(path: &Path) -> io::Result<File> {
    // Neither a pipe nor a terminal is waited for.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    let found = file.metadata()?;
    let is_own = found.uid() == rustix::process::geteuid().as_raw();
    // A host that is about to end may have removed it already.
    if !found.is_file() || !is_own || found.nlink() > 1 {
        return Err(io::Error::other(
            "this is no lock of a host's: move it away",
        ));
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Where a file that is full is kept.
pub(super) fn older(path: &Path) -> PathBuf {
    path.with_added_extension("old")
}

/// A file for its owner alone, in place of any that is there.
pub(super) fn create_private_file(path: &Path) -> io::Result<File> {
    if_there(fs::remove_file(path))?;
    create_new_private_file(path)
}

/// One that is not there yet.
pub(crate) fn create_new_private_file(path: &Path) -> io::Result<File> {
    open_private(path, File::options().append(true).create_new(true))
}

/// Whatever the umask is.
fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// A folder for its owner alone, whatever the umask.
pub(crate) fn make_private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))
}

/// The same, with those above it. One that is there is left as it is.
pub(super) fn make_private_folders(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_private_folders(above)?;
    }
    match make_private_folder(folder) {
        // Another host may have been faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match folder.is_dir() {
            true => Ok(()),
            false => Err(Errno::NOTDIR.into()),
        },
        other => other,
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
        for spelling in ["deep/host.sock", "deep/../deep/./host.sock"] {
            let error = Claim::take(&folder.path().join(spelling)).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(&std::process::id().to_string()), "{error}");
        }
        drop(claim);
        assert_eq!(fs::read_dir(folder.path().join("deep")).unwrap().count(), 0);
        assert!(Claim::take(&socket).is_ok());
    }

    #[test]
    fn a_socket_is_replaced_only_when_nobody_serves_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("x");
        let listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(look_at(&socket).unwrap(), Found::Served);
        assert!(matches!(Claim::take(&socket), Err(PlaceError::Served(_))));
        assert_eq!(names_in(folder.path()).unwrap(), ["x"]);
        drop(listener);
        assert_eq!(look_at(&socket).unwrap(), Found::DeadSocket);
        drop(Claim::take(&socket).unwrap());
        assert!(names_in(folder.path()).unwrap().is_empty());

        fs::write(&socket, "mine").unwrap();
        assert!(matches!(
            Claim::take(&socket),
            Err(PlaceError::NotASocket(_))
        ));
        assert_eq!(fs::read(&socket).unwrap(), b"mine");
        assert_eq!(names_in(folder.path()).unwrap(), ["x"]);
    }

    #[test]
    fn a_folder_that_is_not_a_hosts_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("x");
        let theirs = folder.path().join("x.d");
        make_private_folder(&theirs).unwrap();
        fs::write(theirs.join("log"), "mine").unwrap();
        assert!(matches!(
            Claim::take(&socket),
            Err(PlaceError::NotAHosts(_))
        ));
        // One that a host has left when it was killed is.
        fs::write(theirs.join(LOCK), "1").unwrap();
        drop(Claim::take(&socket).unwrap());
        assert_eq!(fs::read(theirs.join("log")).unwrap(), b"mine");
        let claim = Claim::take(&socket).unwrap();
        claim.forget();
        drop(claim);
        assert!(!theirs.exists());
    }

    #[test]
    fn a_group_may_pass_a_folder_that_is_the_hosts_alone_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let gid = rustix::process::getegid().as_raw();
        let group: Group = gid.to_string().parse().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        for (name, more, passes) in [("own", None, 0o710), ("other", Some("mine"), 0o700)] {
            let above = folder.path().join(name);
            let claim = Claim::take(&above.join("x")).unwrap();
            if let Some(more) = more {
                fs::write(above.join(more), "mine").unwrap();
            }
            let listener = claim.place().listen(Some(&group)).unwrap();
            assert_eq!(mode(&above), passes, "{name}");
            assert_eq!(mode(claim.place().socket()), 0o660);
            assert_eq!(mode(&claim.place().folder()), 0o700);
            drop(listener);
            claim.place().remove_dead_socket().unwrap();
            let _alone = claim.place().listen(None).unwrap();
            assert_eq!(mode(claim.place().socket()), 0o600);
        }
    }

    #[test]
    fn a_lock_that_is_somebody_elses_file_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, mine) = (folder.path().join("x"), folder.path().join("mine"));
        let lock = folder.path().join("x.d").join(LOCK);
        make_private_folder(&folder.path().join("x.d")).unwrap();
        fs::write(&mine, "mine").unwrap();
        fs::set_permissions(&mine, Permissions::from_mode(0o644)).unwrap();
        let links: [fn(&Path, &Path) -> io::Result<()>; 2] = [
            |to, from| std::os::unix::fs::symlink(to, from),
            |to, from| fs::hard_link(to, from),
        ];
        for link in links {
            link(&mine, &lock).unwrap();
            assert!(Claim::take(&socket).is_err());
            assert_eq!(fs::read(&mine).unwrap(), b"mine");
            let mode = fs::metadata(&mine).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o644);
            fs::remove_file(&lock).unwrap();
        }
    }

    #[test]
    fn a_folder_that_others_can_reach_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let (open, link) = (folder.path().join("open"), folder.path().join("link"));
        let user = rustix::process::geteuid().as_raw();
        make_private_folder(&open).unwrap();
        assert!(check_private(&open).is_ok());
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(check_private(&link).is_err());
        fs::set_permissions(&open, Permissions::from_mode(0o750)).unwrap();
        let error = check_private(&open).unwrap_err().to_string();
        assert!(error.contains("mode 750"), "{error}");
        let metadata = fs::symlink_metadata(&open).unwrap();
        assert!(why_not_private(&metadata, user + 1).is_some());
    }
}
