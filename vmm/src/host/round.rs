//! A round of the host, every second and whenever something has changed: observe, decide, act.

use super::Host;
use super::recording::Decision;
use super::state::State;
use crate::host::sharing::account::{MemoryRound, VmRound};
use crate::host::sharing::{Conditions as SharingConditions, PageSharing, VmConditions};
use crate::host::vm::sampling::Conditions;
use crate::host::vm::{Life, Question, Vm};
use crate::service_manager::{self, NotifyState};
use ::sharing::Pressure;
use page::PageCount;
use policy::{Plan, Step};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long a round waits for answers. A VM that takes longer keeps its last figures.
const ANSWER_PATIENCE: Duration = Duration::from_millis(100);
/// Guests are asked for statistics in every so many rounds: each time wakes a guest.
const STATISTICS_EVERY: u64 = 5;
/// Pages of balloons that were touched are looked for in every so many rounds.
const RECOUNT_EVERY: u64 = 10;

pub(super) async fn run(host: Host) {
    let mut tick = interval(host.shared.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = host.shared.round_wanted.notified() => {}
        }
        ask_all(&host);
        // What has not been answered by then shows as not responding.
        drop(timeout(ANSWER_PATIENCE, all_answered(&host)).await);
        act(&host);
        service_manager::tell(NotifyState::Watchdog);
    }
}

fn ask_all(host: &Host) {
    let mut state = host.lock();
    state.round += 1;
    let round = state.round;
    let statistics = round.is_multiple_of(STATISTICS_EVERY);
    let recount = round.is_multiple_of(RECOUNT_EVERY);
    for vm in state.durable.vms.values_mut() {
        vm.observe(Question {
            sequence: round,
            recount,
            statistics,
        });
    }
}

async fn all_answered(host: &Host) {
    loop {
        let answered = host.shared.answered.notified();
        if host.lock().durable.vms.values().all(Vm::responding) {
            return;
        }
        answered.await;
    }
}

pub(super) fn act(host: &Host) {
    let mut state = host.lock();
    state.measure(&host.shared.sharing, host.shared.interval);
    state.sample(&host.shared.sharing);
    let decision = state.decide();
    state.apply(&decision.plan);
    state.recorder.record(&decision);
    state.decision = Some(decision);
    state.publish_round();
    let round = state.round;
    drop(state);
    host.shared.rounds.send_replace(round);
}

impl State {
    /// Reads what the kernel counts.
    fn measure(&mut self, sharing: &PageSharing, interval: Duration) {
        self.durable.vms.values_mut().for_each(Vm::read_use);
        self.watch_devices();
        let stored = sharing.stored();
        let by_vms: PageCount = self
            .durable
            .vms
            .values()
            .map(|vm| vm.seen.used.total())
            .sum();
        self.used = by_vms + stored;
        self.used_max = self.used_max.max(self.used);
        self.samples += 1;
        self.account_for_sharing(sharing, stored, interval);
    }

    fn account_for_sharing(
        &mut self,
        sharing: &PageSharing,
        stored: PageCount,
        interval: Duration,
    ) {
        let time = self.measured.elapsed();
        // A round that was wanted early says too little about what happens in a second.
        if time < interval / 2 {
            return;
        }
        self.measured = Instant::now();
        self.durable.vms.values_mut().for_each(Vm::watch_balloon);
        self.watch_behaviour();
        self.account_rounds += 1;
        let memory = MemoryRound {
            budget: self.durable.settings.budget,
            used: self.used,
            stored,
        };
        let sharing_vms = self.durable.vms.values();
        let sharing_vms = sharing_vms.filter(|vm| vm.capabilities().sharing);
        let rounds: Vec<VmRound> = sharing_vms.map(Vm::sharing_round).collect();
        self.account
            .update(sharing.report(), &rounds, memory, interval, time);
        for vm in self.durable.vms.values_mut() {
            vm.seen.broken = self.account.broken(&vm.sharing_round());
        }
        sharing.adapt(self.sharing_conditions());
        if self.account.saving < 0 {
            sharing.sweep();
        }
    }

    /// What the scanner has to go by until it is told anew.
    pub(super) fn sharing_conditions(&self) -> SharingConditions {
        let pressure = match self.memory_state.orders().share_harder {
            true => Pressure::Short,
            false => Pressure::Plenty,
        };
        let vms = self.durable.vms.iter();
        let vms = vms.filter(|(_, vm)| vm.capabilities().sharing);
        let vms = vms.map(|(&id, vm)| VmConditions {
            id,
            anonymous: vm.seen.used.anonymous,
            kept: vm.kept_blocks(),
            is_guarded: vm.is_guarded(),
        });
        SharingConditions {
            pace: self.account.reserve.pace,
            pressure,
            free: self.durable.settings.budget.saturating_sub(self.used),
            reserve: self.account.reserve.keep_free,
            vms: vms.collect(),
        }
    }

    pub(super) fn watch_devices(&mut self) {
        for vm in self.durable.vms.values_mut() {
            for what in vm.watch_devices() {
                self.events.add(Some(&vm.config.name), what);
            }
        }
    }

    fn watch_behaviour(&mut self) {
        for vm in self.durable.vms.values_mut() {
            if let Some(what) = vm.watch_blocked() {
                self.events.add(Some(&vm.config.name), what);
            }
            if let Some(what) = vm.watch_silence() {
                self.events.warn(&vm.config.name, what);
            }
        }
    }

    /// Takes in what samples say, and asks for those that are due.
    fn sample(&mut self, sharing: &PageSharing) {
        for (&id, vm) in &mut self.durable.vms {
            let Life::Running(_) = vm.life else {
                continue;
            };
            if !vm.capabilities().sampling {
                continue;
            }
            let report = self.account.report.vms.get(&id);
            let report = report.and_then(|report| report.sample);
            let conditions = Conditions {
                period: self.durable.settings.sample_period,
                state: self.memory_state,
                unlimited: vm.is_unlimited(),
                stopped: vm.blocked_permille() > 0,
                came_back: vm.came_back(),
            };
            let states = vm.states();
            if let Some(order) = vm.seen.sampling.update(report, &states, conditions) {
                sharing.sample(id, order);
            }
        }
    }

    /// What to do, by what is known now.
    fn decide(&mut self) -> Decision {
        let free = self.durable.settings.budget.saturating_sub(self.used);
        let before = self.memory_state;
        self.memory_state = before.next(free, &self.thresholds());
        if self.memory_state != before {
            let what = format!("memory is {}: {free} are free", self.memory_state);
            self.events.add(None, what);
        }
        let mut snapshot = self.snapshot();
        let now = self.since.elapsed();
        self.rebalance.interval = self.durable.settings.rebalance_interval;
        // Settled first: a plan is replayed from what it was made of.
        let reason = self.rebalance.update(&mut snapshot, now);
        self.planned = Instant::now();
        Decision {
            at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            reason,
            plan: policy::plan(&snapshot),
            snapshot,
        }
    }

    fn apply(&mut self, plan: &Plan) {
        for Step {
            id,
            target,
            grant,
            pooled,
            touch_limit,
            kernel_reclaim,
            ..
        } in &plan.steps
        {
            let Some(vm) = self.durable.vms.get_mut(id) else {
                continue;
            };
            // What it was told is not known.
            if vm.running().is_some_and(|running| !running.is_described()) {
                continue;
            }
            vm.target = *target;
            if vm.capabilities().large_pages {
                vm.set_large_pages(plan.large_pages_of(&vm.config.settings));
            }
            vm.broken_blocks = plan.broken_blocks_of(&vm.config.settings);
            let waits_on = matches!(vm.life, Life::Waiting(_)) && *grant == PageCount::ZERO;
            if !waits_on {
                vm.grant(*grant + *pooled);
            }
            vm.set_touch_limit(*touch_limit);
            if *kernel_reclaim > PageCount::ZERO {
                vm.tell(|backend| backend.reclaim_by_kernel(*kernel_reclaim));
            }
        }
    }
}
