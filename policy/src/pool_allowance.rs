//! How much more than its memory a VM may hold, because its compressed pool makes up for it.
//!
//! A balloon takes what its guest misses least: what is free, then copies of files, however long a disk takes to read them
//! again. It cannot take what the guest's programs hold and do not use. That can be compressed, and comes back in some tens of
//! microseconds. So a VM of whose memory nothing is free, and which has a pool, **may hold more than its target, while its touch
//! limit stays there**: its guest keeps its files, and of all its pages those that it uses least go to the pool, which counts
//! within the limit.
//!
//! How much is a trade of processor time for memory: each page that goes and comes costs both sides some. It was found by
//! measuring (`experiment run density`), and is the same whatever a guest does: with what was found by how idle its pages seemed, or
//! how long it waited for them, balloons followed every move, which cost more than it brought.

use crate::{Stage, VmSnapshot};
use page::PageCount;

/// An eighth of its size: where pages become half as large, half of a pool of a quarter. The rest is for what balloons do not
/// bring in time, and for what is needed no more.
const SIZE_DIVISOR: u64 = 8;
/// But no more than a fifth of its target, of which a pool may take two fifths.
const TARGET_DIVISOR: u64 = 5;
/// What is saved of a page that becomes half as large, in percent. The allowance is for that; less where pages become less small, no
/// more where they become smaller.
pub const HALF_PERCENT: u64 = 50;
/// A guest is short of memory when no more than this part of its target is free. It stays so until its balloon could take the whole
/// allowance out of what is free.
const FREE_DIVISOR: u64 = 16;

/// What a VM with that target may hold besides. An administrator's word is kept to the page.
pub(crate) fn pool_allowance(vm: &VmSnapshot, target: PageCount) -> PageCount {
    let can_go_out = vm.evidence.has_swap && vm.evidence.capabilities.touch_limit;
    if vm.stage != Stage::Running || vm.pinned.is_some() || !can_go_out {
        return PageCount::ZERO;
    }
    let (size, max) = (vm.settings.effective_size(), vm.settings.effective_max());
    let most = (size.0 / SIZE_DIVISOR).min(target.0 / TARGET_DIVISOR);
    let saved = u64::from(vm.evidence.pool_saves_percent).min(HALF_PERCENT);
    let allowance = PageCount(most * saved / HALF_PERCENT).min(max.saturating_sub(target));
    let margin = PageCount(target.0 / FREE_DIVISOR);
    let enough = match vm.evidence.touch_limit {
        Some(_) => margin + allowance,
        None => margin,
    };
    let free = vm.evidence.guest.and_then(|guest| guest.free);
    match free {
        Some(free) if free <= enough => allowance,
        _ => PageCount::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Capabilities, Evidence, GuestFigures, generate};
    use proptest::prelude::*;

    fn mebibytes(count: u64) -> PageCount {
        PageCount::from_mebibytes(count)
    }

    /// Of 160 MiB, with so much free in its guest.
    fn vm(free: u64) -> VmSnapshot {
        let vm = generate::vm_of_size(0, mebibytes(160).0);
        VmSnapshot {
            stage: Stage::Running,
            evidence: Evidence {
                guest: Some(GuestFigures {
                    free: Some(mebibytes(free)),
                    ..GuestFigures::default()
                }),
                has_swap: true,
                pool_saves_percent: 50,
                capabilities: Capabilities::ALL,
                ..Evidence::default()
            },
            ..vm
        }
    }

    fn allowance(vm: &VmSnapshot, target: u64) -> u64 {
        pool_allowance(vm, mebibytes(target)).0 / 256
    }

    #[test]
    fn it_is_an_eighth_of_the_size_and_a_fifth_of_the_target_at_most() {
        assert_eq!(allowance(&vm(0), 120), 20);
        assert_eq!(allowance(&vm(0), 80), 16);
        assert_eq!(allowance(&vm(0), 150), 10, "up to its size");
        assert_eq!(allowance(&vm(0), 160), 0, "it may hold all");
    }

    #[test]
    fn what_compresses_badly_makes_up_for_less_and_what_compresses_well_for_no_more() {
        let saves = |percent| {
            let mut vm = vm(0);
            vm.evidence.pool_saves_percent = percent;
            allowance(&vm, 120)
        };
        assert_eq!([0, 25, 50, 90].map(saves), [0, 10, 20, 20]);
    }

    #[test]
    fn who_has_free_memory_needs_none_until_all_of_it_is_used_and_keeps_it_until_it_could_give_it_back()
     {
        assert_eq!(allowance(&vm(5), 80), 16);
        assert_eq!(allowance(&vm(6), 80), 0);
        let mut limited = vm(21);
        limited.evidence.touch_limit = Some(mebibytes(80));
        assert_eq!(allowance(&limited, 80), 16);
        limited.evidence.guest = vm(22).evidence.guest;
        assert_eq!(allowance(&limited, 80), 0);
        limited.evidence.guest = None;
        assert_eq!(allowance(&limited, 80), 0, "nobody says");
    }

    #[test]
    fn none_is_for_who_waits_is_pinned_or_has_no_pool() {
        let changed = |change: fn(&mut VmSnapshot)| {
            let mut vm = vm(0);
            change(&mut vm);
            allowance(&vm, 80)
        };
        assert_eq!(changed(|_| {}), 16);
        assert_eq!(changed(|vm| vm.stage = Stage::Waiting), 0);
        assert_eq!(changed(|vm| vm.pinned = Some(mebibytes(80))), 0);
        assert_eq!(changed(|vm| vm.evidence.has_swap = false), 0);
        assert_eq!(changed(|vm| vm.settings.max = mebibytes(90)), 10);
    }

    proptest! {
        #[test]
        fn with_its_target_it_is_no_more_than_a_vm_may_ever_hold(snapshot in generate::informed_snapshot(), target: u32) {
            for vm in &snapshot.vms {
                let target = PageCount(target.into()).min(vm.settings.effective_max());
                let all = target + pool_allowance(vm, target);
                prop_assert!(all <= vm.settings.effective_max());
            }
        }
    }
}
