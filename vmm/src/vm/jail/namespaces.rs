//! A network without interfaces, System V objects of its own, and a file tree with nothing in it.
//!
//! What is open stays so: a tap that was opened before goes on in its network, and a disk in its file system. Whoever is
//! not allowed to make namespaces makes them in a user namespace, where he is: to others the process is whose it was.
#![expect(
    unsafe_code,
    reason = "unshare can part threads from their descriptors, if it is told to"
)]

use super::held;
use protocol::Holding;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::io;
use std::thread::{self, JoinHandle};

/// A folder that is there on every machine that has got so far; the empty tree is made on top of it.
const SOME_FOLDER: &str = "/proc";

/// On the way out: the old file tree is out of reach and may still be there.
#[derive(Debug)]
pub(super) struct Leaving {
    held: Holding,
    detaching: Option<JoinHandle<Result<(), Errno>>>,
}

/// Begins it, which only the first thread of a process can.
pub(super) fn leave() -> Leaving {
    let own = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWNS;
    let left = unshare(own).or_else(|_| unshare(own | UnshareFlags::NEWUSER));
    let (held, detaching) = match held("namespaces", left) {
        Holding::Whole => match empty_tree() {
            Ok(detaching) => (Holding::Whole, Some(detaching)),
            Err(error) => {
                tracing::debug!("no empty file tree: {error}");
                (Holding::Part, None)
            }
        },
        other => (other, None),
    };
    Leaving { held, detaching }
}

impl Leaving {
    /// Returns when the old tree is gone, and the thread that was needed for that.
    pub(super) fn arrive(self) -> Holding {
        match self.detaching.map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => self.held,
            Some(_) => Holding::Part,
        }
    }
}

fn unshare(own: UnshareFlags) -> Result<(), Errno> {
    assert!(!own.contains(UnshareFlags::FILES), "descriptors are shared");
    // SAFETY: by the assert the table of descriptors stays the one that all threads have.
    unsafe { unshare_unsafe(own) }
}

/// Puts an empty folder that nobody can write to in the place of `/`, and begins to let go of what was there.
///
/// The kernel makes whoever detaches a tree wait until no processor looks at it, which may take long on a busy machine. So
/// that is done beside what else is to be done at the start, by a thread that still has the rights for it.
fn empty_tree() -> io::Result<JoinHandle<Result<(), Errno>>> {
    // Nothing of this is to be seen by others.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    let access = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", SOME_FOLDER, "tmpfs", access, None)?;
    chdir(SOME_FOLDER)?;
    // The old tree comes to lie on top of the new one, where it is taken off. Nobody finds it there by a path.
    pivot_root(".", ".")?;
    let thread = thread::Builder::new().name("detach".into());
    thread.spawn(|| unmount(".", UnmountFlags::DETACH))
}
