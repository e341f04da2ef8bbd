//! A file that keeps what a VM prints. It is made when the VM prints something, so that one which does not start
//! leaves none; what an earlier VM has left there is kept beside it. A disk that is full stops nobody.

use super::rotating::RotatingFile;
use rustix::fs::Access;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file.
#[derive(Debug)]
pub(super) struct ConsoleLog {
    path: PathBuf,
    file: Option<RotatingFile>,
    /// Whether it was told already that nothing can be written.
    is_failing: bool,
}

impl ConsoleLog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            is_failing: false,
        }
    }

    /// Keeps what was printed.
    pub(super) fn keep(&mut self, printed: &[u8]) {
        match self.write(printed) {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                let path = self.path.display();
                tracing::warn!("what a VM prints is not kept in {path}: {error}");
            }
            Err(_) => {}
        }
    }

    fn write(&mut self, printed: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(RotatingFile::create(self.path.clone())?),
        };
        file.append(printed)
    }
}

/// Whether a file can be there. What is there and is none, as a device or a link, would be moved aside.
pub(super) fn check(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => return Err(io::Error::other("it is no regular file")),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    Ok(rustix::fs::access(folder, Access::WRITE_OK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_when_something_is_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let mut log = ConsoleLog::new(path.clone());
        assert!(!path.exists());
        log.keep(b"one ");
        log.keep(b"two");
        assert_eq!(fs::read(&path).unwrap(), b"one two");
        // The next VM's.
        ConsoleLog::new(path.clone()).keep(b"three");
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(
            fs::read(path.with_extension("log.old")).unwrap(),
            b"one two"
        );
    }

    #[test]
    fn only_a_regular_file_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("file"), "").unwrap();
        std::os::unix::fs::symlink("file", place("link")).unwrap();
        assert!(check(&place("file")).is_ok() && check(&place("new")).is_ok());
        for path in [place("link"), folder.path().into(), "/dev/null".into()] {
            let error = check(&path).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
        assert!(check(&place("nowhere/new")).is_err());
        assert!(check(&place("file/new")).is_err());
    }
}
