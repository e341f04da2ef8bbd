//! What each VM deserves: the one function that a better policy replaces.
//!
//! Pins are an administrator's word and come first, but not before other VMs' mins, which were
//! promised. The rest is divided by shares.

use crate::divide::{Claim, divide};
use crate::{Snapshot, VmSnapshot};
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
    let claims: Vec<Claim> = snapshot.vms.iter().map(claim).collect();
    let after_pins = settle_pins(snapshot, &claims);
    let parts = divide(snapshot.memory(), &after_pins);
    let ids = snapshot.vms.iter().map(|vm| vm.id);
    ids.zip(parts)
        .map(|(id, pages)| Target { id, pages })
        .collect()
}

/// A pinned VM never gets more than its pin, nor less than its min.
fn claim(vm: &VmSnapshot) -> Claim {
    let min = vm.settings.effective_min();
    let max = vm.settings.effective_max();
    let size = vm.settings.effective_size();
    Claim {
        id: vm.id,
        weight: vm.settings.shares.resolve(size).0,
        min,
        max: vm.pinned.map_or(max, |pin| pin.clamp(min, max)),
        taxed: crate::tax::Taxed::NOTHING,
    }
}

/// Divides with the others held at their mins, and returns all claims with what that gave the pinned
/// ones as both their min and max.
fn settle_pins(snapshot: &Snapshot, claims: &[Claim]) -> Vec<Claim> {
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
    use crate::snapshot::total;
    use crate::{SharesSpec, VmSettings, generate};
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

    proptest! {
        #[test]
        fn targets_add_up_to_what_there_is_within_the_bounds_of_all(snapshot in generate::snapshot()) {
            let most = |vm: &VmSnapshot| claim(vm).max;
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
            let least = |vm: &VmSnapshot| if vm.pinned.is_some() { claim(vm).max } else { claim(vm).min };
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
