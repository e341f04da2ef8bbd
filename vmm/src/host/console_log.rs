//! A file that keeps what a VM prints. It is made when the VM prints something, so that one which does not start
//! leaves none; what an earlier VM has left there is kept beside it. A disk that is full stops nobody.

use super::rotating::{self, RotatingFile};
use rustix::fs::Access;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The first line of every log.
const HEADING: &str = "# what a VM of ballonet has printed\n";

/// The file.
#[derive(Debug)]
pub(super) struct ConsoleLog {
    file: RotatingFile,
    /// Whether it was told already that nothing can be written.
    is_failing: bool,
}

impl ConsoleLog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            file: RotatingFile::new(path, HEADING),
            is_failing: false,
        }
    }

    /// Keeps what was printed.
    pub(super) fn keep(&mut self, printed: &[u8]) {
        match self.file.append(printed) {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                let path = self.file.path().display();
                tracing::warn!("what a VM prints is not kept in {path}: {error}");
            }
            Err(_) => {}
        }
    }
}

/// Whether a file can be there. What is there and is no such log is somebody's.
pub(super) fn check(path: &Path) -> io::Result<()> {
    if path.extension().is_some_and(|extension| extension == "old") {
        return Err(io::Error::other(
            "what was printed before goes into a file of such a name",
        ));
    }
    rotating::check(path, HEADING)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    Ok(rustix::fs::access(folder, Access::WRITE_OK)?)
}

/// Whether two paths are one file, or will be.
pub(super) fn are_one(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| {
        let there = fs::symlink_metadata(path).ok()?;
        Some((there.dev(), there.ino()))
    };
    let place = |path: &Path| {
        Some((
            path.parent()?.canonicalize().ok()?,
            path.file_name()?.to_owned(),
        ))
    };
    let is_one_file = file(one).is_some() && file(one) == file(other);
    one == other || is_one_file || (place(one).is_some() && place(one) == place(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::runtime_dir::older;

    #[test]
    fn it_is_made_when_something_is_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let mut log = ConsoleLog::new(path.clone());
        assert!(!path.exists());
        log.keep(b"one ");
        log.keep(b"two");
        let kept = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(kept(&path), format!("{HEADING}one two"));
        // The next VM's.
        assert!(check(&path).is_ok());
        ConsoleLog::new(path.clone()).keep(b"three");
        assert_eq!(kept(&path), format!("{HEADING}three"));
        assert_eq!(kept(&older(&path)), format!("{HEADING}one two"));
    }

    #[test]
    fn only_a_log_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("empty"), "").unwrap();
        fs::write(place("image"), "somebody's").unwrap();
        fs::write(place("a.log.old"), "somebody's").unwrap();
        fs::create_dir(place("b.log.old")).unwrap();
        std::os::unix::fs::symlink("empty", place("link")).unwrap();
        assert!(check(&place("empty")).is_ok() && check(&place("new")).is_ok());
        for (path, why) in [
            (place("link"), "no regular file"),
            (folder.path().into(), "no regular file"),
            ("/dev/null".into(), "no regular file"),
            (place("b.log"), "no regular file"),
            (place("image"), "is there already"),
            (place("a.log"), "a.log.old is there already"),
            (place("new.old"), "printed before"),
        ] {
            let error = check(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            // What came there after it was looked at is left alone too.
            ConsoleLog::new(path).keep(b"words");
        }
        assert_eq!(fs::read(place("image")).unwrap(), b"somebody's");
        assert_eq!(fs::read(place("a.log.old")).unwrap(), b"somebody's");
        assert_eq!(fs::read(place("empty")).unwrap(), b"");
        assert!(check(&place("nowhere/new")).is_err());
        assert!(check(&place("image/new")).is_err());
    }

    #[test]
    fn one_file_has_many_names() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::create_dir(place("deep")).unwrap();
        std::os::unix::fs::symlink("deep", place("link")).unwrap();
        assert!(are_one(&place("deep/new"), &place("link/new")));
        assert!(are_one(&place("new"), &place("deep/../new")));
        assert!(!are_one(&place("new"), &place("deep/new")));
        assert!(!are_one(&place("nowhere/new"), &place("nowhere/other")));
        fs::write(place("a"), "").unwrap();
        fs::hard_link(place("a"), place("deep/b")).unwrap();
        assert!(are_one(&place("a"), &place("deep/b")));
    }
}
