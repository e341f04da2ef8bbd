//! From what VMs deserve to what each is told to hold now. **Memory is taken before it is given.**
//!
//! A guest follows its balloon's target in its own time, or never. So what counts against the budget
//! is not what a VM was asked to hold but its exposure: what it may touch at any moment without asking
//! ([`VmSnapshot::exposure`]). A VM that is to hold less is told so at once, and its exposure falls as
//! its guest gives pages up. A VM that is to hold more is told so only as far as memory is free of any
//! exposure. No guest, however slow, can then make the others use more than there is; it can only
//! keep them waiting.
//!
//! Where balloons are to be used with care ([`Snapshot::balloon`]), a VM is told to hold less only as far
//! as its balloon can go now; the plan says what is to be had by other means, and who is stopped if it
//! touches more (`touch_limit`).

use crate::balloon::{Ask, Reach};
use crate::divide::{Claim, divide};
use crate::kernel_reclaim::set_kernel_reclaim;
use crate::pool_allowance::pool_allowance;
use crate::targets::by_shares_alone;
use crate::tax::Taxed;
use crate::touch_limit::set_touch_limits;
use crate::{
    BrokenBlocks, LargePages, Orders, Snapshot, Stage, Step, Target, VmSnapshot, balloon, targets,
};
use page::{PageCount, total};
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
    /// What the memory state orders for all.
    #[serde(default)]
    pub orders: Orders,
    /// Which large pages VMs make.
    #[serde(default)]
    pub large_pages: LargePages,
    /// Which of them are broken to share what is equal in them.
    #[serde(default)]
    pub broken_blocks: BrokenBlocks,
}

/// What to do about each VM now.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    let vms = &snapshot.vms;
    let targets = targets(snapshot);
    let shelters = shelters(snapshot, &targets);
    let (mut steps, holds): (Vec<Step>, Vec<PageCount>) = vms
        .iter()
        .zip(targets.iter().zip(shelters))
        .map(|(vm, (target, untaxed))| cost_free(snapshot, vm, target.pages, untaxed))
        .unzip();
    let free_after_start = start_waiting(vms, &mut steps, snapshot.free());
    let free = raise(vms, &mut steps, free_after_start);
    set_touch_limits(snapshot, &mut steps);
    set_pooled(vms, &holds, &mut steps);
    set_kernel_reclaim(snapshot, &mut steps);
    Plan {
        steps,
        free,
        shortfall: snapshot.promised().saturating_sub(snapshot.budget),
        orders: snapshot.state.orders(),
        large_pages: snapshot.large_pages(),
        broken_blocks: snapshot.broken_blocks(),
    }
}

/// What each guest may keep by its word. It takes another division, so that is left out where no word is
/// above a target.
fn shelters(snapshot: &Snapshot, targets: &[Target]) -> Vec<PageCount> {
    let claims_more = |(vm, target): (&VmSnapshot, &Target)| balloon::claim(vm) > target.pages;
    let shelters = match snapshot.vms.iter().zip(targets).any(claims_more) {
        true => &by_shares_alone(snapshot),
        false => targets,
    };
    shelters.iter().map(|target| target.pages).collect()
}

/// Down to the target, at once or as its balloon can; up as far as the VM is exposed anyway. That is
/// nothing for a waiting VM. And what its balloon may leave it, which is more where its pool makes up for that.
fn cost_free(
    snapshot: &Snapshot,
    vm: &VmSnapshot,
    target: PageCount,
    untaxed: PageCount,
) -> (Step, PageCount) {
    let pooled = pool_allowance(vm, target);
    let ask = Ask {
        target: total([target, pooled]),
        untaxed,
        pace: snapshot.state.orders().balloon,
    };
    let reach = match &snapshot.balloon {
        Some(round) => balloon::reach(vm, &ask, round),
        None => Reach::at_once(ask.target),
    };
    let step = Step {
        id: vm.id,
        target,
        grant: reach.hold.min(vm.exposure()),
        pooled,
        by_other_means: reach.by_other_means,
        touch_limit: None,
        kernel_reclaim: PageCount::ZERO,
    };
    (step, reach.hold)
}

/// Who keeps within its grant by a limit already may hold beyond it what its balloon leaves it, as far as its pool makes up for that.
fn set_pooled(vms: &[VmSnapshot], holds: &[PageCount], steps: &mut [Step]) {
    for ((vm, step), &hold) in vms.iter().zip(steps).zip(holds) {
        let within = step
            .touch_limit
            .filter(|_| vm.kept_within().is_some())
            .map(|limit| limit.slow_above.max(vm.backed()));
        let is_kept = within.is_some_and(|within| within <= step.grant.max(vm.exposure()));
        step.pooled = match step.pooled > PageCount::ZERO && is_kept {
            true => hold.saturating_sub(step.grant),
            false => PageCount::ZERO,
        };
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
    use crate::{BalloonRound, BalloonWatch, GuestFigures, MemoryState, generate};
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

    /// One VM that holds 80 MiB of its 100, is to hold 40, and has a guest that cannot be asked.
    fn with_careful_balloon(state: MemoryState) -> Plan {
        let mut vm = running(0, 80, 80, 40);
        let mut watch = BalloonWatch::default();
        for _ in 0..9 {
            watch = watch.observe(PageCount::from_mebibytes(60), vm.held());
        }
        vm.evidence.balloon = Some(watch);
        plan(&Snapshot {
            budget: PageCount::from_mebibytes(100),
            vms: vec![vm],
            state,
            balloon: Some(BalloonRound {
                elapsed_ms: 125,
                ..BalloonRound::default()
            }),
            ..Snapshot::default()
        })
    }

    #[test]
    fn a_careful_balloon_is_asked_for_what_it_can_do_and_the_rest_is_said() {
        let plan = with_careful_balloon(MemoryState::High);
        let mebibytes = |pages: PageCount| pages.0 / 256;
        let Step {
            target,
            grant,
            by_other_means,
            ..
        } = plan.steps[0];
        assert_eq!([target, grant, by_other_means].map(mebibytes), [40, 52, 40]);
        assert!(!plan.orders.compress_and_swap);
    }

    proptest! {
        #[test]
        fn whatever_is_known_no_plan_exposes_more_than_there_is_or_was(snapshot in generate::informed_snapshot()) {
            let before = total(snapshot.vms.iter().map(VmSnapshot::exposure));
            let plan = plan(&snapshot);
            let exposed = |(vm, step): (&VmSnapshot, &Step)| {
                let may_touch = vm.held().max(step.grant + step.pooled);
                match step.touch_limit.filter(|_| vm.evidence.has_swap) {
                    Some(limit) => may_touch.min(limit.slow_above.max(vm.backed())),
                    None => may_touch,
                }
            };
            let after = total(snapshot.vms.iter().zip(&plan.steps).map(exposed));
            prop_assert!(after + plan.free <= snapshot.memory().max(before));
        }

        #[test]
        fn with_nothing_known_a_memory_state_changes_no_grant(
            snapshot in generate::snapshot(), state in generate::memory_state()
        ) {
            let grants = |plan: Plan| plan.steps.into_iter().map(|step| (step.target, step.grant)).collect::<Vec<_>>();
            let in_state = Snapshot { state, ..snapshot.clone() };
            prop_assert_eq!(grants(plan(&in_state)), grants(plan(&snapshot)));
        }

        #[test]
        fn only_vms_above_their_targets_are_swapped(snapshot in generate::informed_snapshot()) {
            for (vm, step) in snapshot.vms.iter().zip(plan(&snapshot).steps) {
                let above = vm.held().saturating_sub(step.target);
                prop_assert!(step.by_other_means <= above);
            }
        }

        /// Whatever one guest says, every VM deserves what it did, and no other is told to hold less.
        #[test]
        fn a_guests_word_takes_nothing_from_its_neighbours(
            snapshot in generate::informed_snapshot(), which: prop::sample::Index, held: u64, available: u64, stalls: u64
        ) {
            prop_assume!(!snapshot.vms.is_empty());
            let which = which.index(snapshot.vms.len());
            let mut claimed = snapshot.clone();
            claimed.vms[which].evidence.guest = Some(GuestFigures {
                held: PageCount(held),
                available: Some(PageCount(available)),
                stalls: Some(stalls),
                ..GuestFigures::default()
            });
            let steps = plan(&claimed).steps.into_iter().zip(plan(&snapshot).steps);
            for (index, (with, without)) in steps.enumerate() {
                prop_assert_eq!(with.target, without.target);
                prop_assert!(index == which || with.grant >= without.grant.min(snapshot.vms[index].exposure()));
            }
        }

        #[test]
        fn equal_snapshots_give_equal_plans_recorded_or_not(snapshot in generate::informed_snapshot()) {
            let json = serde_json::to_string(&snapshot).unwrap();
            let replayed: Snapshot = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(plan(&replayed), plan(&snapshot));
        }

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
