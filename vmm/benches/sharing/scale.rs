//! Many shared pages in one process: memory areas, what a request costs, and how long its end takes.

use crate::Options;
use crate::contents::{Contents, Pattern, Places};
use crate::ours::Ours;
use crate::restore::Changed;
use crate::table::{Row, Samples};
use anyhow::Result;

const MAP_COUNT: &str = "/proc/sys/vm/max_map_count";

pub(crate) fn rows(options: &Options) -> Result<Vec<Row>> {
    let limit = (options.shared_pages * 8).max(65_530);
    let _raised = match Changed::set(MAP_COUNT, &limit.to_string()) {
        Ok(raised) => raised,
        Err(error) => {
            eprintln!("  skipped: more memory areas are not to be had: {error:#}");
            return Ok(Vec::new());
        }
    };
    let mut rows = Vec::new();
    let many = options.shared_pages;
    for (what, run, pages) in [
        ("lone", 1, many / 10),
        ("lone", 1, many),
        ("runs of 64", 64, many),
    ] {
        rows.extend(measure(
            &format!("{pages} shared pages, {what}"),
            run,
            pages,
        )?);
    }
    Ok(rows)
}

fn measure(what: &str, run: u64, shared: u64) -> Result<[Row; 4]> {
    let contents = Contents {
        pages: shared * 2,
        run,
        pattern: Pattern::Alternating,
        places: Places::Shuffled,
    };
    let mut ours = Ours::prepare(contents, 2)?;
    let areas_before = ours.areas(0)?;
    ours.begin()?;
    let reached = ours.wait_until_saved(contents.ideal_saving(2) / 100 * 98)?;
    let requests = ours.fresh_report()?.totals.requests;
    let areas = ours.areas(0)? - areas_before;
    let end = ours.vms().remove(0).end()?;
    let apart = Ours::prepare(contents, 1)?.vms().remove(0).end()?;
    let one = |value: f64| Samples::from_iter([value]);
    let agents_us = reached.agents.as_secs_f64() * 1e6;
    Ok([
        Row::new(format!("{what}: areas added"), "areas", one(areas as f64)),
        Row::new(
            format!("{what}: agents' time"),
            "µs/shared page",
            one(agents_us / (2 * shared) as f64),
        ),
        Row::new(
            format!("{what}: agents' time"),
            "µs/request",
            one(agents_us / requests as f64),
        ),
        Row::new(
            format!("{what}: end of the process"),
            "ms",
            one(end.as_secs_f64() * 1e3),
        )
        .beside("nothing shared", one(apart.as_secs_f64() * 1e3)),
    ])
}
