//! VMs of a host that died. They run on, because a guest must not die with its host; but a new host
//! does not know them yet, so their memory would be missing from its budget.
//!
//! Which host a VM process had is told by its arguments: the true path of that host's socket. Two paths are of one
//! place if the kernel finds the same folder by them, each in the file tree of its own process.

use crate::host::runtime_dir::Place;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A VM process without its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::host) struct Orphan {
    pub(in crate::host) name: String,
    pub(in crate::host) pid: u32,
}

/// The VM processes that a host at a place has started. Called before this host has any.
pub(in crate::host) fn find(place: &Place) -> Vec<Orphan> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let (name, socket) = vm_in(&command)?;
            let root = format!("/proc/{pid}/root");
            is_same(Path::new(&root), socket, place.true_socket()).then(|| Orphan {
                name: String::from_utf8_lossy(name).into_owned(),
                pid,
            })
        })
        .collect()
}

/// The arguments of a VM process; [`vm_in`] recognizes them.
pub(super) fn arguments<'a>(name: &'a str, place: &'a Place) -> [&'a OsStr; 3] {
    [
        "vm".as_ref(),
        name.as_ref(),
        place.true_socket().as_os_str(),
    ]
}

/// The VM's name and its host's socket, if the arguments are those of a VM process.
fn vm_in(command: &[u8]) -> Option<(&[u8], &Path)> {
    let words: Vec<&[u8]> = command
        .strip_suffix(&[0])?
        .split(|&byte| byte == 0)
        .collect();
    match words[..] {
        [_, b"vm", name, socket] => Some((name, Path::new(OsStr::from_bytes(socket)))),
        _ => None,
    }
}

/// Whether a path in a file tree with another root is `ours`.
fn is_same(root: &Path, theirs: &Path, ours: &Path) -> bool {
    let (Some(their_folder), Some(our_folder)) = (theirs.parent(), ours.parent()) else {
        return false;
    };
    if theirs.file_name() != ours.file_name() {
        return false;
    }
    let inside = their_folder.strip_prefix("/").unwrap_or(their_folder);
    match (fs::metadata(root.join(inside)), fs::metadata(our_folder)) {
        (Ok(theirs), Ok(ours)) => (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()),
        // It may not be looked at, or the process has just ended.
        _ => their_folder == our_folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::runtime_dir::Claim;

    #[test]
    fn a_vm_process_is_recognized_by_its_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim::take(&folder.path().join("./x.sock")).unwrap();
        let words = arguments("a", claim.place()).map(OsStr::as_bytes);
        let command = [b"ballonet", &words.join(&0)[..], b""].join(&0);
        let (name, socket) = vm_in(&command).unwrap();
        assert_eq!(name, b"a");
        assert_eq!(socket, claim.place().true_socket());
        for other in ["a\0vm\0", "", "vi\0vm\0a\0b\0c\0"] {
            assert_eq!(vm_in(other.as_bytes()), None);
        }
    }

    #[test]
    fn paths_are_compared_as_the_kernel_sees_them() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let root = Path::new("/");
        assert!(is_same(root, &link.join("x"), &a.join("x")));
        assert!(!is_same(root, &b.join("x"), &a.join("x")));
        assert!(!is_same(root, &a.join("y"), &a.join("x")));
        // In a tree of its own, /a is another folder than ours of that name.
        assert!(is_same(folder.path(), Path::new("/a/x"), &a.join("x")));
        assert!(!is_same(folder.path(), Path::new("/b/x"), &a.join("x")));
    }
}
