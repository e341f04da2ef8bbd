//! Refuses promises that could not be kept: Σ(min + overhead) ≤ budget, and where there is swap,
//! Σ(size − min) ≤ swap (ESX.md, Admission).
//!
//! Without swap nothing is promised beyond mins: a VM's balloon must be able to bring the rest, which is
//! what the default min is for.
//!
//! What passes here is why a VM is never starved below its min later. A request that promises less than
//! before always passes, even where an earlier promise is already too much: it helps.
//!
//! A balloon takes at most a part of a VM, so that without swap a running VM may keep more than its min.
//! Memory that nobody can take is nobody's to promise: a min is not raised, nor a budget lowered, beyond
//! what VMs can be brought down to. A new VM is admitted by mins, for it starts with no more; but one that nothing but its
//! balloon brings down counts by what that leaves it, and whole if it does not follow: nobody else could stop it.

use crate::{BalloonHealth, Snapshot, Stage, VmSettings, VmSnapshot, balloon};
use page::{PageCount, VmId, total};
use std::cmp::Reverse;
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
        "the budget is {budget}, of which {promised} are promised to other VMs; it would need min {min} + overhead \
         {overhead}, {missing} more than is left: ask for a smaller min, start `ballonet host` with a larger --memory, or stop a VM"
    )]
    Change {
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
        "a budget of {budget} is {missing} less than the {kept} that VMs could be brought down to, their \
         processes included, because a balloon takes at most {limit_percent} % of a VM: stop a VM that \
         keeps more than its min, or give the host a larger --memory"
    )]
    Kept {
        budget: PageCount,
        kept: PageCount,
        missing: PageCount,
        limit_percent: u64,
        keepers: Vec<Keeper>,
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

/// A VM whose balloon cannot bring it down to its min.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeper {
    /// Which VM.
    pub id: VmId,
    /// What it keeps.
    pub least: PageCount,
    /// Its min.
    pub min: PageCount,
}

/// Whether a new VM can be promised its min beside all that is promised already.
///
/// The settings should have passed [`VmSettings::check`].
pub fn admit(
    snapshot: &Snapshot,
    settings: &VmSettings,
    overhead: PageCount,
) -> Result<(), Refusal> {
    let (budget, promised) = (snapshot.budget, unavailable(snapshot));
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

/// What cannot be promised to one more: what is guaranteed to others, and what those keep that nothing but their balloons brings
/// down.
fn unavailable(snapshot: &Snapshot) -> PageCount {
    let of = |vm: &VmSnapshot| match vm.evidence.capabilities.touch_limit {
        true => vm.promised(),
        false => total([kept_by_balloon(snapshot, vm), vm.overhead]),
    };
    total(snapshot.vms.iter().map(of))
}

fn kept_by_balloon(snapshot: &Snapshot, vm: &VmSnapshot) -> PageCount {
    let watch = vm.evidence.balloon;
    match watch.is_some_and(|watch| watch.health() == BalloonHealth::Stuck) {
        true => vm.exposure().max(vm.settings.effective_min()),
        false => least(snapshot, vm),
    }
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
    let may_swap_more = settings.swappable() > vm.settings.swappable();
    if may_swap_more && vm.evidence.capabilities.touch_limit {
        admit_to_swap(snapshot.swap, others, settings)?;
    }
    if min <= vm.settings.effective_min() {
        return Ok(());
    }
    if missing == PageCount::ZERO {
        return admit_raised_min(snapshot, vm, settings);
    }
    Err(Refusal::Change {
        budget,
        promised,
        min,
        overhead,
        missing,
    })
}

/// Whether the others can be brought down far enough for a larger min. One below what the VM keeps
/// anyway promises nothing new.
fn admit_raised_min(
    snapshot: &Snapshot,
    vm: &VmSnapshot,
    settings: &VmSettings,
) -> Result<(), Refusal> {
    let raised = VmSnapshot {
        settings: settings.clone(),
        ..vm.clone()
    };
    if least(snapshot, &raised) <= least(snapshot, vm) {
        return Ok(());
    }
    let others = snapshot.vms.iter().filter(|other| other.id != vm.id);
    let vms: Vec<&VmSnapshot> = others.chain([&raised]).collect();
    admit_kept(snapshot, snapshot.budget, &vms)
}

/// Whether all that is promised can be kept with another budget.
pub fn admit_budget(snapshot: &Snapshot, budget: PageCount) -> Result<(), Refusal> {
    let promised = snapshot.promised();
    let missing = promised.saturating_sub(budget);
    if budget >= snapshot.budget {
        return Ok(());
    }
    if missing == PageCount::ZERO {
        let vms: Vec<&VmSnapshot> = snapshot.vms.iter().collect();
        return admit_kept(snapshot, budget, &vms);
    }
    Err(Refusal::Budget {
        budget,
        promised,
        missing,
    })
}

/// Whether a budget is enough for what these VMs keep when their balloons have taken all they may.
fn admit_kept(snapshot: &Snapshot, budget: PageCount, vms: &[&VmSnapshot]) -> Result<(), Refusal> {
    let kept = |&vm: &&VmSnapshot| total([least(snapshot, vm), vm.overhead]);
    let kept = total(vms.iter().map(kept));
    let missing = kept.saturating_sub(budget);
    if missing == PageCount::ZERO {
        return Ok(());
    }
    Err(Refusal::Kept {
        budget,
        kept,
        missing,
        limit_percent: snapshot
            .balloon
            .map_or(0, |round| round.settings.limit_percent),
        keepers: keepers(snapshot, vms),
    })
}

/// Who keeps more than its min, the most first.
fn keepers(snapshot: &Snapshot, vms: &[&VmSnapshot]) -> Vec<Keeper> {
    let keeper = |&vm: &&VmSnapshot| Keeper {
        id: vm.id,
        least: least(snapshot, vm),
        min: vm.settings.effective_min(),
    };
    let mut keepers: Vec<Keeper> = vms.iter().map(keeper).collect();
    keepers.retain(|keeper| keeper.least > keeper.min);
    keepers.sort_by_key(|keeper| (Reverse(keeper.least.saturating_sub(keeper.min)), keeper.id));
    keepers
}

/// What a VM can be brought down to: its min, or what its balloon leaves of what it holds or may come to
/// hold. A VM that waits starts with what there is, and swap takes what a balloon does not.
fn least(snapshot: &Snapshot, vm: &VmSnapshot) -> PageCount {
    let min = vm.settings.effective_min();
    let has_swap = snapshot.swap > PageCount::ZERO && vm.evidence.capabilities.touch_limit;
    match &snapshot.balloon {
        Some(round) if vm.stage == Stage::Running && !has_swap => {
            let most = vm.exposure().max(vm.settings.effective_max());
            min.max(balloon::least_left(vm, &round.settings).min(most))
        }
        _ => min,
    }
}

/// Whether the swap, if there is any, can hold what memory need not, beside that of these others.
fn admit_to_swap<'a>(
    swap: PageCount,
    others: impl IntoIterator<Item = &'a VmSnapshot>,
    settings: &VmSettings,
) -> Result<(), Refusal> {
    let swapping = others
        .into_iter()
        .filter(|vm| vm.evidence.capabilities.touch_limit);
    let promised = total(swapping.map(|vm| vm.settings.swappable()));
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
    use crate::{BalloonRound, BalloonWatch, Capabilities, generate};
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

    /// Of 512 MiB a balloon leaves 35 %, and all of it where it does not follow.
    #[test]
    fn who_is_brought_down_by_its_balloon_alone_counts_by_what_that_leaves_it() {
        let mut other = vm(0, 32);
        other.stage = Stage::Running;
        other.evidence.capabilities = Capabilities::BALLOON_ALONE;
        (other.granted, other.ballooned) = (PageCount::from_mebibytes(512), PageCount::ZERO);
        let mut snapshot = host(512, vec![other]);
        snapshot.balloon = Some(BalloonRound::default());
        let most = |snapshot: &Snapshot| {
            let fits = |&min: &u64| admit(snapshot, &vm(1, min).settings, OVERHEAD).is_ok();
            (1..512).take_while(fits).last().unwrap_or(0)
        };
        assert_eq!(most(&snapshot), 512 - 180 - 12);
        let asked = PageCount::from_mebibytes(100);
        let held = PageCount::from_mebibytes(512);
        let stuck = (0..1000).fold(BalloonWatch::default(), |watch, _| {
            watch.observe(asked, held)
        });
        snapshot.vms[0].evidence.balloon = Some(stuck);
        assert_eq!(most(&snapshot), 0);
        snapshot.vms[0].evidence.capabilities = Capabilities::ALL;
        assert_eq!(most(&snapshot), 512 - 32 - 12);
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

    /// Two VMs of 280 MiB, whose balloons leave them 98 MiB, in so much.
    fn ballooned(budget: u64, mins: [u64; 2]) -> Snapshot {
        let mut snapshot = host(budget, vec![vm(1, mins[0]), vm(2, mins[1])]);
        snapshot.balloon = Some(BalloonRound::default());
        for vm in &mut snapshot.vms {
            vm.stage = Stage::Running;
            vm.settings.size = PageCount::from_mebibytes(280);
            vm.settings.max = vm.settings.size;
            vm.ballooned = PageCount::ZERO;
        }
        snapshot
    }

    #[test]
    fn a_budget_below_what_balloons_leave_is_refused_with_who_keeps_it() {
        let snapshot = ballooned(300, [16, 180]);
        let budget = |mebibytes| admit_budget(&snapshot, PageCount::from_mebibytes(mebibytes));
        assert_eq!(budget(290), Ok(()));
        let refusal = budget(220).unwrap_err();
        for part in [
            "220 MiB is 70 MiB less than the 290 MiB",
            "65 %",
            "stop a VM",
        ] {
            assert!(refusal.to_string().contains(part), "{part:?}: {refusal}");
        }
        let Refusal::Kept { keepers, .. } = refusal else {
            panic!("{refusal}");
        };
        let p = Keeper {
            id: VmId(1),
            least: PageCount::from_mebibytes(98),
            min: PageCount::from_mebibytes(16),
        };
        assert_eq!(keepers, [p]);
    }

    #[test]
    fn a_min_is_not_raised_to_what_others_balloons_cannot_bring() {
        let snapshot = ballooned(220, [16, 16]);
        let change = |min| {
            let mut settings = snapshot.vms[1].settings.clone();
            settings.min = PageCount::from_mebibytes(min);
            admit_change(&snapshot, VmId(2), &settings)
        };
        assert_eq!(change(110), Ok(()));
        assert!(matches!(change(111), Err(Refusal::Kept { .. })));
    }

    #[test]
    fn a_min_that_balloons_leave_anyway_is_promised_though_too_much_is_kept() {
        let snapshot = ballooned(150, [16, 16]);
        let mut settings = snapshot.vms[1].settings.clone();
        settings.min = PageCount::from_mebibytes(98);
        assert_eq!(admit_change(&snapshot, VmId(2), &settings), Ok(()));
        assert_eq!(admit(&snapshot, &vm(3, 100).settings, OVERHEAD), Ok(()));
    }

    #[test]
    fn a_vm_that_started_with_its_max_keeps_no_more_than_that() {
        let mut snapshot = ballooned(300, [16, 16]);
        for vm in &mut snapshot.vms {
            vm.settings.max = PageCount::from_mebibytes(50);
            vm.ballooned = PageCount::from_mebibytes(230);
            vm.granted = PageCount::from_mebibytes(50);
        }
        let budget = |mebibytes| admit_budget(&snapshot, PageCount::from_mebibytes(mebibytes));
        assert_eq!(budget(112), Ok(()));
        assert!(budget(111).is_err());
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
            let _refused_or_not = admit_budget(&snapshot, PageCount(budget));
            for vm in &snapshot.vms {
                prop_assert!(admit_change(&snapshot, vm.id, &vm.settings).is_ok() || snapshot.vms.len() > 1);
                let nothing_fits = admit(&snapshot, &vm.settings, PageCount(u64::MAX)).is_err();
                prop_assert!(nothing_fits || snapshot.budget.0 == u64::MAX);
            }
            // What balloons leave has its own test.
            let snapshot = Snapshot { balloon: None, ..snapshot };
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
