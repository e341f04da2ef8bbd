//! `ballonet experiment`: recipes for measurements, and what comes out of them.

mod density;
mod files;
mod perform;
mod progress;
mod qemu_guest;

use super::args::{ExperimentArgs, ExperimentCommand};
use super::host::end_signal;
use super::{print, show, table, tell};
use crate::host::MachineMemory;
use crate::regular_file::read_text;
use anyhow::{Context, Result, anyhow, bail};
use api::VmKind;
use experiment::builtin::{BUILT_IN, BuiltIn, DENSITY};
use experiment::density::Density;
use experiment::outcome::{Outcome, Performed};
use experiment::plan::{Run, plan};
use experiment::report::{Circumstances, Report};
use experiment::scenario::Scenario;
use files::Files;
use perform::{Looks, perform};
use progress::Progress;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

/// Bytes of an experiment's file.
const LARGEST: u64 = 1 << 24;

pub(super) async fn experiment(command: ExperimentCommand) -> Result<()> {
    match command {
        ExperimentCommand::List { json } => list(json),
        ExperimentCommand::Show { name } => print(built_in(&name)?.text),
        ExperimentCommand::Run(args) => run(&args).await,
    }
}

/// A built-in experiment, as a list shows it.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    title: String,
    paper: Option<String>,
    /// How long it takes.
    seconds: u64,
}

fn list(json: bool) -> Result<()> {
    let listed = BUILT_IN.iter().map(listed).chain([listed_density()]);
    let listed: Vec<Listed> = listed.collect::<Result<_>>()?;
    let row = |listed: &Listed| {
        vec![
            listed.name.clone(),
            format!("{} s", listed.seconds),
            listed.paper.clone().unwrap_or_else(|| "-".into()),
            listed.title.clone(),
        ]
    };
    let header = ["NAME", "TAKES", "PAPER", "SHOWS"];
    show(json, &listed, |listed| {
        table::aligned(&header, listed.iter().map(row))
    })
}

fn listed(built_in: &BuiltIn) -> Result<Listed> {
    let scenario = Scenario::parse(built_in.text)?;
    let runs = plan(&scenario, built_in.text)?.len() as u64;
    Ok(Listed {
        seconds: runs * u64::from(scenario.seconds),
        name: scenario.name,
        title: scenario.title,
        paper: scenario.paper,
    })
}

fn listed_density() -> Result<Listed> {
    let density = Density::parse(DENSITY.text, false, &[])?;
    Ok(Listed {
        seconds: density.seconds(),
        name: density.name,
        title: density.title,
        paper: None,
    })
}

fn built_in(name: &str) -> Result<&'static BuiltIn> {
    let mut known = BUILT_IN.iter().chain([&DENSITY]);
    let names: Vec<&str> = known.clone().map(|built_in| built_in.name).collect();
    known.find(|built_in| built_in.name == name).ok_or_else(|| {
        anyhow!(
            "'{name}' is no built-in experiment: there are {}",
            names.join(", ")
        )
    })
}

/// An experiment as it was asked for.
struct Wanted {
    scenario: Scenario,
    text: String,
    runs: Vec<Run>,
    /// What is lost on guests of QEMU, if it has any.
    lost_on_qemu: Vec<String>,
}

async fn run(args: &ExperimentArgs) -> Result<()> {
    if std::env::var_os("RUST_LOG").is_some() {
        super::host::start_log(None)?;
    }
    let text = text_of(args)?;
    if Density::is_meant(&text) {
        return density::run(args, &text).await;
    }
    if args.quick {
        bail!(
            "{} is as long as it says: --quick is for density",
            args.scenario
        );
    }
    let wanted = wanted(args, text)?;
    if wanted.runs.iter().any(|run| run.vmm == VmKind::Qemu)
        && let Some(problem) = qemu_guest::problem()
    {
        bail!("{problem}, or leave QEMU out with --vmm ballonet");
    }
    for lost in &wanted.lost_on_qemu {
        tell(&format!("lost on guests of QEMU: {lost}\n"));
    }
    let default = || PathBuf::from(format!("experiment-{}", wanted.scenario.name));
    // Before anything runs: what cannot be written need not be measured.
    let mut files = Files::make(args.out.clone().unwrap_or_else(default))?;
    let performed = perform_all(&wanted).await?;
    let outcome = Outcome::of(&wanted.scenario, &performed);
    let report = Report {
        scenario: &wanted.scenario,
        text: &wanted.text,
        outcome: &outcome,
        circumstances: circumstances(command_line(args, &wanted.scenario)),
        runs: performed.len(),
        lost_on_qemu: &wanted.lost_on_qemu,
    };
    files.write(&report, &performed)?;
    show(args.json, &report.as_data(files.names()), |_| {
        let (verdicts, file) = (report.verdicts(), files.path("report.md"));
        format!("{verdicts}\nThe report is {}.\n", file.display())
    })?;
    let missed = outcome.missed().count();
    if args.check && missed > 0 {
        bail!("{missed} of {} results are missed", outcome.results.len());
    }
    Ok(())
}

fn text_of(args: &ExperimentArgs) -> Result<String> {
    let is_file = args.scenario.ends_with(".toml") || args.scenario.contains('/');
    match is_file {
        true => read_text(Path::new(&args.scenario), LARGEST)
            .with_context(|| format!("cannot read {}", args.scenario)),
        false => Ok(built_in(&args.scenario)?.text.to_owned()),
    }
}

fn wanted(args: &ExperimentArgs, text: String) -> Result<Wanted> {
    let parsed = Scenario::parse(&text);
    let mut scenario = parsed.with_context(|| format!("{} is refused", args.scenario))?;
    scenario.repetitions = args.repetitions.unwrap_or(scenario.repetitions);
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    let kinds = kinds(&args.sides)?;
    if !kinds.is_empty() {
        scenario.run_by(&kinds);
    }
    let runs = plan(&scenario, &text).with_context(|| format!("{} is refused", args.scenario))?;
    Ok(Wanted {
        lost_on_qemu: scenario.lost_on_qemu(&runs),
        runs,
        scenario,
        text,
    })
}

/// Who is to run VMs, as it was typed.
fn kinds(sides: &[String]) -> Result<Vec<VmKind>> {
    let mut kinds = Vec::new();
    for side in sides {
        let named = match side.as_str() {
            "both" => vec![VmKind::Ballonet, VmKind::Qemu],
            one => vec![one.parse().map_err(|error| {
                anyhow!("--vmm: {error}, or both; other sides are those of density")
            })?],
        };
        for kind in named {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
    }
    Ok(kinds)
}

/// What does the same again.
fn command_line(args: &ExperimentArgs, scenario: &Scenario) -> String {
    let out = args.out.as_ref();
    let out = out.map_or_else(String::new, |out| format!(" --out {}", out.display()));
    let vmm = match args.sides.as_slice() {
        [] => String::new(),
        sides => format!(" --vmm {}", sides.join(",")),
    };
    format!(
        "ballonet experiment run {}{vmm}{out} --repetitions {} --seed {}",
        args.scenario, scenario.repetitions, scenario.seed
    )
}

/// Those of this machine.
fn circumstances(command: String) -> Circumstances {
    let uname = rustix::system::uname();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names = cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("model name"));
    let processor = names.next().unwrap_or("unknown");
    let cores = std::thread::available_parallelism();
    Circumstances {
        version: env!("CARGO_PKG_VERSION"),
        kernel: uname.release().to_string_lossy().into_owned(),
        processor: processor.trim_start_matches([' ', '\t', ':']).into(),
        cores: cores.map_or(1, std::num::NonZero::get),
        memory_bytes: MachineMemory::read().map_or(0, |memory| memory.total.bytes()),
        command,
    }
}

async fn perform_all(wanted: &Wanted) -> Result<Vec<Performed>> {
    let Wanted { scenario, runs, .. } = wanted;
    let looks = Looks {
        length: Duration::from_secs(scenario.seconds.into()),
        interval: Duration::from_millis(scenario.sample_ms.into()),
        asks_guests: scenario.asks_guests(),
    };
    let progress = Progress::new(&scenario.name, runs.len(), scenario.seconds);
    let mut interrupt = pin!(end_signal()?);
    let mut performed = Vec::with_capacity(runs.len());
    for (index, run) in runs.iter().enumerate() {
        progress.begin(index, run);
        let tick = |passed_s| progress.tick(index, passed_s);
        let record = perform(run, looks, &mut interrupt, tick).await;
        performed.push(Performed {
            repetition: run.repetition,
            combination: run.combination.clone(),
            record: record.inspect_err(|_| progress.end())?,
        });
    }
    progress.end();
    Ok(performed)
}
