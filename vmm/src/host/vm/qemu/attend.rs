//! The task that speaks to one QEMU.

use super::adopt::restore_cgroup;
use super::lever::{Lever, LeverError, Look, POLLING_INTERVAL_S, polls};
use super::statistics::Reported;
use super::{Heard, Orders, Release, Shared};
use crate::host::qmp::Leave;
use crate::host::rate_limit::RateLimit;
use crate::host::state_store::{Adoption, Step};
use crate::host::vm::handle::ProcessHandle;
use crate::host::vm::process::take_answer;
use crate::host::{Host, now_ms};
use page::{PAGE_SIZE, PageCount, PageStates, VmId, total};
use policy::{Supposed, SupposedBalloon};
use protocol::{BalloonView, GuestStatistics, Observation};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

/// Figures that are older are not believed any more: QEMU has asked for new ones several times.
const STALE: Duration = Duration::from_secs(10);
/// The same where QEMU is left to ask for them as seldom as it does: so many times that.
const STALE_AFTER_POLLS: u64 = 5;
/// How often a monitor is looked for that was lost, or asked again that did not answer.
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
    /// What may be done to it.
    pub(super) leave: Leave,
    /// If it is looked at only, what its balloon would have done.
    pub(super) supposed: Option<SupposedBalloon>,
    /// Pages that its guest's faults have brought so far.
    pub(super) faulted: PageCount,
    /// When its guest's figures came last, as this host saw it.
    pub(super) fresh: Option<Instant>,
    /// When its guest's driver has shown itself last: by figures, or by what its balloon holds.
    pub(super) driver_seen: Option<Instant>,
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
        let mut is_at_once = self.lever.is_lost();
        loop {
            // Its host asks nothing more until it has an answer.
            let is_owed = self.lever.is_lost() || orders.borrow().sequence != answered;
            if is_owed && !is_at_once {
                retry.reset();
            }
            is_at_once = is_owed;
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
                _ = retry.tick(), if is_owed => {
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
        restore_cgroup(&self.adoption);
        let step = Step::Release(self.adoption.name.clone());
        // If it is not kept, the next host finds that it has ended.
        drop(self.host.shared.store.commit(vec![step]));
        self.host.remove(self.id, "its QEMU has ended");
    }

    fn happened(&mut self, event: &str) {
        let what = match event {
            // Firmware resets the machine once more, if a guest has run on it.
            "RESET" if std::mem::replace(&mut self.has_begun, true) => return,
            "RESET" => "its guest begins anew",
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
        if error.is_passing() {
            return;
        }
        let name = &self.adoption.name;
        self.tell(format!(
            "{}. Until it answers, its figures stand; `ballonet release --force {name}` lets it go as it is",
            crate::error_chain(error)
        ));
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
        match (look.held_bytes, look.lack) {
            (None, _) => self.tell(format!(
                "its balloon was taken out: give it one with device_add, or let it go with `ballonet release {}`",
                self.adoption.name
            )),
            (_, Some(lack)) => self.tell(lack.into()),
            _ => self.trouble = None,
        }
        Ok(self.seen(&look))
    }

    fn seen(&mut self, look: &Look) -> (Observation, Heard) {
        let size = self.adoption.settings.size;
        let (held, reported) = (held(look, size), look.reported);
        let is_fresh = reported.at_s != self.reported.at_s && self.is_recent(&reported);
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
            self.driver_seen = None;
        }
        self.faulted = total([self.faulted, faulted.unwrap_or(PageCount::ZERO)]);
        self.shared.held.store(held.0, Ordering::Relaxed);
        let supposed = self.suppose(held);
        let really_held = held;
        let held = self.supposed.map_or(held, SupposedBalloon::held);
        let ballooned = size - held;
        // A guest that does not run cannot show its driver.
        let is_as_before = self.driver_seen.is_some() && !look.is_running;
        if is_fresh && !has_begun || ballooned > PageCount::ZERO || is_as_before {
            self.driver_seen = Some(Instant::now());
        }
        let has_driver = look.held_bytes.is_some() && !self.is_stale(self.driver_seen);
        let target = self.told.map_or(ballooned, |(told, _)| told);
        let statistics = (self.reported.statistics != GuestStatistics::default()).then(|| {
            self.reported
                .with_so_much_less(really_held.saturating_sub(held))
        });
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
        let is_stale = self.is_stale(self.fresh);
        let heard = Heard {
            held,
            is_paused: !look.is_running,
            is_stale,
            faulted,
            has_begun,
            supposed,
        };
        (observation, heard)
    }

    /// What is supposed of it, whose guest really holds that.
    fn suppose(&mut self, held: PageCount) -> Option<Supposed> {
        let balloon = self.supposed?;
        let needs = self.reported.needs(held);
        if let Some((told, _)) = self.told {
            let hold = self.adoption.settings.size.saturating_sub(told);
            let balloon = balloon.asked(hold, needs);
            self.supposed = Some(balloon);
            let held = balloon.held().0;
            self.shared.supposed_held.store(held, Ordering::Relaxed);
        }
        Some(Supposed {
            saved: PageCount::ZERO,
            needs,
            faulted: self.faulted,
        })
    }

    /// How often QEMU asks its guest; zero if it does not.
    fn polled_s(&self) -> u64 {
        match polls(self.leave, self.adoption.polling_interval_s) {
            true => POLLING_INTERVAL_S,
            false => self.adoption.polling_interval_s,
        }
    }

    /// Whether figures that are seen for the first time speak of now: QEMU has some of its guest's start in any case.
    fn is_recent(&self, reported: &Reported) -> bool {
        let age_s = (now_ms() / 1000).saturating_sub(reported.at_s);
        self.polled_s() > 0 && Duration::from_secs(age_s) <= self.stale_after()
    }

    /// Whether what was seen then says nothing of now.
    fn is_stale(&self, seen: Option<Instant>) -> bool {
        seen.is_none_or(|seen| seen.elapsed() > self.stale_after())
    }

    fn stale_after(&self) -> Duration {
        let polled_s = self.polled_s();
        STALE.max(Duration::from_secs(
            polled_s.saturating_mul(STALE_AFTER_POLLS),
        ))
    }
}

/// What its guest has not given up: all, where it has no balloon.
fn held(look: &Look, size: PageCount) -> PageCount {
    let held = look.held_bytes.map(|bytes| PageCount(bytes / PAGE_SIZE));
    held.map_or(size, |held| held.min(size))
}
