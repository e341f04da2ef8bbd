//! Speaks to libvirt as a person at the prompt of `virsh` does.
//!
//! libvirt's library would have to be there to build this program, and its D-Bus service to run it; its protocol is no
//! interface. `virsh` is kept compatible for scripts and comes with every libvirt, also with a newer one. A process for each
//! command costs some 20 ms of a core, so one prompt stays open: commands are typed, and after each a mark, which ends its
//! answer. A prompt ends by itself when nobody can type any more, so none outlives its host.
//!
//! What is typed has no words but this program's own, numbers, and UUIDs. What is answered is bounded in size and in time: a
//! prompt that does not keep to that is killed.

use super::LibvirtUri;
use super::domain::Uuid;
use crate::host::claim;
use crate::host::qmp::Leave;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::Semaphore;
use tokio::time::timeout;

const PROGRAM: &str = "virsh";
/// How long a command may take. libvirt itself has no time-out where a QEMU does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer: figures of some thousand domains.
const LONGEST_ANSWER: usize = 8 << 20;
/// Prompts besides the one that polls, so that a domain that does not answer holds up few others.
const MOST_PROMPTS: usize = 4;
const PIECE: usize = 64 << 10;
/// With what a domain's description ends.
const END: &str = "</domain>";

/// Why libvirt does not do what it was asked.
#[derive(Debug, Error)]
pub(in crate::host) enum VirshError {
    #[error("virsh is missing: install it (on Debian the package libvirt-clients)")]
    Missing,
    #[error("virsh cannot be started")]
    Start(#[source] io::Error),
    #[error("libvirt is not reached: {0}")]
    Ended(String),
    #[error("libvirt does not answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("virsh answers more than {LONGEST_ANSWER} bytes")]
    TooLong,
    #[error("'{0}' would change a domain, and it is looked at only")]
    LookedAtOnly(&'static str),
    #[error("libvirt refuses: {0}")]
    Refused(String),
    #[error("libvirt has no running domain of that UUID")]
    NoDomain,
    #[error("libvirt cannot ask its QEMU now: another job is under way, or it does not answer")]
    Busy,
    #[error("libvirt has not answered for the first time yet")]
    NotYet,
    #[error("nothing was heard of libvirt for {} s", .0.as_secs())]
    Old(Duration),
}

/// Lines that begin so tell of something that went wrong.
const ERROR: &str = "error: ";

/// An open prompt.
#[derive(Debug)]
pub(super) struct Prompt {
    /// Killed when it is dropped.
    _process: Child,
    input: ChildStdin,
    output: pipe::Receiver,
    /// What nobody but who typed it can print.
    mark: String,
}

impl Prompt {
    pub(super) fn open(uri: &LibvirtUri) -> Result<Self, VirshError> {
        let (output, said) = io::pipe().map_err(VirshError::Start)?;
        let also_said = said.try_clone().map_err(VirshError::Start)?;
        let mut command = Command::new(PROGRAM);
        command
            .args(["-q", "-c", uri.as_str()])
            .env("LC_ALL", "C")
            .env("TERM", "dumb")
            .env("INPUTRC", "/dev/null")
            .env_remove("VIRSH_DEBUG")
            .env_remove("LIBVIRT_DEBUG")
            .stdin(Stdio::piped())
            // In one stream, so that an error stands where it happened.
            .stdout(said)
            .stderr(also_said)
            // Ctrl-C is for its host.
            .process_group(0)
            .kill_on_drop(true);
        if !uri.is_session() {
            // It would keep what is typed as its user's history. A session's daemon, which it may start, needs the folder.
            command.env("XDG_CACHE_HOME", "/dev/null");
        }
        let mut process = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VirshError::Missing,
            _ => VirshError::Start(error),
        })?;
        // This process's ends of what it writes to.
        drop(command);
        let input = process.stdin.take().expect("it is piped");
        let output = OwnedFd::from(output);
        rustix::io::ioctl_fionbio(&output, true)
            .map_err(|error| VirshError::Start(error.into()))?;
        let mut random = [0; 16];
        getrandom(&mut random, GetRandomFlags::empty())
            .map_err(|error| VirshError::Start(error.into()))?;
        Ok(Self {
            _process: process,
            input,
            output: pipe::Receiver::from_owned_fd(output).map_err(VirshError::Start)?,
            mark: format!("{:032x}", u128::from_ne_bytes(random)),
        })
    }

    /// Types a command. A prompt that has not answered to the end is of no use any more.
    pub(super) async fn ask(&mut self, command: &str) -> Result<String, VirshError> {
        match timeout(PATIENCE, self.try_ask(command)).await {
            Ok(said) => answer(said?),
            Err(_elapsed) => Err(VirshError::Silent),
        }
    }

    async fn try_ask(&mut self, command: &str) -> Result<String, VirshError> {
        let mark = &self.mark;
        // What is typed may be printed as well, and is not taken for the answer's end: that has `&lt;` there.
        let typed = format!("{command}\necho --xml '{mark}<'\n");
        let end = format!("{mark}&lt;");
        // One that has ended takes nothing: why it has ended is read.
        let is_taken = self.input.write_all(typed.as_bytes()).await.is_ok();
        let mut said: Vec<u8> = Vec::new();
        let mut searched: usize = 0;
        loop {
            let from = searched.saturating_sub(end.len());
            let mut windows = said[from..].windows(end.len());
            if let Some(at) = windows.position(|window| window == end.as_bytes()) {
                said.truncate(from + at);
                return Ok(String::from_utf8_lossy(&said).into_owned());
            }
            searched = said.len();
            if searched > LONGEST_ANSWER {
                return Err(VirshError::TooLong);
            }
            let mut piece = vec![0; PIECE];
            match self.output.read(&mut piece).await {
                Ok(count @ 1..) => said.extend_from_slice(&piece[..count]),
                Ok(0) | Err(_) => {
                    let said = String::from_utf8_lossy(&said);
                    let why = errors(&said).last().unwrap_or(match is_taken {
                        true => "virsh has ended",
                        false => "virsh takes no command",
                    });
                    return Err(VirshError::Ended(claim::words(why)));
                }
            }
        }
    }
}

/// What went wrong by an answer. Its text may be anybody's from where XML begins.
fn errors(said: &str) -> impl Iterator<Item = &str> {
    let lines = said.lines().take_while(|line| !line.starts_with('<'));
    lines.filter_map(|line| line.strip_prefix(ERROR))
}

fn answer(said: String) -> Result<String, VirshError> {
    // That its connection is new is no error. The last of what is told is the reason of what was told before.
    let wrong = errors(&said).filter(|error| !error.starts_with("Reconnected to"));
    match wrong.last() {
        Some(error) => Err(VirshError::Refused(claim::words(error))),
        None => Ok(said),
    }
}

/// Prompts of one libvirt; clones are the same.
#[derive(Clone, Debug)]
pub(in crate::host) struct Virsh(Arc<Prompts>);

#[derive(Debug)]
struct Prompts {
    uri: LibvirtUri,
    /// What may be done to its domains. Nothing is typed that would do more.
    leave: Leave,
    idle: Mutex<Vec<Prompt>>,
    places: Semaphore,
}

impl Virsh {
    pub(super) fn new(uri: LibvirtUri, leave: Leave) -> Self {
        Self(Arc::new(Prompts {
            uri,
            leave,
            idle: Mutex::default(),
            places: Semaphore::new(MOST_PROMPTS),
        }))
    }

    pub(in crate::host) fn uri(&self) -> &LibvirtUri {
        &self.0.uri
    }

    /// Has a command carried out, which may be typed twice.
    async fn ask(&self, command: &str) -> Result<String, VirshError> {
        match self.ask_once(command).await {
            // libvirt was started anew since this prompt was used last.
            Err(VirshError::Refused(said)) if is_of_connection(&said) => {
                self.ask_once(command).await
            }
            other => other,
        }
    }

    async fn ask_once(&self, command: &str) -> Result<String, VirshError> {
        let _place = self.0.places.acquire().await;
        let idle = || self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut prompt = match kept {
            Some(prompt) => prompt,
            None => Prompt::open(&self.0.uri)?,
        };
        let answer = prompt.ask(command).await;
        if matches!(answer, Ok(_) | Err(VirshError::Refused(_))) {
            idle().push(prompt);
        }
        answer
    }

    /// What may be done to its domains.
    pub(in crate::host) fn leave(&self) -> Leave {
        self.0.leave
    }

    /// A domain's description as it runs.
    pub(in crate::host) async fn description(&self, uuid: Uuid) -> Result<String, VirshError> {
        let said = self.ask(&format!("dumpxml --domain {uuid}")).await?;
        // What is typed stands before it, and the next prompt behind.
        let xml = said.find("<domain").map(|start| &said[start..]);
        let end = xml.and_then(|xml| Some(xml.rfind(END)? + END.len()));
        let xml = xml.zip(end).map(|(xml, end)| xml[..end].to_owned());
        xml.ok_or(VirshError::NoDomain)
    }

    /// A domain's balloon is to leave its guest so much.
    pub(in crate::host) async fn set_memory(
        &self,
        uuid: Uuid,
        bytes: u64,
    ) -> Result<(), VirshError> {
        let kibibytes = bytes / 1024;
        if self.leave().looks_only() {
            return Err(VirshError::LookedAtOnly("setmem"));
        }
        let command = format!("setmem --domain {uuid} --size {kibibytes} --live");
        self.ask(&command).await.map(drop)
    }

    /// A domain's guest is asked for its figures so often; never, if that is zero.
    pub(in crate::host) async fn set_period(
        &self,
        uuid: Uuid,
        seconds: u64,
    ) -> Result<(), VirshError> {
        if self.leave() == Leave::Look {
            return Err(VirshError::LookedAtOnly("dommemstat --period"));
        }
        let command = format!("dommemstat --domain {uuid} --period {seconds} --live");
        self.ask(&command).await.map(drop)
    }
}

fn is_of_connection(said: &str) -> bool {
    [
        "Disconnected from",
        "Cannot recv data",
        "Cannot write data",
        "client socket is closed",
    ]
    .iter()
    .any(|word| said.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_told_by_its_last_line_and_no_text_of_a_domain_is_taken_for_it() {
        let refused = |said: &str| match answer(said.into()) {
            Err(VirshError::Refused(said)) => Some(said),
            _ => None,
        };
        let said = "virsh # setmem\nerror: Disconnected from qemu:///system\nerror: Cannot recv data: reset\nvirsh # ";
        assert_eq!(refused(said).as_deref(), Some("Cannot recv data: reset"));
        assert!(is_of_connection(&refused(said).unwrap()));
        assert_eq!(
            refused("error: Reconnected to the hypervisor\nvirsh # "),
            None
        );
        assert_eq!(
            refused("<domain>\nerror: in a description\n</domain>"),
            None
        );
    }
}
