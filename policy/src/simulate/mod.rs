//! Runs the policy over a described load, on a memory model instead of guests.
//!
//! For what cannot be tried on a real machine: thousands of VMs, hours in seconds, the same load under
//! another tax. What decides is this crate's own code, called as a host calls it (see the crate's
//! documentation); only the guests are simpler than life. Equal scenarios give equal traces
//! on every machine: the model computes with integers and draws its numbers from a generator of its own.
//!
//! The same load can be managed by other managers' published [`Rules`], on the same model: what comes of
//! each is an [`Outcome`].

mod guest;
mod host_swap;
mod outcome;
mod recorded;
mod rules;
mod scenario;
mod trace;

#[cfg(test)]
mod tests;

pub use host_swap::SwapOrder;
pub use outcome::Outcome;
pub use rules::{ProxmoxSettings, Rules};
pub use scenario::{
    Driver, HostModel, InvalidScenario, Leaves, MOST_POINTS, MOST_VMS, Phase, Scenario, VmModel,
};
pub use trace::{HostPoint, RefusedVm, Trace, VmPoint, VmTrace};

use crate::{
    BalloonRound, Evidence, MemoryState, OVERHEAD, Plan, Precision, Reason, Rebalance,
    SampleLimits, Snapshot, Stage, Step, Thresholds, VmSettings, VmSnapshot, admit, plan,
    sample_size,
};
use guest::{Guest, Start};
use host_swap::{FaultSpeed, swap_out};
use outcome::{LoadWatch, Tally};
use page::{PageCount, Random, VmId, total};
use rules::{GuestView, Manager, View};
use scenario::pages;
use std::time::Duration;

/// Guests report every so many seconds.
const FIGURES_EVERY_S: u32 = 5;

/// Simulates a scenario from beginning to end, managed by these rules.
pub fn simulate(scenario: &Scenario, rules: Rules) -> Result<Trace, InvalidScenario> {
    scenario.check()?;
    let mut host = Host::new(scenario, rules)?;
    for now_s in 0..scenario.seconds {
        host.second(now_s);
    }
    Ok(Trace {
        outcome: host.tally.outcome(),
        ..host.trace
    })
}

/// One VM of the scenario, whether it has come yet or not.
#[derive(Debug)]
struct Vm<'a> {
    model: &'a VmModel,
    settings: VmSettings,
    id: VmId,
    comes_at_s: u32,
    stage: VmStage,
    evidence: Evidence,
    /// The last step planned for it.
    step: Option<Step>,
    load: LoadWatch,
}

#[derive(Debug)]
enum VmStage {
    ToCome,
    Waiting,
    Running { since_s: u32, guest: Box<Guest> },
    Gone,
}

impl Vm<'_> {
    fn guest(&self) -> Option<&Guest> {
        match &self.stage {
            VmStage::Running { guest, .. } => Some(guest),
            _ => None,
        }
    }

    fn guest_mut(&mut self) -> Option<&mut Guest> {
        match &mut self.stage {
            VmStage::Running { guest, .. } => Some(guest),
            _ => None,
        }
    }

    fn start(&mut self, start: Start, now_s: u32) {
        let guest = Guest::start(self.settings.clone(), self.model, start);
        self.stage = VmStage::Running {
            since_s: now_s,
            guest: Box::new(guest),
        };
    }

    /// What somebody else decided.
    fn be_told(&mut self, told: PageCount) {
        self.step = Some(Step {
            id: self.id,
            target: told,
            grant: told,
            pooled: PageCount::ZERO,
            by_other_means: PageCount::ZERO,
            touch_limit: None,
            kernel_reclaim: PageCount::ZERO,
        });
        if let Some(guest) = self.guest_mut() {
            guest.told = told;
        }
    }

    fn view(&self) -> Option<GuestView> {
        let guest = self.guest()?;
        Some(GuestView {
            id: self.id,
            min: self.settings.min,
            max: self.settings.max,
            shares: self.settings.shares,
            held: guest.held(),
            told: guest.told,
            unused: self.evidence.guest.and_then(|figures| figures.free),
        })
    }

    fn is_admitted(&self) -> bool {
        matches!(self.stage, VmStage::Waiting | VmStage::Running { .. })
    }

    fn snapshot(&self) -> VmSnapshot {
        let guest = self.guest();
        VmSnapshot {
            id: self.id,
            settings: self.settings.clone(),
            overhead: OVERHEAD,
            ballooned: guest.map_or(self.settings.size, |guest| guest.ballooned),
            granted: guest.map_or(PageCount::ZERO, |guest| guest.told),
            told: None,
            pinned: None,
            stage: if guest.is_some() {
                Stage::Running
            } else {
                Stage::Waiting
            },
            evidence: Evidence {
                backed: guest.map(|guest| guest.backed),
                touch_limit: guest.and_then(|guest| Some(guest.touch_limit?.slow_above)),
                ..self.evidence
            },
        }
    }

    fn point(&self, at_s: u32) -> VmPoint {
        let guest = self.guest();
        let pages = |count: fn(&Guest) -> PageCount| guest.map_or(PageCount::ZERO, count);
        VmPoint {
            at_s,
            target: self.step.map_or(PageCount::ZERO, |step| step.target),
            held: pages(Guest::held),
            backed: pages(|guest| guest.backed),
            swapped: pages(|guest| PageCount(guest.swapped.parts.total())),
            waited_for: pages(|guest| {
                let flows = guest.swapped.flows;
                PageCount(flows.back + flows.refaulted)
            }),
            active: self.evidence.active,
            working_set: pages(Guest::wanted),
            balloon: self.evidence.balloon_health(),
            is_blocked: guest.is_some_and(Guest::is_blocked),
            throughput_permille: guest.map_or(0, Guest::throughput),
        }
    }
}

/// What is recorded of a decision.
#[derive(Clone, Copy, Debug, Default)]
struct Decided {
    rebalanced: Option<Reason>,
    by_other_means: PageCount,
}

/// What a host keeps between its rounds.
#[derive(Debug)]
struct Host<'a> {
    scenario: &'a Scenario,
    budget: PageCount,
    swap: PageCount,
    thresholds: Thresholds,
    state: MemoryState,
    rebalance: Rebalance,
    rules: Rules,
    /// Who decides, if not this crate.
    manager: Option<Manager>,
    tally: Tally,
    random: Random,
    vms: Vec<Vm<'a>>,
    trace: Trace,
}

impl<'a> Host<'a> {
    fn new(scenario: &'a Scenario, rules: Rules) -> Result<Self, InvalidScenario> {
        let budget = pages(scenario.host.memory_mib)?;
        let vms = all_vms(scenario)?;
        let names = vms.iter().map(|(_, name)| VmTrace {
            name: name.clone(),
            points: Vec::new(),
        });
        let trace = Trace {
            vms: names.collect(),
            ..Trace::default()
        };
        Ok(Self {
            scenario,
            budget,
            swap: pages(scenario.host.swap_mib)?,
            thresholds: Thresholds::of(scenario.host.scale, budget),
            state: MemoryState::default(),
            rebalance: Rebalance::every(Duration::from_secs(
                scenario.host.rebalance_interval_s.into(),
            )),
            rules,
            manager: Manager::of(rules, scenario.host.proxmox),
            tally: Tally::default(),
            random: Random::new(scenario.seed),
            vms: vms.into_iter().map(|(vm, _)| vm).collect(),
            trace,
        })
    }

    /// A round: VMs come and go, guests live, the host observes, decides and acts.
    fn second(&mut self, now_s: u32) {
        self.come_and_go(now_s);
        self.let_guests_live(now_s);
        self.observe(now_s);
        let free = self.budget.saturating_sub(self.used());
        self.state = self.state.next(free, &self.thresholds);
        let decided = match self.manager.take() {
            None => self.decide(now_s),
            Some(mut manager) => {
                self.be_managed(&mut manager, now_s);
                self.manager = Some(manager);
                Decided::default()
            }
        };
        self.record(now_s, decided);
    }

    fn decide(&mut self, now_s: u32) -> Decided {
        let mut snapshot = self.snapshot();
        let now = Duration::from_secs(now_s.into());
        let rebalanced = self.rebalance.update(&mut snapshot, now);
        let plan = plan(&snapshot);
        self.act(&plan, now_s);
        Decided {
            rebalanced,
            by_other_means: total(plan.steps.iter().map(|step| step.by_other_means)),
        }
    }

    /// Others' rules decide. They see a VM from its start on, and every VM starts.
    fn be_managed(&mut self, manager: &mut Manager, now_s: u32) {
        let rules = self.rules;
        let fault_speed = FaultSpeed::of(self.scenario.host.swap_fault_us);
        for vm in &mut self.vms {
            if matches!(vm.stage, VmStage::Waiting) {
                let (min, max) = (vm.settings.min, vm.settings.max);
                let start = Start {
                    held: vm.settings.size,
                    told: rules.start(min, max),
                    fault_speed,
                    seed: self.random.next(),
                };
                vm.start(start, now_s);
            }
        }
        self.swap();
        let told = manager.decide(now_s, &self.view());
        let running = self.vms.iter_mut().filter(|vm| vm.guest().is_some());
        for (vm, told) in running.zip(told) {
            vm.be_told(told);
        }
    }

    fn view(&self) -> View {
        View {
            total: self.budget,
            free: self.budget.saturating_sub(self.used()),
            guests: self.vms.iter().filter_map(Vm::view).collect(),
        }
    }

    fn come_and_go(&mut self, now_s: u32) {
        for index in 0..self.vms.len() {
            let vm = &self.vms[index];
            let life_s = vm.model.life_s.unwrap_or(u32::MAX);
            match vm.stage {
                VmStage::ToCome if vm.comes_at_s <= now_s => self.come(index, now_s),
                VmStage::Running { since_s, .. } if now_s - since_s >= life_s => {
                    self.vms[index].stage = VmStage::Gone;
                }
                _ => {}
            }
        }
    }

    fn come(&mut self, index: usize, at_s: u32) {
        let admitted = match self.manager {
            None => admit(&self.snapshot(), &self.vms[index].settings, OVERHEAD),
            Some(_) => Ok(()),
        };
        self.vms[index].stage = match admitted {
            Ok(()) => VmStage::Waiting,
            Err(refusal) => {
                let name = self.trace.vms[index].name.clone();
                let why = refusal.to_string();
                self.trace.refused.push(RefusedVm { name, at_s, why });
                VmStage::Gone
            }
        };
    }

    fn let_guests_live(&mut self, now_s: u32) {
        for vm in &mut self.vms {
            if let VmStage::Running { since_s, guest } = &mut vm.stage {
                guest.live(vm.model.phase_at(now_s - *since_s));
            }
        }
        self.swap();
        self.tally(now_s);
    }

    /// What guests have touched beyond what there is goes out.
    fn swap(&mut self) {
        let excess = self.used().saturating_sub(self.budget);
        let running = self.vms.iter_mut().filter_map(Vm::guest_mut);
        if excess > PageCount::ZERO {
            let order = self.scenario.host.swap_order;
            swap_out(&mut running.collect::<Vec<_>>(), excess, order);
        }
    }

    fn tally(&mut self, now_s: u32) {
        let (used, swapped) = (self.used(), self.swapped());
        let counts = now_s >= self.scenario.measured_from_s;
        self.tally.host(counts, used, swapped);
        for vm in &mut self.vms {
            if let VmStage::Running { since_s, guest } = &vm.stage {
                let age_s = now_s - since_s;
                self.tally.guest(&mut vm.load, vm.model, age_s, guest);
            }
        }
    }

    /// Samples, guests' figures and balloons.
    fn observe(&mut self, now_s: u32) {
        let period_s = self.scenario.host.sample_period_s;
        let period = Duration::from_secs(period_s.into());
        let limits = SampleLimits::default();
        let state = self.state;
        for vm in &mut self.vms {
            let VmStage::Running { since_s, guest } = &mut vm.stage else {
                continue;
            };
            let age_s = now_s - *since_s;
            let unlimited = vm.step.is_some_and(|step| step.target >= vm.settings.max);
            let precision = Precision::needed(state, unlimited);
            let size = sample_size(guest.working_set.touched(), precision, period, &limits);
            guest.observe(age_s.is_multiple_of(period_s), size);
            vm.evidence.active = guest.active();
            if age_s.is_multiple_of(FIGURES_EVERY_S) {
                vm.evidence.guest = Some(guest.figures());
            }
            let watch = vm.evidence.balloon.unwrap_or_default();
            vm.evidence.balloon = Some(watch.observe(guest.told, guest.held()));
        }
    }

    fn snapshot(&self) -> Snapshot {
        let model = &self.scenario.host;
        let admitted = self.vms.iter().filter(|vm| vm.is_admitted());
        Snapshot {
            budget: self.budget,
            keep_free: self.thresholds.keep_free(),
            swap: self.swap,
            idle_tax: model.idle_tax_permille,
            state: self.state,
            unused: Some(self.budget.saturating_sub(self.used())),
            balloon: Some(BalloonRound {
                settings: model.balloon,
                elapsed_ms: 1000,
            }),
            vms: admitted.map(Vm::snapshot).collect(),
            ..Snapshot::default()
        }
    }

    fn act(&mut self, plan: &Plan, now_s: u32) {
        let fault_speed = FaultSpeed::of(self.scenario.host.swap_fault_us);
        let admitted = self.vms.iter_mut().filter(|vm| vm.is_admitted());
        for (vm, &step) in admitted.zip(&plan.steps) {
            vm.step = Some(step);
            match &mut vm.stage {
                VmStage::Running { guest, .. } => {
                    guest.told = step.grant + step.pooled;
                    guest.touch_limit = step.touch_limit;
                }
                VmStage::Waiting if step.grant > PageCount::ZERO => {
                    let start = Start {
                        held: step.grant,
                        told: step.grant,
                        fault_speed,
                        seed: self.random.next(),
                    };
                    vm.start(start, now_s);
                }
                _ => {}
            }
        }
    }

    fn used(&self) -> PageCount {
        let guests = self.vms.iter().filter_map(Vm::guest);
        total(guests.map(|guest| guest.in_memory() + OVERHEAD))
    }

    fn swapped(&self) -> PageCount {
        let guests = self.vms.iter().filter_map(Vm::guest);
        total(guests.map(|guest| PageCount(guest.swapped.parts.total())))
    }

    fn record(&mut self, at_s: u32, decided: Decided) {
        let guests = || self.vms.iter().filter_map(Vm::guest);
        let exposed = total(guests().map(|guest| guest.held().max(guest.told) + OVERHEAD));
        self.trace.most_exposed = self.trace.most_exposed.max(exposed);
        if !at_s.is_multiple_of(self.scenario.record_every_s) {
            return;
        }
        let busy = || guests().filter(|guest| guest.wanted() > PageCount::ZERO);
        let work: u64 = busy().map(Guest::throughput).sum();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let waits = |vm: &&Vm<'_>| matches!(vm.stage, VmStage::Waiting);
        let point = HostPoint {
            at_s,
            state: self.state,
            used: self.used(),
            swapped: self.swapped(),
            free: self.budget.saturating_sub(self.used()),
            running: count(guests().count()),
            waiting: count(self.vms.iter().filter(waits).count()),
            rebalanced: decided.rebalanced,
            by_other_means: decided.by_other_means,
            throughput_permille: work
                .checked_div(busy().count() as u64)
                .unwrap_or(guest::FULL),
            work_permille: work,
        };
        self.trace.host.push(point);
        for (vm, trace) in self.vms.iter().zip(&mut self.trace.vms) {
            if vm.is_admitted() {
                trace.points.push(vm.point(at_s));
            }
        }
    }
}

/// Every single VM of the scenario, with its name.
fn all_vms(scenario: &Scenario) -> Result<Vec<(Vm<'_>, String)>, InvalidScenario> {
    let mut vms = Vec::new();
    for model in &scenario.vms {
        let settings = model.settings()?;
        for number in 0..model.count {
            let name = match model.count {
                1 => model.name.clone(),
                _ => format!("{}-{}", model.name, number + 1),
            };
            let id = VmId(u32::try_from(vms.len()).unwrap_or(u32::MAX));
            let vm = Vm {
                model,
                settings: settings.clone(),
                id,
                comes_at_s: model
                    .start_s
                    .saturating_add(number.saturating_mul(model.apart_s)),
                stage: VmStage::ToCome,
                evidence: Evidence::default(),
                step: None,
                load: LoadWatch::default(),
            };
            vms.push((vm, name));
        }
    }
    Ok(vms)
}
