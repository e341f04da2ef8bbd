//! libvirt's running QEMU domains, as a host finds them and acts on them: by libvirt's own interface alone, so that libvirt knows
//! what was done and goes on to manage them.
//!
//! ```text
//!   libvirtd ◀── virsh, a prompt that polls ──▶ Poll: all domains at once, every 2 s ──▶ watch: adopts and lets go
//!       ▲                                                         └──────────────────▶ each adopted one's task
//!       └────── virsh, up to four prompts ◀── set memory, set period, describe ◀──────────────┘
//! ```
//!
//! * **The poll is the truth**, not events: what appeared or ended is seen at the next one, whatever was missed while libvirtd
//!   was away. A domain that libvirt cannot ask at once is left out of it, so that one hung QEMU holds up nobody.
//! * Whether a domain has ended is the kernel's word (a pidfd of its QEMU), never libvirt's silence: while libvirtd is away, or
//!   restarted, domains stay as they are and are counted as they were.
//! * What a description says goes through one door, [`definition`].

mod definition;
mod domain;
mod process;
mod uri;
mod virsh;
mod watch;

pub(super) use definition::{Claims, Definition, Unfit};
pub(super) use domain::{Domain, Uuid};
pub(super) use process::{NotFound, find_process};
pub use uri::LibvirtUri;
pub(super) use virsh::{Virsh, VirshError};
pub(super) use watch::watch;

use super::Host;
use super::qmp::Leave;
use domain::{ASK_ALL, domains};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch as channel;
use virsh::Prompt;

/// Time between polls: as often as guests are asked for their figures.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The same where libvirt was not reached.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// A poll that is older is worth nothing.
const OLD: Duration = Duration::from_secs(12);
/// How long the first poll is waited for.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);

/// What libvirt said of all its domains.
#[derive(Debug)]
pub(super) struct Poll {
    /// When it was asked: what was done later may not show.
    pub(super) begun: Instant,
    pub(super) domains: Result<BTreeMap<Uuid, Domain>, VirshError>,
}

/// A libvirt that is polled; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Libvirt {
    pub(super) virsh: Virsh,
    polls: channel::Receiver<Option<Arc<Poll>>>,
}

impl Libvirt {
    /// Polls it for as long as somebody holds this.
    fn start(uri: LibvirtUri, leave: Leave) -> Self {
        let (sender, polls) = channel::channel(None);
        tokio::spawn(poll(uri.clone(), sender));
        Self {
            virsh: Virsh::new(uri, leave),
            polls,
        }
    }

    /// The last poll. An old one says nothing.
    pub(super) fn last(&self) -> Result<Arc<Poll>, VirshError> {
        let last = self.polls.borrow().clone();
        match last {
            Some(poll) if poll.begun.elapsed() < OLD => Ok(poll),
            Some(_) => Err(VirshError::Old(OLD)),
            None => Err(VirshError::NotYet),
        }
    }

    /// The last poll in which libvirt was reached, or the next; waits for it as long as that may take.
    pub(super) async fn reached(&self) -> Result<Arc<Poll>, VirshError> {
        let mut polls = self.polls.clone();
        let is_reached = |poll: &Option<Arc<Poll>>| {
            let poll = poll.as_ref();
            poll.is_some_and(|poll| poll.domains.is_ok() && poll.begun.elapsed() < OLD)
        };
        let waited = tokio::time::timeout(FIRST_PATIENCE, polls.wait_for(is_reached)).await;
        match waited {
            Ok(Ok(poll)) => poll.clone().ok_or(VirshError::Old(FIRST_PATIENCE)),
            _ => match self.polls.borrow().as_deref() {
                Some(Poll {
                    domains: Err(error),
                    ..
                }) => Err(VirshError::Ended(crate::error_chain(error))),
                _ => Err(VirshError::Old(FIRST_PATIENCE)),
            },
        }
    }
}

/// Ends when nobody wants to know any more.
async fn poll(uri: LibvirtUri, polls: channel::Sender<Option<Arc<Poll>>>) {
    let mut prompt = None;
    loop {
        let begun = Instant::now();
        let domains = ask_all(&uri, &mut prompt).await;
        let pause = match domains {
            Ok(_) => POLL_INTERVAL,
            Err(_) => RETRY_INTERVAL,
        };
        if polls.send(Some(Arc::new(Poll { begun, domains }))).is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = polls.closed() => return,
        }
    }
}

async fn ask_all(
    uri: &LibvirtUri,
    kept: &mut Option<Prompt>,
) -> Result<BTreeMap<Uuid, Domain>, VirshError> {
    let mut prompt = match kept.take() {
        Some(prompt) => prompt,
        None => Prompt::open(uri)?,
    };
    let answer = prompt.ask(ASK_ALL).await;
    if matches!(answer, Ok(_) | Err(VirshError::Refused(_))) {
        *kept = Some(prompt);
    }
    answer.map(|answer| domains(&answer))
}

impl Host {
    /// The libvirt at that place.
    pub(in crate::host) fn libvirt(&self, uri: &LibvirtUri) -> Libvirt {
        let mut state = self.lock();
        let libvirts = &mut state.libvirts;
        let libvirt = libvirts
            .entry(uri.clone())
            .or_insert_with(|| Libvirt::start(uri.clone(), self.shared.leave));
        libvirt.clone()
    }
}
