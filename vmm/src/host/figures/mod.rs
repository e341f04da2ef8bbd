//! One model of what is counted: the same figures go to `top`, to the dashboard, to Prometheus and into
//! the histories.
//!
//! They are made from the views that clients get, so that no number is computed twice, and hold
//! what an administrator knows from esxtop under its names, then what only this host has.

mod history;
mod overcommit;

use super::state::State;
use crate::api::{Figures, HistoryQuery, HistoryView, HostFigures, Overview, VmFigures, VmView};
use crate::host::HostError;
use crate::name::VmName;
use history::{Figure, History, amount, degree};
use overcommit::Averages;
use page::{PageState, VmId};
use policy::{BALLOON_LIMIT_PERCENT, MemoryState, OVERHEAD};
use std::collections::BTreeMap;

/// What is remembered of the host: machine memory by what it is used for, which adds up to the budget,
/// what no memory is used for, and how short memory was.
const HOST_COLUMNS: [Figure; 11] = [
    amount("budget"),
    amount("private"),
    amount("broken"),
    amount("common"),
    amount("overhead"),
    amount("free"),
    amount("configured"),
    amount("shared"),
    amount("ballooned"),
    amount("swapped"),
    degree("state"),
];
/// What is remembered of a VM besides its pages by state.
const VM_OTHERS: [Figure; 6] = [
    amount("size"),
    amount("target"),
    amount("used"),
    amount("touched"),
    amount("touched_low"),
    amount("touched_high"),
];
const STATES: usize = PageState::ALL.len();
/// What is remembered of a VM: the others, and its pages by state, which add up to its size.
const VM_COLUMNS: [Figure; STATES + VM_OTHERS.len()] = {
    let mut columns = [VM_OTHERS[0]; STATES + VM_OTHERS.len()];
    let mut next = 0;
    while next < columns.len() {
        columns[next] = match next < VM_OTHERS.len() {
            true => VM_OTHERS[next],
            false => amount(PageState::ALL[next - VM_OTHERS.len()].name()),
        };
        next += 1;
    }
    columns
};

/// The newest figures and how they came about.
#[derive(Debug)]
pub(super) struct Record {
    overcommit: Averages,
    host: History<{ HOST_COLUMNS.len() }>,
    /// Histories of VMs that are there; those of others are forgotten.
    vms: BTreeMap<VmId, History<{ VM_COLUMNS.len() }>>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            overcommit: Averages::default(),
            host: History::new(&HOST_COLUMNS),
            vms: BTreeMap::new(),
        }
    }
}

impl Record {
    /// Takes in what a round found; its figures.
    pub(super) fn add(&mut self, overview: &Overview) -> Figures {
        let (uptime_s, now) = (overview.host.uptime_s, overview.time_ms);
        // A host with room to spare is not overcommitted by less than nothing.
        self.overcommit
            .add(uptime_s, overview.host.overcommit.max(0.0));
        let figures = self.figures(overview);
        let second = whole_seconds(uptime_s);
        let row = host_row(&figures, overview.host.state);
        self.host.add(second, now, row.map(Some));
        self.vms
            .retain(|id, _| overview.vms.iter().any(|vm| vm.id == *id));
        for (vm, figures) in overview.vms.iter().zip(&figures.vms) {
            let history = self.vms.entry(vm.id);
            let history = history.or_insert_with(|| History::new(&VM_COLUMNS));
            history.add(second, now, vm_row(vm, figures));
        }
        figures
    }

    /// The figures of an overview.
    pub(super) fn figures(&self, overview: &Overview) -> Figures {
        let vms: Vec<VmFigures> = overview.vms.iter().map(vm_figures).collect();
        Figures {
            publication: overview.publication,
            time_ms: overview.time_ms,
            host: HostFigures {
                overcommit_avg: self.overcommit.values(),
                ..host_figures(overview, &vms)
            },
            vms,
            queue: overview.queue.clone(),
        }
    }
}

impl State {
    /// What is remembered of the host or of one of its VMs.
    pub(super) fn history(&self, query: &HistoryQuery) -> Result<HistoryView, HostError> {
        let Some(name) = &query.vm else {
            return Ok(self.record.host.view(None, query.span));
        };
        let id = self.id_of(name)?;
        let nothing = History::new(&VM_COLUMNS);
        let history = self.record.vms.get(&id).unwrap_or(&nothing);
        Ok(history.view(Some(name.clone()), query.span))
    }

    fn id_of(&self, name: &VmName) -> Result<VmId, HostError> {
        let mut configs = self.durable.vms.values().map(|vm| &vm.config);
        let found = configs.find(|config| config.name == *name);
        found
            .map(|config| config.id)
            .ok_or_else(|| HostError::UnknownVm(name.to_string()))
    }
}

fn host_figures(overview: &Overview, vms: &[VmFigures]) -> HostFigures {
    let sum = |figure: fn(&VmFigures) -> u64| vms.iter().map(figure).sum();
    let Overview { host, queue, .. } = overview;
    let sharing = &host.sharing;
    HostFigures {
        uptime_s: host.uptime_s,
        pmem_total: host.budget_bytes,
        pmem_used: host.used_bytes,
        pmem_free: host.budget_bytes.saturating_sub(host.used_bytes),
        used_max: host.used_max_bytes,
        promised: host.promised_bytes,
        configured: host.configured_bytes,
        state: Some(host.state.to_string()),
        minfree: Some(host.min_free_bytes),
        state_below: Some(host.state_below),
        overcommit_avg: [host.overcommit; 3],
        pshare_shared: sharing.shared_bytes,
        pshare_common: sharing.common_bytes,
        pshare_saving: sharing.saving_bytes,
        swap_curr: sum(|vm| vm.swcur),
        zip_zipped: sum(|vm| vm.zip),
        memctl_curr: sum(|vm| vm.mctlsz),
        memctl_target: sum(|vm| vm.mctltgt),
        memctl_max: sum(|vm| vm.mctlmax),
        broken: sharing.broken_bytes,
        reserve: sharing.reserve_bytes,
        overhead: sum(|vm| vm.ovhd),
        merges_per_s: sharing.merges_per_s,
        breaks_per_s: sharing.breaks_per_s,
        covered_per_s: sharing.covered_per_s,
        scan_core_permille: sharing.core_permille,
        queued: queue.len() as u64,
        queue_wait_s: queue.first().map_or(0, |first| first.waited_s),
        state_sum_violations: host.state_sum_violations,
    }
}

fn vm_figures(vm: &VmView) -> VmFigures {
    let (states, sharing) = (&vm.states, &vm.sharing);
    let own = states.private + states.broken;
    let set = vm.working_set;
    VmFigures {
        name: vm.name.clone(),
        id: vm.id,
        phase: vm.phase,
        responding: vm.responding,
        credible: vm.credible,
        uptime_s: vm.uptime_s,
        memsz: vm.size_bytes,
        grant: own + states.shared,
        cnsm: own + sharing.charge_bytes,
        sztgt: vm.target_bytes,
        tchd: set.map(|set| set.estimate_bytes),
        tchd_low: set.map(|set| set.low_bytes),
        tchd_high: set.map(|set| set.high_bytes),
        tchd_believed: set.map(|set| set.believed_bytes),
        tchd_w: set.map(|set| set.written_bytes),
        actv: set.map(|set| set.actv_percent),
        actvs: set.map(|set| set.actvs_percent),
        actvf: set.map(|set| set.actvf_percent),
        witness: set.map(|set| set.witness),
        balloon_health: vm.balloon_health,
        limit: vm.limit,
        blocked_permille: vm.blocked_permille,
        blocked_us: vm.blocked_us,
        mctl: vm.balloon.has_driver,
        mctlsz: vm.balloon.held,
        mctltgt: vm.balloon.target,
        mctlmax: balloon_limit(vm),
        swcur: states.swapped,
        zip: states.compressed,
        zero: sharing.zero_bytes,
        shrd: states.shared,
        shrdsvd: states.shared.saturating_sub(sharing.charge_bytes),
        cowh: sharing.hint_bytes,
        ovhd: vm.anonymous_bytes.saturating_sub(states.broken),
        ovhdmax: OVERHEAD.bytes(),
        amin: vm.min_bytes,
        amax: vm.max_bytes,
        ashrs: vm.shares_count,
        pinned: vm.pinned_bytes,
        used: vm.used_bytes,
        private: states.private,
        empty: states.empty,
        ballooned: states.ballooned,
        broken: states.broken,
        areas: sharing.areas,
        areas_limit: sharing.areas_limit,
        merges_per_s: sharing.merges_per_s,
        breaks_per_s: sharing.breaks_per_s,
        inflated_pages: vm.balloon.counters.inflated,
        deflated_pages: vm.balloon.counters.deflated,
        nets: vm.nets.clone(),
        disks: vm.disks.clone(),
    }
}

/// What a balloon can be asked to hold: never what the VM was promised, and a part of its size.
fn balloon_limit(vm: &VmView) -> u64 {
    let part = vm.size_bytes / 100 * BALLOON_LIMIT_PERCENT;
    part.min(vm.size_bytes.saturating_sub(vm.min_bytes))
}

/// In the order of [`HOST_COLUMNS`].
fn host_row(figures: &Figures, state: MemoryState) -> [u64; HOST_COLUMNS.len()] {
    let host = &figures.host;
    // Counted at one moment or another, the parts may exceed the whole: private memory gives way.
    let others = host.broken + host.pshare_common + host.overhead;
    [
        host.pmem_total,
        host.pmem_used.saturating_sub(others),
        host.broken,
        host.pshare_common,
        host.overhead,
        host.pmem_free,
        host.configured,
        host.pshare_shared,
        host.memctl_curr,
        host.swap_curr,
        shortage(state),
    ]
}

/// In the order of [`VM_COLUMNS`].
fn vm_row(vm: &VmView, figures: &VmFigures) -> [Option<u64>; VM_COLUMNS.len()] {
    let others = [
        Some(vm.size_bytes),
        Some(vm.target_bytes),
        Some(vm.used_bytes),
        figures.tchd,
        figures.tchd_low,
        figures.tchd_high,
    ];
    std::array::from_fn(|column| match others.get(column) {
        Some(&other) => other,
        None => Some(vm.states.of(PageState::ALL[column - others.len()])),
    })
}

/// How short memory is as a number that grows with it.
fn shortage(state: MemoryState) -> u64 {
    MemoryState::ALL
        .iter()
        .take_while(|longer| **longer < state)
        .count() as u64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole seconds of a time that is not negative"
)]
fn whole_seconds(seconds: f64) -> u64 {
    seconds as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        BalloonView, HostView, SharingView, Span, StateThresholds, StatesView, VmPhase,
        VmSharingView, WorkingSetView,
    };
    use page::PageCount;
    use policy::{SharesSpec, TaxRate};

    const MIB: u64 = 1 << 20;

    fn vm() -> VmView {
        VmView {
            name: "a".parse().unwrap(),
            id: VmId(1),
            pid: Some(1),
            phase: VmPhase::Running,
            responding: true,
            credible: true,
            uptime_s: 1.0,
            vcpus: 1,
            trust_group: None,
            size_bytes: 100 * MIB,
            min_bytes: 50 * MIB,
            max_bytes: 100 * MIB,
            shares: SharesSpec::Normal,
            shares_count: 1000,
            target_bytes: 80 * MIB,
            granted_bytes: 80 * MIB,
            pinned_bytes: None,
            used_bytes: 47 * MIB,
            memory_file_bytes: 40 * MIB,
            anonymous_bytes: 7 * MIB,
            states: StatesView {
                empty: 12 * MIB,
                private: 40 * MIB,
                shared: 25 * MIB,
                broken: 3 * MIB,
                ballooned: 20 * MIB,
                ..StatesView::default()
            },
            balloon: BalloonView {
                has_driver: true,
                target: 20 * MIB,
                held: 20 * MIB,
                ..BalloonView::default()
            },
            guest: None,
            counters: Default::default(),
            nets: Vec::new(),
            disks: Vec::new(),
            console_log: None,
            sharing: VmSharingView {
                charge_bytes: 10 * MIB,
                ..VmSharingView::default()
            },
            working_set: None,
            idle_tax_permille: None,
            balloon_health: None,
            limit: None,
            blocked_permille: 0,
            blocked_us: 0,
            start_us: None,
            userfault_bytes: 0,
        }
    }

    fn overview(uptime_s: f64, vms: Vec<VmView>) -> Overview {
        Overview {
            publication: 1,
            time_ms: 1,
            host: HostView {
                version: String::new(),
                pid: 1,
                uptime_s,
                budget_bytes: 64 * MIB,
                used_bytes: 57 * MIB,
                used_max_bytes: 57 * MIB,
                samples: 1,
                free_bytes: 0,
                promised_bytes: 0,
                configured_bytes: 100 * MIB,
                overcommit: 0.5625,
                state_sum_violations: 0,
                sharing: SharingView {
                    shared_bytes: 25 * MIB,
                    common_bytes: 10 * MIB,
                    saving_bytes: -1,
                    broken_bytes: 3 * MIB,
                    ..SharingView::default()
                },
                state: MemoryState::default(),
                min_free_bytes: 0,
                state_below: StateThresholds::default(),
                idle_tax_permille: TaxRate::default(),
                sample_period_s: 30,
                rebalance_interval_s: 15,
                events: Vec::new(),
            },
            vms,
            queue: Vec::new(),
        }
    }

    #[test]
    fn shared_pages_count_whole_as_granted_and_by_reference_as_consumed() {
        let figures = vm_figures(&vm());
        assert_eq!(figures.grant, 68 * MIB);
        assert_eq!(figures.cnsm, 53 * MIB);
        assert_eq!(figures.shrdsvd, 15 * MIB);
        assert_eq!(figures.ovhd, 4 * MIB);
    }

    /// 65 % of 100 MiB would leave less than the 50 MiB that were promised.
    #[test]
    fn a_balloon_can_be_asked_for_no_more_than_was_not_promised() {
        assert_eq!(vm_figures(&vm()).mctlmax, 50 * MIB);
        let unpromised = VmView {
            min_bytes: 0,
            ..vm()
        };
        assert_eq!(vm_figures(&unpromised).mctlmax, 100 * MIB / 100 * 65);
    }

    #[test]
    fn machine_memory_by_use_adds_up_to_the_budget_and_pages_by_state_to_the_size() {
        let record = Record::default();
        let overview = overview(1.0, vec![vm()]);
        let figures = record.figures(&overview);
        let host = host_row(&figures, MemoryState::Soft);
        assert_eq!(host[10], 2, "soft is the second below high");
        assert_eq!(host[1..6].iter().sum::<u64>(), host[0]);
        let vm = vm_row(&overview.vms[0], &figures.vms[0]);
        assert_eq!(
            vm[VM_OTHERS.len()..].iter().copied().sum::<Option<u64>>(),
            vm[0]
        );
        assert_eq!(figures.host.pshare_saving, -1, "what sharing costs is told");
    }

    #[test]
    fn the_history_of_a_vm_goes_with_it() {
        let mut record = Record::default();
        record.add(&overview(1.0, vec![vm()]));
        assert_eq!(record.vms.len(), 1);
        record.add(&overview(2.0, Vec::new()));
        assert!(record.vms.is_empty());
        let view = record.host.view(None, Span::TenMinutes);
        assert_eq!(view.time_ms.len(), 2);
    }

    /// The mean of a second at `low` and a minute at `high` is not `clear`, and not `high`.
    #[test]
    fn of_a_minute_the_worst_state_is_remembered() {
        let mut record = Record::default();
        for second in 0..90_u32 {
            let mut overview = overview(f64::from(second), Vec::new());
            if second == 7 {
                overview.host.state = MemoryState::Low;
            }
            record.add(&overview);
        }
        let states = |span| {
            let columns = record.host.view(None, span).columns;
            let state = columns.into_iter().find(|column| column.name == "state");
            state.unwrap().values
        };
        assert_eq!(states(Span::Day), [Some(4), Some(0)]);
        let seconds: Option<u64> = states(Span::TenMinutes).into_iter().sum();
        assert_eq!(seconds, Some(4));
    }

    fn vm_that_uses(low_bytes: u64, estimate_bytes: u64, high_bytes: u64) -> VmView {
        let working_set = Some(WorkingSetView {
            estimate_bytes,
            believed_bytes: high_bytes,
            low_bytes,
            high_bytes,
            written_bytes: 0,
            samples: 100,
            witness: policy::Witness::Silent,
            actv_percent: 30.0,
            actvs_percent: 30.0,
            actvf_percent: 30.0,
        });
        VmView {
            working_set,
            ..vm()
        }
    }

    fn remembered_use(record: &Record, span: Span) -> Vec<Vec<Option<u64>>> {
        let columns = record.vms[&VmId(1)].view(None, span).columns.into_iter();
        let touched = columns.filter(|column| column.name.starts_with("touched"));
        touched.map(|column| column.values).collect()
    }

    /// It would begin with less than it ever used, for most of its first minute is not known.
    #[test]
    fn a_minute_in_which_a_working_set_became_known_is_remembered_by_what_was_known() {
        let mut record = Record::default();
        record.add(&overview(1.0, vec![vm()]));
        let used = vm_that_uses(20 * MIB, 30 * MIB, 50 * MIB);
        record.add(&overview(2.0, vec![used]));
        let remembered = remembered_use(&record, Span::Day);
        let used = [30, 20, 50].map(|mebibytes| vec![Some(mebibytes * MIB)]);
        assert_eq!(remembered, used);
    }

    #[test]
    fn a_vm_that_uses_nothing_is_told_from_one_of_which_nothing_is_known() {
        let mut record = Record::default();
        record.add(&overview(1.0, vec![vm()]));
        record.add(&overview(2.0, vec![vm_that_uses(0, 0, 7 * MIB)]));
        let remembered = remembered_use(&record, Span::TenMinutes);
        let used = [0, 0, 7].map(|mebibytes| vec![None, Some(mebibytes * MIB)]);
        assert_eq!(remembered, used);
    }

    #[test]
    fn rounds_within_one_second_make_one_point() {
        let mut record = Record::default();
        for uptime_s in [1.0, 1.2, 1.4, 2.0] {
            record.add(&overview(uptime_s, vec![vm()]));
        }
        let view = record.vms[&VmId(1)].view(None, Span::TenMinutes);
        assert_eq!(
            view.columns[0].values,
            [Some(PageCount::from_mebibytes(100).bytes()); 2]
        );
    }
}
