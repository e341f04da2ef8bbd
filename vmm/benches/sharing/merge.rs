//! Making equal pages one: what of a core that takes from scratch, scanning included.

use crate::Options;
use crate::contents::{Contents, Pattern, Places};
use crate::cpu;
use crate::ksm::{self, Ksm, Progress, ZeroPages};
use crate::ours::Ours;
use crate::scan::hold;
use crate::table::{Goal, Row, Samples};
use anyhow::Result;

const VMS: u64 = 4;
/// What counts as done, in percent of what can be saved.
const DONE_PERCENT: u64 = 98;

/// Pages merged for each second of a core, in processes where every second group is equal.
pub(crate) fn rate_rows(options: &Options) -> Result<Vec<Row>> {
    let cases = [
        (
            "lone pages, other places in each VM",
            1,
            Places::Shuffled,
            Some(1.5),
        ),
        ("lone pages, same places in all VMs", 1, Places::Same, None),
        ("runs of 8, other places", 8, Places::Shuffled, Some(5.0)),
        ("runs of 64, other places", 64, Places::Shuffled, Some(10.0)),
    ];
    let mut rows = Vec::new();
    for (what, run, places, goal) in cases {
        let contents = Contents {
            pages: 64 << 8,
            run,
            pattern: Pattern::Alternating,
            places,
        };
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for _ in 0..options.rounds {
            let outcome = merge(contents, options)?;
            ours.add(outcome.saved as f64 / outcome.ours_s);
            outcome
                .ksm_s
                .iter()
                .for_each(|time| theirs.add(outcome.ideal as f64 / time));
        }
        let row = Row::new(format!("merged: {what}"), "pages/CPU-s", ours).beside("KSM", theirs);
        rows.push(match goal {
            Some(goal) => row.goal(Goal::RatioAtLeast(goal)),
            None => row,
        });
    }
    Ok(rows)
}

/// Seconds of a core until 1 GiB in four is as small as it can be, and what tables take.
pub(crate) fn gibibyte_rows(options: &Options) -> Result<Vec<Row>> {
    let cases = [
        ("lone pages, same places", 1, Places::Same, 0.5),
        ("lone pages, other places", 1, Places::Shuffled, 0.5),
        ("runs of 64, same places", 64, Places::Same, 0.2),
    ];
    let (mut rows, mut tables) = (Vec::new(), TableFigures::default());
    for (what, run, places, goal) in cases {
        let contents = Contents {
            pages: 256 << 8,
            run,
            pattern: Pattern::Drawn {
                zero: 25,
                common: 35,
            },
            places,
        };
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for _ in 0..options.rounds {
            let outcome = merge(contents, options)?;
            ours.add(outcome.ours_s);
            outcome.ksm_s.into_iter().for_each(|time| theirs.add(time));
            tables.add(&outcome, contents.pages * VMS);
        }
        let what = format!("1 GiB to {DONE_PERCENT} % of ideal: {what}");
        rows.push(
            Row::new(what, "CPU-s", ours)
                .beside("KSM", theirs)
                .goal(Goal::RatioAtMost(goal)),
        );
    }
    rows.extend(tables.rows());
    Ok(rows)
}

#[derive(Default)]
struct TableFigures {
    index: Samples,
    all: Samples,
    ksm: Samples,
}

impl TableFigures {
    fn add(&mut self, outcome: &Outcome, pages: u64) {
        self.index.add(outcome.index_bytes as f64 / pages as f64);
        self.all.add(outcome.table_bytes as f64 / pages as f64);
        outcome
            .ksm_bytes
            .iter()
            .for_each(|&bytes| self.ksm.add(bytes as f64 / pages as f64));
    }

    fn rows(self) -> Vec<Row> {
        vec![
            Row::new("index", "bytes/page", self.index).goal(Goal::AtMost(16.0)),
            Row::new("all tables of the scanner", "bytes/page", self.all)
                .beside("KSM, unreclaimable slab", self.ksm),
        ]
    }
}

struct Outcome {
    ideal: u64,
    saved: u64,
    ours_s: f64,
    index_bytes: usize,
    table_bytes: usize,
    ksm_s: Option<f64>,
    ksm_bytes: Option<u64>,
}

/// The same contents, ours and then KSM's.
fn merge(contents: Contents, options: &Options) -> Result<Outcome> {
    let ideal = contents.ideal_saving(VMS);
    let target = ideal * DONE_PERCENT / 100;
    let mut ours = Ours::prepare(contents, VMS)?;
    ours.begin()?;
    let reached = ours.wait_until_saved(target)?;
    let report = ours.fresh_report()?;
    let counters = report.totals;
    if options.is_verbose {
        let (scanner, agents) = (reached.scanner, reached.agents);
        eprintln!(
            "  {contents:?}: {} of {ideal} saved, scanner {scanner:?}, agents {agents:?}, {counters:?}",
            reached.saved
        );
    }
    drop(ours);
    let mut outcome = Outcome {
        ideal,
        saved: reached.saved,
        ours_s: reached.cpu().as_secs_f64(),
        index_bytes: report.counts.index.bytes,
        table_bytes: report.counts.table_bytes,
        ksm_s: None,
        ksm_bytes: None,
    };
    if options.has_ksm {
        let (time, bytes) = merge_by_ksm(contents, target)?;
        (outcome.ksm_s, outcome.ksm_bytes) = (Some(time), Some(bytes));
    }
    Ok(outcome)
}

/// Seconds of ksmd, and what its tables took.
fn merge_by_ksm(contents: Contents, target: u64) -> Result<(f64, u64)> {
    let ksm = Ksm::prepare(ZeroPages::Merged)?;
    let holders = hold(contents, VMS)?;
    let slab = || cpu::kibibytes("/proc/meminfo", "SUnreclaim");
    let (before, slab_before) = (Progress::now()?, slab()?);
    ksm.run()?;
    ksm::wait_until_saved(target)?;
    let time = Progress::now()?.cpu - before.cpu;
    let bytes = slab()?.saturating_sub(slab_before) * 1024;
    ksm.stop()?;
    drop(holders);
    Ok((time.as_secs_f64(), bytes))
}
