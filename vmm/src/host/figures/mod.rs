//! One model of what is counted: the same figures go to `top`, to the dashboard, to Prometheus and into
//! the histories.
//!
//! They are made from the views that clients get, so that no number is computed twice, and hold
//! what an administrator knows from esxtop under its names, then what only this host has.

mod history;
mod overcommit;

use api::{
    Figure, Figures, HOST_FIGURES, HistoryView, HostFigures, Overview, Span, VM_FIGURES, VmFigures,
    shown,
};
use history::History;
use overcommit::Averages;
use page::VmId;
use protocol::VmName;
use std::collections::BTreeMap;

/// What is remembered of the host: machine memory by what it is used for, which adds up to the budget,
/// what no memory is used for, and how short memory was.
const HOST_HISTORY: &[Figure<HostFigures>] = shown!(HOST_FIGURES: HostFigures, history);
/// What is remembered of a VM: its pages by state, which add up to its size, and others.
const VM_HISTORY: &[Figure<VmFigures>] = shown!(VM_FIGURES: VmFigures, history);

/// The newest figures and how they came about.
#[derive(Debug)]
pub(super) struct Record {
    overcommit: Averages,
    host: History<{ HOST_HISTORY.len() }>,
    /// Histories of VMs that are there; those of others are forgotten.
    vms: BTreeMap<VmId, History<{ VM_HISTORY.len() }>>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            overcommit: Averages::default(),
            host: History::new(HOST_HISTORY),
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
        self.host.add(second, now, row(HOST_HISTORY, &figures.host));
        self.vms
            .retain(|id, _| overview.vms.iter().any(|vm| vm.id == *id));
        for vm in &figures.vms {
            let history = self.vms.entry(vm.id);
            let history = history.or_insert_with(|| History::new(VM_HISTORY));
            history.add(second, now, row(VM_HISTORY, vm));
        }
        figures
    }

    /// The figures of an overview.
    pub(super) fn figures(&self, overview: &Overview) -> Figures {
        let vms: Vec<VmFigures> = overview.vms.iter().map(VmFigures::new).collect();
        Figures {
            publication: overview.publication,
            time_ms: overview.time_ms,
            host: HostFigures::new(overview, &vms, self.overcommit.values()),
            vms,
            queue: overview.queue.clone(),
        }
    }
}

impl Record {
    /// What is remembered of the host, or of one of its VMs.
    pub(super) fn history(&self, vm: Option<(VmId, VmName)>, span: Span) -> HistoryView {
        let Some((id, name)) = vm else {
            return self.host.view(None, span);
        };
        let nothing = History::new(VM_HISTORY);
        let history = self.vms.get(&id).unwrap_or(&nothing);
        history.view(Some(name), span)
    }
}

/// What is remembered of a moment.
fn row<T, const N: usize>(figures: &[Figure<T>], of: &T) -> [Option<u64>; N] {
    std::array::from_fn(|column| (figures[column].read)(of).number())
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
    use api::{
        BalloonView, HistoryColumn, HostView, SharingView, StatesView, VmPhase, VmSharingView,
        VmView, WorkingSetView,
    };
    use page::{PageCount, PageState};
    use policy::{MemoryState, SharesSpec};

    const MIB: u64 = 1 << 20;

    fn vm() -> VmView {
        VmView {
            name: "a".parse().unwrap(),
            id: VmId(1),
            pid: Some(1),
            kind: Default::default(),
            capabilities: Default::default(),
            stale: false,
            paused: false,
            phase: VmPhase::Running,
            restart: api::RestartPolicy::No,
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
            large_pages: true,
            balloon_health: None,
            touch_limit: None,
            swap: None,
            blocked_permille: 0,
            blocked_us: 0,
            start_us: None,
            jail: None,
            userfault_bytes: 0,
        }
    }

    fn overview(uptime_s: f64, vms: Vec<VmView>) -> Overview {
        Overview {
            publication: 1,
            time_ms: 1,
            host: HostView {
                uptime_s,
                budget_bytes: 64 * MIB,
                used_bytes: 57 * MIB,
                configured_bytes: 100 * MIB,
                overcommit: 0.5625,
                sharing: SharingView {
                    shared_bytes: 25 * MIB,
                    common_bytes: 10 * MIB,
                    saving_bytes: -1,
                    broken_bytes: 3 * MIB,
                    ..SharingView::default()
                },
                ..HostView::default()
            },
            vms,
            queue: Vec::new(),
            definitions: Vec::new(),
        }
    }

    #[test]
    fn shared_pages_count_whole_as_granted_and_by_reference_as_consumed() {
        let figures = VmFigures::new(&vm());
        assert_eq!(figures.grant, 68 * MIB);
        assert_eq!(figures.cnsm, 53 * MIB);
        assert_eq!(figures.shrdsvd, 15 * MIB);
        assert_eq!(figures.ovhd, 4 * MIB);
    }

    /// 65 % of 100 MiB would leave less than the 50 MiB that were promised.
    #[test]
    fn a_balloon_can_be_asked_for_no_more_than_was_not_promised() {
        assert_eq!(VmFigures::new(&vm()).mctlmax, 50 * MIB);
        let unpromised = VmView {
            min_bytes: 0,
            ..vm()
        };
        assert_eq!(VmFigures::new(&unpromised).mctlmax, 100 * MIB / 100 * 65);
    }

    #[test]
    fn machine_memory_by_use_adds_up_to_the_budget_and_pages_by_state_to_the_size() {
        let mut record = Record::default();
        let mut overview = overview(1.0, vec![vm()]);
        overview.host.state = MemoryState::Soft;
        let figures = record.add(&overview);
        let sum = |columns: &[HistoryColumn], names: &[&str]| {
            let named = columns
                .iter()
                .filter(|column| names.contains(&column.name.as_str()));
            named.map(|column| column.values[0]).sum::<Option<u64>>()
        };
        let host = record.host.view(None, Span::TenMinutes).columns;
        let uses = ["private", "broken", "common", "pool", "overhead", "free"];
        assert_eq!(sum(&host, &uses), sum(&host, &["budget"]));
        assert_eq!(
            sum(&host, &["state"]),
            Some(2),
            "soft is the second below high"
        );
        let vm = record.vms[&VmId(1)].view(None, Span::TenMinutes).columns;
        let states = PageState::ALL.map(PageState::name);
        assert_eq!(sum(&vm, &states), sum(&vm, &["size"]));
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
