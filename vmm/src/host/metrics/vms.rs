//! Metrics of VMs.

use super::metric::{Histogram, Labels, Metric};
use api::{Reading, VM_FIGURES, VmFigures};
use page::PageState;
use policy::{BalloonHealth, Witness};
use protocol::Latencies;

const WITNESS: [&str; 5] = ["silent", "senseless", "agrees", "says_idler", "says_busier"];
const HEALTH: [&str; 3] = ["settled", "following", "stuck"];

pub(super) fn metrics(vms: &[VmFigures]) -> Vec<Metric> {
    let labelled: Vec<(Labels, &VmFigures)> = vms.iter().map(|vm| (label(vm), vm)).collect();
    let states = vms.iter().flat_map(|vm| {
        let states = vm.states();
        let read = |(state, bytes): (PageState, u64)| (state.name(), Reading::Size(bytes));
        with(vm, "state", states.iter().map(read).collect())
    });
    let active = vms.iter().flat_map(|vm| {
        let averages = [("current", vm.actv), ("slow", vm.actvs), ("fast", vm.actvf)];
        let read =
            averages.map(|(word, part)| (word, part.map_or(Reading::Unknown, Reading::Percent)));
        with(vm, "average", read.into())
    });
    let mut metrics = Metric::of_table(VM_FIGURES, &labelled);
    metrics.extend([
        Metric::gauge(
            "vms",
            "VMs that there are",
            [(Labels::new(), Reading::Number(vms.len() as u64))],
        ),
        Metric::gauge(
            "vm_memory",
            "Guest memory by state: adds up to the size",
            states,
        ),
        Metric::gauge(
            "vm_active",
            "The part of the VM's memory that was touched: the three averages of esxtop (%ACTV)",
            active,
        ),
        Metric::gauge(
            "vm_witness",
            "How the guest's word compares with what it touches: what holds is 1",
            words(vms, &WITNESS, |vm| vm.witness.map(witness)),
        ),
        Metric::gauge(
            "vm_balloon_health",
            "How the VM's balloon follows: what holds is 1",
            words(vms, &HEALTH, |vm| vm.balloon_health.map(health)),
        ),
    ]);
    metrics
}

/// How long touches of pages that were out waited: of those VMs of which any did.
pub(super) fn waits(vms: &[VmFigures]) -> Histogram {
    let samples = vms.iter().flat_map(|vm| {
        let of = |tier: &str, waits: Latencies| {
            let mut labels = label(vm);
            labels.push(("tier", tier.into()));
            (labels, waits)
        };
        [of("pool", vm.pool_waits), of("file", vm.file_waits)]
    });
    Histogram {
        name: "vm_swap_fault",
        help: "How long touches of pages that were out waited, by where they lay",
        samples: samples.filter(|(_, waits)| waits.count() > 0).collect(),
    }
}

pub(super) fn label(vm: &VmFigures) -> Labels {
    vec![("vm", vm.name.to_string())]
}

/// Samples of a VM by a word.
fn with(
    vm: &VmFigures,
    label_of_word: &'static str,
    samples: Vec<(&'static str, Reading)>,
) -> impl Iterator<Item = (Labels, Reading)> {
    let labels = label(vm);
    samples.into_iter().map(move |(word, reading)| {
        let mut labels = labels.clone();
        labels.push((label_of_word, word.into()));
        (labels, reading)
    })
}

/// A sample for each word, of which the one that holds is 1.
fn words(
    vms: &[VmFigures],
    words: &[&'static str],
    word_of: impl Fn(&VmFigures) -> Option<&'static str>,
) -> Vec<(Labels, Reading)> {
    let known = vms.iter().filter_map(|vm| Some((vm, word_of(vm)?)));
    let samples = known.flat_map(|(vm, holds)| {
        let flags = words
            .iter()
            .map(|&word| (word, Reading::Flag(word == holds)));
        with(vm, "state", flags.collect())
    });
    samples.collect()
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
