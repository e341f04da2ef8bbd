//! What each VM deserves: the one function that a better policy replaces.
//!
//! Pins are an administrator's word and come first, but not before other VMs' mins, which were
//! promised. The rest is divided by shares, with the idle tax on what a VM holds and does not use.
//!
//! A VM that touches nearly all it holds cannot show how much more it would touch if it had it. Taxed for
//! everything beyond, it would reach its working set only over many samples. So the nearer its active set
//! comes to all that it holds, the more of the rest of its size counts as active. It has to touch its
//! memory to be believed, and must go on touching what it gets for it.

use crate::divide::{Claim, divide};
use crate::tax::Taxed;
use crate::{Snapshot, TaxRate, VmSnapshot};
use page::{PageCount, VmId};
use serde::{Deserialize, Serialize};

/// What the policy wants a VM to hold now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Which VM.
    pub id: VmId,
    /// How many pages of guest memory.
    pub pages: PageCount,
}

/// A target for each VM, in the snapshot's order: its pin, or its part of what the pins leave, within
/// its min and max. Waiting VMs count like running ones, so that room is made for them.
///
/// Where the pins do not fit beside the mins of all, the pinned VMs divide what there is by their
/// shares, up to their pins. Where not even the mins fit (after the budget was lowered), each VM gets
/// its min; [`Plan::shortfall`](crate::Plan::shortfall) says by how much.
#[must_use]
pub fn targets(snapshot: &Snapshot) -> Vec<Target> {
    let tax = snapshot.idle_tax;
    let claims: Vec<Claim> = snapshot.vms.iter().map(|vm| claim(vm, tax)).collect();
    let parts = divide(snapshot.memory(), &settle_pins(snapshot, claims));
    let ids = snapshot.vms.iter().map(|vm| vm.id);
    ids.zip(parts)
        .map(|(id, pages)| Target { id, pages })
        .collect()
}

/// What each VM would get if nothing were taxed.
pub(crate) fn by_shares_alone(snapshot: &Snapshot) -> Vec<Target> {
    let mut untaxed = snapshot.clone();
    for vm in &mut untaxed.vms {
        vm.evidence.active = None;
    }
    targets(&untaxed)
}

/// A pinned VM never gets more than its pin, nor less than its min.
fn claim(vm: &VmSnapshot, tax: TaxRate) -> Claim {
    let min = vm.settings.effective_min();
    let max = vm.settings.effective_max();
    let size = vm.settings.effective_size();
    Claim {
        id: vm.id,
        weight: vm.settings.shares.resolve(size).0,
        min,
        max: vm.pinned.map_or(max, |pin| pin.clamp(min, max)),
        taxed: taxed(vm, tax),
    }
}

/// Below this part of what it holds, in tenths, a VM's active set is all that it would touch. No guest uses every page: what its
/// kernel keeps free, and what an estimate from a few hundred pages may be wrong by, are no sign of idleness.
const UNFULFILLED_TENTHS: u64 = 8;
/// From this part on it would touch all the rest of its size.
const STARVED_TENTHS: u64 = 9;

/// What of its memory is taxed, and at which rate. Nothing of a VM whose active set is not known.
pub(crate) fn taxed(vm: &VmSnapshot, tax: TaxRate) -> Taxed {
    let Some(active) = vm.evidence.active else {
        return Taxed::NOTHING;
    };
    let size = vm.settings.effective_size();
    let known = active.pages.min(size);
    let unfulfilled = unfulfilled(known, active.held, size);
    Taxed {
        active: (known + unfulfilled).min(size),
        rate: vm.settings.idle_tax.unwrap_or(tax),
    }
}

/// What a VM might touch beyond what it holds: nothing as long as eight tenths of that are active, the rest of its size from nine
/// tenths on, and in proportion between.
fn unfulfilled(active: PageCount, held: PageCount, size: PageCount) -> PageCount {
    let (active, full) = (u128::from(active.0), u128::from(held.0));
    let whole = full * u128::from(STARVED_TENTHS - UNFULFILLED_TENTHS);
    let above = (active * 10).saturating_sub(full * u128::from(UNFULFILLED_TENTHS));
    if whole == 0 {
        return PageCount::ZERO;
    }
    let rest = u128::from(size.saturating_sub(held).0);
    let part = rest * above.min(whole) / whole;
    PageCount(u64::try_from(part).unwrap_or(0))
}

/// Divides with the others held at their mins, and returns all claims with what that gave the pinned
/// ones as both their min and max.
fn settle_pins(snapshot: &Snapshot, claims: Vec<Claim>) -> Vec<Claim> {
    if snapshot.vms.iter().all(|vm| vm.pinned.is_none()) {
        return claims;
    }
    let is_pinned = || snapshot.vms.iter().map(|vm| vm.pinned.is_some());
    let hold = |claim: Claim, pages| Claim {
        min: pages,
        max: pages,
        ..claim
    };
    let others_at_min: Vec<Claim> = claims
        .iter()
        .zip(is_pinned())
        .map(|(&claim, pinned)| {
            if pinned {
                claim
            } else {
                hold(claim, claim.min)
            }
        })
        .collect();
    let parts = divide(snapshot.memory(), &others_at_min);
    claims
        .iter()
        .zip(is_pinned())
        .zip(parts)
        .map(|((&claim, pinned), part)| if pinned { hold(claim, part) } else { claim })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SharesSpec, VmSettings, generate};
    use page::total;
    use proptest::prelude::*;

    fn snapshot(budget: u64, vms: Vec<VmSnapshot>) -> Snapshot {
        Snapshot {
            budget: PageCount(budget),
            vms,
            ..Snapshot::default()
        }
    }

    fn vm(id: u32, shares: SharesSpec) -> VmSnapshot {
        let vm = generate::vm_of_size(id, 1024);
        let settings = VmSettings {
            shares,
            ..vm.settings
        };
        VmSnapshot { settings, ..vm }
    }

    fn pinned(id: u32, pages: u64) -> VmSnapshot {
        VmSnapshot {
            pinned: Some(PageCount(pages)),
            ..vm(id, SharesSpec::Normal)
        }
    }

    fn bounds(vm: &VmSnapshot) -> (PageCount, PageCount) {
        let Claim { min, max, .. } = claim(vm, TaxRate::NONE);
        (min, max)
    }

    /// A VM of 1024 pages that holds and uses so many.
    fn using(id: u32, held: u64, active: u64) -> VmSnapshot {
        let mut vm = vm(id, SharesSpec::Normal);
        vm.stage = crate::Stage::Running;
        vm.ballooned = PageCount(1024 - held);
        vm.evidence.active = Some(crate::ActiveSet {
            pages: PageCount(active),
            held: PageCount(held),
            ..crate::ActiveSet::default()
        });
        vm
    }

    fn pages(snapshot: &Snapshot) -> Vec<u64> {
        targets(snapshot)
            .iter()
            .map(|target| target.pages.0)
            .collect()
    }

    #[test]
    fn memory_goes_by_shares() {
        let levels = [SharesSpec::Low, SharesSpec::Normal, SharesSpec::High];
        let vms = (0..).zip(levels).map(|(id, level)| vm(id, level));
        assert_eq!(pages(&snapshot(700, vms.collect())), [100, 200, 400]);
    }

    #[test]
    fn overhead_is_not_divided() {
        let with_overhead = VmSnapshot {
            overhead: PageCount(60),
            ..vm(0, SharesSpec::Normal)
        };
        let vms = vec![with_overhead, vm(1, SharesSpec::Normal)];
        assert_eq!(pages(&snapshot(260, vms)), [100, 100]);
    }

    #[test]
    fn a_pinned_vm_gets_its_pin_and_the_others_the_rest() {
        let vms = vec![
            pinned(0, 500),
            vm(1, SharesSpec::Normal),
            vm(2, SharesSpec::Normal),
        ];
        assert_eq!(pages(&snapshot(700, vms)), [500, 100, 100]);
    }

    #[test]
    fn pins_do_not_take_the_mins_of_others() {
        let mut other = vm(2, SharesSpec::Normal);
        other.settings.min = PageCount(300);
        let vms = vec![pinned(0, 1000), pinned(1, 100), other];
        assert_eq!(pages(&snapshot(700, vms)), [300, 100, 300]);
    }

    /// The paper's Figure 7, in pages: equal shares, one VM idle, one busy, memory for 0.7 of both.
    #[test]
    fn the_idle_tax_moves_memory_to_the_busy_vm() {
        let vms = vec![using(0, 720, 0), using(1, 720, 720)];
        let mut snapshot = snapshot(1440, vms);
        snapshot.idle_tax = TaxRate::NONE;
        assert_eq!(pages(&snapshot), [720, 720]);
        snapshot.idle_tax = TaxRate::default();
        assert_eq!(pages(&snapshot), [416, 1024]);
    }

    #[test]
    fn a_vm_may_have_a_tax_of_its_own() {
        let mut vms = vec![using(0, 720, 0), using(1, 720, 720)];
        vms[0].settings.idle_tax = Some(TaxRate::NONE);
        assert_eq!(pages(&snapshot(1440, vms)), [720, 720]);
    }

    #[test]
    fn a_vm_of_which_nothing_is_known_is_not_taxed() {
        let mut vms = vec![using(0, 720, 0), using(1, 720, 720)];
        vms[0].evidence.active = None;
        assert_eq!(pages(&snapshot(1440, vms)), [720, 720]);
    }

    /// Two busy VMs, one of which was starved: it gets its part at once, not a quarter of the way.
    #[test]
    fn a_starved_vm_that_touches_all_it_holds_is_not_taxed_for_growing() {
        assert_eq!(
            pages(&snapshot(
                1200,
                vec![using(0, 100, 100), using(1, 1000, 1000)]
            )),
            [600, 600]
        );
        let calm = pages(&snapshot(
            1200,
            vec![using(0, 100, 78), using(1, 1000, 1000)],
        ));
        assert!(calm[0] < 300, "{calm:?}");
    }

    proptest! {
        #[test]
        fn with_a_tax_targets_add_up_within_the_bounds_too(snapshot in generate::informed_snapshot()) {
            let mins = total(snapshot.vms.iter().map(|vm| vm.settings.min));
            let wanted = total(snapshot.vms.iter().map(|vm| bounds(vm).1));
            let given = targets(&snapshot);
            prop_assert_eq!(
                total(given.iter().map(|target| target.pages)),
                snapshot.memory().clamp(mins, wanted)
            );
            for (target, vm) in given.iter().zip(&snapshot.vms) {
                prop_assert!(bounds(vm).0 <= target.pages && target.pages <= bounds(vm).1);
            }
        }

        #[test]
        fn without_a_tax_no_evidence_of_use_changes_a_target(mut snapshot in generate::informed_snapshot()) {
            snapshot.idle_tax = TaxRate::NONE;
            for vm in &mut snapshot.vms {
                vm.settings.idle_tax = None;
            }
            let mut ignorant = snapshot.clone();
            for vm in &mut ignorant.vms {
                vm.evidence = crate::Evidence {
                    has_swap: vm.evidence.has_swap,
                    untouched: vm.evidence.untouched,
                    ..crate::Evidence::default()
                };
            }
            prop_assert_eq!(targets(&snapshot), targets(&ignorant));
        }

        #[test]
        fn more_activity_never_means_a_lower_target(
            snapshot in generate::informed_snapshot(), which: prop::sample::Index, more in 0u64..9000
        ) {
            prop_assume!(!snapshot.vms.is_empty());
            let which = which.index(snapshot.vms.len());
            let mut busier = snapshot.clone();
            if let Some(active) = &mut busier.vms[which].evidence.active {
                active.pages += PageCount(more);
            }
            prop_assert!(pages(&busier)[which] >= pages(&snapshot)[which]);
        }

        #[test]
        fn targets_add_up_to_what_there_is_within_the_bounds_of_all(snapshot in generate::snapshot()) {
            let most = |vm: &VmSnapshot| bounds(vm).1;
            let mins = total(snapshot.vms.iter().map(|vm| vm.settings.min));
            let wanted = total(snapshot.vms.iter().map(most));
            let given = targets(&snapshot);
            prop_assert_eq!(
                total(given.iter().map(|target| target.pages)),
                snapshot.memory().clamp(mins, wanted)
            );
            for (target, vm) in given.iter().zip(&snapshot.vms) {
                prop_assert_eq!(target.id, vm.id);
                prop_assert!(vm.settings.min <= target.pages && target.pages <= most(vm));
            }
        }

        #[test]
        fn a_pin_is_met_exactly_if_all_pins_fit_beside_the_mins(snapshot in generate::snapshot()) {
            let least = |vm: &VmSnapshot| if vm.pinned.is_some() { bounds(vm).1 } else { bounds(vm).0 };
            prop_assume!(total(snapshot.vms.iter().map(least)) <= snapshot.memory());
            for (target, vm) in targets(&snapshot).iter().zip(&snapshot.vms) {
                if let Some(pin) = vm.pinned {
                    prop_assert_eq!(target.pages, pin.clamp(vm.settings.min, vm.settings.max));
                }
            }
        }

        #[test]
        fn more_shares_never_mean_fewer_pages(snapshot in generate::snapshot(), which: prop::sample::Index) {
            prop_assume!(!snapshot.vms.is_empty());
            let which = which.index(snapshot.vms.len());
            let mut richer = snapshot.clone();
            richer.vms[which].settings.shares = SharesSpec::Count(std::num::NonZeroU32::MAX);
            prop_assert!(pages(&richer)[which] >= pages(&snapshot)[which]);
        }

        #[test]
        fn senseless_numbers_do_not_panic(snapshot in generate::senseless_snapshot()) {
            prop_assert_eq!(targets(&snapshot).len(), snapshot.vms.len());
        }
    }
}
