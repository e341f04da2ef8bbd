//! Which stores are this place's: noted in files without content, whose names are the stores' numbers in the kernel. The
//! folder is the host's alone: a VM process cannot reach it.

use crate::memory::MemoryError;
use crate::memory::areas::FileId;
use crate::memory::store::Store;
use crate::regular_file::if_there;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;

/// The folder of these files. It is made when the first is.
#[derive(Clone, Debug)]
pub struct StoreNotes(PathBuf);

impl StoreNotes {
    /// In that folder.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> Self {
        Self(folder)
    }

    fn path(&self, id: FileId) -> PathBuf {
        self.0.join(id.to_string())
    }

    pub(crate) fn has(&self, id: FileId) -> bool {
        self.path(id).exists()
    }

    /// To be called before a VM is given the store.
    pub(super) fn add(&self, id: FileId) -> Result<(), MemoryError> {
        let make = || {
            fs::create_dir_all(&self.0)?;
            File::create(self.path(id)).map(drop)
        };
        make()
            .map_err(|error| MemoryError::Store(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    /// Of others than these no VM shows a frame any more.
    pub(super) fn keep(&self, stores: impl Iterator<Item = FileId>) {
        let kept: BTreeSet<OsString> = stores.map(|id| id.to_string().into()).collect();
        let Ok(entries) = fs::read_dir(&self.0) else {
            return;
        };
        for entry in entries.flatten() {
            if !kept.contains(&entry.file_name()) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }

    /// No VM shows a frame of it any more.
    pub(super) fn remove(&self, store: &Store) {
        let id = store.file_id();
        let removed = id.map(|id| if_there(fs::remove_file(self.path(id))));
        if !matches!(removed, Ok(Ok(_))) {
            tracing::debug!("the note of a store stays: {removed:?}");
        }
    }
}
