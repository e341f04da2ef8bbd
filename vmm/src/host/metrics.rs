//! The figures as Prometheus reads them.
//!
//! A registry is made for each scrape from the figures of the moment, so that a VM that has gone is
//! gone from the next answer, and labels are as bounded as VMs are: a VM's name, and words from lists
//! in this file.

use crate::api::{Figures, HostFigures, VmFigures};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::atomic::AtomicU64;

/// Text that a scraper asks for by its `Accept` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own, older one.
    Prometheus,
}

impl Format {
    pub(super) fn wanted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A page's or a VM's kind of memory in words.
type Kinds<F> = [(&'static str, fn(&F) -> u64)];

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

/// Guest memory by state: adds up to the VM's size.
const VM_STATES: &Kinds<VmFigures> = &[
    ("empty", |vm| vm.empty),
    ("private", |vm| vm.private),
    ("shared", |vm| vm.shrd),
    ("broken", |vm| vm.broken),
    ("ballooned", |vm| vm.ballooned),
    ("compressed", |vm| vm.zip),
    ("swapped", |vm| vm.swcur),
];

type HostGauge = (&'static str, &'static str, fn(&HostFigures) -> u64);
type VmGauge = (&'static str, &'static str, fn(&VmFigures) -> u64);

const HOST_BYTES: &[HostGauge] = &[
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
        "host_sharing_saved",
        "Guest memory that shows frames less the memory of the frames",
        |host| host.pshare_saving,
    ),
    (
        "host_sharing_reserve",
        "Memory kept free for shared pages that guests may write to",
        |host| host.reserve,
    ),
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

const HOST_RATES: &[HostGauge] = &[
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

const VM_BYTES: &[VmGauge] = &[
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

const VM_NUMBERS: &[VmGauge] = &[
    ("vm_shares", "The VM's weight when memory is short", |vm| {
        vm.ashrs
    }),
    (
        "vm_responding",
        "Whether the VM's process answered the last question in time",
        |vm| vm.responding.into(),
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

const VM_COUNTERS: &[VmGauge] = &[
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
struct OfUse {
    r#use: &'static str,
}

/// All figures as text.
///
/// # Errors
/// None that a text in memory can have.
pub(super) fn text(figures: &Figures, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ballonet");
    register_host(&mut registry, &figures.host);
    register_vms(&mut registry, &figures.vms);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(match format {
        Format::OpenMetrics => text,
        Format::Prometheus => as_prometheus(&text),
    })
}

fn register_host(registry: &mut Registry, host: &HostFigures) {
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
    for (name, help, figure) in HOST_RATES {
        registry.register(*name, *help, gauge(figure(host)));
    }
    registry.register(
        "host_overcommit_ratio",
        "Configured memory over the budget, less one: mean of a minute",
        float(host.overcommit_avg[0]),
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
}

fn register_vms(registry: &mut Registry, vms: &[VmFigures]) {
    registry.register("vms", "VMs that there are", gauge(vms.len() as u64));
    let states = Family::<OfState, Gauge>::default();
    for vm in vms {
        for &(state, figure) in VM_STATES {
            let label = OfState {
                vm: vm.name.to_string(),
                state,
            };
            states.get_or_create(&label).set(signed(figure(vm)));
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
    for (name, help, figure) in VM_COUNTERS {
        let counters = Family::<OfVm, Counter>::default();
        for vm in vms {
            counters.get_or_create(&label(vm)).inc_by(figure(vm));
        }
        registry.register(*name, *help, counters);
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

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(signed(value));
    gauge
}

fn float(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(value);
    gauge
}

fn counter(value: u64) -> Counter {
    let counter = Counter::<u64, AtomicU64>::default();
    counter.inc_by(value);
    counter
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// OpenMetrics as the older format. A counter's samples end in `_total` in both; in the older one its
/// description does as well. Units and the end mark are not known there.
fn as_prometheus(open_metrics: &str) -> String {
    let is_counter = |name: &str| open_metrics.contains(&format!("# TYPE {name} counter\n"));
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some(kind), Some(name), Some(rest)) if is_counter(name) => {
                text.push_str(&format!("# {kind} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_under_the_name_of_their_samples() {
        let open_metrics = "# HELP a_b Pages.\n# TYPE a_b counter\na_b_total 3\n# HELP c_bytes Size.\n# TYPE c_bytes gauge\n# UNIT c_bytes bytes\nc_bytes 5\n# EOF\n";
        assert_eq!(
            as_prometheus(open_metrics),
            "# HELP a_b_total Pages.\n# TYPE a_b_total counter\na_b_total 3\n# HELP c_bytes Size.\n# TYPE c_bytes gauge\nc_bytes 5\n"
        );
    }

    #[test]
    fn the_format_is_what_the_scraper_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";
        assert_eq!(Format::wanted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::wanted(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::wanted(None), Format::Prometheus);
    }

    #[test]
    fn an_empty_host_is_text_with_units_and_an_end() {
        let text = text(&Figures::default(), Format::OpenMetrics).unwrap();
        assert!(
            text.contains("# UNIT ballonet_host_budget_bytes bytes\n"),
            "{text}"
        );
        assert!(
            text.contains("ballonet_host_memory_bytes{use=\"free\"} 0\n"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
