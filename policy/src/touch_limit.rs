//! Who is kept from touching more memory, by being stopped: for guests whose balloons do not keep them within it.
//!
//! What a guest has not given up it may touch at any moment, and nobody is asked. While every balloon
//! follows, that is counted, and there is enough for all of it ([`plan`](crate::plan())). It is not when a
//! guest without a driver, or with one that does not follow, may touch more than there is. Such a VM
//! gets a limit. In the shortest memory state, each VM above its target gets one, unless it is on
//! its way down.
//!
//! A limit costs nothing until it is reached: **a VM runs freely as long as it touches no new memory.**
//! One that exceeds its limit runs in short slices only, so that its balloon driver can work, and one that
//! exceeds what was left over for that stands still until it has given pages up, or there is memory for it.
//! ESX blocks a VM until it holds its target; but a guest that never runs never gives anything up.
//!
//! **Where its pages can go out of its memory, a VM is not stopped**: what it holds above its limit goes, and what it touches
//! beyond comes in the place of something else. So a limit takes from it what it has, and is also for those whose
//! balloons follow, when they do not in time, and for those whose pool makes up for what their balloons leave them
//! (`pool_allowance`).
//!
//! Where its pages can go out, a limit is also what lets a VM start at once beside guests that use little and have given up
//! little: what they keep from touching is there for it, before their balloons have taken it.
//!
//! A limit is never below a VM's min, nor below what it was told that it may hold, nor below what it has
//! touched before it got the limit. It follows down what the VM gives up.

use crate::{BalloonHealth, Snapshot, Stage, Step, TouchLimit, VmSnapshot};
use page::{PageCount, total};

/// Of what is free in the machine, the part that VMs beyond their limits may touch until the next plan. As
/// it is halved each time, what is left is never used up.
const SLACK_DIVISOR: u64 = 2;

/// The part of what should be kept free that is not for those who could not give it back.
const KEPT_DIVISOR: u64 = 2;

/// What pages mapped from the store count of a limit on what a VM holds whose pages can go out of its memory. They cannot,
/// and its guest may write to them at any time, each write taking a page. So they count as if it had, but **for no more than
/// half of the limit**: a guest must have room for pages of its own to go on.
#[must_use]
pub fn shared_of_limit(limit: PageCount, shared: PageCount) -> PageCount {
    shared.min(PageCount(limit.0 / 2))
}

/// Sets the limits of a plan's steps.
pub(crate) fn set_touch_limits(snapshot: &Snapshot, steps: &mut [Step]) {
    let reason = Need::of(snapshot);
    for (vm, step) in snapshot.vms.iter().zip(&mut *steps) {
        let is_needed = vm.evidence.capabilities.touch_limit && reason.of_vm(vm, step);
        let slow_above = slow_above(vm, step);
        step.touch_limit = is_needed.then_some(TouchLimit {
            slow_above,
            stop_above: slow_above,
        });
    }
    let count = steps
        .iter()
        .filter(|step| step.touch_limit.is_some())
        .count() as u64;
    for (vm, step) in snapshot.vms.iter().zip(steps) {
        if let Some(limit) = &mut step.touch_limit {
            let slack = PageCount(spare(snapshot, vm).0 / SLACK_DIVISOR / count);
            limit.stop_above = total([vm.backed().max(limit.slow_above), slack]);
        }
    }
}

/// What makes limits necessary.
#[derive(Clone, Copy, Debug)]
struct Need {
    /// Guests may touch more than there is.
    is_overexposed: bool,
    /// What balloons do not bring goes out of memory.
    goes_out: bool,
    /// A VM waits for its first memory.
    somebody_waits: bool,
    /// Memory is at its shortest.
    is_shortest: bool,
}

impl Need {
    fn of(snapshot: &Snapshot) -> Self {
        let reach = snapshot.vms.iter().map(reach);
        Self {
            is_overexposed: total(reach) > snapshot.memory(),
            somebody_waits: snapshot.vms.iter().any(|vm| vm.stage == Stage::Waiting),
            goes_out: snapshot.state.orders().compress_and_swap,
            is_shortest: snapshot.state.orders().block_above_target,
        }
    }

    fn of_vm(self, vm: &VmSnapshot, step: &Step) -> bool {
        let (min, backed) = (vm.settings.effective_min(), vm.backed());
        match vm.evidence.balloon_health() {
            _ if vm.stage == Stage::Waiting => false,
            // It may hold more than that, as what it does not use lies in its pool.
            _ if step.pooled > PageCount::ZERO => true,
            _ if self.is_overexposed && is_unbridled(vm) => true,
            // Without it, it may touch all that it has not given up at any moment.
            _ if vm.kept_within().is_some() && step.grant < vm.held() => true,
            _ if vm.evidence.has_swap && is_beyond_max(vm) => true,
            // Others may have what it keeps from touching at once, and need not wait until its balloon has taken that.
            _ if vm.evidence.has_swap && self.somebody_waits && step.grant < vm.held() => true,
            _ if vm.evidence.has_swap => {
                let is_above = backed > step.target && backed > min;
                let is_wanted = self.goes_out && step.by_other_means > PageCount::ZERO;
                is_above && (is_wanted || self.is_shortest)
            }
            BalloonHealth::Following => false,
            _ => self.is_shortest && backed > step.target && backed > min,
        }
    }
}

/// What a guest can touch, whatever is believed of it.
fn reach(vm: &VmSnapshot) -> PageCount {
    match is_unbridled(vm) {
        true => vm.settings.effective_size(),
        false => vm.exposure(),
    }
}

/// Whether nothing but its own will keeps a guest to its grant.
fn is_unbridled(vm: &VmSnapshot) -> bool {
    let is_stuck = vm.evidence.balloon_health() == BalloonHealth::Stuck;
    let is_above = vm.held() > vm.granted && is_stuck;
    vm.stage == Stage::Running && (vm.evidence.has_no_driver || is_above)
}

/// Whether it may touch more than it may ever hold, and no balloon keeps it from that.
fn is_beyond_max(vm: &VmSnapshot) -> bool {
    let (size, max) = (vm.settings.effective_size(), vm.settings.effective_max());
    max < size && is_unbridled(vm)
}

/// What it has touched already, up to a limit that it got before, is not taken from it by stopping it. Where its pages can go
/// out of memory, that is taken.
fn slow_above(vm: &VmSnapshot, step: &Step) -> PageCount {
    let touched = vm.backed();
    let before = vm.evidence.touch_limit.unwrap_or(touched);
    let entitled = step.target.min(step.grant);
    let entitled = entitled.max(vm.settings.effective_min());
    match vm.evidence.has_swap {
        true => entitled,
        false => entitled.max(before.min(touched)),
    }
}

/// What a VM at its limit may be given of. One without a driver gives nothing up however long it runs, so
/// it does not make memory short for all others.
fn spare(snapshot: &Snapshot, vm: &VmSnapshot) -> PageCount {
    let unused = snapshot.unused.unwrap_or(PageCount::ZERO);
    match vm.evidence.has_no_driver {
        true => unused.saturating_sub(PageCount(snapshot.keep_free.0 / KEPT_DIVISOR)),
        false => unused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BalloonWatch, MemoryState, generate, plan};
    use proptest::prelude::*;

    fn mebibytes(count: u64) -> PageCount {
        PageCount::from_mebibytes(count)
    }

    /// A VM of 100 MiB that is to hold 40, was told so, and has touched so many.
    fn running(id: u32, backed: u64) -> VmSnapshot {
        let mut vm = generate::vm_of_size(id, mebibytes(100).0);
        vm.stage = Stage::Running;
        vm.ballooned = mebibytes(60);
        vm.granted = mebibytes(40);
        vm.pinned = Some(mebibytes(40));
        vm.evidence.backed = Some(mebibytes(backed));
        vm
    }

    /// As [`running`], of a guest that gives nothing up.
    fn driverless(id: u32, backed: u64) -> VmSnapshot {
        let mut vm = running(id, backed);
        vm.ballooned = PageCount::ZERO;
        let mut watch = BalloonWatch::default();
        for _ in 0..9 {
            watch = watch.observe(mebibytes(40), mebibytes(100));
        }
        vm.evidence.balloon = Some(watch);
        vm
    }

    fn limits(state: MemoryState, vms: &[VmSnapshot]) -> Vec<Option<(u64, u64)>> {
        let snapshot = Snapshot {
            budget: mebibytes(120),
            unused: Some(mebibytes(8)),
            vms: vms.to_vec(),
            state,
            ..Snapshot::default()
        };
        let in_mebibytes = |limit: TouchLimit| (limit.slow_above.0 / 256, limit.stop_above.0 / 256);
        let steps = plan(&snapshot).steps;
        steps
            .iter()
            .map(|step| step.touch_limit.map(in_mebibytes))
            .collect()
    }

    /// With a driver that follows, and less touched than it was given.
    #[test]
    fn one_whose_pages_can_go_out_is_limited_at_once_while_another_waits_to_start() {
        let mut behind = running(0, 30);
        behind.ballooned = mebibytes(10);
        behind.evidence.has_swap = true;
        let waiting = generate::vm_of_size(1, mebibytes(60).0);
        let limited = |vms: &[VmSnapshot]| limits(MemoryState::High, vms)[0].is_some();
        assert!(!limited(&[behind.clone()]), "its balloon takes it in time");
        assert!(limited(&[behind.clone(), waiting.clone()]));
        behind.evidence.has_swap = false;
        assert!(!limited(&[behind, waiting]), "it would be stopped");
    }

    #[test]
    fn max_is_kept_without_a_driver_where_pages_can_go_out() {
        let mut vm = driverless(0, 30);
        vm.settings.max = mebibytes(50);
        vm.evidence.has_no_driver = true;
        let limited = |vm: &VmSnapshot| {
            let snapshot = Snapshot {
                budget: mebibytes(500),
                vms: vec![vm.clone()],
                ..Snapshot::default()
            };
            let limit = plan(&snapshot).steps[0].touch_limit;
            limit.map(|limit| limit.slow_above)
        };
        assert_eq!(limited(&vm), None, "to be stopped for good helps nobody");
        vm.evidence.has_swap = true;
        vm.pinned = None;
        assert_eq!(limited(&vm), Some(mebibytes(50)));
        vm.settings.max = mebibytes(100);
        assert_eq!(limited(&vm), None);
    }

    #[test]
    fn nobody_is_limited_while_all_that_may_be_touched_is_there() {
        let high = MemoryState::High;
        assert_eq!(limits(high, &[driverless(0, 90)]), [None]);
        assert_eq!(limits(high, &[running(0, 40), running(1, 40)]), [None; 2]);
    }

    #[test]
    fn one_who_may_touch_more_than_there_is_gets_what_it_was_told() {
        let high = MemoryState::High;
        assert_eq!(
            limits(high, &[driverless(0, 20), running(1, 40)]),
            [Some((40, 44)), None]
        );
    }

    #[test]
    fn what_a_vm_has_touched_before_it_was_limited_it_may_keep() {
        let high = MemoryState::High;
        let mut vm = driverless(0, 70);
        assert_eq!(
            limits(high, &[vm.clone(), running(1, 40)])[0],
            Some((70, 74))
        );
        vm.evidence.touch_limit = Some(mebibytes(70));
        vm.evidence.backed = Some(mebibytes(73));
        assert_eq!(
            limits(high, &[vm.clone(), running(1, 40)])[0],
            Some((70, 77)),
            "slack do not raise the limit"
        );
        vm.evidence.backed = Some(mebibytes(50));
        assert_eq!(limits(high, &[vm, running(1, 40)])[0], Some((50, 54)));
    }

    #[test]
    fn a_guest_that_boots_is_held_to_what_it_was_granted() {
        let mut vm = running(0, 5);
        vm.evidence.has_no_driver = true;
        assert_eq!(
            limits(MemoryState::High, &[vm, running(1, 40)]),
            [Some((40, 44)), None]
        );
    }

    #[test]
    fn one_who_cannot_give_back_does_not_make_memory_short_for_all() {
        let mut vm = driverless(0, 50);
        vm.evidence.has_no_driver = true;
        let snapshot = Snapshot {
            budget: mebibytes(120),
            unused: Some(mebibytes(8)),
            keep_free: mebibytes(12),
            vms: vec![vm, running(1, 40)],
            ..Snapshot::default()
        };
        let limit = plan(&snapshot).steps[0].touch_limit.unwrap();
        assert_eq!(limit.stop_above, mebibytes(51));
    }

    #[test]
    fn in_the_shortest_state_whoever_is_above_its_target_touches_nothing_new() {
        let low = MemoryState::Low;
        let above = |backed| {
            let mut vm = running(0, backed);
            vm.ballooned = mebibytes(20);
            vm.granted = mebibytes(80);
            vm
        };
        assert_eq!(limits(low, &[above(70)]), [Some((70, 74))]);
        assert_eq!(limits(low, &[above(40)]), [None], "at its target");
        let mut on_its_way = above(70);
        let watch = BalloonWatch::default().observe(mebibytes(40), mebibytes(80));
        on_its_way.evidence.balloon = Some(watch);
        assert_eq!(limits(low, &[on_its_way]), [None]);
    }

    proptest! {
        #[test]
        fn no_limit_is_below_a_min_or_what_was_granted_for_good(snapshot in generate::informed_snapshot()) {
            for (vm, step) in snapshot.vms.iter().zip(plan(&snapshot).steps) {
                if let Some(TouchLimit { slow_above, stop_above }) = step.touch_limit {
                    prop_assert!(vm.stage == Stage::Running);
                    prop_assert!(slow_above >= vm.settings.effective_min());
                    prop_assert!(slow_above >= step.grant.min(step.target));
                    prop_assert!(stop_above >= slow_above);
                }
            }
        }

        /// All slack together are half of what is unused.
        #[test]
        fn limits_never_let_more_be_touched_than_there_is(
            mut snapshot in generate::informed_snapshot(), unused in 0u64..10_000
        ) {
            snapshot.unused = Some(PageCount(unused));
            let mut beyond = PageCount::ZERO;
            for (vm, step) in snapshot.vms.iter().zip(plan(&snapshot).steps) {
                if let Some(limit) = step.touch_limit {
                    beyond += limit.stop_above - limit.slow_above.max(vm.backed());
                }
            }
            prop_assert!(beyond.0 <= unused / 2);
        }

        #[test]
        fn senseless_numbers_do_not_panic(snapshot in generate::senseless_snapshot()) {
            prop_assert_eq!(plan(&snapshot).steps.len(), snapshot.vms.len());
        }
    }
}
