//! Snapshots for tests: sensible ones of a size where every rule bites, and senseless ones.

use crate::{SharesSpec, Snapshot, Stage, VmSettings, VmSnapshot};
use page::{PageCount, VmId};
use proptest::prelude::*;
use std::num::NonZeroU32;

/// Around the start floor of 4096 pages, so that VMs are found on both sides of it.
const LARGEST_SIZE: u64 = 12_000;

/// A waiting VM with no min, no overhead and no pin.
pub(crate) fn vm_of_size(id: u32, size: u64) -> VmSnapshot {
    let shares = SharesSpec::Normal;
    let none = PageCount::ZERO;
    VmSnapshot {
        id: VmId(id),
        settings: VmSettings::new(PageCount(size), Some(none), None, shares).unwrap(),
        overhead: none,
        ballooned: PageCount(size),
        granted: none,
        pinned: None,
        stage: Stage::Waiting,
    }
}

pub(crate) fn shares() -> impl Strategy<Value = SharesSpec> {
    prop_oneof![
        Just(SharesSpec::Low),
        Just(SharesSpec::Normal),
        Just(SharesSpec::High),
        any::<NonZeroU32>().prop_map(SharesSpec::Count),
        (1u32..500).prop_map(|count| SharesSpec::Count(NonZeroU32::new(count).unwrap())),
    ]
}

/// `parts` per thousand of `whole`, which reaches both ends.
pub(crate) fn part(whole: PageCount, parts: u64) -> PageCount {
    PageCount(whole.0 * parts / 1000)
}

prop_compose! {
    /// Valid settings of a VM of this size.
    pub(crate) fn settings_of(size: PageCount)(
        max in 1..=size.0, is_limited: bool, min in 0u64..=1000, has_min: bool, shares in shares()
    ) -> VmSettings {
        let max = PageCount(if is_limited { max } else { size.0 });
        let min = has_min.then(|| part(max, min));
        VmSettings::new(size, min, Some(max), shares).unwrap()
    }
}

/// Valid settings of a VM of any size.
pub(crate) fn settings() -> impl Strategy<Value = VmSettings> {
    (1..LARGEST_SIZE).prop_flat_map(|size| settings_of(PageCount(size)))
}

prop_compose! {
    /// A VM anywhere in its life.
    pub(crate) fn vm(id: u32)(
        settings in settings(),
        overhead in 0u64..300,
        ballooned in 0u64..=1000,
        granted in 0u64..=1000,
        pinned in prop::option::weighted(0.3, 0..LARGEST_SIZE),
        is_waiting in prop::bool::weighted(0.3),
    ) -> VmSnapshot {
        let size = settings.size;
        VmSnapshot {
            id: VmId(id),
            overhead: PageCount(overhead),
            ballooned: if is_waiting { size } else { part(size, ballooned) },
            granted: if is_waiting { PageCount::ZERO } else { part(size, granted) },
            pinned: pinned.map(PageCount),
            stage: if is_waiting { Stage::Waiting } else { Stage::Running },
            settings,
        }
    }
}

/// Up to seven VMs, with or without enough memory for all.
pub(crate) fn snapshot() -> impl Strategy<Value = Snapshot> {
    let vms = prop::collection::vec(vm(0), 0..8);
    (0u64..60_000, 0u64..9_000, 0u64..9_000, vms).prop_map(|(budget, saved, kept, mut vms)| {
        for (vm, id) in vms.iter_mut().zip(0..) {
            vm.id = VmId(id);
        }
        Snapshot {
            budget: PageCount(budget),
            saved: PageCount(saved),
            kept: PageCount(kept),
            vms,
        }
    })
}

/// Any number, and often one at an end.
fn any_count() -> impl Strategy<Value = PageCount> {
    prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)].prop_map(PageCount)
}

/// Settings that no check has seen.
pub(crate) fn senseless_settings() -> impl Strategy<Value = VmSettings> {
    (any_count(), any_count(), any_count(), shares()).prop_map(|(size, min, max, shares)| {
        VmSettings {
            size,
            min,
            max,
            shares,
        }
    })
}

prop_compose! {
    fn senseless_vm()(
        id in 0u32..3,
        settings in senseless_settings(),
        counts in (any_count(), any_count(), any_count()),
        pinned in prop::option::of(any_count()),
        is_waiting: bool,
    ) -> VmSnapshot {
        VmSnapshot {
            id: VmId(id),
            settings,
            overhead: counts.0,
            ballooned: counts.1,
            granted: counts.2,
            pinned,
            stage: if is_waiting { Stage::Waiting } else { Stage::Running },
        }
    }
}

/// What no host would say: no bound holds, and ids repeat.
pub(crate) fn senseless_snapshot() -> impl Strategy<Value = Snapshot> {
    let vms = prop::collection::vec(senseless_vm(), 0..6);
    (any_count(), vms).prop_map(|(budget, vms)| Snapshot {
        budget,
        vms,
        ..Snapshot::default()
    })
}
