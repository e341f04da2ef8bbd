//! Refuses promises that could not be kept: Σ(min + overhead) ≤ budget, and where there is swap,
//! Σ(size − min) ≤ swap (ESX.md, Admission).
//!
//! Without swap nothing is promised beyond mins: a VM's balloon must be able to bring the rest, which is
//! what the default min is for.
//!
//! What passes here is why a VM is never starved below its min later. A request that promises less than
//! before always passes, even where an earlier promise is already too much: it helps.

use crate::{Snapshot, VmSettings, VmSnapshot};
use page::{PageCount, VmId, total};
use thiserror::Error;

/// What a VM process needs besides guest memory, before it can be measured: anonymous memory of a VM
/// process as measured, plus a margin. The host raises a VM's overhead to what it measures.
pub const OVERHEAD: PageCount = PageCount::from_mebibytes(6);

/// Why a promise was refused. Each message ends in what can be done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it, with the fields by name")]
pub enum Refusal {
    #[error(
        "the budget is {budget}, of which {promised} are promised to VMs; this one needs min {min} + overhead {overhead}, \
         {missing} more than is left: give it a smaller --min or --memory, start `ballonet host` with a larger --memory, or stop a VM"
    )]
    Vm {
        budget: PageCount,
        promised: PageCount,
        min: PageCount,
        overhead: PageCount,
        missing: PageCount,
    },
    #[error(
        "the budget is {budget}, of which {promised} are promised to other VMs; VM {id} would need min {min} + overhead \
         {overhead}, {missing} more than is left: ask for a smaller min, start `ballonet host` with a larger --memory, or stop a VM"
    )]
    Change {
        id: VmId,
        budget: PageCount,
        promised: PageCount,
        min: PageCount,
        overhead: PageCount,
        missing: PageCount,
    },
    #[error(
        "a budget of {budget} is {missing} less than the {promised} promised to VMs: \
         give the host a larger --memory, lower a VM's min, or stop a VM"
    )]
    Budget {
        budget: PageCount,
        promised: PageCount,
        missing: PageCount,
    },
    #[error(
        "the swap holds {swap}, of which {promised} are promised to other VMs; this one can be asked for \
         {swappable}, its size less its min, {missing} more than is left: give it a larger --min or a \
         smaller --memory, give the host more swap, or stop a VM"
    )]
    Swap {
        swap: PageCount,
        promised: PageCount,
        swappable: PageCount,
        missing: PageCount,
    },
    #[error("there is no VM {id} to change: see `ballonet ps`")]
    NoSuchVm { id: VmId },
}

/// Whether a new VM can be promised its min beside all that is promised already.
///
/// The settings should have passed [`VmSettings::check`].
pub fn admit(
    snapshot: &Snapshot,
    settings: &VmSettings,
    overhead: PageCount,
) -> Result<(), Refusal> {
    let (budget, promised) = (snapshot.budget, snapshot.promised());
    let min = settings.effective_min();
    let missing = total([promised, min, overhead]).saturating_sub(budget);
    if missing == PageCount::ZERO {
        return admit_to_swap(snapshot.swap, &snapshot.vms, settings);
    }
    Err(Refusal::Vm {
        budget,
        promised,
        min,
        overhead,
        missing,
    })
}

/// Whether an admitted VM can be promised what its new settings say.
///
/// The settings should have passed [`VmSettings::check`].
pub fn admit_change(snapshot: &Snapshot, id: VmId, settings: &VmSettings) -> Result<(), Refusal> {
    let (changed, others): (Vec<_>, Vec<_>) = snapshot.vms.iter().partition(|vm| vm.id == id);
    let vm = changed.first().ok_or(Refusal::NoSuchVm { id })?;
    let promised = total(others.iter().copied().map(VmSnapshot::promised));
    let (budget, min, overhead) = (snapshot.budget, settings.effective_min(), vm.overhead);
    let missing = total([promised, min, overhead]).saturating_sub(budget);
    if settings.swappable() > vm.settings.swappable() {
        admit_to_swap(snapshot.swap, others, settings)?;
    }
    if missing == PageCount::ZERO || min <= vm.settings.effective_min() {
        return Ok(());
    }
    Err(Refusal::Change {
        id,
        budget,
        promised,
        min,
        overhead,
        missing,
    })
}

/// Whether all that is promised can be kept with another budget.
pub fn admit_budget(snapshot: &Snapshot, budget: PageCount) -> Result<(), Refusal> {
    let promised = snapshot.promised();
    let missing = promised.saturating_sub(budget);
    if missing == PageCount::ZERO || budget >= snapshot.budget {
        return Ok(());
    }
    Err(Refusal::Budget {
        budget,
        promised,
        missing,
    })
}

/// Whether the swap, if there is any, can hold what memory need not, beside that of these others.
fn admit_to_swap<'a>(
    swap: PageCount,
    others: impl IntoIterator<Item = &'a VmSnapshot>,
    settings: &VmSettings,
) -> Result<(), Refusal> {
    let promised = total(others.into_iter().map(|vm| vm.settings.swappable()));
    let swappable = settings.swappable();
    let missing = total([promised, swappable]).saturating_sub(swap);
    if swap == PageCount::ZERO || missing == PageCount::ZERO {
        return Ok(());
    }
    Err(Refusal::Swap {
        swap,
        promised,
        swappable,
        missing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;
    use proptest::prelude::*;

    /// A VM that is promised `min` MiB, and its overhead.
    fn vm(id: u32, min: u64) -> VmSnapshot {
        let mut vm = generate::vm_of_size(id, PageCount::from_mebibytes(512).0);
        vm.overhead = OVERHEAD;
        vm.settings.min = PageCount::from_mebibytes(min);
        vm
    }

    fn host(budget: u64, vms: Vec<VmSnapshot>) -> Snapshot {
        Snapshot {
            budget: PageCount::from_mebibytes(budget),
            vms,
            ..Snapshot::default()
        }
    }

    #[test]
    fn promises_up_to_the_budget_are_made_and_one_page_more_is_not() {
        let snapshot = host(212, vec![vm(0, 100)]);
        let mut settings = vm(1, 100).settings;
        assert_eq!(admit(&snapshot, &settings, OVERHEAD), Ok(()));
        settings.min += PageCount(1);
        let refusal = admit(&snapshot, &settings, OVERHEAD).unwrap_err();
        assert!(
            matches!(
                refusal,
                Refusal::Vm {
                    missing: PageCount(1),
                    ..
                }
            ),
            "{refusal}"
        );
    }

    #[test]
    fn a_refusal_says_all_figures_and_what_to_do() {
        let refusal = admit(&host(200, vec![vm(0, 100)]), &vm(1, 180).settings, OVERHEAD);
        let message = refusal.unwrap_err().to_string();
        for part in [
            "budget is 200 MiB",
            "106 MiB are promised",
            "min 180 MiB + overhead 6 MiB",
            "92 MiB more",
            "--min or --memory",
            "`ballonet host` with a larger --memory",
            "stop a VM",
        ] {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }

    #[test]
    fn a_change_counts_the_vm_once() {
        let snapshot = host(212, vec![vm(0, 100), vm(1, 50)]);
        assert_eq!(
            admit_change(&snapshot, VmId(1), &vm(1, 100).settings),
            Ok(())
        );
        assert!(matches!(
            admit_change(&snapshot, VmId(1), &vm(1, 101).settings),
            Err(Refusal::Change {
                missing: PageCount(256),
                ..
            })
        ));
        assert_eq!(
            admit_change(&snapshot, VmId(7), &vm(7, 0).settings),
            Err(Refusal::NoSuchVm { id: VmId(7) })
        );
    }

    #[test]
    fn a_budget_below_what_is_promised_is_refused() {
        let snapshot = host(300, vec![vm(0, 100), vm(1, 100)]);
        assert_eq!(
            admit_budget(&snapshot, PageCount::from_mebibytes(212)),
            Ok(())
        );
        let refusal = admit_budget(&snapshot, PageCount::from_mebibytes(200)).unwrap_err();
        assert!(
            refusal
                .to_string()
                .contains("12 MiB less than the 212 MiB promised"),
            "{refusal}"
        );
    }

    #[test]
    fn what_memory_need_not_hold_must_fit_the_swap_if_there_is_one() {
        let mut snapshot = host(1000, vec![vm(0, 100)]);
        let newcomer = vm(1, 200).settings;
        assert_eq!(admit(&snapshot, &newcomer, OVERHEAD), Ok(()));
        snapshot.swap = PageCount::from_mebibytes(412 + 312);
        assert_eq!(admit(&snapshot, &newcomer, OVERHEAD), Ok(()));
        snapshot.swap = PageCount::from_mebibytes(412 + 311);
        let message = admit(&snapshot, &newcomer, OVERHEAD)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("412 MiB are promised to other VMs"),
            "{message}"
        );
        assert!(message.contains("asked for 312 MiB"), "{message}");
        assert!(message.contains("1 MiB more than is left"), "{message}");
    }

    #[test]
    fn a_lower_min_needs_swap_and_a_higher_one_gives_it_back() {
        let mut snapshot = host(1000, vec![vm(0, 100), vm(1, 100)]);
        snapshot.swap = PageCount::from_mebibytes(800);
        let change = |min| admit_change(&snapshot, VmId(0), &vm(0, min).settings);
        assert_eq!(
            change(101),
            Ok(()),
            "too much is promised already, but this helps"
        );
        assert!(matches!(change(99), Err(Refusal::Swap { .. })));
    }

    #[test]
    fn promising_less_passes_even_where_too_much_is_promised() {
        let snapshot = host(100, vec![vm(0, 100), vm(1, 100)]);
        assert_eq!(
            admit_change(&snapshot, VmId(0), &vm(0, 99).settings),
            Ok(())
        );
        assert_eq!(
            admit_budget(&snapshot, PageCount::from_mebibytes(110)),
            Ok(())
        );
    }

    proptest! {
        /// What was admitted leaves no shortfall, and what was refused would.
        #[test]
        fn admission_is_what_keeps_plans_without_shortfall(
            snapshot in generate::snapshot(), newcomer in generate::vm(9)
        ) {
            let admitted = admit(&snapshot, &newcomer.settings, newcomer.overhead).is_ok();
            let mut with_newcomer = snapshot;
            with_newcomer.vms.push(newcomer);
            let kept = crate::plan(&with_newcomer).shortfall == PageCount::ZERO;
            prop_assert_eq!(admitted, kept);
        }

        #[test]
        fn senseless_numbers_do_not_panic(snapshot in generate::senseless_snapshot(), budget: u64) {
            for vm in &snapshot.vms {
                prop_assert!(admit_change(&snapshot, vm.id, &vm.settings).is_ok() || snapshot.vms.len() > 1);
                let nothing_fits = admit(&snapshot, &vm.settings, PageCount(u64::MAX)).is_err();
                prop_assert!(nothing_fits || snapshot.budget.0 == u64::MAX);
            }
            let is_kept = budget >= snapshot.promised().0.min(snapshot.budget.0);
            prop_assert_eq!(admit_budget(&snapshot, PageCount(budget)).is_ok(), is_kept);
        }

        #[test]
        fn a_senseless_swap_does_not_panic(mut snapshot in generate::senseless_snapshot(), swap: u64) {
            snapshot.swap = PageCount(swap);
            for vm in &snapshot.vms {
                if let Err(refusal) = admit(&snapshot, &vm.settings, vm.overhead) {
                    prop_assert!(refusal.to_string().contains(": give "));
                }
            }
        }
    }
}
