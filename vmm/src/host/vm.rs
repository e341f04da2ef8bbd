//! A VM as its host sees it.

use crate::api::{DiskView, LimitView, NetView, VmPhase, VmView};
use crate::host::claim::{Checked, Untrue};
use crate::host::console::Console;
use crate::host::device_watch::DeviceWatch;
use crate::host::kernel::VmUse;
use crate::host::link::Link;
use crate::host::sampling::Sampling;
use crate::host::sharing::account::{Account, VmRound};
use crate::protocol::{BlockedTime, Observation, SharingCounters, ToVm, VmConfig};
use page::{PAGE_SIZE, PageCount, PageStates};
use policy::{BalloonWatch, Evidence, GuestFigures, Limit, OVERHEAD, Stage, VmSnapshot};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};

/// Rounds in which a VM must have confirmed a smaller grant before the host counts on it: in the
/// first its device has the target, in the second its guest has had a whole round to see it.
const CONFIRMING_ROUNDS: u8 = 2;

/// How long a guest may take until its balloon driver is ready. Up to then it is believed to come,
/// with its balloon at its target before anything else; after that the guest may touch all it has.
const DRIVER_PATIENCE: Duration = Duration::from_secs(10);

/// A VM is stopped and let run in slices of 50 ms: in less than two of them nothing is seen.
const SHORTEST_WATCHED_US: u64 = 100_000;

/// What is there once a VM's process runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) pid: u32,
    pub(super) link: Arc<Link>,
    pub(super) console: Console,
    pub(super) memory_file: Arc<File>,
    /// Since when its guest runs.
    pub(super) since: Instant,
    pub(super) start_us: u64,
    pub(super) userfault_pages: PageCount,
}

/// One VM.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) config: VmConfig,
    pub(super) phase: VmPhase,
    pub(super) since: Instant,
    pub(super) running: Option<Running>,
    /// What an administrator fixed that it holds.
    pub(super) pinned: Option<PageCount>,
    /// What the policy wants it to hold.
    pub(super) target: PageCount,
    grant: Grant,
    /// Whoever waits for the first grant, while the VM waits to be started.
    pub(super) first_grant: Option<oneshot::Sender<PageCount>>,
    /// The last question asked, and the last answered.
    asked: u64,
    answered: u64,
    /// The last answer that can be true.
    observation: Option<Checked>,
    /// Whether all its answers could be.
    is_credible: bool,
    pub(super) used: VmUse,
    /// Of its anonymous pages, those that are the guest's: copies over shared pages.
    pub(super) broken: PageCount,
    /// What it uses.
    pub(super) sampling: Sampling,
    /// How its balloon follows.
    balloon_watch: BalloonWatch,
    /// What its guest may have touched.
    pub(super) limit: Option<Limit>,
    /// How long it was stopped at its limit.
    blocked: Blocked,
    /// What its guest said last, with what it held then.
    figures: GuestFigures,
    /// What was told of its disks and network cards.
    device_watch: DeviceWatch,
    /// Told to end its process by force.
    pub(super) kill: Arc<Notify>,
    /// Becomes true when nothing of the VM is left.
    pub(super) gone: watch::Sender<bool>,
}

/// What a VM may hold by the host's word. A smaller grant counts only when the VM has confirmed
/// it: until then its guest may act on the larger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Grant {
    latest: PageCount,
    highest_unconfirmed: PageCount,
    confirmed_rounds: u8,
}

impl Grant {
    fn set(&mut self, pages: PageCount) {
        self.latest = pages;
        self.highest_unconfirmed = self.highest_unconfirmed.max(pages);
        self.confirmed_rounds = 0;
    }

    /// The VM says what it believes it may hold.
    fn confirm(&mut self, pages: PageCount) {
        if pages != self.latest {
            self.confirmed_rounds = 0;
            return;
        }
        self.confirmed_rounds = CONFIRMING_ROUNDS.min(self.confirmed_rounds + 1);
        if self.confirmed_rounds == CONFIRMING_ROUNDS {
            self.highest_unconfirmed = self.latest;
        }
    }
}

/// How long a VM was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Blocked {
    /// As it said last.
    last: BlockedTime,
    /// In the time before that, in thousandths.
    permille: u64,
}

impl Blocked {
    /// A VM may answer late, or twice in short succession: what counts is the time between its answers, not
    /// that between the host's rounds. Until there is a new one, all stays as it was.
    fn after(self, said: BlockedTime) -> Self {
        let time_us = said.at_us.saturating_sub(self.last.at_us);
        if time_us < SHORTEST_WATCHED_US {
            return self;
        }
        let us = said
            .total_us
            .saturating_sub(self.last.total_us)
            .min(time_us);
        let permille = u128::from(us) * 1000 / u128::from(time_us);
        // One that is stopped, and was not before, has said nothing of that time yet.
        let least = u64::from(said.is_now);
        Self {
            last: said,
            permille: u64::try_from(permille).unwrap_or(1000).max(least),
        }
    }
}

impl Vm {
    pub(super) fn new(config: VmConfig, first_grant: oneshot::Sender<PageCount>) -> Self {
        Self {
            config,
            phase: VmPhase::Waiting,
            since: Instant::now(),
            running: None,
            pinned: None,
            target: PageCount::ZERO,
            grant: Grant::default(),
            first_grant: Some(first_grant),
            asked: 0,
            answered: 0,
            observation: None,
            is_credible: true,
            used: VmUse::default(),
            broken: PageCount::ZERO,
            sampling: Sampling::default(),
            balloon_watch: BalloonWatch::default(),
            limit: None,
            blocked: Blocked::default(),
            figures: GuestFigures::default(),
            device_watch: DeviceWatch::default(),
            kill: Arc::default(),
            gone: watch::Sender::new(false),
        }
    }

    /// What the policy must know of it.
    pub(super) fn snapshot(&self) -> VmSnapshot {
        VmSnapshot {
            id: self.config.id,
            settings: self.config.settings.clone(),
            overhead: OVERHEAD.max(self.used.anonymous.saturating_sub(self.broken)),
            ballooned: self.ballooned(),
            granted: self.grant.highest_unconfirmed,
            told: Some(self.grant.latest),
            pinned: self.pinned,
            stage: match self.phase {
                VmPhase::Waiting => Stage::Waiting,
                _ => Stage::Running,
            },
            evidence: self.evidence(),
        }
    }

    fn evidence(&self) -> Evidence {
        if self.running.is_none() {
            return Evidence::default();
        }
        Evidence {
            active: self.sampling.active_set(&self.states(), self.held()),
            guest: Some(self.figures),
            balloon: Some(self.balloon_watch),
            has_no_driver: !self.has_driver(),
            backed: Some(self.used.memory_file),
            limit: self.limit.map(|limit| limit.slow_above),
        }
    }

    /// What its guest has not given up.
    pub(super) fn held(&self) -> PageCount {
        self.config.settings.size.saturating_sub(self.ballooned())
    }

    /// Looks whether its balloon follows.
    pub(super) fn watch_balloon(&mut self) {
        if self.running.is_some() {
            let (asked, held) = (self.grant.latest, self.held());
            self.balloon_watch = self.balloon_watch.observe(asked, held);
        }
    }

    fn has_driver(&self) -> bool {
        let observation = self.observation.as_ref();
        observation.is_some_and(|observation| observation.balloon.has_driver)
    }

    /// Its guest may have touched so much from now on. It is told again each time that this changes, and
    /// when it did not take it.
    pub(super) fn set_limit(&mut self, limit: Option<Limit>) {
        if limit != self.limit && self.send(&ToVm::SetLimit(limit)) {
            self.limit = limit;
        }
    }

    /// Takes in how long it was stopped. What there is to tell about it.
    pub(super) fn watch_blocked(&mut self) -> Option<String> {
        let observed = self.observation.as_ref()?.blocked;
        let was_blocked = self.blocked.permille > 0;
        self.blocked = self.blocked.after(observed);
        let permille = self.blocked.permille;
        match (was_blocked, self.limit) {
            (false, Some(limit)) if permille > 0 => Some(format!(
                "is blocked: it touches more than its limit of {}",
                limit.slow_above
            )),
            (true, _) if permille == 0 => Some("is not blocked any more".into()),
            _ => None,
        }
    }

    /// What there is to tell about its disks and network cards.
    pub(super) fn watch_devices(&mut self) -> Vec<String> {
        let Some(seen) = &self.observation else {
            return Vec::new();
        };
        self.device_watch.look(&self.config, seen, Instant::now())
    }

    /// The part of its time that it was blocked before its last answer, in thousandths.
    pub(super) fn blocked_permille(&self) -> u64 {
        self.blocked.permille
    }

    /// Whether it gets all that it may hold.
    pub(super) fn is_unlimited(&self) -> bool {
        self.target >= self.config.settings.max
    }

    /// Pages that the guest has given up. What it has touched it has not, whatever it says.
    fn ballooned(&self) -> PageCount {
        let size = self.config.settings.size;
        let observation = self.observation.as_ref();
        let young = self
            .running
            .as_ref()
            .is_none_or(|running| running.since.elapsed() < DRIVER_PATIENCE);
        let given_up = match observation {
            Some(observation) if observation.balloon.has_driver => observation.balloon.held,
            _ if young => size - self.grant.latest,
            _ => PageCount::ZERO,
        };
        given_up.min(size.saturating_sub(self.used.memory_file))
    }

    /// The VM may hold this much from now on; it is told if it runs.
    pub(super) fn grant(&mut self, pages: PageCount) {
        if pages == self.grant.latest {
            return;
        }
        self.grant.set(pages);
        self.config.balloon_target = self.config.settings.size - pages;
        if let Some(waiting) = self.first_grant.take() {
            self.phase = VmPhase::Starting;
            if waiting.send(pages).is_err() {
                // The wait was given up at this moment: who waited removes the VM.
                tracing::debug!(vm = %self.config.name, "granted too late");
            }
        }
        self.send(&ToVm::SetBalloon {
            target: self.config.balloon_target,
        });
    }

    /// Asks the process how things stand, unless it still owes an answer.
    pub(super) fn observe(&mut self, sequence: u64, recount: bool, statistics: bool) -> bool {
        if self.running.is_none() || !self.responding() {
            return false;
        }
        let asked = self.send(&ToVm::Observe {
            sequence,
            recount,
            statistics,
        });
        if asked {
            self.asked = sequence;
        }
        asked
    }

    /// Whether this is the answer that the host waits for.
    pub(super) fn awaits(&self, sequence: u64) -> bool {
        !self.responding() && sequence == self.asked
    }

    /// The process has answered. What cannot be true changes nothing.
    pub(super) fn observed(&mut self, said: Observation) -> Result<(), Untrue> {
        self.answered = said.sequence;
        let observation = Checked::new(said, &self.config, self.since.elapsed())?;
        self.grant
            .confirm(self.config.settings.size - observation.balloon.target);
        self.take_figures(&observation);
        self.observation = Some(observation);
        Ok(())
    }

    /// The process has told how things stand for the last time, unasked. Nothing is promised to others by that.
    pub(super) fn observed_last(&mut self, said: Observation) -> Result<(), Untrue> {
        let observation = Checked::new(said, &self.config, self.since.elapsed())?;
        self.observation = Some(observation);
        Ok(())
    }

    /// It has said what cannot be true. Whether that is new: a process that did is not believed to be what
    /// it was ever again, and there is no more to tell.
    pub(super) fn doubt(&mut self) -> bool {
        std::mem::replace(&mut self.is_credible, false)
    }

    /// Figures that are no news speak of what the VM held when they came.
    fn take_figures(&mut self, observation: &Observation) {
        let before = self.observation.as_ref().and_then(|seen| seen.statistics);
        let Some(said) = observation
            .statistics
            .filter(|_| observation.statistics != before)
        else {
            return;
        };
        let pages = |bytes: Option<u64>| bytes.map(|bytes| PageCount(bytes / PAGE_SIZE));
        let size = self.config.settings.size;
        self.figures = GuestFigures {
            held: size - observation.balloon.held,
            free: pages(said.free),
            available: pages(said.available),
            caches: pages(said.caches),
            stalls: None,
        };
    }

    /// Whether every question has been answered.
    pub(super) fn responding(&self) -> bool {
        self.answered == self.asked
    }

    /// False if the process does not take messages now; it is told again when its grant changes.
    pub(super) fn send(&self, message: &ToVm) -> bool {
        let Some(running) = &self.running else {
            return false;
        };
        match running.link.send(message) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(vm = %self.config.name, "not told: {error}");
                false
            }
        }
    }

    /// What page sharing must know of it.
    pub(super) fn sharing_round(&self) -> VmRound {
        VmRound {
            id: self.config.id,
            vcpus: self.config.vcpus,
            anonymous: self.used.anonymous,
            counters: self.sharing_counters(),
        }
    }

    fn sharing_counters(&self) -> SharingCounters {
        let observation = self.observation.as_ref();
        observation
            .map(|observation| observation.counters.sharing)
            .unwrap_or_default()
    }

    /// Its pages by state. The VM process counts what is mapped from the store; which of that its guest
    /// has written to, the host knows.
    pub(super) fn states(&self) -> PageStates {
        let Some(observation) = &self.observation else {
            return self.untouched();
        };
        let mapped = observation.states.shared + observation.states.broken;
        let broken = self.broken.min(mapped);
        PageStates {
            shared: mapped - broken,
            broken,
            ..observation.states
        }
    }

    /// Reads what the kernel counts for it.
    pub(super) fn read_use(&mut self) {
        let Some(running) = &self.running else { return };
        match VmUse::read(running.pid, &running.memory_file) {
            Ok(used) => self.used = used,
            Err(error) => {
                tracing::warn!(vm = %self.config.name, "its memory cannot be read: {error}")
            }
        }
    }

    pub(super) fn view(&self, account: &Account) -> VmView {
        let settings = &self.config.settings;
        let observation = self.observation.as_ref();
        let running = self.running.as_ref();
        VmView {
            name: self.config.name.clone(),
            id: self.config.id,
            pid: running.map(|running| running.pid),
            phase: self.phase,
            responding: self.responding(),
            credible: self.is_credible,
            uptime_s: self.since.elapsed().as_secs_f64(),
            vcpus: self.config.vcpus,
            trust_group: self.config.trust_group.clone(),
            size_bytes: settings.size.bytes(),
            min_bytes: settings.min.bytes(),
            max_bytes: settings.max.bytes(),
            shares: settings.shares,
            shares_count: settings.shares.resolve(settings.size).0.get(),
            target_bytes: self.target.bytes(),
            granted_bytes: self.grant.latest.bytes(),
            pinned_bytes: self.pinned.map(PageCount::bytes),
            used_bytes: self.used.total().bytes(),
            memory_file_bytes: self.used.memory_file.bytes(),
            anonymous_bytes: self.used.anonymous.bytes(),
            states: self.states().map(PageCount::bytes),
            balloon: observation
                .map(|observation| observation.balloon.into())
                .unwrap_or_default(),
            guest: observation.and_then(|observation| observation.statistics),
            counters: observation
                .map(|observation| observation.counters)
                .unwrap_or_default(),
            nets: self.nets(),
            disks: self.disk_views(),
            console_log: self.config.console_log.clone(),
            sharing: account.vm_view(self.config.id, &self.states()),
            working_set: self
                .sampling
                .view(&self.states(), self.held(), self.figures),
            idle_tax_permille: settings.idle_tax,
            balloon_health: running.map(|_| self.balloon_watch.health()),
            limit: self.limit.map(LimitView::from),
            blocked_permille: self.blocked_permille(),
            blocked_us: self.blocked.last.total_us,
            start_us: running.map(|running| running.start_us),
            userfault_bytes: running.map_or(0, |running| running.userfault_pages.bytes()),
        }
    }

    /// Its network cards. Of one that was not seen yet nothing is known but what it is to be.
    fn nets(&self) -> Vec<NetView> {
        let seen = self.observation.iter().flat_map(|seen| &seen.nets).copied();
        let states = seen.chain(std::iter::repeat_with(Default::default));
        let cards = self.config.nets.iter().zip(states);
        cards
            .map(|(config, state)| NetView::new(config, state))
            .collect()
    }

    fn disk_views(&self) -> Vec<DiskView> {
        let figures = self.observation.iter().flat_map(|seen| &seen.disks);
        let disks = self.config.disks.iter().zip(figures);
        disks
            .map(|(spec, figures)| DiskView::new(spec, *figures))
            .collect()
    }

    /// The states of a VM whose guest has not run yet.
    fn untouched(&self) -> PageStates {
        PageStates {
            empty: self.config.settings.size,
            ..PageStates::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OnHostDeath;
    use policy::{SharesSpec, VmSettings};

    fn vm(size: PageCount) -> Vm {
        let config = VmConfig {
            id: page::VmId(1),
            name: "a".parse().unwrap(),
            settings: VmSettings::new(size, None, None, SharesSpec::Normal).unwrap(),
            vcpus: 1,
            trust_group: None,
            kernel: None,
            initrd: None,
            nets: Vec::new(),
            cmdline: String::new(),
            disks: Vec::new(),
            console_log: None,
            balloon_target: PageCount::ZERO,
            on_host_death: OnHostDeath::default(),
        };
        Vm::new(config, oneshot::channel().0)
    }

    fn observation(states: PageStates) -> Observation {
        Observation {
            sequence: 1,
            states,
            balloon: Default::default(),
            statistics: None,
            counters: Default::default(),
            nets: Vec::new(),
            disks: Vec::new(),
            blocked: Default::default(),
        }
    }

    #[test]
    fn no_more_of_a_vm_is_broken_than_it_shares() {
        let mut vm = vm(PageCount(100));
        assert_eq!(vm.states().total(), PageCount(100), "it was not seen yet");
        let states = PageStates {
            empty: PageCount(60),
            shared: PageCount(40),
            ..PageStates::default()
        };
        vm.observed(observation(states)).unwrap();
        vm.broken = PageCount(70);
        assert_eq!(vm.states().total(), PageCount(100));
        assert_eq!(vm.states().broken, PageCount(40));
    }

    #[test]
    fn the_last_figures_stand_when_a_vm_says_what_cannot_be() {
        let mut vm = vm(PageCount(100));
        let mut states = PageStates {
            empty: PageCount(60),
            private: PageCount(40),
            ..PageStates::default()
        };
        vm.observed(observation(states)).unwrap();
        states.private = PageCount(1 << 63);
        vm.asked = 2;
        assert!(vm.awaits(2) && !vm.awaits(1) && !vm.awaits(3));
        let lie = Observation {
            sequence: 2,
            ..observation(states)
        };
        assert_eq!(vm.observed(lie), Err(Untrue::States(PageCount(100))));
        assert_eq!(vm.states().private, PageCount(40));
        assert!(vm.responding() && !vm.awaits(2), "it has answered");
        assert!(vm.doubt() && !vm.doubt(), "told once");
    }

    /// What the host sees in a second is one time all that happened in one and a half, another nothing.
    #[test]
    fn a_vm_that_answers_late_is_as_blocked_as_it_was() {
        let said = |at_ms: u64, stopped_ms: u64| BlockedTime {
            is_now: true,
            total_us: stopped_ms * 1000,
            at_us: at_ms * 1000,
        };
        let mut blocked = Blocked::default();
        for (at_ms, stopped_ms) in [(1000, 900), (1000, 900), (2500, 2250), (2630, 2367)] {
            blocked = blocked.after(said(at_ms, stopped_ms));
            assert_eq!(blocked.permille, 900, "at {at_ms} ms");
        }
        // Nothing can be seen in 10 ms.
        assert_eq!(blocked.after(said(2640, 2367)), blocked);
        let runs = BlockedTime {
            is_now: false,
            ..said(3630, 2367)
        };
        assert_eq!(blocked.after(runs).permille, 0);
    }

    #[test]
    fn a_smaller_grant_counts_only_after_it_was_confirmed_twice() {
        let mut grant = Grant::default();
        grant.set(PageCount(100));
        grant.set(PageCount(40));
        grant.confirm(PageCount(100));
        assert_eq!(grant.highest_unconfirmed, PageCount(100));
        grant.confirm(PageCount(40));
        assert_eq!(grant.highest_unconfirmed, PageCount(100));
        grant.confirm(PageCount(40));
        assert_eq!(grant.highest_unconfirmed, PageCount(40));
        grant.set(PageCount(60));
        assert_eq!(grant.highest_unconfirmed, PageCount(60));
    }
}
