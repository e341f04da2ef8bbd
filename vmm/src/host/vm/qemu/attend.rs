//! The task that speaks to one QEMU.

use super::lever::{Lever, LeverError, Look};
use super::statistics::Reported;
use super::{Heard, Orders, Release, Shared};
use crate::host::Host;
use crate::host::rate_limit::RateLimit;
use crate::host::state_store::{Adoption, Step};
use crate::host::vm::handle::ProcessHandle;
use crate::host::vm::process::take_answer;
use page::{PAGE_SIZE, PageCount, PageStates, VmId};
use protocol::{BalloonView, GuestStatistics, Observation};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

/// Figures that are older are not believed any more: QEMU has asked for new ones several times.
const STALE: Duration = Duration::from_secs(10);
/// How often a monitor is looked for that was lost.
const RETRY: Duration = Duration::from_secs(2);
/// Events that it may send at once, and the time after each further one in which it is not heard.
const EVENTS_AT_ONCE: u32 = 16;
const EVENT_EACH: Duration = Duration::from_millis(100);

pub(super) struct Attendant {
    pub(super) host: Host,
    pub(super) id: VmId,
    pub(super) adoption: Adoption,
    pub(super) shared: Arc<Shared>,
    pub(super) lever: Lever,
    /// What its balloon was told, and when.
    pub(super) told: Option<(PageCount, Instant)>,
    pub(super) reported: Reported,
    /// When its guest's figures came last, as this host saw it.
    pub(super) fresh: Option<Instant>,
    /// When QEMU says that its guest's figures were made before it began anew.
    pub(super) has_begun: bool,
    /// What was told of it.
    pub(super) trouble: Option<String>,
}

impl Attendant {
    pub(super) async fn attend(
        mut self,
        mut orders: watch::Receiver<Orders>,
        mut releases: mpsc::Receiver<Release>,
        mut process: ProcessHandle,
    ) {
        let mut events = RateLimit::new(EVENTS_AT_ONCE, EVENT_EACH);
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answered = 0;
        loop {
            // What it owes an answer to is asked again.
            let is_owing = self.lever.is_lost() || orders.borrow().sequence != answered;
            tokio::select! {
                _ = process.wait() => return self.ended(),
                Some(wanted) = releases.recv() => {
                    let released = self.lever.restore(&self.adoption).await;
                    let is_released = released.is_ok();
                    // Who hung up does not want to know.
                    drop(wanted.send(released));
                    if is_released {
                        return;
                    }
                }
                changed = orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = *orders.borrow_and_update();
                    self.carry_out(now, &mut answered).await;
                }
                _ = retry.tick(), if is_owing => {
                    self.connect().await;
                    let now = *orders.borrow();
                    self.carry_out(now, &mut answered).await;
                }
                event = self.lever.event(&events) => {
                    events.charge(1, Instant::now());
                    match event {
                        Ok(name) => self.happened(&name),
                        Err(error) => self.lost(&error),
                    }
                }
            }
        }
    }

    fn ended(&self) {
        let step = Step::Release(self.adoption.name.clone());
        // If it is not kept, the next host finds that it has ended.
        drop(self.host.shared.store.commit(vec![step]));
        self.host.remove(self.id, "its QEMU has ended");
    }

    fn happened(&mut self, event: &str) {
        let what = match event {
            "RESET" => {
                self.has_begun = true;
                "its guest begins anew"
            }
            "STOP" => "is paused",
            "RESUME" => "runs on",
            "SHUTDOWN" => "its guest is shut down",
            _ => return,
        };
        let mut state = self.host.lock();
        state.events.add(Some(&self.adoption.name), what);
    }

    fn lost(&mut self, error: &LeverError) {
        self.lever.failed(error);
        self.tell(crate::error_chain(error));
    }

    /// Tells of trouble, each kind once until all is well again.
    fn tell(&mut self, what: String) {
        if self.trouble.as_ref() != Some(&what) {
            let mut state = self.host.lock();
            state.events.warn(&self.adoption.name, what.clone());
            self.trouble = Some(what);
        }
    }

    async fn connect(&mut self) {
        if self.lever.is_lost()
            && let Err(error) = self.lever.connect().await
        {
            self.lost(&error);
        }
    }

    async fn carry_out(&mut self, orders: Orders, answered: &mut u64) {
        if self.lever.is_lost() {
            return;
        }
        match self.try_orders(orders).await {
            Ok((observation, heard)) => {
                if orders.sequence == *answered {
                    return;
                }
                *answered = orders.sequence;
                if let Ok(vm) = self.host.lock().vm_mut(self.id) {
                    vm.hear(heard);
                }
                self.shared.is_described.store(true, Ordering::Relaxed);
                take_answer(&self.host, self.id, observation);
                if let Some(faulted) = heard.faulted
                    && let Ok(vm) = self.host.lock().vm_mut(self.id)
                {
                    vm.take_word(faulted);
                }
            }
            Err(error) => self.lost(&error),
        }
    }

    async fn try_orders(&mut self, orders: Orders) -> Result<(Observation, Heard), LeverError> {
        let look = self.lever.look().await?;
        if look.is_new_balloon {
            self.told = None;
        }
        let size = self.adoption.settings.size;
        let held = held(&look, size);
        let is_due = |&(told, at): &(PageCount, Instant)| {
            Some(told) != orders.target || (size - told != held && at.elapsed() > STALE)
        };
        if let (Some(target), Some(_)) = (orders.target, look.held_bytes)
            && self.told.as_ref().is_none_or(is_due)
        {
            let left = size.saturating_sub(target).bytes().max(PAGE_SIZE);
            self.lever.leave(left).await?;
            self.told = Some((target, Instant::now()));
        }
        match look.lack {
            Some(lack) => self.tell(lack.into()),
            None => self.trouble = None,
        }
        Ok(self.seen(&look))
    }

    fn seen(&mut self, look: &Look) -> (Observation, Heard) {
        let size = self.adoption.settings.size;
        let (held, reported) = (held(look, size), look.reported);
        let is_fresh = reported.at_s > 0 && reported.at_s != self.reported.at_s;
        let faulted = is_fresh.then(|| match self.reported.at_s {
            // Since its start, which says nothing of now.
            0 => PageCount::ZERO,
            _ => reported.faulted_since(&self.reported),
        });
        if is_fresh {
            self.fresh = Some(Instant::now());
            self.reported = reported;
        }
        let has_begun = std::mem::take(&mut self.has_begun) || look.has_begun;
        if has_begun {
            self.fresh = None;
        }
        self.shared.held.store(held.0, Ordering::Relaxed);
        let ballooned = size - held;
        let has_driver =
            look.held_bytes.is_some() && (self.fresh.is_some() || ballooned > PageCount::ZERO);
        let target = self.told.map_or(ballooned, |(told, _)| told);
        let statistics = (self.reported.statistics != GuestStatistics::default())
            .then_some(self.reported.statistics);
        let observation = Observation {
            sequence: self.host.lock().vm(self.id).map_or(0, |vm| vm.asked()),
            states: PageStates {
                empty: held,
                ballooned,
                ..PageStates::default()
            },
            balloon: BalloonView {
                has_driver,
                target,
                held: ballooned,
                claimed: ballooned,
                ..BalloonView::default()
            },
            statistics,
            blocked: Default::default(),
            counters: Default::default(),
            nets: Vec::new(),
            disks: Vec::new(),
        };
        let is_stale = self.fresh.is_none_or(|fresh| fresh.elapsed() > STALE);
        let heard = Heard {
            held,
            is_paused: !look.is_running,
            is_stale,
            faulted,
            has_begun,
        };
        (observation, heard)
    }
}

/// What its guest has not given up: all, where it has no balloon.
fn held(look: &Look, size: PageCount) -> PageCount {
    let held = look.held_bytes.map(|bytes| PageCount(bytes / PAGE_SIZE));
    held.map_or(size, |held| held.min(size))
}
