//! The file in which a host's state is kept: one for each place at which a host may be.
//!
//! It is made when there is something to keep, under another name first: a loss of power meanwhile leaves none rather than
//! half a one.

use super::database::{Database, DatabaseError};
use super::record::Kept;
use crate::host::runtime_dir::{Place, make_private_folders};
use crate::regular_file::if_there;
use redb::backends::FileBackend;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of a name that file systems take, some left for endings.
const LONGEST_NAME: usize = 200;
/// Of a longer one, so many are left in front.
const LEGIBLE: usize = 100;

/// Why a file of state cannot be used.
#[derive(Debug, Error)]
pub(super) enum FileError {
    #[error("cannot use {}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot use {}", .path.display())]
    Database {
        path: PathBuf,
        source: DatabaseError,
    },
}

/// Where it is.
#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Whose it is: told in it, so that no other host takes it for its own.
    place: String,
}

impl StateFile {
    /// That of a place, in a folder.
    pub(super) fn of(place: &Place, folder: &Path) -> Self {
        let name = name_of(place.true_socket().as_os_str().as_bytes());
        Self {
            path: folder.join(format!("{name}.state")),
            place: place.true_socket().to_string_lossy().into_owned(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it and reads what is kept there, if it is there.
    pub(super) fn open(&self) -> Result<Option<(Database, Kept)>, FileError> {
        let Some(file) = if_there(options().open(&self.path)).map_err(|e| self.failed(e))? else {
            return Ok(None);
        };
        let opened = storage(file).and_then(|storage| Database::open(storage, &self.place));
        opened.map(Some).map_err(|source| self.unusable(source))
    }

    /// Makes it. It was not there.
    pub(super) fn make(&self) -> Result<Database, FileError> {
        let (folder, new) = (self.folder(), self.path.with_extension("new"));
        let prepare = || {
            make_private_folders(folder)?;
            // What an earlier host had no time to finish.
            if_there(fs::remove_file(&new))?;
            options().create_new(true).open(&new)
        };
        let file = prepare().map_err(|error| self.failed(error))?;
        let made = storage(file).and_then(|storage| Database::make(storage, &self.place));
        let named = made.map_err(|source| self.unusable(source));
        let named = named.and_then(|database| {
            let named = fs::rename(&new, &self.path).and_then(|()| sync_names(folder));
            named.map(|()| database).map_err(|error| self.failed(error))
        });
        named.inspect_err(|_| drop(fs::remove_file(&new)))
    }

    /// Removes it. Nothing is kept there, so that it does not matter when the disk hears of that.
    pub(super) fn remove(&self) {
        if let Err(error) = if_there(fs::remove_file(&self.path)) {
            tracing::warn!("{} stays behind: {error}", self.path.display());
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    fn failed(&self, source: io::Error) -> FileError {
        let path = self.path.clone();
        FileError::File { path, source }
    }

    fn unusable(&self, source: DatabaseError) -> FileError {
        let path = self.path.clone();
        FileError::Database { path, source }
    }
}

/// Nobody else may read what VMs are told on their command lines. A link leads nowhere.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

fn storage(file: File) -> Result<FileBackend, DatabaseError> {
    FileBackend::new(file).map_err(super::database::database)
}

/// The names in a folder outlive a loss of power from here on, and the folder's own: those above it may be as new. Who may
/// not read one has not made it.
fn sync_names(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    let above = folder.ancestors().skip(1);
    for above in above.map_while(|above| File::open(above).ok()) {
        // Some file systems have nothing to sync there, and say so by an error.
        above
            .sync_all()
            .unwrap_or_else(|error| tracing::debug!("not synced: {error}"));
    }
    Ok(())
}

/// A name for the socket at a path, legible and another for every path: `/` is written `-`, and what else a name should not
/// have as `%` and its number. Of a long one the end is a hash behind `%%`, which no other name has in it.
fn name_of(path: &[u8]) -> String {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let mut name = String::new();
    for &byte in path {
        match byte {
            b'/' => name.push('-'),
            b'.' | b'_' => name.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => name.push(byte.into()),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    if name.len() > LONGEST_NAME {
        name.truncate(LEGIBLE);
        name.push_str(&format!("%%{:032x}", xxh3_128(path)));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_tells_its_path() {
        assert_eq!(
            name_of(b"/run/ballonet/host.sock"),
            "run-ballonet-host.sock"
        );
        assert_eq!(name_of(b"/run/a-b/\xff"), "run-a%2db-%ff");
        let long = name_of(&[b'x'; 300]);
        assert!(long.starts_with("xxxx") && long.contains("%%"), "{long}");
        assert!(long.len() <= LONGEST_NAME, "{long}");
    }

    proptest! {
        #[test]
        fn two_paths_have_two_names(
            one in "/[a/%.\\-]{0,12}",
            other in "/[a/%.\\-]{0,12}",
        ) {
            let is_same = name_of(one.as_bytes()) == name_of(other.as_bytes());
            prop_assert_eq!(is_same, one == other);
        }
    }
}
