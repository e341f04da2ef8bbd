//! Snapshots for tests: sensible ones of a size where every rule bites, and senseless ones.

use crate::{
    ActiveSet, BalloonRound, BalloonSettings, BalloonWatch, Capabilities, Evidence, GuestFigures,
    MemoryState, SharesSpec, Snapshot, Stage, TaxRate, VmSettings, VmSnapshot,
};
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
        told: None,
        pinned: None,
        stage: Stage::Waiting,
        evidence: Evidence::default(),
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
            told: None,
            pinned: pinned.map(PageCount),
            stage: if is_waiting { Stage::Waiting } else { Stage::Running },
            settings,
            evidence: Evidence::default(),
        }
    }
}

/// Up to seven VMs, with or without enough memory for all.
pub(crate) fn snapshot() -> impl Strategy<Value = Snapshot> {
    let vms = prop::collection::vec(vm(0), 0..8);
    let pages = || 0u64..9_000;
    (0u64..60_000, pages(), pages(), pages(), vms).prop_map(
        |(budget, saved, breakable, kept, mut vms)| {
            for (vm, id) in vms.iter_mut().zip(0..) {
                vm.id = VmId(id);
            }
            Snapshot {
                budget: PageCount(budget),
                saved: PageCount(saved),
                breakable: PageCount(breakable),
                kept: PageCount(kept),
                vms,
                ..Snapshot::default()
            }
        },
    )
}

prop_compose! {
    /// What might be known of a VM of this size, sensible or not.
    fn evidence(size: u64)(
        active in prop::option::of((0..=size, 0u64..2000, 0u64..2000, 0..=size)),
        guest in prop::option::of((0..=size, 0..=size, prop::option::of(0u64..2))),
        balloon in prop::option::of((0..=size, prop::collection::vec(0..=size, 0..9))),
        has_no_driver: bool,
        backed in prop::option::of(0..=size),
        touch_limit in prop::option::of(0..=size),
        (has_swap, waits_for_room) in any::<(bool, bool)>(),
        (untouched, pool_saves_percent) in (0..=size, 0_u8..=100),
        (can_do_all, is_stale) in (prop::bool::weighted(0.8), prop::bool::weighted(0.1)),
    ) -> Evidence {
        let active = active.map(|(pages, below, above, held)| ActiveSet {
            pages: PageCount(pages),
            likely: PageCount(pages.saturating_sub(below / 2)),
            low: PageCount(pages.saturating_sub(below)),
            high: PageCount(pages + above),
            held: PageCount(held),
            ..ActiveSet::default()
        });
        let guest = guest.map(|(held, available, stalls)| GuestFigures {
            held: PageCount(held),
            available: Some(PageCount(available)),
            stalls,
            ..GuestFigures::default()
        });
        let balloon = balloon.map(|(asked, held)| {
            let watch = BalloonWatch::default();
            held.into_iter().fold(watch, |watch, held| watch.observe(PageCount(asked), PageCount(held)))
        });
        let capabilities = if can_do_all { Capabilities::ALL } else { Capabilities::BALLOON_ALONE };
        let (backed, touch_limit) = (backed.map(PageCount), touch_limit.map(PageCount));
        Evidence { active, guest, balloon, has_no_driver, backed, touch_limit, has_swap, waits_for_room, capabilities, is_stale, untouched: PageCount(untouched), pool_saves_percent, kernel_reclaim: has_no_driver && is_stale, pressure_permille: if waits_for_room { 100 } else { 0 }, supposed: None }
    }
}

/// Any rate, often none.
pub(crate) fn tax_rate() -> impl Strategy<Value = TaxRate> {
    prop_oneof![Just(0), Just(750), 0u16..1000]
        .prop_map(|rate| TaxRate::from_permille(rate).unwrap())
}

/// Any state.
pub(crate) fn memory_state() -> impl Strategy<Value = MemoryState> {
    prop::sample::select(MemoryState::ALL.to_vec())
}

prop_compose! {
    /// A snapshot with something known of everything.
    pub(crate) fn informed_snapshot()(
        mut snapshot in snapshot(),
        evidence in prop::collection::vec((evidence(LARGEST_SIZE), prop::option::of(tax_rate())), 8),
        idle_tax in tax_rate(),
        state in memory_state(),
        keep_free in 0u64..3000,
        balloon in prop::option::of((0u64..=120, 0u64..5000, 0u64..2000)),
    ) -> Snapshot {
        for (vm, (evidence, own_tax)) in snapshot.vms.iter_mut().zip(evidence) {
            vm.evidence = evidence;
            vm.settings.idle_tax = own_tax;
        }
        let balloon = balloon.map(|(limit_percent, pages_per_s, elapsed_ms)| BalloonRound {
            settings: BalloonSettings { limit_percent, pages_per_s, ..BalloonSettings::default() },
            elapsed_ms,
        });
        Snapshot { idle_tax, state, keep_free: PageCount(keep_free), balloon, ..snapshot }
    }
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
            idle_tax: None,
            large_pages: true,
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
        evidence in evidence(u64::MAX - 2000),
    ) -> VmSnapshot {
        VmSnapshot {
            id: VmId(id),
            settings,
            overhead: counts.0,
            ballooned: counts.1,
            granted: counts.2,
            told: is_waiting.then_some(counts.1),
            pinned,
            stage: if is_waiting { Stage::Waiting } else { Stage::Running },
            evidence,
        }
    }
}

prop_compose! {
    /// What no host would say: no bound holds, and ids repeat.
    pub(crate) fn senseless_snapshot()(
        budget in any_count(),
        vms in prop::collection::vec(senseless_vm(), 0..6),
        kept in any_count(),
        idle_tax in tax_rate(),
        state in memory_state(),
        balloon in prop::option::of(any::<[u64; 4]>()),
    ) -> Snapshot {
        let balloon = balloon.map(|[limit_percent, pages_per_s, fast_factor, elapsed_ms]| BalloonRound {
            settings: BalloonSettings { limit_percent, pages_per_s, fast_factor },
            elapsed_ms,
        });
        Snapshot { budget, vms, keep_free: kept, idle_tax, state, balloon, ..Snapshot::default() }
    }
}
