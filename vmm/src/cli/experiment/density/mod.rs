//! Carries out a comparison of how many guests fit: the sides take turns, run by run, and each run has guests of its own that
//! end with it. What is changed of the machine for a run is put back after it, however it ends.

mod ballonet;
mod fleet;
mod kernel;
mod ksm;
mod managed;
mod probe;
mod processes;
mod qemu;
mod qemus;
mod restore;

use super::super::args::ExperimentArgs;
use super::super::host::end_signal;
use super::super::private_host::Interrupted;
use super::super::{show, tell};
use super::circumstances;
use super::files::Files;
use super::qemu_guest;
use anyhow::{Context, Result, bail};
use experiment::density::report::{DensityReport, Judged, SideOutcome};
use experiment::density::{
    Density, Length, Next, Probe, Question, Search, Side, Speed, Vmm, judge,
};
use std::ffi::c_int;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Instant;

/// A side and how far it is.
struct Contest {
    outcome: SideOutcome,
    search: Search,
}

/// What is the same for all runs.
struct Comparison<'a> {
    density: &'a Density,
    begin: Instant,
}

pub(super) async fn run(args: &ExperimentArgs, text: &str) -> Result<()> {
    if args.repetitions.is_some() || args.seed.is_some() {
        bail!(
            "{} repeats runs as it needs them, and its seeds are in its workload: leave out --repetitions and --seed",
            args.scenario
        );
    }
    let density = Density::parse(text, args.quick, &args.sides);
    let density = density.with_context(|| format!("{} is refused", args.scenario))?;
    let default = || PathBuf::from(format!("experiment-{}", density.name));
    let mut files = Files::make(args.out.clone().unwrap_or_else(default))?;
    restore::on_panic();
    let begin = Instant::now();
    let comparison = Comparison {
        density: &density,
        begin,
    };
    let sides = comparison.compare().await?;
    let mut report = DensityReport {
        density: &density,
        text,
        sides: &sides,
        circumstances: circumstances(command_line(args)),
        took_s: begin.elapsed().as_secs_f64(),
        files: Vec::new(),
    };
    let charts = files.draw(report.plots())?;
    files.put("report.md", report.markdown(&charts).as_bytes())?;
    files.put("scenario.toml", text.as_bytes())?;
    report.files = [files.names(), &["data.json".to_owned()]].concat();
    files.put(
        "data.json",
        serde_json::to_string_pretty(&report)?.as_bytes(),
    )?;
    show(args.json, &report, |report| {
        format!(
            "{}\nThe report is {}.\n",
            report.scores(),
            files.path("report.md").display()
        )
    })?;
    let unknown = sides
        .iter()
        .filter(|side| !side.score.is_some_and(|score| score.is_confirmed));
    let unknown: Vec<&str> = unknown.map(|side| side.side.name.as_str()).collect();
    if args.check && !unknown.is_empty() {
        bail!("no confirmed result of {}", unknown.join(", "));
    }
    Ok(())
}

/// What does the same again.
fn command_line(args: &ExperimentArgs) -> String {
    let mut line = format!("ballonet experiment run {}", args.scenario);
    if args.quick {
        line.push_str(" --quick");
    }
    if !args.sides.is_empty() {
        line.push_str(&format!(" --sides {}", args.sides.join(",")));
    }
    if let Some(out) = &args.out {
        line.push_str(&format!(" --out {}", out.display()));
    }
    line
}

impl Comparison<'_> {
    async fn compare(&self) -> Result<Vec<SideOutcome>> {
        let mut interrupt = pin!(end_signal()?);
        let sides = self.density.sides.iter();
        let mut contests: Vec<Contest> = sides.map(|side| self.enter(side)).collect();
        let about = self.density.seconds().div_ceil(60);
        tell(&format!(
            "{}: {} sides, about {about} minutes\n",
            self.density.name,
            contests.len()
        ));
        for contest in &mut contests {
            self.measure_alone(contest, &mut interrupt).await?;
        }
        // In turn, so that what drifts hits all alike.
        while self.turn(&mut contests, &mut interrupt).await? {}
        Ok(contests
            .into_iter()
            .map(|contest| contest.outcome)
            .collect())
    }

    fn enter(&self, side: &Side) -> Contest {
        Contest {
            search: Search::new(side.first, self.density.most),
            outcome: SideOutcome {
                problem: match side.vmm {
                    Vmm::Ballonet(_) => None,
                    Vmm::Qemu(_) | Vmm::QemuManaged(_) => qemu_guest::problem(),
                },
                side: side.clone(),
                settings: Vec::new(),
                solo: None,
                probes: Vec::new(),
                score: None,
            },
        }
    }

    async fn measure_alone(
        &self,
        contest: &mut Contest,
        interrupt: impl Future<Output = c_int>,
    ) -> Result<()> {
        let question = Question {
            count: 1,
            length: Length::Long,
        };
        let Some(probe) = self.probe(contest, question, true, interrupt).await? else {
            return Ok(());
        };
        let solo = probe.guests.first().and_then(|guest| guest.speed());
        let is_fit = |solo: &Speed| {
            let misses = judge(self.density, solo, &probe);
            misses.is_empty().then_some(()).ok_or(misses)
        };
        match solo.map(|solo| (solo, is_fit(&solo))) {
            Some((solo, Ok(()))) => {
                contest.outcome.solo = Some(solo);
                self.say(
                    contest,
                    &format!(
                        "alone: {:.1} transactions/s, {:.1} operations/s, p99 {:.1} ms",
                        solo.transactions,
                        solo.operations,
                        solo.p99_us() / 1000.0
                    ),
                );
            }
            _ => {
                let misses = judge(self.density, &solo.unwrap_or_default(), &probe);
                let misses = Judged { probe, misses }.words();
                contest.outcome.problem = Some(format!("a guest alone does not do: {misses}"));
            }
        }
        Ok(())
    }

    /// A run of each side that is not done. False if none is left.
    async fn turn(
        &self,
        contests: &mut [Contest],
        mut interrupt: impl Future<Output = c_int> + Unpin,
    ) -> Result<bool> {
        let mut goes_on = false;
        for contest in contests {
            let (None, None, Some(solo)) = (
                &contest.outcome.problem,
                contest.outcome.score,
                contest.outcome.solo,
            ) else {
                continue;
            };
            match contest.search.next() {
                Next::Done(score) => {
                    contest.outcome.score = Some(score);
                    self.say(contest, &format!("{} guests", score.count));
                }
                Next::Ask(question) => {
                    goes_on = true;
                    let probe = self.probe(contest, question, false, &mut interrupt).await?;
                    let Some(probe) = probe else { continue };
                    let misses = judge(self.density, &solo, &probe);
                    contest.search.note(question, misses.is_empty());
                    let judged = Judged { probe, misses };
                    self.say(
                        contest,
                        &format!("{} guests: {}", question.count, judged.words()),
                    );
                    contest.outcome.probes.push(judged);
                }
            }
        }
        Ok(goes_on)
    }

    /// `None` if the side cannot be run here, which is noted.
    async fn probe(
        &self,
        contest: &mut Contest,
        question: Question,
        is_solo: bool,
        interrupt: impl Future<Output = c_int>,
    ) -> Result<Option<Probe>> {
        let stage = probe::Stage {
            density: self.density,
            question,
            is_solo,
            solo: contest.outcome.solo,
            at_s: self.begin.elapsed().as_secs_f64(),
        };
        let probed = match &contest.outcome.side.vmm {
            Vmm::Ballonet(settings) => ballonet::probe(&stage, settings, interrupt).await,
            Vmm::Qemu(settings) => qemu::probe(&stage, settings, interrupt).await,
            Vmm::QemuManaged(settings) => managed::probe(&stage, settings, interrupt).await,
        };
        match probed {
            Ok((probe, settings)) => {
                contest.outcome.settings = settings;
                Ok(Some(probe))
            }
            Err(error) if error.is::<Interrupted>() => Err(error),
            // The others go on.
            Err(error) => {
                let problem = format!("{error:#}");
                self.say(contest, &format!("cannot be run here: {problem}"));
                contest.outcome.problem = Some(problem);
                Ok(None)
            }
        }
    }

    fn say(&self, contest: &Contest, what: &str) {
        let passed_s = self.begin.elapsed().as_secs();
        tell(&format!(
            "{passed_s:>5} s  {:<16} {what}\n",
            contest.outcome.side.name
        ));
    }
}
