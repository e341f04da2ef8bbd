//! A command on a terminal, of which the test has the other end.

use crate::console::Printed;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Weak};

/// How often it is looked whether the terminal was closed.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// A terminal with a command in its foreground.
#[derive(Debug)]
pub struct Terminal {
    /// None once it was closed.
    ours: Option<Arc<File>>,
    theirs: OwnedFd,
    /// All that the terminal has shown.
    pub shown: Printed,
    child: Child,
}

impl Terminal {
    /// Runs a command on a terminal of that many columns and rows.
    ///
    /// # Panics
    /// If the machine has no terminals left.
    #[must_use]
    pub fn run(command: &Command, columns: u16, rows: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a terminal is free");
        grantpt(&ours).expect("it is ours");
        unlockpt(&ours).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(&name, flags, Mode::empty()).expect("it can be opened");
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&theirs, size).expect("it has a size");
        let end = || Stdio::from(theirs.try_clone().expect("descriptors are free"));
        // `setsid --ctty` makes the terminal that of the command, so that Ctrl-C reaches it.
        let mut wrapped = Command::new("setsid");
        wrapped.arg("--ctty").arg(command.get_program());
        wrapped.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        let child = wrapped
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("setsid can be run");
        let ours = Arc::new(File::from(ours));
        Self {
            shown: Printed::by(Shown(Arc::downgrade(&ours))),
            ours: Some(ours),
            theirs,
            child,
        }
    }

    /// The command's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types keys.
    ///
    /// # Panics
    /// If the terminal does not take them.
    pub fn type_keys(&mut self, keys: &[u8]) {
        let mut ours = self.ours.as_deref().expect("it is open");
        ours.write_all(keys).expect("the terminal takes keys");
    }

    /// Whether the terminal passes every key on, without echo and without waiting for a line.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.theirs).expect("the terminal is there");
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        !modes.local_modes.intersects(cooked)
    }

    /// All of its modes, to compare.
    ///
    /// # Panics
    /// If the terminal is gone.
    #[must_use]
    pub fn modes(&self) -> String {
        format!(
            "{:?}",
            tcgetattr(&self.theirs).expect("the terminal is there")
        )
    }

    /// Closes it, as by closing its window. The command may run on.
    pub fn close(&mut self) {
        self.ours = None;
    }

    /// Waits until the command has ended.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        crate::wait::wait_for("the command on the terminal ends", || {
            child.try_wait().expect("a child can be waited for")
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the terminal shows, for as long as it is open: who reads it must not keep it so.
struct Shown(Weak<File>);

impl Read for Shown {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(ours) = self.0.upgrade() {
            let mut ready = [PollFd::new(&ours, PollFlags::IN)];
            if poll(&mut ready, Some(&LOOK))? > 0 {
                return (&*ours).read(buffer);
            }
        }
        Ok(0)
    }
}
