//! Metrics of VMs.

use super::{Named, gauge, signed, thousandths};
use crate::api::VmFigures;
use policy::{BalloonHealth, Witness};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

const VM_BYTES: &[Named<VmFigures>] = &[
    ("vm_size", "Configured guest memory", |vm| vm.memsz),
    ("vm_min", "What the VM can count on", |vm| vm.amin),
    ("vm_max", "What the VM may hold at most", |vm| vm.amax),
    ("vm_target", "What the policy wants the VM to hold", |vm| {
        vm.sztgt
    }),
    (
        "vm_used",
        "Machine memory that the VM uses, by the kernel's count",
        |vm| vm.used,
    ),
    (
        "vm_granted",
        "Guest memory that is backed, shared pages counted whole",
        |vm| vm.grant,
    ),
    (
        "vm_consumed",
        "Guest memory that is backed, shared pages charged by their references",
        |vm| vm.cnsm,
    ),
    (
        "vm_overhead",
        "Memory of the VM's process that is not the guest's",
        |vm| vm.ovhd,
    ),
    (
        "vm_sharing_saved",
        "Machine memory that sharing saves for the VM",
        |vm| vm.shrdsvd,
    ),
    (
        "vm_balloon_target",
        "What the VM's balloon should hold",
        |vm| vm.mctltgt,
    ),
    (
        "vm_balloon_limit",
        "What the VM's balloon can be asked to hold",
        |vm| vm.mctlmax,
    ),
];

const VM_NUMBERS: &[Named<VmFigures>] = &[
    ("vm_shares", "The VM's weight when memory is short", |vm| {
        vm.ashrs
    }),
    (
        "vm_responding",
        "Whether the VM's process answered the last question in time",
        |vm| vm.responding.into(),
    ),
    (
        "vm_credible",
        "Whether all that the VM's process ever said of itself can be true",
        |vm| vm.credible.into(),
    ),
    (
        "vm_merges_per_second",
        "Pages a second that became shared or were given back as zero",
        |vm| vm.merges_per_s,
    ),
    (
        "vm_breaks_per_second",
        "Pages a second that the guest un-shared by writing",
        |vm| vm.breaks_per_s,
    ),
    (
        "vm_balloon_driver",
        "Whether the guest has a balloon driver that is ready",
        |vm| vm.mctl.into(),
    ),
    (
        "vm_memory_areas",
        "Memory areas that sharing costs the VM's process",
        |vm| vm.areas,
    ),
    (
        "vm_memory_areas_limit",
        "Memory areas that the VM's process may have",
        |vm| vm.areas_limit,
    ),
];

const VM_COUNTERS: &[Named<VmFigures>] = &[
    (
        "vm_balloon_inflated_pages",
        "Pages that went into the VM's balloon",
        |vm| vm.inflated_pages,
    ),
    (
        "vm_balloon_deflated_pages",
        "Pages that came out of the VM's balloon",
        |vm| vm.deflated_pages,
    ),
];

/// What not every VM has, or what is not known of it at once.
type Optional<T> = (&'static str, &'static str, fn(&VmFigures) -> Option<T>);

const VM_OPTIONAL_BYTES: &[Optional<u64>] = &[
    ("vm_touched", "What the VM uses (TCHD)", |vm| vm.tchd),
    (
        "vm_touched_low",
        "With 95 % confidence the VM uses no less",
        |vm| vm.tchd_low,
    ),
    (
        "vm_touched_high",
        "With 95 % confidence the VM uses no more",
        |vm| vm.tchd_high,
    ),
    (
        "vm_touched_written",
        "What of that the VM writes to (TCHD_W)",
        |vm| vm.tchd_w,
    ),
    (
        "vm_touched_believed",
        "What the policy takes it for: quick to rise, slow to fall",
        |vm| vm.tchd_believed,
    ),
    (
        "vm_limit_slow",
        "The VM runs a tenth of its time once it has touched more, where its balloon does not suffice",
        |vm| Some(vm.limit?.slow_above_bytes),
    ),
    (
        "vm_limit_stop",
        "The VM stands still once it has touched more, where its balloon does not suffice",
        |vm| Some(vm.limit?.stop_above_bytes),
    ),
];

/// A part of a VM's memory in percent, by a word for its average.
type Average = (&'static str, fn(&VmFigures) -> Option<f64>);

/// esxtop's %ACTV, %ACTVS and %ACTVF.
const ACTIVE: [Average; 3] = [
    ("current", |vm| vm.actv),
    ("slow", |vm| vm.actvs),
    ("fast", |vm| vm.actvf),
];

const WITNESS: [&str; 5] = ["silent", "senseless", "agrees", "says_idler", "says_busier"];
const HEALTH: [&str; 3] = ["settled", "following", "stuck"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVm {
    vm: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    vm: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAverage {
    vm: String,
    average: &'static str,
}

pub(super) fn register(registry: &mut Registry, vms: &[VmFigures]) {
    registry.register("vms", "VMs that there are", gauge(vms.len() as u64));
    let states = Family::<OfState, Gauge>::default();
    for vm in vms {
        for (state, bytes) in vm.states().iter() {
            let label = OfState {
                vm: vm.name.to_string(),
                state: state.name(),
            };
            states.get_or_create(&label).set(signed(bytes));
        }
    }
    registry.register_with_unit(
        "vm_memory",
        "Guest memory by state: adds up to the size",
        Unit::Bytes,
        states,
    );
    for (name, help, figure) in VM_BYTES {
        registry.register_with_unit(*name, *help, Unit::Bytes, gauges(vms, *figure));
    }
    for (name, help, figure) in VM_NUMBERS {
        registry.register(*name, *help, gauges(vms, *figure));
    }
    register_use(registry, vms);
    register_blocked(registry, vms);
    register_words(registry, vms);
    for (name, help, figure) in VM_COUNTERS {
        let counters = Family::<OfVm, Counter>::default();
        for vm in vms {
            counters.get_or_create(&label(vm)).inc_by(figure(vm));
        }
        registry.register(*name, *help, counters);
    }
}

fn register_use(registry: &mut Registry, vms: &[VmFigures]) {
    for (name, help, figure) in VM_OPTIONAL_BYTES {
        let gauges = Family::<OfVm, Gauge>::default();
        for vm in vms {
            if let Some(bytes) = figure(vm) {
                gauges.get_or_create(&label(vm)).set(signed(bytes));
            }
        }
        registry.register_with_unit(*name, *help, Unit::Bytes, gauges);
    }
    let active = Family::<OfAverage, Gauge<f64, AtomicU64>>::default();
    for vm in vms {
        for (average, figure) in ACTIVE {
            let label = OfAverage {
                vm: vm.name.to_string(),
                average,
            };
            if let Some(percent) = figure(vm) {
                active.get_or_create(&label).set(percent / 100.0);
            }
        }
    }
    registry.register(
        "vm_active_ratio",
        "The part of the VM's memory that was touched: the three averages of esxtop (%ACTV)",
        active,
    );
}

fn register_blocked(registry: &mut Registry, vms: &[VmFigures]) {
    let ratios = Family::<OfVm, Gauge<f64, AtomicU64>>::default();
    let times = Family::<OfVm, Counter<f64, AtomicU64>>::default();
    for vm in vms {
        let ratio = thousandths(vm.blocked_permille);
        ratios.get_or_create(&label(vm)).set(ratio);
        let time = Duration::from_micros(vm.blocked_us).as_secs_f64();
        times.get_or_create(&label(vm)).inc_by(time);
    }
    registry.register(
        "vm_blocked_ratio",
        "The part of the last second that the VM was stopped, for it has touched more than its limit",
        ratios,
    );
    registry.register_with_unit(
        "vm_blocked",
        "How long the VM was stopped, for it has touched more than its limit",
        Unit::Seconds,
        times,
    );
}

fn register_words(registry: &mut Registry, vms: &[VmFigures]) {
    registry.register(
        "vm_witness",
        "How the guest's word compares with what it touches: what holds is 1",
        words(vms, &WITNESS, |vm| vm.witness.map(witness)),
    );
    registry.register(
        "vm_balloon_health",
        "How the VM's balloon follows: what holds is 1",
        words(vms, &HEALTH, |vm| vm.balloon_health.map(health)),
    );
}

/// A gauge for each word, of which the one that holds is 1.
fn words(
    vms: &[VmFigures],
    words: &[&'static str],
    word_of: impl Fn(&VmFigures) -> Option<&'static str>,
) -> Family<OfState, Gauge> {
    let gauges = Family::<OfState, Gauge>::default();
    for vm in vms {
        let Some(holds) = word_of(vm) else { continue };
        for &state in words {
            let label = OfState {
                vm: vm.name.to_string(),
                state,
            };
            gauges.get_or_create(&label).set((state == holds).into());
        }
    }
    gauges
}

fn witness(witness: Witness) -> &'static str {
    match witness {
        Witness::Silent => "silent",
        Witness::Senseless => "senseless",
        Witness::Agrees => "agrees",
        Witness::SaysIdler { .. } => "says_idler",
        Witness::SaysBusier { .. } => "says_busier",
    }
}

fn health(health: BalloonHealth) -> &'static str {
    match health {
        BalloonHealth::Settled => "settled",
        BalloonHealth::Following => "following",
        BalloonHealth::Stuck => "stuck",
    }
}

fn label(vm: &VmFigures) -> OfVm {
    OfVm {
        vm: vm.name.to_string(),
    }
}

fn gauges(vms: &[VmFigures], figure: fn(&VmFigures) -> u64) -> Family<OfVm, Gauge> {
    let gauges = Family::<OfVm, Gauge>::default();
    for vm in vms {
        gauges.get_or_create(&label(vm)).set(signed(figure(vm)));
    }
    gauges
}

#[cfg(test)]
mod tests {
    use super::*;
    use page::PageCount;

    #[test]
    fn every_word_that_can_hold_has_a_gauge() {
        let by = PageCount(1);
        for said in [
            Witness::Silent,
            Witness::Senseless,
            Witness::Agrees,
            Witness::SaysIdler { by },
            Witness::SaysBusier { by },
        ] {
            assert!(WITNESS.contains(&witness(said)));
        }
        for seen in [
            BalloonHealth::Settled,
            BalloonHealth::Following,
            BalloonHealth::Stuck,
        ] {
            assert!(HEALTH.contains(&health(seen)));
        }
    }
}
