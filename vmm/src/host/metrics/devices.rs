//! Metrics of VMs' disks and network cards.

use super::{Kinds, Named, signed};
use crate::api::{DiskView, NetView, VmFigures};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt::Debug;
use std::hash::Hash;

const DISK_BYTES: &[Named<DiskView>] = &[
    ("vm_disk_read", "What the guest read", |disk| {
        disk.counters.read_bytes
    }),
    ("vm_disk_written", "What the guest wrote", |disk| {
        disk.counters.written_bytes
    }),
];

const DISK_COUNTERS: &[Named<DiskView>] = &[
    ("vm_disk_reads", "Reads carried out", |disk| {
        disk.counters.reads
    }),
    ("vm_disk_writes", "Writes carried out", |disk| {
        disk.counters.writes
    }),
    ("vm_disk_flushes", "Flushes carried out", |disk| {
        disk.counters.flushes
    }),
    (
        "vm_disk_discards",
        "Requests carried out that gave sectors up",
        |disk| disk.counters.discards,
    ),
    (
        "vm_disk_zeroings",
        "Requests carried out that zeroed sectors",
        |disk| disk.counters.zeroings,
    ),
    (
        "vm_disk_errors",
        "Requests that the disk's file failed",
        |disk| disk.counters.errors,
    ),
    (
        "vm_disk_refused",
        "Requests beyond the disk or a limit, or of a kind that it does not know",
        |disk| disk.counters.refused,
    ),
    (
        "vm_disk_malformed",
        "Chains of the guest that were no request",
        |disk| disk.counters.malformed,
    ),
    (
        "vm_disk_broken_queues",
        "Times that the guest made the queue unusable",
        |disk| disk.counters.broken_queues,
    ),
];

const NET_BYTES: &[Named<NetView>] = &[
    ("vm_net_received", "What the guest received", |net| {
        net.counters.received_bytes
    }),
    ("vm_net_sent", "What the guest sent", |net| {
        net.counters.sent_bytes
    }),
];

const NET_COUNTERS: &[Named<NetView>] = &[
    ("vm_net_received_packets", "Packets to the guest", |net| {
        net.counters.received_packets
    }),
    ("vm_net_sent_packets", "Packets from the guest", |net| {
        net.counters.sent_packets
    }),
    (
        "vm_net_broken_queues",
        "Times that the guest made a queue unusable",
        |net| net.counters.broken_queues,
    ),
];

/// Packets that did not get through, by what was wrong.
const NET_LOST: &Kinds<NetView> = &[
    ("to guest, no room", |net| net.counters.received_no_room),
    ("to guest, unwanted", |net| net.counters.received_unwanted),
    ("too long", |net| net.counters.sent_too_long),
    ("bad header", |net| net.counters.sent_bad_header),
    ("refused by tap", |net| net.counters.sent_refused),
    ("malformed", |net| net.counters.malformed),
];

/// A disk by its place among those of its VM, from 0 on, as the guest finds them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDisk {
    vm: String,
    disk: u64,
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNet {
    vm: String,
    tap: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLoss {
    vm: String,
    tap: String,
    why: &'static str,
}

pub(super) fn register(registry: &mut Registry, vms: &[VmFigures]) {
    register_disks(registry, &disks(vms));
    register_nets(registry, &nets(vms));
}

fn disks(vms: &[VmFigures]) -> Vec<(OfDisk, &DiskView)> {
    let of_vm = |vm: &'_ VmFigures| vm.name.to_string();
    let disks = vms.iter().flat_map(|vm| {
        let numbered = (0..).zip(&vm.disks);
        numbered.map(move |(number, disk)| (of_vm(vm), number, disk))
    });
    disks
        .map(|(vm, number, disk)| {
            let path = disk.path.display().to_string();
            let label = OfDisk {
                vm,
                disk: number,
                path,
            };
            (label, disk)
        })
        .collect()
}

fn nets(vms: &[VmFigures]) -> Vec<(OfNet, &NetView)> {
    let nets = vms
        .iter()
        .flat_map(|vm| vm.nets.iter().map(move |net| (vm, net)));
    nets.map(|(vm, net)| {
        let label = OfNet {
            vm: vm.name.to_string(),
            tap: net.tap.to_string(),
        };
        (label, net)
    })
    .collect()
}

fn register_disks(registry: &mut Registry, disks: &[(OfDisk, &DiskView)]) {
    let sizes = Family::<OfDisk, Gauge>::default();
    for (label, disk) in disks {
        sizes.get_or_create(label).set(signed(disk.size_bytes));
    }
    registry.register_with_unit("vm_disk_size", "The disk's size", Unit::Bytes, sizes);
    for (name, help, figure) in DISK_BYTES {
        registry.register_with_unit(*name, *help, Unit::Bytes, counters(disks, *figure));
    }
    for (name, help, figure) in DISK_COUNTERS {
        registry.register(*name, *help, counters(disks, *figure));
    }
}

fn register_nets(registry: &mut Registry, nets: &[(OfNet, &NetView)]) {
    for (name, help, figure) in NET_BYTES {
        registry.register_with_unit(*name, *help, Unit::Bytes, counters(nets, *figure));
    }
    for (name, help, figure) in NET_COUNTERS {
        registry.register(*name, *help, counters(nets, *figure));
    }
    let lost = Family::<OfLoss, Counter>::default();
    for (OfNet { vm, tap }, net) in nets {
        for &(why, figure) in NET_LOST {
            let label = OfLoss {
                vm: vm.clone(),
                tap: tap.clone(),
                why,
            };
            lost.get_or_create(&label).inc_by(figure(net));
        }
    }
    registry.register(
        "vm_net_lost_packets",
        "Packets that did not get through, by what was wrong",
        lost,
    );
}

fn counters<L, D>(devices: &[(L, &D)], figure: fn(&D) -> u64) -> Family<L, Counter>
where
    L: Clone + Debug + Eq + Hash,
{
    let counters = Family::<L, Counter>::default();
    for (label, device) in devices {
        counters.get_or_create(label).inc_by(figure(device));
    }
    counters
}
