//! What a host leaves of each VM for the next one: a folder with the VM's socket, and what was agreed about it.
//!
//! ```text
//!   PATH.d/vms/NAME/socket   where its process listens
//!   PATH.d/vms/NAME/vm       what was agreed, as JSON
//! ```
//!
//! What was agreed is the host's own word: what a VM process says of itself later is a claim. It is written before it is
//! acknowledged, in one step, so that a host that dies at any moment leaves the old or the new.

use crate::memory::areas::FileId;
use crate::regular_file::{if_there, read_text, replace};
use page::PageCount;
use protocol::{VmConfig, VmName};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{SocketAddrUnix, SocketType, bind, connect};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::runtime_dir::{make_private_folder, make_private_folders, new_socket};

/// The version of what is written. A host reads its own and older ones.
const FORMAT: u32 = 1;
/// Bytes of what is written, many times more than it needs.
const LARGEST: u64 = 1 << 20;
const SOCKET: &str = "socket";
const AGREED: &str = "vm";

/// What was agreed about a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Agreed {
    format: u32,
    pub(super) config: VmConfig,
    /// What an administrator fixed that it holds.
    pub(super) pinned: Option<PageCount>,
    /// By which its memory is known, once its guest runs.
    pub(super) memory_file: Option<FileId>,
}

impl Agreed {
    pub(super) fn new(
        config: VmConfig,
        pinned: Option<PageCount>,
        memory_file: Option<FileId>,
    ) -> Self {
        Self {
            format: FORMAT,
            config,
            pinned,
            memory_file,
        }
    }
}

/// The bundles of all VMs of a place.
#[derive(Clone, Debug)]
pub(super) struct Bundles(PathBuf);

impl Bundles {
    pub(super) fn in_folder(folder: PathBuf) -> Self {
        Self(folder)
    }

    fn of(&self, name: &VmName) -> PathBuf {
        self.0.join(name.as_str())
    }

    /// Makes the bundle of a VM that is to start, in the place of one that was left. Returns the socket that its process is
    /// to listen at.
    pub(super) fn make(&self, agreed: &Agreed) -> io::Result<OwnedFd> {
        let name = &agreed.config.name;
        self.remove(name)?;
        make_private_folders(&self.0)?;
        make_private_folder(&self.of(name))?;
        self.write(agreed)?;
        let socket = new_socket(SocketType::SEQPACKET)?;
        at_socket(&self.of(name), |address| bind(&socket, address))?;
        Ok(socket)
    }

    /// Writes what is agreed now.
    pub(super) fn write(&self, agreed: &Agreed) -> io::Result<()> {
        let path = self.of(&agreed.config.name).join(AGREED);
        replace(&path, serde_json::to_vec_pretty(agreed)?)
    }

    /// Removes what was left of a VM, if there is something.
    pub(super) fn remove(&self, name: &VmName) -> io::Result<()> {
        if_there(fs::remove_dir_all(self.of(name))).map(drop)
    }

    /// All that were left, with what was agreed, if that can be read.
    pub(super) fn all(&self) -> io::Result<Vec<(VmName, io::Result<Agreed>)>> {
        let Some(entries) = if_there(fs::read_dir(&self.0))? else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.parse::<VmName>().ok());
            if let Some(name) = name {
                let agreed = self.read(&name);
                all.push((name, agreed));
            }
        }
        Ok(all)
    }

    fn read(&self, name: &VmName) -> io::Result<Agreed> {
        let text = read_text(&self.of(name).join(AGREED), LARGEST)?;
        let agreed: Agreed = serde_json::from_str(&text)?;
        match agreed.format <= FORMAT {
            true if agreed.config.name == *name => Ok(agreed),
            true => Err(io::Error::other("it is of another VM")),
            false => Err(io::Error::other("a newer version of ballonet wrote it")),
        }
    }

    /// Connects to a VM's process. It need not answer for that.
    pub(super) fn connect(&self, name: &VmName) -> io::Result<OwnedFd> {
        let socket = new_socket(SocketType::SEQPACKET)?;
        at_socket(&self.of(name), |address| connect(&socket, address))?;
        Ok(socket)
    }
}

/// By the folder's descriptor, for the kernel takes no long paths.
fn at_socket(
    folder: &Path,
    call: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<()>,
) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    Ok(call(&SocketAddrUnix::new(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::vm::tests::config;

    #[test]
    fn what_was_agreed_is_found_again_and_who_listens_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(90)).join("vms");
        let bundles = Bundles::in_folder(deep.clone());
        assert!(bundles.all().unwrap().is_empty());
        let config = config(PageCount(100));
        let name = config.name.clone();
        let mut agreed = Agreed::new(config, None, None);
        let refused = |bundles: &Bundles| bundles.connect(&name).unwrap_err().kind();
        for _ in 0..2 {
            let socket = bundles.make(&agreed).unwrap();
            assert_eq!(refused(&bundles), io::ErrorKind::ConnectionRefused);
            rustix::net::listen(&socket, 1).unwrap();
            bundles.connect(&name).unwrap();
        }
        agreed.pinned = Some(PageCount(7));
        bundles.write(&agreed).unwrap();
        let all = bundles.all().unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].0, name);
        assert_eq!(all[0].1.as_ref().unwrap(), &agreed);
        // Cut short, or of a later version: it is told of, and nothing else.
        agreed.format = FORMAT + 1;
        bundles.write(&agreed).unwrap();
        assert!(bundles.all().unwrap()[0].1.is_err());
        fs::write(deep.join(name.as_str()).join(AGREED), "{").unwrap();
        assert!(bundles.all().unwrap()[0].1.is_err());
        bundles.remove(&name).unwrap();
        bundles.remove(&name).unwrap();
        assert!(bundles.all().unwrap().is_empty());
    }
}
