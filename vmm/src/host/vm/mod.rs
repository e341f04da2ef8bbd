//! A VM as its host sees it: what was agreed about it, where in its life it is, and what was last seen of it.

mod backend;
mod blocked;
mod grant;
mod handle;
mod kept_limit;
mod lifecycle;
mod link;
pub(super) mod orphans;
pub(super) mod process;
mod qemu;
pub(super) mod sampling;
mod silence;
mod swap_rates;
pub(super) mod take_over;
mod view;

pub(super) use backend::{AnyBackend, Question, VmProcess};
pub(super) use lifecycle::{Admitted, Life, Wanted};
pub(super) use link::Link;
pub(super) use process::Running;
pub use qemu::AdoptError;
pub(super) use qemu::{DomainWish, Reported};

use crate::host::bundles::Agreed;
use crate::host::claim::{Checked, Untrue};
use crate::host::device_watch::DeviceWatch;
use crate::host::error::HostError;
use crate::host::kernel::VmUse;
use crate::host::sharing::KeptBlocks;
use crate::host::sharing::account::VmRound;
use crate::host::state_store::Adoption;
use crate::memory::areas::FileId;
use crate::memory::swap::LEAST_HOLD;
use backend::Backend;
use blocked::Blocked;
use grant::Grant;
use kept_limit::KeptLimit;
use page::{PAGE_SIZE, PageCount, PageStates};
use policy::{
    BalloonWatch, BrokenBlocks, Capabilities, Evidence, GuestFigures, GuestWord, HALF_PERCENT,
    LargePages, OVERHEAD, Stage, Supposed, TouchLimit, VmSettings, VmSnapshot, shared_of_limit,
};
use protocol::{Observation, SharingCounters, ToVm, VmConfig};
use qemu::{Heard, Qemu};
use sampling::Sampling;
use silence::Silence;
use std::time::{Duration, Instant};
use swap_rates::SwapRates;
use tokio::sync::oneshot;

/// How long a guest may take until its balloon driver is ready. Up to then it is believed to come,
/// with its balloon at its target before anything else; after that the guest may touch all it has.
const DRIVER_PATIENCE: Duration = Duration::from_secs(10);
/// Of so many compressed pages it is told how well they compress,
const ENOUGH_TO_TELL: PageCount = PageCount::from_mebibytes(1);
/// up to the next multiple of this.
const SAVED_STEP_PERCENT: u64 = 10;

/// One VM: what another host would need to take it over, and what was `seen`.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) config: VmConfig,
    pub(super) life: Life,
    pub(super) since: Instant,
    /// What an administrator fixed that it holds.
    pub(super) pinned: Option<PageCount>,
    /// What the policy wants it to hold.
    pub(super) target: PageCount,
    /// Which of its large pages are broken to share what is equal in them.
    pub(super) broken_blocks: BrokenBlocks,
    grant: Grant,
    /// Whether its process has said that its guest switched itself off.
    pub(super) has_switched_off: bool,
    pub(super) seen: Seen,
}

/// What begins anew with each host.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The last question asked, and the last answered.
    asked: u64,
    answered: u64,
    /// The last answer that can be true.
    observation: Option<Checked>,
    /// Whether one could not be.
    is_doubted: bool,
    pub(super) used: VmUse,
    /// Of its anonymous pages, those that are the guest's: copies over shared pages.
    pub(super) broken: PageCount,
    /// What it uses.
    pub(super) sampling: Sampling,
    /// How its balloon follows.
    balloon_watch: BalloonWatch,
    /// Within what it keeps itself.
    kept_limit: KeptLimit,
    /// How fast its pages go out and come back.
    swap_rates: SwapRates,
    /// How long it was stopped at its limit.
    blocked: Blocked,
    /// Since when it has not answered.
    silence: Silence,
    /// What its guest said last, with what it held then.
    figures: GuestFigures,
    /// The most that it held since they came: its guest may make the next ones at any moment.
    most_held: PageCount,
    /// What was told of its disks and network cards.
    device_watch: DeviceWatch,
    /// What was heard of one whose guest's word alone is known, and what that shows.
    heard: Heard,
    word: GuestWord,
    /// When its guest began anew.
    begun: Option<Instant>,
}

impl Vm {
    /// One that waits for its first grant, of which is told there.
    pub(super) fn new(config: VmConfig, first_grant: oneshot::Sender<()>) -> Self {
        Self::with_life(config, Life::Waiting(first_grant))
    }

    fn with_life(config: VmConfig, life: Life) -> Self {
        Self {
            config,
            life,
            since: Instant::now(),
            pinned: None,
            target: PageCount::ZERO,
            broken_blocks: BrokenBlocks::default(),
            grant: Grant::default(),
            has_switched_off: false,
            seen: Seen::default(),
        }
    }

    /// One that another host started, so long ago.
    fn taken_over(agreed: Agreed, running: Running, age: Duration) -> Self {
        let mut vm = Self::with_life(agreed.config, Life::Running(running));
        vm.since = vm.since.checked_sub(age).unwrap_or(vm.since);
        vm.pinned = agreed.pinned;
        vm.config.touch_limit = None;
        // Until it says what it was told.
        vm.read_use();
        vm.grant = Grant::taken_over(vm.seen.used.memory_file.min(vm.config.settings.size));
        vm
    }

    /// One that somebody else started, with what its balloon leaves it now.
    fn adopted(config: VmConfig, pinned: Option<PageCount>, running: Running) -> Self {
        let held = config.settings.size.saturating_sub(config.balloon_target);
        let mut vm = Self::with_life(config, Life::Running(running));
        vm.pinned = pinned;
        vm.grant = Grant::taken_over(held);
        vm.seen.heard.is_stale = true;
        vm.read_use();
        vm
    }

    pub(super) fn qemu(&self) -> Option<&Qemu> {
        self.running().and_then(|running| running.backend.qemu())
    }

    /// What is kept of one that was adopted.
    pub(super) fn adoption(&self) -> Option<&Adoption> {
        self.qemu().map(|qemu| &qemu.adoption)
    }

    /// It was adopted with these settings, from here on.
    pub(super) fn set_adoption(&mut self, adoption: Adoption) {
        if let Life::Running(running) = &mut self.life
            && let Some(qemu) = running.backend.qemu_mut()
        {
            qemu.adoption = adoption;
        }
    }

    /// The last question asked.
    fn asked(&self) -> u64 {
        self.seen.asked
    }

    /// What comes with the answer of one that was adopted. What it holds when it is heard first is what it was told before.
    fn hear(&mut self, heard: Heard) {
        if self
            .running()
            .is_some_and(|running| !running.is_described())
        {
            self.grant = Grant::taken_over(heard.held);
            self.config.balloon_target = self.config.settings.size.saturating_sub(heard.held);
        }
        if heard.has_begun {
            self.seen.begun = Some(Instant::now());
        }
        self.seen.heard = heard;
    }

    /// Its guest's figures are new, since which its faults have brought so much.
    fn take_word(&mut self, faulted: PageCount) {
        let figures = self.seen.figures;
        self.seen.word.observe(&figures, faulted);
    }

    /// Whether its vCPUs do not run, by nobody's word but its own.
    pub(super) fn is_paused(&self) -> bool {
        self.seen.heard.is_paused
    }

    /// Whether nothing but its guest's word tells what it needs, and that is old.
    pub(super) fn is_stale(&self) -> bool {
        let hears_word_alone = !self.capabilities().sampling;
        hears_word_alone && (self.seen.heard.is_stale || !self.responding())
    }

    /// What its process says that the host before has told it. No host tells it of more than its size.
    fn take_described(&mut self, said: &VmConfig) {
        let size = self.config.settings.size;
        self.config.balloon_target = said.balloon_target.min(size);
        self.grant = Grant::taken_over(size - self.config.balloon_target);
        self.config.touch_limit = said.touch_limit.map(|limit| TouchLimit {
            slow_above: limit.slow_above.min(size),
            stop_above: limit.stop_above.min(size),
        });
        self.config.large_pages = said.large_pages;
        let kept = self.config.touch_limit.map(|limit| limit.slow_above);
        self.seen.kept_limit = KeptLimit::at_boot(kept);
    }

    /// What another host must know of it.
    pub(super) fn agreed(&self) -> Agreed {
        let process = self.running().and_then(|running| running.backend.process());
        let file = process.and_then(|process| FileId::of(&process.memory_file).ok());
        Agreed::new(self.config.clone(), self.pinned, file)
    }

    /// Its process, while its guest runs.
    pub(super) fn running(&self) -> Option<&Running> {
        self.life.running()
    }

    /// What the policy must know of it.
    pub(super) fn snapshot(&self) -> VmSnapshot {
        VmSnapshot {
            id: self.config.id,
            settings: self.config.settings.clone(),
            overhead: self.overhead(),
            ballooned: self.ballooned(),
            granted: self.grant.highest_unconfirmed(),
            told: Some(self.grant.latest()),
            pinned: self.pinned,
            stage: match self.life {
                Life::Waiting(_) => Stage::Waiting,
                _ => Stage::Running,
            },
            evidence: self.evidence(),
        }
    }

    /// Whether all that may be out by these settings has room in the swap file that was reserved when it started.
    pub(super) fn check_swap_file(&self, settings: &VmSettings) -> Result<(), HostError> {
        let least = self
            .config
            .swap_file_for
            .map_or(PageCount::ZERO, |pages| self.config.settings.size - pages);
        let (old, new) = (self.config.settings.min, settings.min);
        match new < old.min(least) {
            false => Ok(()),
            true => Err(HostError::SwapFileTooSmall {
                name: self.config.name.clone(),
                min: new,
                least,
            }),
        }
    }

    /// What its process takes besides. Its compressed pool is within the limit that it keeps, as far as that has room for it
    /// beside the memory file, whatever the process says of its pool: nothing that it has now is left out.
    fn overhead(&self) -> PageCount {
        OVERHEAD.max(self.besides())
    }

    /// The same without what it may take yet.
    fn besides(&self) -> PageCount {
        let used = self.seen.used;
        let room = self.seen.kept_limit.kept().unwrap_or(PageCount::ZERO);
        let room = room.saturating_sub(used.memory_file);
        let observation = self.seen.observation.as_ref();
        let pool = observation.map_or(0, |observation| observation.counters.swap.pool_bytes);
        let pool = match self.config.has_swap {
            true => PageCount(pool / PAGE_SIZE).min(room),
            false => PageCount::ZERO,
        };
        let unshared = used.anonymous.saturating_sub(self.seen.broken);
        unshared.saturating_sub(pool)
    }

    fn evidence(&self) -> Evidence {
        if self.running().is_none() {
            return Evidence::default();
        }
        Evidence {
            active: match self.capabilities().sampling {
                true => self
                    .seen
                    .sampling
                    .active_set(&self.states(), self.held_within_limit()),
                false => self.seen.word.active_set(self.held()),
            },
            guest: Some(self.seen.figures),
            balloon: Some(self.seen.balloon_watch),
            has_no_driver: !self.has_driver(),
            backed: Some(self.seen.used.memory_file),
            untouched: self.left_alone() + (self.overhead() - self.besides()),
            touch_limit: match self.config.has_swap {
                true => self.seen.kept_limit.kept().map(|limit| {
                    let limit = limit.max(LEAST_HOLD);
                    let states = self.states();
                    let shared = states.shared + states.broken;
                    limit + shared.saturating_sub(shared_of_limit(limit, shared))
                }),
                false => self.config.touch_limit.map(|limit| limit.slow_above),
            },
            has_swap: self.config.has_swap,
            pool_saves_percent: self.pool_saves_percent(),
            waits_for_room: self.waits_for_room(),
            capabilities: self.capabilities(),
            is_stale: self.is_stale(),
            kernel_reclaim: self.may_be_reclaimed(),
            pressure_permille: self.seen.used.pressure_permille,
            supposed: self.seen.heard.supposed.map(|supposed| Supposed {
                saved: self.seen.used.saved,
                ..supposed
            }),
        }
    }

    /// Whether the kernel may take pages of it: an administrator has allowed it, and its guest has had the time to show its driver.
    fn may_be_reclaimed(&self) -> bool {
        self.qemu().is_some_and(Qemu::may_be_reclaimed) && !self.is_young()
    }

    fn is_young(&self) -> bool {
        let begun = self.seen.begun;
        self.running()
            .is_none_or(|running| begun.unwrap_or(running.since).elapsed() < DRIVER_PATIENCE)
    }

    /// What can be done to it, and known of it.
    pub(super) fn capabilities(&self) -> Capabilities {
        self.running()
            .map_or(Capabilities::ALL, |running| running.backend.capabilities())
    }

    fn waits_for_room(&self) -> bool {
        let observation = self.seen.observation.as_ref();
        observation.is_some_and(|seen| seen.counters.swap.is_stalled)
    }

    /// What its guest has not given up.
    pub(super) fn held(&self) -> PageCount {
        self.config.settings.size.saturating_sub(self.ballooned())
    }

    /// How much less its pages take in its pool than outside of it: half as much, until there are enough to tell. It says so itself,
    /// and has nothing of it but what it may hold within its limit.
    fn pool_saves_percent(&self) -> u8 {
        let observation = self.seen.observation.as_ref();
        let Some(seen) = observation.filter(|_| self.config.has_swap) else {
            return 0;
        };
        let (pages, used) = (seen.states.compressed, seen.counters.swap.pool_used_bytes);
        let saved = match pages >= ENOUGH_TO_TELL {
            true => pages.bytes().saturating_sub(used) * 100 / pages.bytes(),
            false => HALF_PERCENT,
        };
        // In steps: what balloons are asked for is not to follow each page.
        u8::try_from(saved.next_multiple_of(SAVED_STEP_PERCENT)).unwrap_or(0)
    }

    /// What it holds, of which what is above the limit that it keeps is out.
    fn held_within_limit(&self) -> PageCount {
        let kept = self.seen.kept_limit.kept();
        let kept = kept.filter(|_| self.config.has_swap);
        kept.map_or(self.held(), |kept| kept.min(self.held()))
    }

    /// Pages that its guest may touch and has not. It says so itself, so no more than it may hold beyond what the kernel counts.
    fn left_alone(&self) -> PageCount {
        let may_hold = self.held_within_limit().min(self.grant.latest());
        let unbacked = may_hold.saturating_sub(self.seen.used.memory_file);
        self.states().empty.min(unbacked)
    }

    /// Pages that came back into its memory because its guest touched them.
    pub(super) fn came_back(&self) -> u64 {
        let observation = self.seen.observation.as_ref();
        observation.map_or(0, |observation| {
            let swap = &observation.counters.swap;
            swap.stored_in
                .saturating_add(swap.filled_in)
                .saturating_add(swap.disk_in)
        })
    }

    /// Looks whether its balloon follows.
    pub(super) fn watch_balloon(&mut self) {
        if self.running().is_some() && !self.is_paused() {
            let (asked, held) = (self.grant.latest(), self.held());
            self.seen.balloon_watch = self.seen.balloon_watch.observe(asked, held);
        }
    }

    fn has_driver(&self) -> bool {
        let observation = self.seen.observation.as_ref();
        observation.is_some_and(|observation| observation.balloon.has_driver)
    }

    /// Its guest may have touched so much from now on. It is told again each time that this changes, and
    /// when it did not take it.
    pub(super) fn set_touch_limit(&mut self, limit: Option<TouchLimit>) {
        if limit != self.config.touch_limit && self.tell(|backend| backend.reclaim_above(limit)) {
            self.config.touch_limit = limit;
            let pages = limit.map(|limit| limit.slow_above);
            self.seen.kept_limit.tell(pages, self.seen.asked);
        }
    }

    /// It makes such large pages from now on.
    pub(super) fn set_large_pages(&mut self, pages: LargePages) {
        let is_to_be_told = !matches!(self.life, Life::Waiting(_));
        let is_new = pages != self.config.large_pages;
        let tell = || self.tell(|backend| backend.make_large_pages(pages));
        if is_new && (!is_to_be_told || tell()) {
            self.config.large_pages = pages;
        }
    }

    /// Whether pages of it may be out, so that the kernel does not tell what was written.
    pub(super) fn is_guarded(&self) -> bool {
        let states = self.states();
        let out = states.compressed + states.swapped;
        self.config.has_swap && (self.config.touch_limit.is_some() || out > PageCount::ZERO)
    }

    /// Its blocks that sharing leaves alone. Where the machine has no large pages to give, those that are not large
    /// are worth sharing in.
    pub(super) fn kept_blocks(&self) -> KeptBlocks {
        match self.broken_blocks {
            BrokenBlocks::None => {}
            BrokenBlocks::Cold => return KeptBlocks::Used,
            BrokenBlocks::ColdFirst => return KeptBlocks::UsedAtFirst,
            BrokenBlocks::All => return KeptBlocks::None,
        }
        let observation = self.seen.observation.as_ref();
        let large = observation.map(|observation| observation.counters.large);
        match large.unwrap_or_default() {
            large if large.made == 0 && large.no_memory + large.refused > 0 => KeptBlocks::Large,
            _ => KeptBlocks::Whole,
        }
    }

    /// What there is to tell about its disks and network cards.
    pub(super) fn watch_devices(&mut self) -> Vec<String> {
        let Some(seen) = &self.seen.observation else {
            return Vec::new();
        };
        self.seen
            .device_watch
            .look(&self.config, seen, Instant::now())
    }

    /// Whether it gets all that it may hold.
    pub(super) fn is_unlimited(&self) -> bool {
        self.target >= self.config.settings.max
    }

    /// Pages that the guest has given up. What it has touched it has not, whatever it says.
    fn ballooned(&self) -> PageCount {
        let size = self.config.settings.size;
        let observation = self.seen.observation.as_ref();
        let given_up = match observation {
            Some(observation) if observation.balloon.has_driver => observation.balloon.held,
            _ if self.is_young() => size - self.grant.latest(),
            _ => PageCount::ZERO,
        };
        given_up.min(size.saturating_sub(self.seen.used.memory_file))
    }

    /// Asks the process how things stand, unless it still owes an answer.
    pub(super) fn observe(&mut self, question: Question) -> bool {
        if self.running().is_none() || !self.responding() {
            return false;
        }
        let asked = self.tell(|backend| backend.sense(question));
        if asked {
            self.seen.asked = question.sequence;
        }
        asked
    }

    /// Whether this is the answer that the host waits for.
    pub(super) fn awaits(&self, sequence: u64) -> bool {
        !self.responding() && sequence == self.seen.asked
    }

    /// The process has answered. What cannot be true changes nothing.
    pub(super) fn observed(&mut self, said: Observation) -> Result<(), Untrue> {
        self.seen.answered = said.sequence;
        let sequence = said.sequence;
        let observation = Checked::new(said, &self.config, self.since.elapsed())?;
        match observation.counters.swap.keeps_limit {
            true => self.seen.kept_limit.answered(sequence),
            false => self.seen.kept_limit.is_not_kept(),
        }
        let believes = self.config.settings.size - observation.balloon.target;
        self.grant.confirm(believes, sequence);
        self.take_figures(&observation);
        let swap = observation.counters.swap;
        self.seen.swap_rates.see(swap, Instant::now());
        self.seen.observation = Some(observation);
        Ok(())
    }

    /// The process has told how things stand for the last time, unasked. Nothing is promised to others by that.
    pub(super) fn observed_last(&mut self, said: Observation) -> Result<(), Untrue> {
        let observation = Checked::new(said, &self.config, self.since.elapsed())?;
        self.seen.observation = Some(observation);
        Ok(())
    }

    /// It has said what cannot be true. Whether that is new: a process that did is not believed to be what
    /// it was ever again, and there is no more to tell.
    pub(super) fn doubt(&mut self) -> bool {
        !std::mem::replace(&mut self.seen.is_doubted, true)
    }

    /// Figures that are no news speak of what the VM held when they came.
    fn take_figures(&mut self, observation: &Observation) {
        let size = self.config.settings.size;
        let held = size - observation.balloon.held;
        self.seen.most_held = self.seen.most_held.max(held);
        let before = self
            .seen
            .observation
            .as_ref()
            .and_then(|seen| seen.statistics);
        let Some(said) = observation
            .statistics
            .filter(|_| observation.statistics != before)
        else {
            return;
        };
        let pages = |bytes: Option<u64>| bytes.map(|bytes| PageCount(bytes / PAGE_SIZE));
        self.seen.figures = GuestFigures {
            held,
            // The first it may have made before it was seen at all.
            most_held: match before {
                None => size,
                Some(_) => self.seen.most_held,
            },
            free: pages(said.free),
            available: pages(said.available),
            caches: pages(said.caches),
            stalls: None,
        };
        self.seen.most_held = held;
    }

    /// Whether every question has been answered.
    pub(super) fn responding(&self) -> bool {
        self.seen.answered == self.seen.asked
    }

    /// False if it does not run or takes nothing now; it is told again when its grant changes.
    pub(super) fn tell(&self, what: impl FnOnce(&dyn Backend) -> bool) -> bool {
        self.running()
            .is_some_and(|running| what(&*running.backend))
    }

    /// As [`Self::tell`], of our own process; false of any other.
    fn send(&self, message: &ToVm) -> bool {
        let process = self.running().and_then(|running| running.backend.process());
        process.is_some_and(|process| process.send(message))
    }

    /// What page sharing must know of it.
    pub(super) fn sharing_round(&self) -> VmRound {
        VmRound {
            id: self.config.id,
            vcpus: self.config.vcpus,
            anonymous: self.seen.used.anonymous,
            counters: self.sharing_counters(),
        }
    }

    fn sharing_counters(&self) -> SharingCounters {
        let observation = self.seen.observation.as_ref();
        observation
            .map(|observation| observation.counters.sharing)
            .unwrap_or_default()
    }

    /// Its pages by state. The VM process counts what is mapped from the store; which of that its guest
    /// has written to, the host knows.
    pub(super) fn states(&self) -> PageStates {
        if !self.capabilities().sharing {
            return self.states_by_kernel();
        }
        let Some(observation) = &self.seen.observation else {
            return self.untouched();
        };
        let mapped = observation.states.shared + observation.states.broken;
        let broken = self.seen.broken.min(mapped);
        PageStates {
            shared: mapped - broken,
            broken,
            ..observation.states
        }
    }

    /// Of one whose pages nobody sees.
    fn states_by_kernel(&self) -> PageStates {
        let held = self.held();
        let private = self.seen.used.memory_file.min(held);
        PageStates {
            private,
            empty: held - private,
            ballooned: self.config.settings.size - held,
            ..PageStates::default()
        }
    }

    /// Reads what the kernel counts for it.
    pub(super) fn read_use(&mut self) {
        let Some(running) = self.life.running() else {
            return;
        };
        match running.backend.measure() {
            Ok(used) => self.seen.used = used,
            Err(error) => {
                tracing::warn!(vm = %self.config.name, "its memory cannot be read: {error}")
            }
        }
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
pub(super) mod tests {
    use super::*;
    use policy::{ActiveSet, SharesSpec, VmSettings, Witness};
    use protocol::{GuestStatistics, OnHostDeath};

    fn vm(size: PageCount) -> Vm {
        Vm::new(config(size), oneshot::channel().0)
    }

    pub(in crate::host) fn config(size: PageCount) -> VmConfig {
        VmConfig {
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
            touch_limit: None,
            large_pages: LargePages::Off,
            has_swap: false,
            swap_file_for: None,
            jail: protocol::JailMode::default(),
            on_host_death: OnHostDeath::default(),
        }
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
        vm.seen.broken = PageCount(70);
        assert_eq!(vm.states().total(), PageCount(100));
        assert_eq!(vm.states().broken, PageCount(40));
    }

    #[test]
    fn figures_are_judged_by_all_that_was_held_while_they_may_have_been_made() {
        let mut vm = vm(PageCount(1000));
        let states = |ballooned| PageStates {
            empty: PageCount(1000 - ballooned),
            ballooned: PageCount(ballooned),
            ..PageStates::default()
        };
        let mut see = |ballooned, free: u64| {
            let mut seen = observation(states(ballooned));
            seen.balloon.held = PageCount(ballooned);
            seen.statistics = Some(GuestStatistics {
                free: Some(free * PAGE_SIZE),
                ..GuestStatistics::default()
            });
            vm.observed(seen).unwrap();
            vm.seen.figures
        };
        let touches = ActiveSet::default();
        // It looked before its balloon inflated.
        let first = see(600, 900);
        assert_ne!(first.witness(Some(&touches)), Witness::Senseless);
        see(100, 900);
        let later = see(600, 850);
        assert_ne!(later.witness(Some(&touches)), Witness::Senseless);
        let impossible = see(600, 401);
        assert_eq!(impossible.witness(Some(&touches)), Witness::Senseless);
    }

    #[test]
    fn what_a_vm_says_that_it_was_told_is_within_its_size() {
        let (mut vm, size) = (vm(PageCount(100)), PageCount(100));
        let most = PageCount(u64::MAX);
        vm.take_described(&VmConfig {
            balloon_target: most,
            touch_limit: Some(TouchLimit {
                slow_above: most,
                stop_above: most,
            }),
            ..config(size)
        });
        assert_eq!(vm.config.balloon_target, size);
        let limit = vm.config.touch_limit.unwrap();
        assert_eq!((limit.slow_above, limit.stop_above), (size, size));
        assert_eq!(vm.seen.kept_limit.kept(), Some(size));
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
        vm.seen.asked = 2;
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
}
