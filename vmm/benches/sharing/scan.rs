//! Looking over memory: the first time, and when nothing was written since.

use crate::contents::Contents;
use crate::guests::Host;
use crate::holder::{Holder, Job, Kind};
use crate::ksm::{self, Ksm, Progress, ZeroPages};
use crate::limit::Cold;
use crate::ours::Ours;
use crate::table::{Goal, Row, Samples};
use crate::{Options, cpu};
use anyhow::{Context, Result};
use std::thread::sleep;
use std::time::Duration;

const VMS: u64 = 4;
const PAGES: u64 = 128 << 8;
/// Guest memory, with room for the guest itself.
const GUEST_MIB: u64 = 160;
const GUEST_WORKLOAD: &str = "clone:size=128M,zero=0,common=0,rewrite=0";
/// Passes over unchanged memory, after one that only warms up.
const PASSES: u64 = 3;
/// With smart_scan, until it skips what it can.
const SMART_PASSES: u64 = 24;

/// Pages a second of a core.
#[derive(Default)]
struct Figures {
    /// Until each page would have been found by its equals.
    first: Samples,
    /// KSM's first pass, which only takes checksums.
    sums: Samples,
    later: Samples,
    smart: Samples,
}

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let (mut ksm, mut guests) = (Figures::default(), Figures::default());
    let (mut small, mut large) = (Figures::default(), Figures::default());
    let (mut small_copied, mut large_copied) = (Figures::default(), Figures::default());
    for _ in 0..options.rounds {
        our_processes(Kind::Vm, Way::Windows, &mut small)?;
        our_processes(Kind::LargeVm, Way::Windows, &mut large)?;
        our_processes(Kind::Vm, Way::Copies, &mut small_copied)?;
        our_processes(Kind::LargeVm, Way::Copies, &mut large_copied)?;
        our_guests(&mut guests)?;
        if options.has_ksm {
            measure_ksm(&mut ksm)?;
        }
    }
    let rate = "pages/CPU-s";
    let row = |what: &str, ours: &Samples, peer: &Samples| {
        Row::new(what, rate, ours.clone()).beside("KSM", peer.clone())
    };
    Ok(vec![
        row(
            "first pass, unique pages, guests",
            &guests.first,
            &ksm.first,
        )
        .goal(Goal::RatioAtLeast(7.0)),
        row(
            "first pass, unique pages, no guest, large pages",
            &large.first,
            &ksm.first,
        )
        .goal(Goal::RatioAtLeast(7.0)),
        row("the same, copied out", &large_copied.first, &ksm.first),
        row(
            "first pass, unique pages, no guest, small pages",
            &small.first,
            &ksm.first,
        ),
        row("the same, copied out", &small_copied.first, &ksm.first),
        Row::new(
            "large pages beside the pass that only takes checksums",
            rate,
            large.first.clone(),
        )
        .beside("KSM's first", ksm.sums.clone()),
        row(
            "later passes, nothing written, guests",
            &guests.later,
            &ksm.later,
        )
        .goal(Goal::RatioAtLeast(15.0)),
        row(
            "later passes, nothing written, no guest",
            &large.later,
            &ksm.later,
        ),
        Row::new("the same beside smart_scan", rate, guests.later.clone())
            .beside("KSM smart_scan", ksm.smart),
        Row::new("covered, not written, guests", rate, guests.later).goal(Goal::AtLeast(50e6)),
    ])
}

/// How memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As the scanner reads it.
    Windows,
    /// As it does where there are no windows.
    Copies,
}

/// The scanner over processes without a guest.
fn our_processes(kind: Kind, way: Way, figures: &mut Figures) -> Result<()> {
    let mut ours = Ours::prepare_in(kind, Contents::unique(PAGES), VMS)?;
    if way == Way::Copies {
        ours.copy()?;
    }
    ours.begin()?;
    // What it says while it is at its first pass, which takes a second: what it takes of a core is what counts.
    let mut first = None;
    loop {
        let report = ours.report()?;
        let all = report.totals.covered;
        if report.vms.values().any(|vm| vm.passes > 0) || all >= VMS * PAGES {
            break;
        }
        if all > VMS * PAGES / 10 {
            first = Some(all as f64 / report.cpu.as_secs_f64());
        }
        sleep(Duration::from_millis(20));
    }
    figures
        .first
        .add(first.context("it said nothing meanwhile")?);
    ours.hurry()?;
    let begin = ours.fresh_report()?;
    sleep(Duration::from_secs(2));
    let end = ours.fresh_report()?;
    let covered = end.totals.covered - begin.totals.covered;
    figures
        .later
        .add(covered as f64 / (end.cpu - begin.cpu).as_secs_f64());
    Ok(())
}

/// What a host says that its scanner did.
#[derive(Clone, Copy, Debug)]
struct Totals {
    covered: f64,
    read: f64,
    cpu_s: f64,
}

fn totals(host: &Host) -> Result<Totals> {
    let view = host.all()?;
    let totals = &view["host"]["sharing"]["totals"];
    let figure = |name: &str| {
        totals[name]
            .as_f64()
            .with_context(|| format!("totals have no {name}"))
    };
    Ok(Totals {
        covered: figure("covered")?,
        read: figure("read")?,
        cpu_s: figure("cpu_us")? / 1e6,
    })
}

/// The scanner of a host over embedded guests.
fn our_guests(figures: &mut Figures) -> Result<()> {
    let host = Host::start()?;
    for number in 0..VMS {
        let name = format!("vm{number}");
        host.run(&name, GUEST_MIB, "bench", GUEST_WORKLOAD)?;
        host.wait_until(&name, "/memory_file_bytes", PAGES * 4096)?;
    }
    // As when memory has become short: what was made large is shared in.
    host.call(&["set", "host", "large-pages=off"])?;
    let before = totals(&host)?;
    // So slow that its first pass can be caught at work: what it takes of a core is what counts.
    host.share(2)?;
    let all = ((VMS * GUEST_MIB) << 8) as f64;
    let mut first = before;
    for _ in 0..40 {
        sleep(Duration::from_millis(100));
        let now = totals(&host)?;
        if now.covered - before.covered > all * 0.9 {
            break;
        }
        first = now;
    }
    figures
        .first
        .add((first.read - before.read) / (first.cpu_s - before.cpu_s));
    sleep(Duration::from_secs(4));
    let (begin, cpu_begin) = (totals(&host)?, cpu::of_threads(host.pid(), "scanner")?);
    sleep(Duration::from_secs(4));
    let (end, cpu_end) = (totals(&host)?, cpu::of_threads(host.pid(), "scanner")?);
    figures
        .later
        .add((end.covered - begin.covered) / (end.cpu_s - begin.cpu_s));
    let said = end.cpu_s - begin.cpu_s;
    let counted = (cpu_end - cpu_begin).as_secs_f64();
    if (said / counted - 1.0).abs() > 0.2 {
        eprintln!("  the scanner says {said:.2} s of a core, the kernel {counted:.2} s");
    }
    Ok(())
}

fn measure_ksm(figures: &mut Figures) -> Result<()> {
    let ksm = Ksm::prepare(ZeroPages::Merged)?;
    let _holders = hold(Contents::unique(PAGES), VMS)?;
    let all = VMS * PAGES;
    let start = Progress::now()?;
    ksm.run()?;
    let sums = ksm::wait_until_covered(start, all)?;
    figures.sums.add(sums.covered_per_cpu_s(start));
    let warm = ksm::wait_until_covered(sums, all)?;
    // KSM looks for a page's equals only when it meets the page again, unchanged.
    figures.first.add(warm.covered_per_cpu_s(start) / 2.0);
    let later = ksm::wait_until_covered(warm, PASSES * all)?;
    figures.later.add(later.covered_per_cpu_s(warm));
    if ksm.set_smart_scan(true)? {
        let warm = ksm::wait_until_covered(Progress::now()?, SMART_PASSES * all)?;
        let smart = ksm::wait_until_covered(warm, SMART_PASSES * all)?;
        figures.smart.add(smart.covered_per_cpu_s(warm));
    }
    ksm.stop()
}

/// Processes whose memory KSM may merge, filled.
pub(crate) fn hold(contents: Contents, count: u64) -> Result<Vec<Holder>> {
    let job = |vm| Job {
        kind: Kind::Mergeable,
        vm,
        contents,
    };
    let holders: Result<Vec<Holder>> = (0..count).map(|vm| Holder::start(&job(vm))).collect();
    let mut holders = holders?;
    holders.iter_mut().try_for_each(Holder::wait_until_filled)?;
    Ok(holders)
}

/// Hashing alone, as a library does it.
pub(crate) fn limit_rows(options: &Options) -> Result<Vec<Row>> {
    let cold = Cold::new()?;
    let (mut mapped, mut file) = (Samples::default(), Samples::default());
    for _ in 0..options.rounds.max(3) {
        mapped.add(cold.hash_mapped());
        file.add(cold.hash_file()?);
    }
    Ok(vec![
        Row::new("limit: xxh3 over cold mapped memory", "ns/page", mapped),
        Row::new("limit: pread by 256 KiB, then xxh3", "ns/page", file),
    ])
}
