//! From what VMs deserve to what each is told to hold now. **Memory is taken before it is given.**
//!
//! A guest follows its balloon's target in its own time, or never. So what counts against the budget
//! is not what a VM was asked to hold but its exposure: what it may touch at any moment without asking
//! ([`VmSnapshot::exposure`]). A VM that is to hold less is told so at once, and its exposure falls as
//! its guest gives pages up. A VM that is to hold more is told so only as far as memory is free of any
//! exposure. No guest, however slow, can then make the others use more than there is; it can only
//! keep them waiting.

use crate::divide::{Claim, divide};
use crate::snapshot::total;
use crate::tax::Taxed;
use crate::{Snapshot, Stage, Target, VmSnapshot, targets};
use page::{PageCount, VmId};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// A VM is not started with less than this (or its size, or its target, if lower): a guest kernel
/// that finds less dies on the way up instead of waiting for more.
pub const START_FLOOR: PageCount = PageCount::from_mebibytes(16);

/// What the host should do now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// One for each VM, in the snapshot's order, also where nothing changes.
    pub steps: Vec<Step>,
    /// What no VM may touch once all have their grants.
    pub free: PageCount,
    /// How much more all mins and overheads are than the budget. Not zero only if the budget was lowered
    /// below what was promised.
    pub shortfall: PageCount,
}

/// One VM's part of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which VM.
    pub id: VmId,
    /// What it should hold in the end.
    pub target: PageCount,
    /// What to tell it now that it may hold: its balloon's target is its size less this. A waiting VM
    /// with a grant above zero is to be started; with zero it goes on waiting.
    pub grant: PageCount,
}

/// What to do about each VM now.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    let vms = &snapshot.vms;
    let mut steps: Vec<Step> = vms.iter().zip(targets(snapshot)).map(cost_free).collect();
    let free_after_start = start_waiting(vms, &mut steps, snapshot.free());
    let free = raise(vms, &mut steps, free_after_start);
    Plan {
        steps,
        free,
        shortfall: snapshot.promised().saturating_sub(snapshot.budget),
    }
}

/// Down to the target at once; up as far as the VM is exposed anyway. That is nothing for a waiting VM.
fn cost_free((vm, target): (&VmSnapshot, Target)) -> Step {
    Step {
        id: vm.id,
        target: target.pages,
        grant: target.pages.min(vm.exposure()),
    }
}

/// Grants each waiting VM its start if that is free, in the order of admission, and returns what is
/// still free. This comes before any running VM gets more, which could go on for ever.
fn start_waiting(vms: &[VmSnapshot], steps: &mut [Step], mut free: PageCount) -> PageCount {
    let mut waiting: Vec<(&VmSnapshot, &mut Step)> = vms
        .iter()
        .zip(steps)
        .filter(|(vm, _)| vm.stage == Stage::Waiting)
        .collect();
    waiting.sort_by_key(|(vm, _)| vm.id);
    for (vm, step) in waiting {
        let start = start_size(vm, step.target);
        if start <= free {
            step.grant = start;
            free = free - start;
        }
    }
    free
}

/// What a VM needs to start: its min, but enough to boot, and no more than it should ever hold.
fn start_size(vm: &VmSnapshot, target: PageCount) -> PageCount {
    let enough_to_boot = START_FLOOR.min(vm.settings.effective_size());
    vm.settings.effective_min().max(enough_to_boot).min(target)
}

/// Divides free memory among all that are below their target, by what they lack, and returns what is
/// still free. A VM just started takes part; one that still waits gets nothing.
fn raise(vms: &[VmSnapshot], steps: &mut [Step], free: PageCount) -> PageCount {
    let mut lacking: Vec<(&mut Step, NonZeroU64)> = vms
        .iter()
        .zip(steps)
        .filter(|(vm, step)| vm.stage == Stage::Running || step.grant > PageCount::ZERO)
        .filter_map(|(_, step)| NonZeroU64::new(lack(step)).map(|lack| (step, lack)))
        .collect();
    let claims: Vec<Claim> = lacking
        .iter()
        .map(|&(&mut Step { id, .. }, lack)| Claim {
            id,
            weight: lack,
            min: PageCount::ZERO,
            max: PageCount(lack.get()),
            taxed: Taxed::NOTHING,
        })
        .collect();
    let parts = divide(free, &claims);
    for ((step, _), &part) in lacking.iter_mut().zip(&parts) {
        step.grant += part;
    }
    free.saturating_sub(total(parts))
}

fn lack(step: &Step) -> u64 {
    step.target.saturating_sub(step.grant).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;
    use proptest::prelude::*;

    /// A running VM of 100 MiB whose target its shares would set; most tests pin it.
    fn running(id: u32, holds: u64, granted: u64, pinned: u64) -> VmSnapshot {
        let vm = generate::vm_of_size(id, PageCount::from_mebibytes(100).0);
        VmSnapshot {
            ballooned: vm.settings.size - PageCount::from_mebibytes(holds),
            granted: PageCount::from_mebibytes(granted),
            pinned: Some(PageCount::from_mebibytes(pinned)),
            stage: Stage::Running,
            ..vm
        }
    }

    fn waiting(id: u32, min: u64, pinned: u64) -> VmSnapshot {
        let mut vm = VmSnapshot {
            stage: Stage::Waiting,
            ..running(id, 0, 0, pinned)
        };
        vm.settings.min = PageCount::from_mebibytes(min);
        vm
    }

    fn planned(budget: u64, vms: &[VmSnapshot]) -> Plan {
        plan(&Snapshot {
            budget: PageCount::from_mebibytes(budget),
            vms: vms.to_vec(),
            ..Snapshot::default()
        })
    }

    fn grants(budget: u64, vms: &[VmSnapshot]) -> Vec<u64> {
        let mebibytes = |step: &Step| step.grant.0 / 256;
        planned(budget, vms).steps.iter().map(mebibytes).collect()
    }

    #[test]
    fn memory_is_taken_at_once_and_given_only_when_it_was_given_up() {
        let asked = [running(0, 80, 80, 40), running(1, 20, 20, 60)];
        assert_eq!(grants(100, &asked), [40, 20]);
        let given_up_in_part = [running(0, 70, 40, 40), running(1, 20, 20, 60)];
        assert_eq!(grants(100, &given_up_in_part), [40, 30]);
        let given_up = [running(0, 40, 40, 40), running(1, 30, 30, 60)];
        assert_eq!(grants(100, &given_up), [40, 60]);
    }

    #[test]
    fn a_vm_that_has_not_yet_followed_down_may_stay_at_no_cost() {
        let vms = [running(0, 80, 40, 70), running(1, 20, 20, 30)];
        assert_eq!(grants(100, &vms), [70, 20]);
    }

    #[test]
    fn what_was_promised_but_not_yet_touched_is_not_given_to_another() {
        let vms = [running(0, 10, 60, 40), running(1, 20, 20, 40)];
        assert_eq!(grants(80, &vms), [40, 20]);
    }

    #[test]
    fn free_memory_goes_by_what_each_lacks() {
        let vms = [
            running(0, 50, 50, 10),
            running(1, 10, 10, 30),
            running(2, 10, 10, 50),
        ];
        assert_eq!(grants(100, &vms), [10, 20, 30]);
    }

    #[test]
    fn a_start_comes_before_growth_and_is_all_or_nothing() {
        let held = running(0, 60, 60, 35);
        let growing = running(1, 10, 10, 30);
        assert_eq!(
            grants(100, &[held.clone(), growing.clone(), waiting(2, 20, 30)])[2],
            23
        );
        assert_eq!(
            grants(85, &[held, growing, waiting(2, 20, 20)]),
            [35, 25, 0]
        );
    }

    #[test]
    fn a_vm_without_min_still_starts_with_enough_to_boot() {
        assert_eq!(
            grants(100, &[running(0, 85, 85, 60), waiting(1, 0, 40)]),
            [60, 0]
        );
        assert_eq!(
            grants(100, &[running(0, 84, 84, 60), waiting(1, 0, 40)]),
            [60, 16]
        );
        assert_eq!(grants(100, &[waiting(1, 0, 10)]), [10]);
    }

    #[test]
    fn an_empty_host_gives_the_first_vm_its_whole_target() {
        assert_eq!(grants(100, &[waiting(0, 35, 100)]), [100]);
    }

    #[test]
    fn mins_that_do_not_fit_are_said_to_the_page() {
        let vms = [waiting(0, 60, 60), waiting(1, 60, 60)];
        let plan = planned(100, &vms);
        assert_eq!(plan.shortfall, PageCount::from_mebibytes(20));
        assert_eq!(plan.free, PageCount::from_mebibytes(40));
    }

    proptest! {
        #[test]
        fn no_plan_exposes_more_than_there_is_or_was(snapshot in generate::snapshot()) {
            let memory_before = total(snapshot.vms.iter().map(VmSnapshot::exposure));
            let plan = plan(&snapshot);
            let exposed = |(vm, step): (&VmSnapshot, &Step)| match vm.stage {
                Stage::Running => vm.held().max(step.grant),
                Stage::Waiting => step.grant,
            };
            let memory_after = total(snapshot.vms.iter().zip(&plan.steps).map(exposed));
            prop_assert!(memory_after <= snapshot.memory().max(memory_before));
            prop_assert!(memory_after + plan.free <= snapshot.memory().max(memory_before));
        }

        #[test]
        fn memory_stays_free_only_if_nobody_who_runs_lacks_any(snapshot in generate::snapshot()) {
            let plan = plan(&snapshot);
            for (vm, step) in snapshot.vms.iter().zip(&plan.steps) {
                prop_assert!(step.grant <= step.target);
                let runs = vm.stage == Stage::Running || step.grant > PageCount::ZERO;
                prop_assert!(!runs || plan.free == PageCount::ZERO || step.grant == step.target);
            }
        }

        #[test]
        fn a_vm_starts_with_its_min_or_does_not(snapshot in generate::snapshot()) {
            for (vm, step) in snapshot.vms.iter().zip(&plan(&snapshot).steps) {
                let starts = vm.stage == Stage::Waiting && step.grant > PageCount::ZERO;
                prop_assert!(!starts || step.grant >= start_size(vm, step.target));
                prop_assert!(!starts || step.grant >= vm.settings.min);
            }
        }

        #[test]
        fn senseless_numbers_do_not_panic(snapshot in generate::senseless_snapshot()) {
            prop_assert_eq!(plan(&snapshot).steps.len(), snapshot.vms.len());
        }
    }
}
