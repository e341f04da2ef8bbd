//! Waits for what agents say and for the host's word. What it costs grows with those who speak, not with all.

use crate::event::Event;
use page::VmId;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// Agents that are told of at once; the others come next.
const AT_ONCE: usize = 64;
/// Stands for the host's word among the agents' numbers, which are smaller.
const WAKE: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Listener {
    epoll: OwnedFd,
    wake: Event,
    /// Agents that are listened to, and for what.
    agents: BTreeMap<VmId, EventFlags>,
}

impl Listener {
    /// Of nobody but the host, whose word is `wake`.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub(super) fn new(wake: Event) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            wake,
            agents: BTreeMap::new(),
        })
    }

    /// Listens to an agent for what `flags` say: its word, or room to send to it as well.
    pub(super) fn listen(&mut self, id: VmId, agent: impl AsFd, flags: EventFlags) {
        let before = self.agents.get(&id).copied();
        let data = EventData::new_u64(id.0.into());
        let changed = match before {
            Some(before) if before == flags => return,
            Some(_) => epoll::modify(&self.epoll, agent, data, flags),
            None => epoll::add(&self.epoll, agent, data, flags),
        };
        match changed {
            Ok(()) => drop(self.agents.insert(id, flags)),
            // It is tried again at the next occasion.
            Err(error) => tracing::warn!("the agent of VM {id} is not listened to: {error}"),
        }
    }

    /// Listens to an agent no more.
    pub(super) fn leave(&mut self, id: VmId, agent: impl AsFd) {
        if self.agents.remove(&id).is_some()
            && let Err(error) = epoll::delete(&self.epoll, agent)
        {
            tracing::debug!("the agent of VM {id} was not listened to: {error}");
        }
    }

    /// Those who have something to say now, or room for what is to be sent to them.
    pub(super) fn speakers(&self) -> Vec<VmId> {
        self.wait_for_events(Duration::ZERO)
    }

    /// Until somebody speaks, or the time is over.
    pub(super) fn wait(&self, time: Duration) {
        self.wait_for_events(time);
        self.wake.drain();
    }

    fn wait_for_events(&self, time: Duration) -> Vec<VmId> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); AT_ONCE];
        let time = Timespec::try_from(time).unwrap_or_default();
        match epoll::wait(&self.epoll, &mut events, Some(&time)) {
            Ok((events, _)) => {
                let numbers = events.iter().map(|event| event.data.u64());
                let agents = numbers.filter_map(|number| u32::try_from(number).ok());
                agents.map(VmId).collect()
            }
            Err(error) => {
                tracing::debug!("the scanner was woken: {error}");
                Vec::new()
            }
        }
    }
}
