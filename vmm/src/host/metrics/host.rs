//! Metrics of the host.

use super::{Kinds, Named, counter, float, gauge, signed, thousandths};
use crate::api::{Figures, HostFigures, StateThresholds};
use policy::MemoryState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// Machine memory by use: adds up to the budget.
const HOST_USES: &Kinds<HostFigures> = &[
    ("guests", |host| {
        let others = host.pshare_common + host.overhead;
        host.pmem_used.saturating_sub(others)
    }),
    ("common", |host| host.pshare_common),
    ("overhead", |host| host.overhead),
    ("free", |host| host.pmem_free),
];

const HOST_BYTES: &[Named<HostFigures>] = &[
    (
        "host_budget",
        "Machine memory for all VMs together",
        |host| host.pmem_total,
    ),
    (
        "host_used",
        "Machine memory that VMs and the store use, by the kernel's count",
        |host| host.pmem_used,
    ),
    (
        "host_used_max",
        "The most machine memory that was ever used",
        |host| host.used_max,
    ),
    (
        "host_promised",
        "What the VMs can count on, overhead included",
        |host| host.promised,
    ),
    (
        "host_configured",
        "The sum of the sizes of the VMs",
        |host| host.configured,
    ),
    (
        "host_shared",
        "Guest memory that shows frames of the store",
        |host| host.pshare_shared,
    ),
    (
        "host_sharing_reserve",
        "Memory kept free for shared pages that guests may write to",
        |host| host.reserve,
    ),
    (
        "host_broken",
        "Guest memory that was shared and written since",
        |host| host.broken,
    ),
    (
        "host_compressed",
        "Guest memory in the compressed pool",
        |host| host.zip_zipped,
    ),
    ("host_swapped", "Guest memory that is swapped out", |host| {
        host.swap_curr
    }),
    ("host_balloon", "What balloons hold", |host| {
        host.memctl_curr
    }),
    ("host_balloon_target", "What balloons should hold", |host| {
        host.memctl_target
    }),
    (
        "host_balloon_limit",
        "What balloons can be asked to hold",
        |host| host.memctl_max,
    ),
];

const HOST_RATES: &[Named<HostFigures>] = &[
    (
        "host_merges_per_second",
        "Pages a second that became shared or were given back as zero",
        |host| host.merges_per_s,
    ),
    (
        "host_breaks_per_second",
        "Pages a second that guests un-shared by writing",
        |host| host.breaks_per_s,
    ),
    (
        "host_scanned_pages_per_second",
        "Pages a second that the scanner looked over",
        |host| host.covered_per_s,
    ),
];

/// Over which time an average goes, in the order in which the figures have them.
const OVERCOMMIT_WINDOWS: [&str; 3] = ["1m", "5m", "15m"];

/// Free memory below which each state begins. Above all of them it is high.
const THRESHOLDS: &Kinds<StateThresholds> = &[
    ("clear", |below| below.clear),
    ("soft", |below| below.soft),
    ("hard", |below| below.hard),
    ("low", |below| below.low),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfUse {
    r#use: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWindow {
    window: &'static str,
}

pub(super) fn register(registry: &mut Registry, figures: &Figures) {
    let host = &figures.host;
    register_memory(registry, host);
    register_state(registry, host);
    for (name, help, figure) in HOST_RATES {
        registry.register(*name, *help, gauge(figure(host)));
    }
    registry.register(
        "host_scanner_core_ratio",
        "The part of a core that the scanner has",
        float(thousandths(host.scan_core_permille)),
    );
    registry.register(
        "host_queued_vms",
        "VMs that wait to be admitted",
        gauge(host.queued),
    );
    registry.register_with_unit(
        "host_queue_wait",
        "How long the first of those that wait to be admitted has waited",
        Unit::Seconds,
        gauge(host.queue_wait_s),
    );
    registry.register_with_unit(
        "host_uptime",
        "Time since the host started",
        Unit::Seconds,
        float(host.uptime_s),
    );
    registry.register(
        "host_state_sum_violations",
        "Observations whose page states did not add up: zero, or there is a bug",
        counter(host.state_sum_violations),
    );
    registry.register(
        "host_publications",
        "Which look at the machine these figures are: the same number as in the API",
        counter(figures.publication),
    );
}

fn register_memory(registry: &mut Registry, host: &HostFigures) {
    let uses = Family::<OfUse, Gauge>::default();
    for (name, figure) in HOST_USES {
        uses.get_or_create(&OfUse { r#use: name })
            .set(signed(figure(host)));
    }
    registry.register_with_unit(
        "host_memory",
        "Machine memory by use: adds up to the budget",
        Unit::Bytes,
        uses,
    );
    for (name, help, figure) in HOST_BYTES {
        registry.register_with_unit(*name, *help, Unit::Bytes, gauge(figure(host)));
    }
    let saving = Gauge::<i64>::default();
    saving.set(host.pshare_saving);
    registry.register_with_unit(
        "host_sharing_saved",
        "Guest memory that shows frames less the memory of the frames: below zero where sharing costs",
        Unit::Bytes,
        saving,
    );
    let overcommit = Family::<OfWindow, Gauge<f64, AtomicU64>>::default();
    for (window, average) in OVERCOMMIT_WINDOWS.into_iter().zip(host.overcommit_avg) {
        overcommit.get_or_create(&OfWindow { window }).set(average);
    }
    registry.register(
        "host_overcommit_ratio",
        "Configured memory over the budget, less one: averages",
        overcommit,
    );
}

fn register_state(registry: &mut Registry, host: &HostFigures) {
    let states = Family::<OfState, Gauge>::default();
    for state in MemoryState::ALL {
        let state = state.to_string();
        let is_now = host.state.as_ref() == Some(&state);
        states.get_or_create(&OfState { state }).set(is_now.into());
    }
    registry.register(
        "host_memory_state",
        "How short memory is: the state that holds is 1",
        states,
    );
    let thresholds = Family::<OfState, Gauge>::default();
    for (state, threshold) in THRESHOLDS {
        let state = (*state).to_owned();
        let below = host.state_below.unwrap_or_default();
        thresholds
            .get_or_create(&OfState { state })
            .set(signed(threshold(&below)));
    }
    registry.register_with_unit(
        "host_state_threshold",
        "Free memory below which each state of memory begins; clear's is what should be free (minfree)",
        Unit::Bytes,
        thresholds,
    );
}
