//! From what a host and its guests say at one moment to the values of all series. A value that nobody
//! knows is absent, not zero.

use super::active::Active;
use super::closed_form::{Claim, divide};
use super::record::Subject;
use super::series::Series;
use api::{HostView, Overview, VmKind, VmPhase, VmView, WorkingSetView};
use page::{PAGE_SIZE, PageCount};
use policy::MemoryState;
use protocol::VmName;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The counters of a guest's report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GuestCounters {
    touches: u64,
    checks: u64,
    errors: u64,
    leaks: u64,
    disk_errors: u64,
    operations: u64,
    hits: u64,
    misses: u64,
}

/// What is known at one moment.
#[derive(Debug)]
pub struct Moment<'a> {
    /// What the host says.
    pub overview: &'a Overview,
    /// The VMs that should be there, and what of each is active.
    pub active: &'a BTreeMap<VmName, Active>,
}

/// A value of a series.
pub type Reading = (Subject, Series, f64);

/// The values of all series that the host knows, and of those that follow from them.
#[must_use]
pub fn read(moment: &Moment<'_>) -> Vec<Reading> {
    let Overview { host, vms, .. } = moment.overview;
    let mut readings = of_host(host, vms);
    for (name, &active) in moment.active {
        let view = vms.iter().find(|vm| vm.name == *name);
        let alive = f64::from(u8::from(view.is_some()));
        let subject = Subject::Vm(name.clone());
        readings.push((subject.clone(), Series::Alive, alive));
        if let Some(view) = view
            && view.phase == VmPhase::Running
        {
            let values = of_vm(view).into_iter().chain(of_estimate(view, active));
            readings.extend(values.map(|(series, value)| (subject.clone(), series, value)));
        }
    }
    readings.extend(of_closed_form(moment));
    readings
}

/// The values of the series that only a guest knows.
#[must_use]
pub fn read_guest(name: &VmName, counters: GuestCounters) -> Vec<Reading> {
    let values = [
        (Series::Touches, counters.touches),
        (Series::Checks, counters.checks),
        (Series::Operations, counters.operations),
        (Series::Hits, counters.hits),
        (Series::Misses, counters.misses),
        (
            Series::Errors,
            counters.errors + counters.leaks + counters.disk_errors,
        ),
    ];
    let reading = |(series, value)| (Subject::Vm(name.clone()), series, count(value));
    values.into_iter().map(reading).collect()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
fn count(value: u64) -> f64 {
    value as f64
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        100.0 * part / whole
    } else {
        0.0
    }
}

fn of_host(host: &HostView, vms: &[VmView]) -> Vec<Reading> {
    let sharing = &host.sharing;
    let zero = count(sharing.zero_bytes);
    let shared = count(sharing.shared_bytes) + zero;
    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    let reclaimed = sharing.saving_bytes as f64 + zero;
    // What the guests have as they see it: what something backs, and what is zero.
    let backed = vms.iter().map(|vm| count(backed(vm))).sum::<f64>() + zero;
    let state = match host.state {
        MemoryState::High => 0.0,
        MemoryState::Clear => 1.0,
        MemoryState::Soft => 2.0,
        MemoryState::Hard => 3.0,
        MemoryState::Low => 4.0,
    };
    let values = [
        (Series::Used, count(host.used_bytes)),
        (
            Series::Free,
            count(host.budget_bytes.saturating_sub(host.used_bytes)),
        ),
        (Series::Budget, count(host.budget_bytes)),
        (
            Series::OverBudget,
            count(host.used_bytes.saturating_sub(host.budget_bytes)),
        ),
        (Series::Overcommit, 100.0 * host.overcommit),
        (Series::MemoryState, state),
        (Series::StateSumViolations, count(host.state_sum_violations)),
        (Series::Shared, shared),
        (Series::Zero, zero),
        (Series::Reclaimed, reclaimed),
        (Series::SharedPercent, percent(shared, backed)),
        (Series::ZeroPercent, percent(zero, backed)),
        (Series::ReclaimedPercent, percent(reclaimed, backed)),
    ];
    let reading = |(series, value)| (Subject::Host, series, value);
    values.into_iter().map(reading).collect()
}

/// Guest memory that something backs: of guests of QEMU the kernel's count, as their pages are not told by state.
fn backed(vm: &VmView) -> u64 {
    match vm.kind {
        VmKind::Ballonet => vm.states.private + vm.states.shared + vm.states.broken,
        VmKind::Qemu => vm.memory_file_bytes,
    }
}

fn held(vm: &VmView) -> u64 {
    vm.size_bytes.saturating_sub(vm.balloon.held)
}

fn of_vm(vm: &VmView) -> Vec<(Series, f64)> {
    let denied = vm.min_bytes.saturating_sub(vm.granted_bytes.min(held(vm)));
    let saved = vm
        .sharing
        .shared_bytes
        .saturating_sub(vm.sharing.charge_bytes);
    [
        (Series::Used, vm.used_bytes),
        (Series::Size, vm.size_bytes),
        (Series::Target, vm.target_bytes),
        (Series::Granted, vm.granted_bytes),
        (Series::Held, held(vm)),
        (Series::Backed, backed(vm)),
        (Series::Balloon, vm.balloon.held),
        (Series::BelowMin, denied),
        (
            Series::Shared,
            vm.sharing.shared_bytes + vm.sharing.zero_bytes,
        ),
        (Series::Zero, vm.sharing.zero_bytes),
        (Series::Reclaimed, saved + vm.sharing.zero_bytes),
    ]
    .map(|(series, bytes)| (series, count(bytes)))
    .to_vec()
}

/// The truth, and the estimate of it.
fn of_estimate(vm: &VmView, active: Active) -> Vec<(Series, f64)> {
    let backed = backed(vm);
    let truth = active
        .of(PageCount(backed / PAGE_SIZE))
        .map(PageCount::bytes);
    let mut values = Vec::new();
    values.extend(truth.map(|truth| (Series::Truth, count(truth))));
    let Some(estimate) = &vm.working_set else {
        return values;
    };
    let part = |percent: f64| percent / 100.0 * count(backed);
    values.extend([
        (Series::Estimate, count(estimate.estimate_bytes)),
        (Series::EstimateLow, count(estimate.low_bytes)),
        (Series::EstimateHigh, count(estimate.high_bytes)),
        (Series::Slow, part(estimate.actvs_percent)),
        (Series::Fast, part(estimate.actvf_percent)),
        (Series::Current, part(estimate.actv_percent)),
    ]);
    values.extend(
        truth
            .map(|truth| judge(estimate, truth, backed))
            .into_iter()
            .flatten(),
    );
    values
}

fn judge(estimate: &WorkingSetView, truth: u64, backed: u64) -> [(Series, f64); 2] {
    let error = estimate.estimate_bytes.abs_diff(truth);
    let covered = (estimate.low_bytes..=estimate.high_bytes).contains(&truth);
    [
        (Series::EstimateError, percent(count(error), count(backed))),
        (Series::Covered, 100.0 * f64::from(u8::from(covered))),
    ]
}

/// What the closed form gives each VM of what all hold, if what all use is known.
fn of_closed_form(moment: &Moment<'_>) -> Vec<Reading> {
    let host = &moment.overview.host;
    let vms: Vec<&VmView> = moment.overview.vms.iter().collect();
    let claim = |vm: &&VmView| {
        let active = moment.active.get(&vm.name)?;
        claim(vm, *active, host).filter(|_| vm.phase == VmPhase::Running)
    };
    let Some(claims) = vms.iter().map(claim).collect::<Option<Vec<Claim>>>() else {
        return Vec::new();
    };
    let total = vms.iter().map(|vm| count(held(vm))).sum();
    let parts = divide(total, &claims);
    let reading = |(vm, part): (&&VmView, f64)| {
        let error = percent((count(held(vm)) - part).abs(), part);
        let subject = Subject::Vm(vm.name.clone());
        [
            (subject.clone(), Series::ClosedForm, part),
            (subject, Series::ClosedFormError, error),
        ]
    };
    vms.iter().zip(parts).flat_map(reading).collect()
}

fn claim(vm: &VmView, active: Active, host: &HostView) -> Option<Claim> {
    let tax = vm.idle_tax_permille.unwrap_or(host.idle_tax_permille);
    let active = active.of(PageCount(vm.size_bytes / PAGE_SIZE))?;
    Some(Claim {
        shares: count(vm.shares_count),
        active: count(active.bytes()),
        tax: f64::from(tax.permille()) / 1000.0,
        min: count(vm.min_bytes),
        max: count(vm.max_bytes),
    })
}
