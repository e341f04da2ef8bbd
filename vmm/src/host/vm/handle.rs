//! A VM's process, as its host waits for its end and ends it by force: a child, or one that another host started.

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::process::ExitStatus;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

/// Only the kernel says that it has ended.
#[derive(Debug)]
pub(super) enum ProcessHandle {
    Child(Child),
    /// Nobody but its parent learns how it ended.
    TakenOver(AsyncFd<OwnedFd>),
}

impl ProcessHandle {
    /// Of a process that another host started.
    ///
    /// # Errors
    /// When there is none of that number any more.
    #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: the descriptor is the process's, the same from here to its drop, and moves into the registration, which
        // is dropped before it.
        let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }?;
        Ok(Self::TakenOver(process))
    }

    /// Waits for its end. How it ended, if that can be known.
    pub(super) async fn wait(&mut self) -> Option<ExitStatus> {
        match self {
            Self::Child(child) => child.wait().await.ok(),
            Self::TakenOver(process) => {
                drop(process.readable().await);
                None
            }
        }
    }

    /// Ends it. One that has ended is as it should be.
    pub(super) fn kill(&mut self) {
        match self {
            Self::Child(child) => drop(child.start_kill()),
            Self::TakenOver(process) => drop(pidfd_send_signal(process, Signal::KILL)),
        }
    }
}
