//! Write cost against utilisation, two policies and two patterns, beside the paper.

use crate::chart::{self, Axes, Line};
use crate::paper;
use crate::simulation::{Pattern, Result, Setting, simulate};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use swap::CleaningPolicy;
use swap::figures::COLUMNS;

const PERCENTS: [u64; 9] = [20, 30, 40, 50, 60, 70, 75, 80, 90];
const KINDS: [(&str, CleaningPolicy, Pattern); 4] = [
    ("uniform, greedy", CleaningPolicy::Greedy, Pattern::Uniform),
    (
        "uniform, cost-benefit",
        CleaningPolicy::CostBenefit,
        Pattern::Uniform,
    ),
    (
        "hot and cold, greedy",
        CleaningPolicy::Greedy,
        Pattern::HotAndCold,
    ),
    (
        "hot and cold, cost-benefit",
        CleaningPolicy::CostBenefit,
        Pattern::HotAndCold,
    ),
];
/// At which the paper shows how segments are filled.
const SHOWN: u64 = 75;

type Results = Vec<(usize, u64, Result)>;

pub(crate) fn run(out: &Path) -> std::io::Result<()> {
    let results = simulate_all();
    print_costs(&results);
    print_segments(&results);
    paper::REMARKS
        .iter()
        .for_each(|remark| println!("* Paper: {remark}."));
    std::fs::write(out.join("write-cost.csv"), csv(&results))?;
    let costs = chart::svg(&cost_axes(), &cost_lines(&results));
    std::fs::write(out.join("write-cost.svg"), costs)?;
    let segments = chart::svg(&segment_axes(), &segment_lines(&results));
    std::fs::write(out.join("segments.svg"), segments)?;
    println!(
        "\nwrite-cost.svg, segments.svg and write-cost.csv are in {}",
        out.display()
    );
    Ok(())
}

/// On two processors, the longest first.
fn simulate_all() -> Results {
    let all = PERCENTS
        .iter()
        .flat_map(|&u| (0..KINDS.len()).map(move |kind| (kind, u)));
    let (todo, done) = (Mutex::new(all.collect::<Vec<_>>()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let next = todo.lock().unwrap().pop();
            let Some((kind, percent)) = next else {
                return;
            };
            let (_, policy, pattern) = KINDS[kind];
            let result = simulate(Setting {
                percent,
                policy,
                pattern,
            });
            done.lock().unwrap().push((kind, percent, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    done.into_inner().unwrap()
}

fn part(percent: u64) -> f64 {
    percent as f64 / 100.0
}

fn find(results: &Results, kind: usize, percent: u64) -> &Result {
    let found = results.iter().find(|&&(k, u, _)| k == kind && u == percent);
    &found.unwrap().2
}

fn known(points: &[(f64, f64)], percent: u64) -> String {
    let at = points.iter().find(|(u, _)| *u == part(percent));
    at.map_or(String::new(), |(_, cost)| format!("{cost:.1}"))
}

fn print_costs(results: &Results) {
    println!("\nWrite cost (disk traffic for each new byte, reads of the cleaner included):\n");
    let kinds = KINDS.map(|(name, ..)| name).join(" | ");
    println!(
        "| utilisation | {kinds} | paper: no variance | uniform, greedy | hot and cold, cost-benefit |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for u in PERCENTS {
        let ours = [0, 1, 2, 3].map(|kind| format!("{:.2}", find(results, kind, u).write_cost));
        println!(
            "| {u} % | {} | {:.1} | {} | {} |",
            ours.join(" | "),
            paper::no_variance(part(u)),
            known(&paper::UNIFORM_GREEDY, u),
            known(&paper::HOT_COST_BENEFIT, u)
        );
    }
}

fn print_segments(results: &Results) {
    println!("\nSegments of a file {SHOWN} % full, by utilisation, in percent of them:\n",);
    let columns = (0..COLUMNS)
        .map(|column| format!("{}", column * 10))
        .collect::<Vec<_>>()
        .join(" | ");
    println!("| | cleaned at | {columns} |");
    println!("| --- | --- |{}", " --- |".repeat(COLUMNS));
    for (kind, (name, ..)) in KINDS.iter().enumerate() {
        let parts = segments(results, kind).map(|part| format!("{:.0}", part * 100.0));
        println!(
            "| {name} | {:.0} % | {} |",
            find(results, kind, SHOWN).cleaned_at * 100.0,
            parts.join(" | ")
        );
    }
    println!();
}

/// The part of all segments that is in each column.
fn segments(results: &Results, kind: usize) -> [f64; COLUMNS] {
    let counts = find(results, kind, SHOWN).file.utilisation;
    let all: u64 = counts.iter().sum();
    counts.map(|count| count as f64 / all as f64)
}

fn segment_axes() -> Axes {
    Axes {
        caption: format!("Segments of a file {SHOWN} % full, by what is needed of them"),
        x: "part of the segment that is needed",
        x_range: 0.0..1.0,
        y: "part of all segments",
        y_most: 0.6,
    }
}

fn segment_lines(results: &Results) -> Vec<Line> {
    let middle = |column: usize| (column as f64 + 0.5) / COLUMNS as f64;
    let line = |(kind, (name, ..)): (usize, &(&str, _, _))| Line {
        name: (*name).to_owned(),
        points: (0..COLUMNS)
            .map(middle)
            .zip(segments(results, kind))
            .collect(),
        is_line: true,
        has_points: true,
    };
    KINDS.iter().enumerate().map(line).collect()
}

fn cost_axes() -> Axes {
    Axes {
        caption: "Write cost of the swap log's cleaner".to_owned(),
        x: "part of the file that is needed",
        x_range: 0.1..1.0,
        y: "disk traffic for each new byte",
        y_most: 14.0,
    }
}

fn csv(results: &Results) -> String {
    let mut csv = String::from("utilisation,kind,write_cost,cleaned_at");
    (0..COLUMNS).for_each(|column| write!(csv, ",segments_from_{}_percent", column * 10).unwrap());
    for u in PERCENTS {
        for (kind, (name, ..)) in KINDS.iter().enumerate() {
            let result = find(results, kind, u);
            write!(
                csv,
                "\n{u},{},{:.3},{:.3}",
                name.replace(',', ""),
                result.write_cost,
                result.cleaned_at
            )
            .unwrap();
            result
                .file
                .utilisation
                .iter()
                .for_each(|count| write!(csv, ",{count}").unwrap());
        }
    }
    csv + "\n"
}

fn cost_lines(results: &Results) -> Vec<Line> {
    let ours = |(kind, (name, ..)): (usize, &(&str, _, _))| Line {
        name: (*name).to_owned(),
        points: PERCENTS
            .map(|u| (part(u), find(results, kind, u).write_cost))
            .to_vec(),
        is_line: true,
        has_points: true,
    };
    let paper = |name: &str, points: &[(f64, f64)]| Line {
        name: format!("paper: {name}"),
        points: points.to_vec(),
        is_line: points.len() > 1,
        has_points: points.len() == 1,
    };
    let no_variance: Vec<_> = (4..=17)
        .map(|n| f64::from(n) / 20.0)
        .map(|u| (u, paper::no_variance(u)))
        .collect();
    let mut lines: Vec<Line> = KINDS.iter().enumerate().map(ours).collect();
    lines.push(paper("no variance", &no_variance));
    lines.push(paper("uniform, greedy", &paper::UNIFORM_GREEDY));
    lines.push(paper(
        "hot and cold, cost-benefit",
        &paper::HOT_COST_BENEFIT,
    ));
    lines
}
