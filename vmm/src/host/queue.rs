//! VMs that wait to be admitted: first come, first served.
//!
//! Whoever comes while others wait is refused, or waits behind them: a small VM that always fits would
//! otherwise keep a large one out for ever. A place is kept by the request that waits for it, and is given
//! up with it: when its client hangs up, or when it has waited as long as it would.

use super::vm::Admitted;
use super::{Host, HostError};
use api::{QueuedView, RunRequest};
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
struct Place {
    host: Host,
    ticket: u64,
    name: VmName,
}

impl Place {
    fn join(host: &Host, request: &RunRequest, why: &HostError) -> Result<Self, HostError> {
        let mut state = host.lock();
        if state.queue.len() >= MOST_QUEUED {
            return Err(HostError::QueueFull(MOST_QUEUED));
        }
        let name = state.free_name(request)?;
        let ticket = state
            .queue
            .join(name.clone(), request.memory_bytes, why.to_string());
        state.events.add(Some(&name), "waits to be admitted");
        state.publish_change();
        host.shared.count.send_replace(state.count());
        let host = host.clone();
        Ok(Self { host, ticket, name })
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
    pub(super) async fn admit_in_turn(
        &self,
        mut request: RunRequest,
    ) -> Result<Admitted, HostError> {
        let refused = match self.admit(request.clone(), None) {
            Err(refused) if refused.may_pass() => refused,
            answer => return answer,
        };
        let Some(seconds) = request.wait_s else {
            return Err(refused);
        };
        let place = Place::join(self, &request, &refused)?;
        request.name = Some(place.name.clone());
        let end = tokio::time::Instant::now() + Duration::from_secs(seconds).min(LONGEST_WAIT);
        let mut rounds = self.rounds();
        let mut refused = refused;
        // Each round may have brought room.
        while let Ok(Ok(())) = timeout_at(end, rounds.changed()).await {
            match self.admit(request.clone(), Some(place.ticket)) {
                Err(why) if why.may_pass() => {
                    self.lock().queue.note(place.ticket, why.to_string());
                    refused = why;
                }
                answer => return answer,
            }
        }
        let name = place.name.clone();
        let why = Box::new(refused);
        Err(HostError::WaitedInVain { name, seconds, why })
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
