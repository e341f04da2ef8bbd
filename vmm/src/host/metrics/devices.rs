//! Metrics of VMs' disks and network cards.

use super::metric::{Labels, Metric};
use super::vms::label;
use api::Reading::{self, Number, Size};
use api::{DiskView, Figure, NetView, VmFigures};

/// A count of a device.
const fn total<D>(metric: &'static str, help: &'static str, read: fn(&D) -> Reading) -> Figure<D> {
    Figure {
        metric,
        is_total: true,
        ..Figure::new(help, read)
    }
}

const DISK_TOTALS: [Figure<DiskView>; 11] = [
    total("vm_disk_read", "What the guest read", |disk| {
        Size(disk.counters.read_bytes)
    }),
    total("vm_disk_written", "What the guest wrote", |disk| {
        Size(disk.counters.written_bytes)
    }),
    total("vm_disk_reads", "Reads carried out", |disk| {
        Number(disk.counters.reads)
    }),
    total("vm_disk_writes", "Writes carried out", |disk| {
        Number(disk.counters.writes)
    }),
    total("vm_disk_flushes", "Flushes carried out", |disk| {
        Number(disk.counters.flushes)
    }),
    total(
        "vm_disk_discards",
        "Requests carried out that gave sectors up",
        |disk| Number(disk.counters.discards),
    ),
    total(
        "vm_disk_zeroings",
        "Requests carried out that zeroed sectors",
        |disk| Number(disk.counters.zeroings),
    ),
    total(
        "vm_disk_errors",
        "Requests that the disk's file failed",
        |disk| Number(disk.counters.errors),
    ),
    total(
        "vm_disk_refused",
        "Requests beyond the disk or a limit, or of a kind that it does not know",
        |disk| Number(disk.counters.refused),
    ),
    total(
        "vm_disk_malformed",
        "Chains of the guest that were no request",
        |disk| Number(disk.counters.malformed),
    ),
    total(
        "vm_disk_broken_queues",
        "Times that the guest made the queue unusable",
        |disk| Number(disk.counters.broken_queues),
    ),
];

const NET_TOTALS: [Figure<NetView>; 5] = [
    total("vm_net_received", "What the guest received", |net| {
        Size(net.counters.received_bytes)
    }),
    total("vm_net_sent", "What the guest sent", |net| {
        Size(net.counters.sent_bytes)
    }),
    total("vm_net_received_packets", "Packets to the guest", |net| {
        Number(net.counters.received_packets)
    }),
    total("vm_net_sent_packets", "Packets from the guest", |net| {
        Number(net.counters.sent_packets)
    }),
    total(
        "vm_net_broken_queues",
        "Times that the guest made a queue unusable",
        |net| Number(net.counters.broken_queues),
    ),
];

type Lost = fn(&NetView) -> u64;

/// Packets that did not get through, by what was wrong.
const NET_LOST: [(&str, Lost); 6] = [
    ("to guest, no room", |net| net.counters.received_no_room),
    ("to guest, unwanted", |net| net.counters.received_unwanted),
    ("too long", |net| net.counters.sent_too_long),
    ("bad header", |net| net.counters.sent_bad_header),
    ("refused by tap", |net| net.counters.sent_refused),
    ("malformed", |net| net.counters.malformed),
];

pub(super) fn metrics(vms: &[VmFigures]) -> Vec<Metric> {
    let (disks, nets) = (disks(vms), nets(vms));
    let sizes = disks
        .iter()
        .map(|(labels, disk)| (labels.clone(), Size(disk.size_bytes)));
    let lost = nets.iter().flat_map(|(labels, net)| {
        NET_LOST.map(|(why, figure)| {
            let mut labels = labels.clone();
            labels.push(("why", why.into()));
            (labels, Number(figure(net)))
        })
    });
    let mut metrics = vec![
        Metric::gauge("vm_disk_size", "The disk's size", sizes),
        Metric::total(
            "vm_net_lost_packets",
            "Packets that did not get through, by what was wrong",
            lost,
        ),
    ];
    metrics.extend(Metric::of_table(&DISK_TOTALS, &disks));
    metrics.extend(Metric::of_table(&NET_TOTALS, &nets));
    metrics
}

/// A disk by its place among those of its VM, from 0 on, as the guest finds them.
fn disks(vms: &[VmFigures]) -> Vec<(Labels, &DiskView)> {
    let disks = vms.iter().flat_map(|vm| {
        vm.disks.iter().enumerate().map(|(number, disk)| {
            let mut labels = label(vm);
            labels.push(("disk", number.to_string()));
            labels.push(("path", disk.path.display().to_string()));
            (labels, disk)
        })
    });
    disks.collect()
}

fn nets(vms: &[VmFigures]) -> Vec<(Labels, &NetView)> {
    let nets = vms.iter().flat_map(|vm| {
        vm.nets.iter().map(|net| {
            let mut labels = label(vm);
            labels.push(("tap", net.tap.to_string()));
            (labels, net)
        })
    });
    nets.collect()
}
