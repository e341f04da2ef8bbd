//! VMs of a host that died. They run on, because a guest must not die with its host; but a new host
//! does not know them yet, so their memory would be missing from its budget.
//!
//! Which host a VM process had is told by its arguments: the true path of that host's socket. Two paths are of one
//! place if the kernel finds the same folder by them, each in the file tree of its own process. A jailed process has an empty
//! one: then the paths must be the same, and the trees that the two hosts had.

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
    let own_tree = own_tree();
    processes
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            of_process(pid, place, own_tree.as_deref())
        })
        .collect()
}

fn of_process(pid: u32, place: &Place, own_tree: Option<&str>) -> Option<Orphan> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let vm = vm_in(&command)?;
    let root = format!("/proc/{pid}/root");
    let is_same_tree = vm.tree.is_none() || vm.tree == own_tree;
    let (theirs, ours) = (vm.socket, place.true_socket());
    is_same(Path::new(&root), theirs, ours, is_same_tree).then(|| Orphan {
        name: String::from_utf8_lossy(vm.name).into_owned(),
        pid,
    })
}

/// The arguments of a VM process; [`vm_in`] recognizes them.
pub(super) fn arguments<'a>(name: &'a str, place: &'a Place) -> [&'a OsStr; 3] {
    [
        "vm".as_ref(),
        name.as_ref(),
        place.true_socket().as_os_str(),
    ]
}

/// Whether a process is the VM of that name of a host at that place.
pub(super) fn is_vm_at(pid: u32, name: &str, place: &Place) -> bool {
    of_process(pid, place, own_tree().as_deref()).is_some_and(|orphan| orphan.name == name)
}

/// Which file tree this process sees, as one word: by its root's numbers. The last argument of a VM process.
pub(super) fn own_tree() -> Option<String> {
    let root = fs::metadata("/").ok()?;
    Some(format!("{}:{}", root.dev(), root.ino()))
}

/// What the arguments of a VM process say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said<'a> {
    name: &'a [u8],
    /// Its host's socket,
    socket: &'a Path,
    /// and the tree that the host saw.
    tree: Option<&'a str>,
}

fn vm_in(command: &[u8]) -> Option<Said<'_>> {
    let words: Vec<&[u8]> = command
        .strip_suffix(&[0])?
        .split(|&byte| byte == 0)
        .collect();
    let (name, socket, tree) = match words[..] {
        [_, b"vm", name, socket] => (name, socket, None),
        [_, b"vm", name, socket, tree] => (name, socket, std::str::from_utf8(tree).ok()),
        _ => return None,
    };
    let socket = Path::new(OsStr::from_bytes(socket));
    Some(Said { name, socket, tree })
}

/// Whether a path in a file tree with another root is `ours`.
fn is_same(root: &Path, theirs: &Path, ours: &Path, is_same_tree: bool) -> bool {
    let (Some(their_folder), Some(our_folder)) = (theirs.parent(), ours.parent()) else {
        return false;
    };
    if theirs.file_name() != ours.file_name() {
        return false;
    }
    let inside = their_folder.strip_prefix("/").unwrap_or(their_folder);
    match (fs::metadata(root.join(inside)), fs::metadata(our_folder)) {
        (Ok(theirs), Ok(ours)) if inside != Path::new("") => {
            (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())
        }
        // It is empty or may not be looked at, or the process has just ended.
        _ => their_folder == our_folder && is_same_tree,
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
        let tree = own_tree().unwrap();
        for tree in [None, Some(tree.as_str())] {
            let mut words = [&[b"ballonet".as_slice()], &words[..]].concat();
            words.extend(tree.map(str::as_bytes));
            let command = [&words.join(&0)[..], b""].join(&0);
            let said = Said {
                name: b"a",
                socket: claim.place().true_socket(),
                tree,
            };
            assert_eq!(vm_in(&command), Some(said));
        }
        for other in ["a\0vm\0", "", "vi\0vm\0a\0b\0c\0d\0"] {
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
        assert!(is_same(root, &link.join("x"), &a.join("x"), true));
        assert!(!is_same(root, &b.join("x"), &a.join("x"), true));
        assert!(!is_same(root, &a.join("y"), &a.join("x"), true));
        // In a tree of its own, /a is another folder than ours of that name.
        assert!(is_same(
            folder.path(),
            Path::new("/a/x"),
            &a.join("x"),
            false
        ));
        assert!(!is_same(
            folder.path(),
            Path::new("/b/x"),
            &a.join("x"),
            true
        ));
        // In an empty one nothing is found: then it counts where the hosts were.
        assert!(is_same(&b, &a.join("x"), &a.join("x"), true));
        assert!(!is_same(&b, &a.join("x"), &a.join("x"), false));
        assert!(!is_same(&b, Path::new("/a/x"), &a.join("x"), true));
    }
}
