//! What a host knows at one moment: its VMs, its budget, and what was last measured.

use super::HostOptions;
use super::arrivals::Arrivals;
use super::console_log;
use super::definitions::Definitions;
use super::error::{HostError, Keepers, NamedRefusal};
use super::events::{Events, now_ms};
use super::figures::Record;
use super::kernel::started_ticks;
use super::libvirt::{Libvirt, LibvirtUri};
use super::publication::Publication;
use super::queue::Queue;
use super::recording::{Decision, Recorder};
use super::request::{command_line, network_cards};
use super::settings;
use super::sharing::ScannedVmSpec;
use super::sharing::account::Account;
use super::state_store::{Adoption, Step as KeptStep, Way};
use super::vm::Vm;
use crate::vm::MOST_VCPUS;
use api::{
    ExplanationView, HistoryQuery, HistoryView, HostChange, HostSettings, HostView, Overview,
    RunRequest, SharingView, VmChange, VmView,
};
use page::{PageCount, VmId};
use policy::{
    BalloonRound, BalloonSettings, LargePages, MemoryState, Rebalance, Scale, Snapshot, Stage,
    Step, Thresholds, VmSettings, VmSnapshot,
};
use protocol::{JailMode, JailReport, OnHostDeath, VmConfig, VmName};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// What another host would need to take the VMs over: nobody could tell it anew.
#[derive(Debug)]
pub(super) struct Durable {
    pub(super) settings: HostSettings,
    pub(super) vms: BTreeMap<VmId, Vm>,
    pub(super) next_id: u32,
    /// Where what VMs print is kept, if nothing else is said of one.
    console_log: Option<PathBuf>,
    /// Where their swap files lie.
    pub(super) swap: Option<PathBuf>,
    /// How VM processes that start are jailed.
    jail: JailMode,
}

/// All that a host knows. But for `durable` it begins anew with each host.
#[derive(Debug)]
pub(super) struct State {
    pub(super) durable: Durable,
    pub(super) machine: PageCount,
    /// Who waits to be admitted.
    pub(super) queue: Queue,
    /// Who shares pages once all of the host before have come.
    pub(super) arrivals: Arrivals<ScannedVmSpec>,
    /// VMs that are to come back.
    pub(super) definitions: Definitions,
    /// QEMUs that the host before has adopted, until they are looked for.
    pub(super) left_adopted: Vec<Adoption>,
    /// QEMUs that were released, and that are not taken again when they are found.
    pub(super) released: Vec<Adoption>,
    /// Whose domains are put under this host,
    pub(super) libvirt: Option<LibvirtUri>,
    /// and the folder of monitors' sockets whose QEMUs are.
    pub(super) qmp_dir: Option<PathBuf>,
    /// Those that are polled.
    pub(super) libvirts: BTreeMap<LibvirtUri, Libvirt>,
    /// What somebody changed of the settings, by this host or those before it.
    pub(super) changed_settings: HostChange,
    pub(super) stopping: bool,
    pub(super) since: Instant,
    pub(super) round: u64,
    pub(super) used: PageCount,
    pub(super) used_max: PageCount,
    pub(super) samples: u64,
    pub(super) state_sum_violations: u64,
    /// Whether it was told what this machine cannot do of a jail.
    is_jail_told: bool,
    pub(super) events: Events,
    /// What was counted, now and before.
    pub(super) record: Record,
    /// What clients see.
    pub(super) published: Arc<Publication>,
    /// What page sharing brings and needs.
    pub(super) account: Account,
    /// How often that was measured.
    pub(super) account_rounds: u64,
    /// When that was last measured.
    pub(super) measured: Instant,
    /// How short memory is.
    pub(super) memory_state: MemoryState,
    /// What was known when targets changed last.
    pub(super) rebalance: Rebalance,
    /// When a plan was last carried out.
    pub(super) planned: Instant,
    /// The last decision.
    pub(super) decision: Option<Decision>,
    pub(super) recorder: Recorder,
}

impl State {
    /// Of a host without VMs.
    pub(super) fn new(options: &HostOptions, machine: PageCount, recorder: Recorder) -> Self {
        let mut state = Self {
            durable: Durable {
                settings: options.settings.clone(),
                vms: BTreeMap::new(),
                next_id: 1,
                console_log: options.console_log.clone(),
                swap: options.swap.clone(),
                jail: options.jail,
            },
            machine,
            queue: Queue::default(),
            arrivals: Arrivals::default(),
            definitions: Definitions::default(),
            left_adopted: Vec::new(),
            released: Vec::new(),
            libvirt: options.libvirt.clone(),
            qmp_dir: options.qmp_dir.clone(),
            libvirts: BTreeMap::new(),
            changed_settings: HostChange::default(),
            stopping: false,
            since: Instant::now(),
            round: 0,
            used: PageCount::ZERO,
            used_max: PageCount::ZERO,
            samples: 0,
            state_sum_violations: 0,
            is_jail_told: false,
            events: Events::default(),
            record: Record::default(),
            published: Arc::default(),
            account: Account::default(),
            account_rounds: 0,
            measured: Instant::now(),
            memory_state: MemoryState::default(),
            rebalance: Rebalance::every(options.settings.rebalance_interval),
            planned: Instant::now(),
            decision: None,
            recorder,
        };
        state.publish_change();
        state
    }

    /// Once is enough: it is the machine's doing, and the same for all VMs.
    pub(super) fn tell_of_jail(&mut self, jail: &JailReport) {
        if let Some(lack) = jail.lack()
            && !std::mem::replace(&mut self.is_jail_told, true)
        {
            let what = format!("this machine cannot jail VM processes whole: {lack}");
            self.events.add(None, what);
        }
    }

    /// Whether a VM of the host before has not said how it is.
    pub(super) fn has_undescribed(&self) -> bool {
        let mut running = self.durable.vms.values().filter_map(Vm::running);
        running.any(|running| !running.is_described())
    }

    /// Who keeps what others wait for.
    pub(super) fn keepers(&self) -> Keepers {
        let Some(Decision { snapshot, plan, .. }) = &self.decision else {
            return Keepers::default();
        };
        let excess = |(vm, step): (&VmSnapshot, &Step)| {
            let excess = vm.held().saturating_sub(step.target);
            let name = self.durable.vms.get(&vm.id)?.config.name.clone();
            (vm.stage == Stage::Running && excess > PageCount::ZERO).then_some((name, excess))
        };
        let vms = snapshot.vms.iter().zip(&plan.steps);
        let mut keepers: Vec<_> = vms.filter_map(excess).collect();
        keepers.sort_by_key(|&(_, excess)| Reverse(excess));
        Keepers(keepers)
    }

    pub(super) fn thresholds(&self) -> Thresholds {
        Thresholds::of(Scale::Sliding, self.durable.settings.budget)
    }

    pub(super) fn find(&mut self, name: &str) -> Result<&mut Vm, HostError> {
        let defined = self.definitions.name(name);
        let unknown = || defined.map_or_else(|| HostError::unknown_vm(name), HostError::NotRunning);
        self.durable
            .vms
            .values_mut()
            .find(|vm| vm.config.name.as_str() == name)
            .ok_or_else(unknown)
    }

    pub(super) fn vm_mut(&mut self, id: VmId) -> Result<&mut Vm, HostError> {
        self.durable
            .vms
            .get_mut(&id)
            .ok_or_else(|| HostError::UnknownVm(id.to_string()))
    }

    pub(super) fn vm(&self, id: VmId) -> Result<&Vm, HostError> {
        self.durable
            .vms
            .get(&id)
            .ok_or_else(|| HostError::UnknownVm(id.to_string()))
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            budget: self.durable.settings.budget,
            saved: self.account.saved,
            breakable: self.account.breakable,
            kept: self.account.kept,
            keep_free: self.thresholds().keep_free(),
            // As much as the disk has: each VM's file is reserved before it starts.
            swap: match self.durable.swap {
                Some(_) => PageCount(u64::MAX),
                None => PageCount::ZERO,
            },
            idle_tax: self.durable.settings.idle_tax,
            state: self.memory_state,
            unused: Some(self.durable.settings.budget.saturating_sub(self.used)),
            balloon: Some(BalloonRound {
                settings: BalloonSettings::default(),
                elapsed_ms: u64::try_from(self.planned.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
            small_pages_only: !self.durable.settings.large_pages,
            vms: self.durable.vms.values().map(Vm::snapshot).collect(),
        }
    }

    /// Why a VM holds what it holds, by the last decision.
    pub(super) fn explain(
        &mut self,
        name: &str,
        more: Option<PageCount>,
    ) -> Result<ExplanationView, HostError> {
        let vm = self.find(name)?;
        let (id, name) = (vm.config.id, vm.config.name.clone());
        let explanation = self
            .decision
            .as_ref()
            .and_then(|Decision { snapshot, plan, .. }| policy::explain(snapshot, plan, id, more));
        match explanation {
            Some(explanation) => Ok(ExplanationView {
                name,
                text: explanation.text(|id| self.name_of(id)),
                explanation,
            }),
            None => Err(HostError::NotDecided(name)),
        }
    }

    /// A refusal as people read it.
    pub(super) fn named(&self, refusal: policy::Refusal) -> NamedRefusal {
        NamedRefusal::new(refusal, |id| self.name_of(id))
    }

    /// What people call a VM. One that has gone since the decision has its number alone.
    fn name_of(&self, id: VmId) -> String {
        match self.vm(id) {
            Ok(vm) => vm.config.name.to_string(),
            Err(_) => format!("VM {id}"),
        }
    }

    /// A VM's settings with a change, if that makes sense and breaks no promise.
    pub(super) fn checked(
        &mut self,
        name: &str,
        change: &VmChange,
    ) -> Result<(VmId, VmSettings), HostError> {
        let snapshot = self.snapshot();
        let vm = self.find(name)?;
        let settings = settings::of_vm_with(&vm.config.settings, change)?;
        let id = vm.config.id;
        vm.check_swap_file(&settings)?;
        self.admitted(&snapshot, id, &settings)?;
        Ok((id, settings))
    }

    /// Whether a VM may have these settings from now on.
    pub(super) fn admitted(
        &self,
        snapshot: &Snapshot,
        id: VmId,
        settings: &VmSettings,
    ) -> Result<(), HostError> {
        let name = self.vm(id)?.config.name.clone();
        let refused = |refusal| HostError::ChangeRefused {
            name,
            refusal: self.named(refusal),
        };
        policy::admit_change(snapshot, id, settings).map_err(refused)
    }

    /// What is kept of the QEMUs that are adopted.
    pub(super) fn adoptions(&self) -> impl Iterator<Item = &Adoption> {
        self.durable.vms.values().filter_map(Vm::adoption)
    }

    /// Whether that process is a QEMU that was released.
    pub(super) fn is_released(&self, pid: u32, started: u64) -> bool {
        let mut released = self.released.iter();
        released.any(|adoption| (adoption.pid, adoption.started) == (pid, started))
    }

    /// A QEMU was released: what is to be kept of that. One that would be found again is remembered for as long as it runs.
    pub(super) fn note_released(&mut self, adoption: Adoption) -> KeptStep {
        let is_found = match &adoption.way {
            Way::Domain(domain) => self.libvirt.as_ref() == Some(&domain.uri),
            Way::Monitor(socket) => {
                let folder = socket.parent();
                folder.is_some() && folder == self.qmp_dir.as_deref()
            }
        };
        if !is_found {
            return KeptStep::Release(adoption.name);
        }
        let runs = |other: &Adoption| {
            started_ticks(other.pid).is_ok_and(|started| started == other.started)
        };
        self.released
            .retain(|other| other.name != adoption.name && runs(other));
        let adoption = Adoption {
            is_released: true,
            // It is set back.
            low_before: None,
            ..adoption
        };
        self.released.push(adoption.clone());
        KeptStep::Adopt(Box::new(adoption))
    }

    /// The QEMU with that process is taken again: what is to be kept of that.
    pub(super) fn forget_released(&mut self, pid: u32) -> Vec<KeptStep> {
        let (again, released) = std::mem::take(&mut self.released)
            .into_iter()
            .partition(|adoption| adoption.pid == pid);
        self.released = released;
        let again: Vec<Adoption> = again;
        let names = again.into_iter().map(|adoption| adoption.name);
        // What is kept under the name of another one is that one's.
        let free = names.filter(|name| !self.has_vm(name));
        free.map(KeptStep::Release).collect()
    }

    /// What is meant by a request, checked.
    pub(super) fn config(
        &mut self,
        request: RunRequest,
        holds_name: bool,
    ) -> Result<VmConfig, HostError> {
        let id = VmId(self.durable.next_id);
        let name = self.name(&request)?;
        match holds_name && !self.has_vm(&name) {
            true => {}
            false => self.check_name(&name)?,
        }
        let vcpus = request.vcpus.unwrap_or(1);
        if !(1..=MOST_VCPUS).contains(&vcpus) {
            return Err(HostError::Vcpus(vcpus));
        }
        let settings = settings::of_vm(&request, self.machine, self.durable.swap.is_some())?;
        let nets = network_cards(&name, request.nets)?;
        let console_log = self.console_log(&name, request.console_log)?;
        Ok(VmConfig {
            id,
            name,
            vcpus,
            trust_group: request.trust_group,
            cmdline: command_line(
                request.cmdline,
                request.workload,
                request.kernel.is_some(),
                &request.disks,
            )?,
            kernel: request.kernel,
            initrd: request.initrd,
            nets,
            disks: request.disks,
            console_log,
            balloon_target: settings.size,
            touch_limit: None,
            large_pages: LargePages::Off,
            has_swap: self.durable.settings.compression || self.durable.swap.is_some(),
            swap_file_for: None,
            jail: self.durable.jail,
            settings,
            on_host_death: request.on_host_death,
        })
    }

    /// What is agreed about a QEMU that is adopted. What it consists of is not for its host to know.
    pub(super) fn adopted_config(&self, id: VmId, adoption: &Adoption) -> VmConfig {
        VmConfig {
            id,
            name: adoption.name.clone(),
            vcpus: adoption.vcpus,
            trust_group: None,
            cmdline: String::new(),
            kernel: None,
            initrd: None,
            nets: Vec::new(),
            disks: Vec::new(),
            console_log: None,
            balloon_target: PageCount::ZERO,
            touch_limit: None,
            large_pages: LargePages::Off,
            has_swap: false,
            swap_file_for: None,
            jail: JailMode::default(),
            settings: adoption.settings.clone(),
            on_host_death: OnHostDeath::Continue,
        }
    }

    /// Where what a VM prints is kept.
    fn console_log(
        &self,
        name: &VmName,
        wanted: Option<PathBuf>,
    ) -> Result<Option<PathBuf>, HostError> {
        let usual = self.durable.console_log.as_ref();
        let usual = usual.map(|folder| folder.join(format!("{name}.log")));
        let Some(path) = wanted.or(usual) else {
            return Ok(None);
        };
        let configs = self.durable.vms.values().map(|vm| &vm.config);
        let mut same = configs.filter(|config| {
            let log = config.console_log.as_ref();
            log.is_some_and(|log| console_log::are_one(log, &path))
        });
        if let Some(config) = same.next() {
            return Err(HostError::ConsoleLogInUse {
                name: name.clone(),
                path,
                other: config.name.clone(),
            });
        }
        match console_log::check(&path) {
            Ok(()) => Ok(Some(path)),
            Err(source) => Err(HostError::ConsoleLog {
                name: name.clone(),
                path,
                source,
            }),
        }
    }

    fn name(&self, request: &RunRequest) -> Result<VmName, HostError> {
        if let Some(name) = &request.name {
            return Ok(name.clone());
        }
        let numbers = self.durable.next_id..;
        let names = numbers.map(|number| VmName::try_from(format!("vm-{number}")));
        let is_free = |name: &Result<VmName, _>| match name {
            Ok(name) => self.check_name(name).is_ok(),
            Err(_) => true,
        };
        let mut free = names.filter(is_free);
        let name = free.next().expect("there are more numbers than VMs");
        name.map_err(|error| HostError::BadRequest(error.to_string()))
    }

    /// Whether a name is nobody's.
    pub(super) fn check_name(&self, name: &VmName) -> Result<(), HostError> {
        if self.has_vm(name) || self.queue.has(name) {
            return Err(HostError::NameInUse(name.clone()));
        }
        match self.definitions.definition(name) {
            Some(_) => Err(HostError::Defined(name.clone())),
            None if self.definitions.is_held(name) => Err(HostError::NameInUse(name.clone())),
            None => Ok(()),
        }
    }

    pub(super) fn has_vm(&self, name: &VmName) -> bool {
        let mut vms = self.durable.vms.values();
        vms.any(|vm| vm.config.name == *name)
    }

    /// The name of a VM that is there, or of one that something is under way to start.
    pub(super) fn runs(&self, name: &str) -> Option<VmName> {
        let mut vms = self.durable.vms.values();
        let there = vms.find(|vm| vm.config.name.as_str() == name);
        let coming = || {
            let name = self.definitions.name(name)?;
            self.definitions.is_coming(&name).then_some(name)
        };
        there.map(|vm| vm.config.name.clone()).or_else(coming)
    }

    /// A name for a VM that is to wait. Nobody else gets it meanwhile.
    pub(super) fn free_name(&mut self, request: &RunRequest) -> Result<VmName, HostError> {
        let name = self.name(request)?;
        self.durable.next_id += 1;
        Ok(name)
    }

    /// VMs, and those that wait to be admitted or come back.
    pub(super) fn count(&self) -> usize {
        self.durable.vms.len() + self.queue.len() + self.definitions.count_coming()
    }

    fn sharing_view(&self) -> SharingView {
        let broken = self.durable.vms.values().map(|vm| vm.seen.broken).sum();
        SharingView {
            rates: self.durable.settings.rates,
            priority: self.durable.settings.scan_priority,
            ..self.account.view(broken)
        }
    }

    /// Everything there is to see, before it has its number and time.
    pub(super) fn overview(&self) -> Overview {
        let vms = self.durable.vms.values().map(|vm| VmView {
            restart: self.definitions.policy(&vm.config.name),
            ..vm.view(&self.account)
        });
        Overview {
            publication: 0,
            time_ms: 0,
            host: self.view(),
            vms: vms.collect(),
            queue: self.queue.views(),
            definitions: self.definitions.views(|name| self.has_vm(name)),
        }
    }

    pub(super) fn view(&self) -> HostView {
        // What is kept free is free.
        let snapshot = Snapshot {
            keep_free: PageCount::ZERO,
            ..self.snapshot()
        };
        let configured: PageCount = self
            .durable
            .vms
            .values()
            .map(|vm| vm.config.settings.size)
            .sum();
        HostView {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: self.since.elapsed().as_secs_f64(),
            budget_bytes: self.durable.settings.budget.bytes(),
            used_bytes: self.used.bytes(),
            used_max_bytes: self.used_max.bytes(),
            samples: self.samples,
            free_bytes: snapshot.free().bytes(),
            promised_bytes: snapshot.promised().bytes(),
            configured_bytes: configured.bytes(),
            overcommit: ratio(configured, self.durable.settings.budget) - 1.0,
            state_sum_violations: self.state_sum_violations,
            large_pages: self.durable.settings.large_pages,
            // What goes to a file is compressed first.
            compression: self.durable.settings.compression || self.durable.swap.is_some(),
            jail: self.durable.jail,
            sharing: self.sharing_view(),
            state: self.memory_state,
            min_free_bytes: self.thresholds().clear.bytes(),
            state_below: self.thresholds().into(),
            idle_tax_permille: self.durable.settings.idle_tax,
            sample_period_s: self.durable.settings.sample_period.as_secs(),
            rebalance_interval_s: self.durable.settings.rebalance_interval.as_secs(),
            events: self.events.list(),
        }
    }

    /// What is remembered of the host or of one of its VMs.
    pub(super) fn history(&self, query: &HistoryQuery) -> Result<HistoryView, HostError> {
        let Some(name) = &query.vm else {
            return Ok(self.record.history(None, query.span));
        };
        let mut configs = self.durable.vms.values().map(|vm| &vm.config);
        let found = configs.find(|config| config.name == *name);
        let id = found
            .ok_or_else(|| HostError::UnknownVm(name.to_string()))?
            .id;
        Ok(self.record.history(Some((id, name.clone())), query.span))
    }

    /// Publishes what a round found, and remembers it.
    pub(super) fn publish_round(&mut self) {
        let overview = self.next_overview();
        let figures = self.record.add(&overview);
        self.published = Publication::new(overview, figures);
    }

    /// Publishes what somebody changed between rounds.
    pub(super) fn publish_change(&mut self) {
        let overview = self.next_overview();
        let figures = self.record.figures(&overview);
        self.published = Publication::new(overview, figures);
    }

    fn next_overview(&self) -> Overview {
        Overview {
            publication: self.published.overview.publication + 1,
            time_ms: now_ms(),
            ..self.overview()
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
fn ratio(part: PageCount, whole: PageCount) -> f64 {
    if whole == PageCount::ZERO {
        0.0
    } else {
        part.0 as f64 / whole.0 as f64
    }
}
