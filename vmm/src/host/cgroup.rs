//! The cgroup of a process that somebody else started, if it has one of its own: what the kernel counts there, how long it waits
//! for memory there, and what can be taken there.
//!
//! What is done to a cgroup is done to all that is in it. So there is one door: version 2, not the root, nothing below it, and no
//! other process in it. It is opened as a folder from its mount point, through no symbolic link and no other mount, and asked
//! again who is in it before anything is done to it. What its files say is read up to a length.

use page::{PAGE_SIZE, PageCount};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, openat, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use thiserror::Error;

/// Where version 2 is mounted by itself; beside version 1 it has no memory controller.
const MOUNT_POINT: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: i64 = 0x6367_7270;
/// Bytes that are read of any of its files.
const MOST_READ: u64 = 64 << 10;

/// Why nothing is done to a process' cgroup.
#[derive(Debug, Error)]
pub enum NoCgroup {
    #[error(
        "this machine's memory is in cgroups of version 1, which have no memory.reclaim: boot it with systemd.unified_cgroup_hierarchy=1"
    )]
    Version1,
    #[error("it is in the root cgroup: start it in one of its own, as with systemd-run --scope")]
    Root,
    #[error(
        "its cgroup {path} has other processes in it: start it in one of its own, as with systemd-run --scope"
    )]
    Shared { path: String },
    #[error(
        "its cgroup {path} has others below it: start it in one of its own, as with systemd-run --scope"
    )]
    Parent { path: String },
    #[error(
        "its cgroup {path} has no {file}: memory must be in cgroup.subtree_control of the one above, and the kernel be 5.19 or later"
    )]
    NoFile { path: String, file: &'static str },
    #[error("its cgroup {path} cannot be used: run the host as root")]
    Unusable {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// A cgroup with one process in it.
#[derive(Debug)]
pub(super) struct OwnCgroup {
    folder: OwnedFd,
    path: String,
    pid: u32,
}

impl OwnCgroup {
    /// That of a process, if it is its own.
    pub(super) fn of(pid: u32) -> Result<Self, NoCgroup> {
        let root = root().ok_or(NoCgroup::Version1)?;
        let path = path_of(pid).ok_or(NoCgroup::Version1)?;
        if path == "/" {
            return Err(NoCgroup::Root);
        }
        let folder = open_below(&root, &path).map_err(|source| NoCgroup::Unusable {
            path: path.clone(),
            source,
        })?;
        let cgroup = Self { folder, path, pid };
        cgroup.check()?;
        Ok(cgroup)
    }

    /// Whether it is its process' own still.
    pub(super) fn check(&self) -> Result<(), NoCgroup> {
        let path = || self.path.clone();
        let unusable = |source| NoCgroup::Unusable {
            path: path(),
            source,
        };
        let own = self.pid.to_string();
        let processes = self.read("cgroup.procs").map_err(unusable)?;
        if processes.trim() != own {
            return Err(NoCgroup::Shared { path: path() });
        }
        let below = self.read("cgroup.stat").map_err(unusable)?;
        match number_in(&below, "nr_descendants") {
            Some(0) => Ok(()),
            _ => Err(NoCgroup::Parent { path: path() }),
        }
    }

    /// Whether the kernel can be told to take memory there and to protect some.
    pub(super) fn check_reclaim(&self) -> Result<(), NoCgroup> {
        for file in ["memory.current", "memory.low", "memory.reclaim"] {
            // Nothing is written yet.
            self.open(file, mode_of(file))
                .map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => NoCgroup::NoFile {
                        path: self.path.clone(),
                        file,
                    },
                    _ => NoCgroup::Unusable {
                        path: self.path.clone(),
                        source: error,
                    },
                })?;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What is charged to it, but for copies of files: those go by themselves when memory is short.
    pub(super) fn used(&self) -> Option<PageCount> {
        let current: u64 = self.read("memory.current").ok()?.trim().parse().ok()?;
        let counts = self.read("memory.stat").ok()?;
        let of = |name| number_in(&counts, name).unwrap_or(0);
        let files = of("file").saturating_sub(of("shmem"));
        Some(PageCount(current.saturating_sub(files) / PAGE_SIZE))
    }

    /// The part of the last ten seconds in which some of it waited for memory, in thousandths.
    pub(super) fn pressure_permille(&self) -> Option<u32> {
        pressure_in(&self.read("memory.pressure").ok()?)
    }

    /// What is protected, as the kernel writes it.
    pub(super) fn low(&self) -> io::Result<String> {
        self.read("memory.low").map(|text| text.trim().to_owned())
    }

    /// Protects so much from now on; `max` is all.
    pub(super) fn set_low(&self, low: &str) -> io::Result<()> {
        self.write("memory.low", low)
    }

    /// Has the kernel take so much, as far as it can; it takes its time.
    pub(super) fn reclaim(&self, pages: PageCount) -> io::Result<()> {
        match self.write("memory.reclaim", &pages.bytes().to_string()) {
            // Less could be taken than was wanted.
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    fn open(&self, file: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(File::from(openat(
            &self.folder,
            file,
            flags,
            Mode::empty(),
        )?))
    }

    fn read(&self, file: &str) -> io::Result<String> {
        read_text(self.open(file, OFlags::RDONLY)?)
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        self.open(file, OFlags::WRONLY)?.write_all(text.as_bytes())
    }
}

/// How a file is opened that is to be used.
fn mode_of(file: &str) -> OFlags {
    match file {
        "memory.current" => OFlags::RDONLY,
        _ => OFlags::WRONLY,
    }
}

/// Sets what is protected in a cgroup back, if it is there still: who was in it may have ended.
pub(super) fn restore_low(path: &str, low: &str) -> io::Result<()> {
    let Some(root) = root() else { return Ok(()) };
    let folder = match open_below(&root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let path = path.to_owned();
    OwnCgroup {
        folder,
        path,
        pid: 0,
    }
    .set_low(low)
}

fn root() -> Option<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let root = openat(CWD, Path::new(MOUNT_POINT), flags, Mode::empty()).ok()?;
    let is_version_2 = fstatfs(&root).is_ok_and(|system| system.f_type == CGROUP2);
    is_version_2.then_some(root)
}

fn open_below(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let below = path.trim_start_matches('/');
    Ok(openat2(root.as_fd(), below, flags, Mode::empty(), resolve)?)
}

fn path_of(pid: u32) -> Option<String> {
    let file = File::open(format!("/proc/{pid}/cgroup")).ok()?;
    path_in(&read_text(file).ok()?)
}

/// The line of version 2 is the one without controllers: `0::/path`.
fn path_in(text: &str) -> Option<String> {
    let mut paths = text.lines().filter_map(|line| line.strip_prefix("0::"));
    paths.next().map(str::to_owned)
}

fn read_text(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    let read = file.take(MOST_READ + 1).read_to_end(&mut bytes)?;
    match read as u64 > MOST_READ {
        true => Err(io::Error::other("it is longer than such files are")),
        false => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// Of lines of a name and a number.
fn number_in(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(word, _)| *word == name)?.1.trim().parse().ok()
}

/// `some avg10=1.23 avg60=...` (Documentation/accounting/psi.rst): a part in percent with two decimals.
fn pressure_in(text: &str) -> Option<u32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let words = some.split_ascii_whitespace();
    let percent = words
        .filter_map(|word| word.strip_prefix("avg10="))
        .next()?;
    let (whole, hundredths) = percent.split_once('.')?;
    let (whole, tenths): (u32, u32) = (whole.parse().ok()?, hundredths.get(..1)?.parse().ok()?);
    Some(whole.min(100) * 10 + tenths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let lines = "9:name=systemd:/a\n0::/machine.slice/q.scope\n";
        assert_eq!(path_in(lines).as_deref(), Some("/machine.slice/q.scope"));
        assert_eq!(path_in("4:memory:/x\n"), None);
        let pressure = "some avg10=12.34 avg60=0.00 avg300=0.00 total=5\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(pressure_in(pressure), Some(123));
        assert_eq!(number_in("anon 5\nfile 4096\n", "file"), Some(4096));
        assert_eq!(number_in("inactive_file 7\n", "file"), None);
    }

    /// On a machine of either version: this test is not alone in its cgroup, or has none that can be used.
    #[test]
    fn a_process_that_has_no_cgroup_of_its_own_is_refused() {
        let mut other = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let refused = OwnCgroup::of(other.id());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(refused.is_err(), "{refused:?}");
        assert!(OwnCgroup::of(u32::MAX).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            path_in(&text);
            pressure_in(&text);
            pressure_in(&format!("some avg10={text}"));
            number_in(&text, "file");
        }

        /// A path that leads elsewhere is not followed.
        #[test]
        fn nothing_outside_is_opened(name in "[a-z]{1,8}") {
            let folder = tempfile::tempdir().unwrap();
            let root = File::open(folder.path()).unwrap();
            let root = OwnedFd::from(root);
            std::fs::create_dir(folder.path().join("inside")).unwrap();
            std::os::unix::fs::symlink("/proc", folder.path().join("link")).unwrap();
            for path in [format!("/../{name}"), "/link".into(), "/link/self".into(), "/inside/../../proc".into(), String::new()] {
                prop_assert!(open_below(&root, &path).is_err(), "{}", path);
            }
            prop_assert!(open_below(&root, "/inside").is_ok());
        }
    }
}
