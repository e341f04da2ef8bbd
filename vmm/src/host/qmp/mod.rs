//! Speaks to the monitor of a QEMU: commands with time-outs, and what happens meanwhile.
//!
//! A monitor serves one client at a time: another one can connect, and hears nothing until the first has gone. Nothing that
//! the other end sends, or does not, holds the host up: each command has an end, each line a length, and what is not asked
//! for is kept up to a number.

mod wire;

pub(super) use wire::{Event, NotQmp};

use super::untrusted_stream::UntrustedStream;
use rustix::io::Errno;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use wire::{Lines, Message};

/// How long a monitor may take to greet. QEMU does so in some milliseconds, unless it serves somebody else.
const GREETING_PATIENCE: Duration = Duration::from_secs(3);
/// How long it may take to carry out a command: it does so between what else its main loop does.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Events that are kept until somebody asks for them. The oldest go first.
const MOST_EVENTS: usize = 64;
/// What it may send before the answer to a command.
const MOST_BEFORE_ANSWER: usize = 1024;
/// Bytes that are read at once.
const PIECE: usize = 4096;

/// The property of a balloon's device that says how often QEMU asks its guest for its figures, in seconds.
pub(super) const POLLING_INTERVAL: &str = "guest-stats-polling-interval";

/// What may be done to QEMUs that are put under a host. A monitor sends nothing beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    /// Whatever managing them takes.
    #[default]
    Manage,
    /// They are looked at, and nothing of them is changed.
    Look,
    /// So too, but that they are told to ask their guests for their figures.
    LookAndPoll,
}

impl Leave {
    /// Whether nothing is done about what is decided.
    pub(super) fn looks_only(self) -> bool {
        self != Self::Manage
    }

    fn allows(self, command: &str, arguments: &Value) -> bool {
        // The greeting's answer is about this connection alone.
        let looks = ["qmp_capabilities", "qom-get", "qom-list"].contains(&command)
            || command.starts_with("query-");
        let property = arguments.get("property").and_then(Value::as_str);
        let polls = command == "qom-set" && property == Some(POLLING_INTERVAL);
        match self {
            Self::Manage => true,
            Self::Look => looks,
            Self::LookAndPoll => looks || polls,
        }
    }
}

/// Why a monitor does not do what it was asked.
#[derive(Debug, Error)]
pub(super) enum QmpError {
    #[error("it is no socket: name the one of QEMU's -qmp unix:PATH,server=on,wait=off")]
    NoSocket,
    #[error("nobody listens there: has its QEMU ended?")]
    NobodyListens,
    #[error("this user may not use it: run the host as root or as the user of that QEMU")]
    Forbidden,
    #[error("it cannot be connected to")]
    Connect(#[source] io::Error),
    #[error(
        "it takes connections and says nothing, as a monitor does that serves another client, such as libvirt or a script: close that, or \
         give QEMU a second -qmp socket"
    )]
    Held,
    #[error("it is no monitor of QEMU: {}", crate::error_chain(.0))]
    NotQmp(#[from] NotQmp),
    #[error("it sends more than was asked for and does not answer '{0}'")]
    Flood(&'static str),
    #[error("it sends answers that nobody asked for")]
    Unasked,
    #[error("it has hung up")]
    Closed,
    #[error("it does not answer '{command}' within {} s", .after.as_secs())]
    Silent {
        command: &'static str,
        after: Duration,
    },
    #[error("'{0}' would change it, and it is looked at only")]
    LookedAtOnly(&'static str),
    #[error("it refuses '{command}': {said}")]
    Refused {
        command: &'static str,
        class: String,
        said: String,
    },
}

impl QmpError {
    /// Whether the connection is worth nothing any more.
    pub(super) fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Silent { .. } | Self::Refused { .. } | Self::LookedAtOnly(_)
        )
    }

    /// Whether it is refused because there is no such device.
    pub(super) fn is_no_device(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "DeviceNotActive" || class == "DeviceNotFound")
    }
}

/// A monitor that has greeted and takes commands, one after the other.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: UntrustedStream,
    /// The process that listens at the other end, as the kernel says; none where it is not seen from here.
    pid: Option<u32>,
    lines: Lines,
    events: VecDeque<Event>,
    next_id: u64,
    /// Answers to nothing since the last answer.
    unasked: usize,
    /// Whether a command was sent in part only: what follows would not be understood.
    is_cut_off: bool,
    version: String,
    leave: Leave,
}

impl Monitor {
    /// Connects, hears the greeting and agrees on capabilities, of which none are needed.
    pub(super) async fn connect(socket: &Path, leave: Leave) -> Result<Self, QmpError> {
        check_socket(socket)?;
        let stream = UnixStream::connect(socket).await.map_err(not_connected)?;
        let peer = stream.peer_cred().map_err(QmpError::Connect)?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let mut monitor = Self {
            stream: stream.into(),
            pid: pid.filter(|&pid| pid > 0),
            lines: Lines::default(),
            events: VecDeque::new(),
            next_id: 1,
            unasked: 0,
            is_cut_off: false,
            version: String::new(),
            leave,
        };
        let greeting = timeout(GREETING_PATIENCE, monitor.message()).await;
        match greeting.map_err(|_elapsed| QmpError::Held)?? {
            Message::Greeting { version } => monitor.version = version,
            _ => return Err(NotQmp::NoMessage.into()),
        }
        monitor.execute("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Of QEMU, as in 7.2.22.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Has a command carried out. What happens meanwhile is kept for [`Self::event`].
    pub(super) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        let after = ANSWER_PATIENCE;
        let answer = timeout(after, self.ask(command, &arguments)).await;
        answer.unwrap_or(Err(QmpError::Silent { command, after }))
    }

    async fn ask(&mut self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        if !self.leave.allows(command, arguments) {
            return Err(QmpError::LookedAtOnly(command));
        }
        let own = self.next_id;
        self.next_id += 1;
        let request = json!({"execute": command, "arguments": arguments, "id": own});
        let line = format!("{request}\n");
        if std::mem::replace(&mut self.is_cut_off, true) {
            return Err(QmpError::Closed);
        }
        let written = self.stream.write_all(line.as_bytes()).await;
        written.map_err(|_broken| QmpError::Closed)?;
        self.is_cut_off = false;
        for _ in 0..MOST_BEFORE_ANSWER {
            match self.message().await? {
                Message::Return { id, value } if id == Some(own) => {
                    self.unasked = 0;
                    return Ok(value);
                }
                Message::Error { id, class, said } if id == Some(own) => {
                    return Err(QmpError::Refused {
                        command,
                        class,
                        said,
                    });
                }
                // To a command that was given up.
                Message::Return { .. } | Message::Error { .. } => {}
                Message::Greeting { .. } => return Err(NotQmp::NoMessage.into()),
                Message::Event(event) => self.keep(event),
            }
        }
        Err(QmpError::Flood(command))
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == MOST_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next thing that happens. May be dropped before it has come.
    pub(super) async fn event(&mut self) -> Result<Event, QmpError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if let Message::Event(event) = self.message().await? {
                return Ok(event);
            }
            // To a command that was given up; there are few of these.
            self.unasked += 1;
            if self.unasked > MOST_BEFORE_ANSWER {
                return Err(QmpError::Unasked);
            }
        }
    }

    /// What has happened and was not asked for yet.
    #[cfg(test)]
    pub(super) fn happened(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// May be dropped before it has come.
    async fn message(&mut self) -> Result<Message, QmpError> {
        loop {
            if let Some(message) = self.lines.next()? {
                return Ok(message);
            }
            let mut piece = [0; PIECE];
            match self.stream.read(&mut piece).await {
                Ok(0) => return Err(QmpError::Closed),
                Ok(count) => self.lines.take_in(&piece[..count]),
                Err(_broken) => return Err(QmpError::Closed),
            }
        }
    }
}

fn check_socket(path: &Path) -> Result<(), QmpError> {
    let metadata = fs::metadata(path).map_err(not_connected)?;
    match metadata.file_type().is_socket() {
        true => Ok(()),
        false => Err(QmpError::NoSocket),
    }
}

fn not_connected(error: io::Error) -> QmpError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => QmpError::Forbidden,
        io::ErrorKind::ConnectionRefused => QmpError::NobodyListens,
        // Its queue is full: it serves one, and another waits.
        io::ErrorKind::WouldBlock => QmpError::Held,
        _ if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => QmpError::NoSocket,
        _ => QmpError::Connect(error),
    }
}

#[cfg(test)]
mod tests;
