//! A scenario from what a host has recorded: the same VMs, each working on what it was believed to need.

use super::guest::KERNEL;
use super::{HostModel, Phase, Scenario, VmModel};
use crate::{Snapshot, VmSnapshot};
use page::{PageCount, VmId};
use std::collections::BTreeMap;

/// A need that differs from the one before by less than this part of its VM's size is the same.
const SAME_DIVISOR: u64 = 32;
/// Points of a trace.
const POINTS: u32 = 60;

/// A VM as far as it was seen.
#[derive(Debug)]
struct Seen {
    model: VmModel,
    last_s: u32,
}

impl Scenario {
    /// What was recorded, at milliseconds since a host's start, in order. None if that was nothing.
    ///
    /// A VM's need is its guest's own word where it was only looked at, else its working set, else what it used.
    pub fn recorded<'a>(moments: impl Iterator<Item = (u64, &'a Snapshot)>) -> Option<Self> {
        let mut moments = moments.peekable();
        let (begin_ms, first) = *moments.peek()?;
        let host = HostModel::new(mebibytes(first.budget).max(1), first.idle_tax);
        let mut vms: BTreeMap<VmId, Seen> = BTreeMap::new();
        let mut now_s = 0;
        for (at_ms, snapshot) in moments {
            let passed = at_ms.saturating_sub(begin_ms) / 1000;
            // A host that began anew counts from zero.
            now_s = now_s.max(u32::try_from(passed).unwrap_or(u32::MAX - 1));
            for vm in &snapshot.vms {
                let seen = vms.entry(vm.id).or_insert_with(|| Seen {
                    model: model(vm, now_s),
                    last_s: now_s,
                });
                seen.last_s = now_s;
                seen.model.needs(vm, now_s);
            }
        }
        let models = vms.into_values().map(|Seen { mut model, last_s }| {
            let is_gone = last_s < now_s;
            model.life_s = is_gone.then_some((last_s - model.start_s).max(1));
            model
        });
        Some(Self {
            seed: 0,
            seconds: now_s + 1,
            record_every_s: (now_s / POINTS).max(1),
            measured_from_s: 0,
            host,
            vms: models.collect(),
        })
    }
}

fn mebibytes(pages: PageCount) -> u64 {
    pages.0 / PageCount::from_mebibytes(1).0
}

fn model(vm: &VmSnapshot, start_s: u32) -> VmModel {
    let settings = &vm.settings;
    let size = vm.settings.effective_size();
    let size_mib = size.0.div_ceil(PageCount::from_mebibytes(1).0).max(1);
    let max_mib = mebibytes(settings.effective_max()).clamp(1, size_mib);
    VmModel {
        min_mib: Some(mebibytes(settings.effective_min()).min(max_mib)),
        max_mib: (settings.effective_max() < size).then_some(max_mib),
        shares: settings.shares,
        idle_tax_permille: settings.idle_tax,
        start_s,
        ..VmModel::new(format!("vm-{}", vm.id), size_mib)
    }
}

impl VmModel {
    fn needs(&mut self, vm: &VmSnapshot, now_s: u32) {
        let needs = match (vm.evidence.supposed, vm.evidence.active) {
            (Some(supposed), _) => supposed.needs.unwrap_or_else(|| vm.backed()),
            (None, Some(active)) => active.pages,
            (None, None) => vm.backed(),
        };
        let working_set = needs.saturating_sub(KERNEL);
        let working_set_mib = mebibytes(working_set).min(self.size_mib);
        let is_same = |before: &Phase| {
            let difference = before.working_set_mib.abs_diff(working_set_mib);
            difference <= self.size_mib / SAME_DIVISOR
        };
        if self.phases.last().is_some_and(is_same) {
            return;
        }
        self.phases.push(Phase {
            at_s: now_s.saturating_sub(self.start_s),
            ..Phase::new(working_set_mib)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Rules, simulate};
    use crate::{Stage, Supposed, generate};
    use proptest::prelude::*;

    fn needing(id: u32, mib: u64) -> VmSnapshot {
        let mut vm = generate::vm_of_size(id, PageCount::from_mebibytes(1024).0);
        vm.stage = Stage::Running;
        vm.evidence.supposed = Some(Supposed {
            needs: Some(PageCount::from_mebibytes(mib)),
            ..Supposed::default()
        });
        vm
    }

    fn moment(vms: Vec<VmSnapshot>) -> Snapshot {
        Snapshot {
            budget: PageCount::from_mebibytes(1536),
            vms,
            ..Snapshot::default()
        }
    }

    #[test]
    fn needs_become_phases_and_who_is_gone_ends() {
        let moments = [
            (5000, moment(vec![needing(1, 116), needing(2, 516)])),
            (65_000, moment(vec![needing(1, 130), needing(2, 516)])),
            (95_000, moment(vec![needing(1, 816)])),
            (125_000, moment(vec![needing(1, 816), needing(3, 16)])),
        ];
        let moments = moments.iter().map(|(at_ms, snapshot)| (*at_ms, snapshot));
        let scenario = Scenario::recorded(moments).unwrap();
        assert_eq!((scenario.seconds, scenario.host.memory_mib), (121, 1536));
        let phases = |index: usize| {
            let phases = scenario.vms[index].phases.iter();
            phases
                .map(|phase| (phase.at_s, phase.working_set_mib))
                .collect::<Vec<_>>()
        };
        assert_eq!(phases(0), [(0, 100), (90, 800)]);
        assert_eq!(phases(1), [(0, 500)]);
        assert_eq!(scenario.vms[1].life_s, Some(60));
        assert_eq!((scenario.vms[2].start_s, phases(2)), (120, vec![(0, 0)]));
        let trace = simulate(&scenario, Rules::Ours).unwrap();
        assert_eq!(trace.outcome.wakes(), (1, 1));
        assert!(Scenario::recorded(std::iter::empty()).is_none());
    }

    proptest! {
        /// Whatever was recorded, what becomes of it can be simulated, unless it is too much.
        #[test]
        fn any_recording_makes_a_sound_scenario(
            moments in prop::collection::vec((any::<u32>(), generate::informed_snapshot()), 1..5)
        ) {
            let moments = moments.iter().map(|(at_s, snapshot)| (u64::from(*at_s), snapshot));
            let scenario = Scenario::recorded(moments).unwrap();
            let checked = scenario.check();
            prop_assert!(checked.is_ok(), "{:?}: {:?}", checked, scenario);
        }
    }
}
