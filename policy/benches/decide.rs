//! How long the policy takes to decide on ten thousand VMs, which a host with as many would do every
//! second. Prints a table of medians; asserts nothing.
#![allow(missing_docs, reason = "a program, not a library")]
#![allow(clippy::cast_precision_loss, reason = "figures for people to read")]

use page::{PageCount, VmId};
use policy::{
    ActiveSet, BalloonRound, Evidence, GuestFigures, SharesSpec, Snapshot, Stage, TaxRate,
    VmSettings, VmSnapshot, plan, targets,
};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

const ROUNDS: usize = 31;

fn main() {
    println!("| what | VMs | ms: median (least to most) |");
    println!("| --- | --- | --- |");
    for count in [100, 1000, 10_000] {
        let snapshot = snapshot(count);
        row("targets", count, || targets(black_box(&snapshot)).len());
        row("plan", count, || plan(black_box(&snapshot)).steps.len());
    }
}

fn row(what: &str, count: u32, decide: impl Fn() -> usize) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            black_box(decide());
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    let ms = |index: usize| times[index].as_secs_f64() * 1e3;
    println!(
        "| {what} | {count} | {:.2} ({:.2} to {:.2}) |",
        ms(ROUNDS / 2),
        ms(0),
        ms(ROUNDS - 1)
    );
}

/// A host with half of the memory that its VMs were promised, and everything known of them.
fn snapshot(count: u32) -> Snapshot {
    let vms: Vec<VmSnapshot> = (0..count).map(vm).collect();
    let sizes: u64 = vms.iter().map(|vm| vm.settings.size.0).sum();
    Snapshot {
        budget: PageCount(sizes / 2),
        idle_tax: TaxRate::default(),
        balloon: Some(BalloonRound {
            elapsed_ms: 1000,
            ..BalloonRound::default()
        }),
        vms,
        ..Snapshot::default()
    }
}

fn vm(id: u32) -> VmSnapshot {
    let number = u64::from(id);
    let size = PageCount::from_mebibytes(64 + number * 7919 % 4096);
    let shares = SharesSpec::Count(NonZeroU32::MIN.saturating_add(id * 31 % 500));
    let part = |percent: u64| PageCount(size.0 * percent / 100);
    let (held, active) = (part(20 + number * 17 % 60), part(number * 13 % 80));
    let settings = VmSettings::new(size, Some(part(10)), None, shares);
    VmSnapshot {
        id: VmId(id),
        settings: settings.expect("these make sense"),
        overhead: policy::OVERHEAD,
        ballooned: size - held,
        granted: held,
        told: None,
        pinned: None,
        stage: Stage::Running,
        evidence: Evidence {
            active: Some(ActiveSet {
                pages: active,
                likely: active,
                low: active,
                high: active,
                held,
                ..ActiveSet::default()
            }),
            guest: Some(GuestFigures {
                held,
                available: Some(part(5)),
                ..GuestFigures::default()
            }),
            ..Evidence::default()
        },
    }
}
