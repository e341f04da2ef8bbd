//! What the kernel is to take from a VM whose balloon does not follow, where that is allowed: into its own swap.
//!
//! It is the lever of last resort. The kernel chooses the pages, and does not know what the guest does with them. So it is used
//! on those alone that no balloon moves, only while memory is short or others lack some, at the rates of a balloon, never
//! below a min, and not while the VM waits for memory already (the kernel's pressure stall information).

use crate::{BalloonHealth, MemoryState, Snapshot, Stage, Step, VmSnapshot};
use page::PageCount;

/// Sets what of each VM the kernel is to take in this round.
pub(crate) fn set_kernel_reclaim(snapshot: &Snapshot, steps: &mut [Step]) {
    let is_short = snapshot.state != MemoryState::High;
    let is_wanted = is_short || steps.iter().any(|step| step.grant < step.target);
    if !is_wanted {
        return;
    }
    for (vm, step) in snapshot.vms.iter().zip(steps) {
        step.kernel_reclaim = kernel_reclaim(snapshot, vm, step);
    }
}

fn kernel_reclaim(snapshot: &Snapshot, vm: &VmSnapshot, step: &Step) -> PageCount {
    let evidence = &vm.evidence;
    let is_stuck = evidence.balloon_health() == BalloonHealth::Stuck;
    let is_deaf = evidence.has_no_driver || is_stuck;
    let may_be_taken = evidence.kernel_reclaim && !evidence.is_pressed();
    match &snapshot.balloon {
        Some(round) if vm.stage == Stage::Running && is_deaf && may_be_taken => {
            let least = step.target.max(vm.settings.effective_min());
            let above = vm.backed().saturating_sub(least);
            above.min(round.step(snapshot.state.orders().balloon))
        }
        _ => PageCount::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BalloonRound, generate, plan};
    use proptest::prelude::*;

    /// A VM of 1 GiB without a driver, of which 800 MiB are backed, and that is to hold 300.
    fn deaf() -> Snapshot {
        let mebibytes = PageCount::from_mebibytes;
        let mut vm = generate::vm_of_size(1, mebibytes(1024).0);
        vm.stage = Stage::Running;
        vm.pinned = Some(mebibytes(300));
        vm.evidence.has_no_driver = true;
        vm.evidence.backed = Some(mebibytes(800));
        vm.evidence.kernel_reclaim = true;
        Snapshot {
            budget: mebibytes(600),
            state: MemoryState::Soft,
            balloon: Some(BalloonRound {
                elapsed_ms: 1000,
                ..BalloonRound::default()
            }),
            vms: vec![vm],
            ..Snapshot::default()
        }
    }

    fn reclaimed(snapshot: &Snapshot) -> u64 {
        plan(snapshot).steps[0].kernel_reclaim.0 / 256
    }

    #[test]
    fn who_does_not_follow_loses_pages_at_a_balloons_rate_down_to_its_target() {
        let mut snapshot = deaf();
        let rate = reclaimed(&snapshot);
        assert!(rate >= 64, "{rate}");
        snapshot.vms[0].evidence.backed = Some(PageCount::from_mebibytes(310));
        assert_eq!(reclaimed(&snapshot), 10);
        snapshot.vms[0].settings.min = PageCount::from_mebibytes(305);
        assert_eq!(reclaimed(&snapshot), 5);
    }

    #[test]
    fn nothing_is_taken_that_is_not_allowed_or_from_one_under_pressure_or_that_follows() {
        let with = |change: fn(&mut VmSnapshot)| {
            let mut snapshot = deaf();
            change(&mut snapshot.vms[0]);
            reclaimed(&snapshot)
        };
        assert_eq!(with(|vm| vm.evidence.kernel_reclaim = false), 0);
        assert_eq!(with(|vm| vm.evidence.pressure_permille = 100), 0);
        assert_eq!(with(|vm| vm.evidence.has_no_driver = false), 0);
        assert_eq!(with(|vm| vm.stage = Stage::Waiting), 0);
        let mut plenty = deaf();
        plenty.state = MemoryState::High;
        assert_eq!(reclaimed(&plenty), 0);
    }

    proptest! {
        #[test]
        fn no_round_takes_more_than_its_rate_or_below_a_min_or_where_it_may_not(
            mut snapshot in generate::informed_snapshot(), may in prop::collection::vec((any::<bool>(), 0u32..200), 8)
        ) {
            for (vm, (may, pressure)) in snapshot.vms.iter_mut().zip(may) {
                vm.evidence.kernel_reclaim = may;
                vm.evidence.pressure_permille = pressure;
            }
            for (vm, step) in snapshot.vms.iter().zip(plan(&snapshot).steps) {
                let taken = step.kernel_reclaim;
                let rate = snapshot.balloon.map_or(PageCount::ZERO, |round| round.step(snapshot.state.orders().balloon));
                prop_assert!(taken <= rate);
                let left = vm.backed().saturating_sub(taken);
                prop_assert!(taken == PageCount::ZERO || left >= vm.settings.min.max(step.target));
                prop_assert!(taken == PageCount::ZERO || vm.evidence.kernel_reclaim && !vm.evidence.is_pressed());
            }
        }

        /// One that waits for memory is asked for nothing that it holds, but for what has to go out of it anyway.
        #[test]
        fn one_under_pressure_keeps_what_it_holds(mut snapshot in generate::informed_snapshot()) {
            snapshot.balloon = Some(BalloonRound { elapsed_ms: 1000, ..BalloonRound::default() });
            for vm in &mut snapshot.vms {
                vm.evidence.pressure_permille = 500;
                vm.told = None;
                vm.granted = vm.held();
            }
            for (vm, step) in snapshot.vms.iter().zip(plan(&snapshot).steps) {
                prop_assert!(vm.stage == Stage::Waiting || step.grant >= vm.held().min(vm.exposure()));
            }
        }
    }
}
