//! VMs that wait to be admitted: first come, first served.
//!
//! Whoever comes while others wait is refused, or waits behind them: a small VM that always fits would
//! otherwise keep a large one out for ever. A place is kept by the request that waits for it, and is given
//! up with it: when its client hangs up, or when it has waited as long as it would. VMs that come back wait as long as
//! it takes.

use super::vm::{Admitted, Wanted};
use super::{Host, HostError};
use api::QueuedView;
use protocol::VmName;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Requests that may wait at the same time.
const MOST_QUEUED: usize = 64;
/// The longest that one may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// All that wait, the first in front.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Queued>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Queued {
    ticket: u64,
    name: VmName,
    memory_bytes: u64,
    since: Instant,
    why: String,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn has(&self, name: &VmName) -> bool {
        self.waiting.iter().any(|queued| queued.name == *name)
    }

    /// Whether it is this one's turn, or nobody waits.
    pub(super) fn is_turn_of(&self, ticket: Option<u64>) -> bool {
        let first = self.waiting.front().map(|queued| queued.ticket);
        first.is_none() || first == ticket
    }

    pub(super) fn views(&self) -> Vec<QueuedView> {
        let view = |(place, queued): (usize, &Queued)| QueuedView {
            name: queued.name.clone(),
            memory_bytes: queued.memory_bytes,
            waited_s: queued.since.elapsed().as_secs(),
            why: match place {
                0 => queued.why.clone(),
                _ => format!("VMs that wait before it: {place}"),
            },
        };
        self.waiting.iter().enumerate().map(view).collect()
    }

    fn join(&mut self, name: VmName, memory_bytes: u64, why: String) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back(Queued {
            ticket,
            name,
            memory_bytes,
            since: Instant::now(),
            why,
        });
        ticket
    }

    fn note(&mut self, ticket: u64, why: String) {
        let mut waiting = self.waiting.iter_mut();
        if let Some(queued) = waiting.find(|queued| queued.ticket == ticket) {
            queued.why = why;
        }
    }

    fn leave(&mut self, ticket: u64) {
        self.waiting.retain(|queued| queued.ticket != ticket);
    }
}

/// A place in the queue of a host. It is left when this is dropped.
pub(super) struct Place {
    host: Host,
    ticket: u64,
    name: VmName,
}

impl Place {
    /// For who would wait.
    fn join(host: &Host, wanted: &Wanted, why: &HostError) -> Result<Self, HostError> {
        let mut state = host.lock();
        if state.queue.len() >= MOST_QUEUED {
            return Err(HostError::QueueFull(MOST_QUEUED));
        }
        let name = state.free_name(&wanted.request)?;
        drop(state);
        Ok(Self::behind_all(host, name, wanted, why.to_string()))
    }

    /// For one that comes back, whoever else waits.
    pub(super) fn keep(host: &Host, wanted: &Wanted) -> Self {
        let name = wanted.request.name.clone();
        let name = name.expect("who is defined has a name");
        Self::behind_all(host, name, wanted, "it has just come".into())
    }

    fn behind_all(host: &Host, name: VmName, wanted: &Wanted, why: String) -> Self {
        let mut state = host.lock();
        let bytes = wanted.request.memory_bytes;
        let ticket = state.queue.join(name.clone(), bytes, why);
        state.events.add(Some(&name), "waits to be admitted");
        state.publish_change();
        host.shared.count.send_replace(state.count());
        drop(state);
        let host = host.clone();
        Self { host, ticket, name }
    }

    /// Waits until its VM is admitted, for so many seconds or as long as it takes.
    pub(super) async fn admit(
        self,
        mut wanted: Wanted,
        seconds: Option<u64>,
    ) -> Result<Admitted, HostError> {
        wanted.request.name = Some(self.name.clone());
        wanted.holds_name = true;
        let patience = Duration::from_secs(seconds.unwrap_or(u64::MAX)).min(LONGEST_WAIT);
        let end = Instant::now() + patience;
        let mut rounds = self.host.rounds();
        loop {
            let why = match self.host.admit_now(&wanted, Some(self.ticket)).await {
                Err(why) if why.may_pass() => why,
                answer => return answer,
            };
            self.host.lock().queue.note(self.ticket, why.to_string());
            // Each round may have brought room.
            let end = seconds.map(|_| end);
            let changed = match end {
                Some(end) => timeout_at(end.into(), rounds.changed()).await,
                None => Ok(rounds.changed().await),
            };
            if !matches!(changed, Ok(Ok(()))) {
                return Err(HostError::WaitedInVain {
                    name: self.name.clone(),
                    seconds: patience.as_secs(),
                    why: Box::new(why),
                });
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.host.lock();
        state.queue.leave(self.ticket);
        state.publish_change();
        self.host.shared.count.send_replace(state.count());
    }
}

impl Host {
    /// Admits a VM: at once, or when it is its turn and there is room, if it may wait.
    pub(super) async fn admit_in_turn(&self, wanted: Wanted) -> Result<Admitted, HostError> {
        let refused = match self.admit_now(&wanted, None).await {
            Err(refused) if refused.may_pass() => refused,
            answer => return answer,
        };
        match wanted.request.wait_s {
            None => Err(refused),
            Some(seconds) => {
                let place = Place::join(self, &wanted, &refused)?;
                place.admit(wanted, Some(seconds)).await
            }
        }
    }

    /// Admits a VM that comes back: at once, or however long that takes.
    pub(super) async fn admit_some_day(&self, wanted: Wanted) -> Result<Admitted, HostError> {
        match self.admit_now(&wanted, None).await {
            Err(refused) if refused.may_pass() => {
                Place::keep(self, &wanted).admit(wanted, None).await
            }
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_has_its_turn_until_it_leaves_and_nobody_overtakes() {
        let mut queue = Queue::default();
        assert!(queue.is_turn_of(None));
        let name = |name: &str| name.parse::<VmName>().unwrap();
        let first = queue.join(name("a"), 1, "no room".into());
        let second = queue.join(name("b"), 1, "no room".into());
        assert!(queue.is_turn_of(Some(first)));
        assert!(!queue.is_turn_of(Some(second)) && !queue.is_turn_of(None));
        queue.note(second, "still no room".into());
        let why = |queue: &Queue| queue.views().last().map(|view| view.why.clone());
        assert!(why(&queue).unwrap().contains("before it: 1"));
        queue.leave(first);
        assert!(queue.is_turn_of(Some(second)));
        assert_eq!(why(&queue).unwrap(), "still no room");
        queue.leave(second);
        assert!(queue.is_turn_of(None) && queue.len() == 0);
    }
}
