//! An experiment as it is written: a TOML file, read and checked as far as that can be done before it is
//! known what varies. vmm/docs/experiments.md explains every key.

use super::active::Active;
use super::record::is_meant;
use super::series::Series;
use super::setting::{InvalidSetting, Setting, Value, listed};
use api::{ScanPriority, VmKind};
use balloon_guest_driver::workload::spec::Spec;
use page::Size;
use policy::{InvalidSettings, SharesSpec, TaxRate};
use protocol::VmName;
use serde::Deserialize;
use sharing::TrustGroup;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::str::FromStr;
use thiserror::Error;
use toml::Spanned;

/// The longest run.
pub(crate) const MOST_SECONDS: u32 = 3600;
/// Runs of one experiment.
pub(crate) const MOST_RUNS: usize = 1000;
/// VMs of one name.
pub(crate) const MOST_COPIES: u32 = 64;
/// Milliseconds between two samples.
const SAMPLE_MS: RangeInclusive<u32> = 50..=60_000;

/// Why a scenario is refused.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it, with the fields by name")]
pub enum ScenarioError {
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    #[error("{0}")]
    Number(Problem),
    #[error("line {line}: {section}: {problem}")]
    Line {
        line: usize,
        section: &'static str,
        problem: Problem,
    },
    #[error("host: {0}")]
    Host(Problem),
    #[error("{0} runs are too many: {MOST_RUNS} at most; vary less")]
    TooManyRuns(usize),
}

/// What is wrong with a part of a scenario.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it, with the fields by name")]
pub enum Problem {
    #[error("{field}: {why}")]
    Setting {
        field: &'static str,
        why: InvalidSetting,
    },
    #[error("{variation}: {why}")]
    Settings {
        variation: String,
        why: InvalidSettings,
    },
    #[error("{field} = {value}: give {wanted}")]
    Value {
        field: &'static str,
        value: String,
        wanted: String,
    },
    #[error("{field} = '{name}' names none: there {}", listed(.known))]
    Unknown {
        field: &'static str,
        name: String,
        known: Vec<String>,
    },
    #[error("'{0}' is there twice: give it another name")]
    Twice(String),
    #[error(
        "measure '{measure}' is of the series '{series}', which is not known of guests of QEMU: leave the result out, keep it to \
         at = {{ vmm = \"ballonet\" }}, or run it with --vmm ballonet"
    )]
    UnknownOfQemu { measure: String, series: String },
    #[error("{0}")]
    Shape(&'static str),
}

impl Problem {
    pub(super) fn value(
        field: &'static str,
        value: impl ToString,
        wanted: impl Into<String>,
    ) -> Self {
        Self::Value {
            field,
            value: value.to_string(),
            wanted: wanted.into(),
        }
    }

    fn unknown<'a>(
        field: &'static str,
        name: impl Into<String>,
        known: impl Iterator<Item = &'a String>,
    ) -> Self {
        Self::Unknown {
            field,
            name: name.into(),
            known: known.cloned().collect(),
        }
    }
}

pub(super) fn within(
    field: &'static str,
    value: u32,
    range: RangeInclusive<u32>,
) -> Result<u32, Problem> {
    let (least, most) = (range.start(), range.end());
    match range.contains(&value) {
        true => Ok(value),
        false => Err(Problem::value(field, value, format!("{least} to {most}"))),
    }
}

/// An experiment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is called, in commands and files.
    pub name: String,
    /// What it shows, in a line.
    pub title: String,
    /// What it does and why, for the report.
    #[serde(default)]
    pub(crate) about: String,
    /// Where others have shown the same.
    #[serde(default)]
    pub paper: Option<String>,
    /// How long each run lasts.
    pub seconds: u32,
    /// Time between two looks.
    #[serde(default = "default_sample_ms")]
    pub sample_ms: u32,
    /// How often everything is run.
    #[serde(default = "one")]
    pub repetitions: u32,
    /// `$seed` in the first repetition; one more in each that follows.
    #[serde(default = "one")]
    pub seed: u64,
    /// Who runs its VMs; this host if nothing is said.
    pub(crate) vmm: Option<Setting<VmKind>>,
    /// The host.
    pub(crate) host: HostText,
    /// What varies from run to run; the last varies fastest.
    #[serde(default, rename = "variation")]
    pub(crate) variations: Vec<Spanned<Variation>>,
    /// The VMs.
    #[serde(rename = "vm")]
    pub(crate) vms: Vec<Spanned<VmText>>,
    /// What happens while they run.
    #[serde(default, rename = "phase")]
    pub(crate) phases: Vec<Spanned<PhaseText>>,
    /// The numbers that a run comes to.
    #[serde(default, rename = "measure")]
    pub(crate) measures: Vec<Spanned<Measure>>,
    /// What they should be.
    #[serde(default, rename = "result")]
    pub(crate) results: Vec<Spanned<ResultText>>,
    /// What is drawn.
    #[serde(default, rename = "chart")]
    pub(crate) charts: Vec<Spanned<Chart>>,
}

fn default_sample_ms() -> u32 {
    1000
}

fn one<T: From<u8>>() -> T {
    1.into()
}

/// Something that varies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Variation {
    /// `$name` stands for its value.
    pub(crate) name: String,
    /// What it is, run by run.
    pub(crate) values: Vec<Value>,
}

impl Variation {
    fn check(&self) -> Result<(), Problem> {
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if self.name.is_empty() || !self.name.chars().all(letters) || self.name == "seed" {
            let wanted = "letters, digits and '_', and not seed, which there is";
            return Err(Problem::value("name", &self.name, wanted));
        }
        match self.values.is_empty() {
            true => Err(Problem::Shape("values is empty: give at least one")),
            false => Ok(()),
        }
    }
}

/// The host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostText {
    pub(crate) memory: Setting<Size>,
    pub(crate) sharing: Option<Setting<bool>>,
    pub(crate) large_pages: Option<Setting<bool>>,
    pub(crate) compression: Option<Setting<bool>>,
    pub(crate) idle_tax: Option<Setting<TaxRate>>,
    pub(crate) sample_period_s: Option<Setting<u32>>,
    pub(crate) rebalance_interval_s: Option<Setting<u32>>,
    pub(crate) interval_ms: Option<Setting<u32>>,
    #[serde(default)]
    pub(crate) scan: ScanText,
}

/// How fast the host scans.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScanText {
    pub(crate) pass_s: Option<Setting<u64>>,
    pub(crate) vm_pages_per_s: Option<Setting<u64>>,
    pub(crate) host_pages_per_s: Option<Setting<u64>>,
    pub(crate) core_share_permille: Option<Setting<u64>>,
    pub(crate) priority: Option<ScanPriority>,
}

/// A VM, or several alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmText {
    /// What it is called; with `count`, what comes before `-1`, `-2` and so on.
    pub(crate) name: VmName,
    /// How many of it.
    pub(crate) count: Option<Setting<u32>>,
    /// Its size.
    pub(crate) memory: Setting<Size>,
    /// What it can count on.
    pub(crate) min: Option<Setting<Size>>,
    /// What it may hold.
    pub(crate) max: Option<Setting<Size>>,
    /// Its weight.
    pub(crate) shares: Option<Setting<SharesSpec>>,
    /// Its own idle tax.
    pub(crate) idle_tax: Option<Setting<TaxRate>>,
    /// Who it may share pages with.
    pub(crate) trust_group: Option<Setting<TrustGroup>>,
    /// Processors.
    pub(crate) vcpus: Option<Setting<u8>>,
    /// What its guest does.
    pub(crate) workload: Option<Setting<Workload>>,
    /// How much of its memory is truly active then.
    pub(crate) active: Option<Setting<Active>>,
    /// The size of a disk that is made for it.
    pub(crate) disk: Option<Setting<Size>>,
    /// What a fixed balloon leaves it.
    pub(crate) hold: Option<Setting<Size>>,
    /// When it starts.
    #[serde(default)]
    pub(crate) start_s: f64,
    /// The values of variations with which it is there at all.
    #[serde(default)]
    pub(crate) only: BTreeMap<String, Value>,
}

/// What happens at a time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PhaseText {
    /// When.
    pub(crate) at_s: f64,
    /// To which VM, or VMs; to the host if to none.
    pub(crate) vm: Option<VmName>,
    /// What its guest does from now on.
    pub(crate) workload: Option<Setting<Workload>>,
    /// How much of its memory is truly active then.
    pub(crate) active: Option<Setting<Active>>,
    /// It ends.
    #[serde(default)]
    pub(crate) stop: bool,
    /// What it can count on.
    pub(crate) min: Option<Setting<Size>>,
    /// What it may hold.
    pub(crate) max: Option<Setting<Size>>,
    /// Its weight.
    pub(crate) shares: Option<Setting<SharesSpec>>,
    /// Its idle tax, or the host's.
    pub(crate) idle_tax: Option<Setting<TaxRate>>,
    /// What a fixed balloon leaves it.
    pub(crate) hold: Option<Setting<Size>>,
    /// The host's budget.
    pub(crate) memory: Option<Setting<Size>>,
    /// Whether the host shares equal pages.
    pub(crate) sharing: Option<Setting<bool>>,
    /// Whether the host makes large pages.
    pub(crate) large_pages: Option<Setting<bool>>,
    /// How long the host watches a sample.
    pub(crate) sample_period_s: Option<Setting<u32>>,
    /// How long the host's targets hold if nothing happens.
    pub(crate) rebalance_interval_s: Option<Setting<u32>>,
}

/// A workload of the embedded guest, known to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload(pub(crate) String);

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Spec::parse(text) {
            Ok(_) => Ok(Self(text.trim().into())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// How the points of a series become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reduce {
    /// Their mean.
    Mean,
    /// Their median.
    Median,
    /// The least of them.
    Min,
    /// The largest of them.
    Max,
    /// The last of them.
    Last,
    /// How far the largest is from the least.
    Range,
    /// How much it rises in a second.
    Rate,
    /// The seconds until it has come to `reach_percent` of another series, `reach`.
    Until,
}

/// How the numbers of several VMs become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Across {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean.
    Mean,
    /// The least of them.
    Min,
    /// The largest of them.
    Max,
}

/// A number that a run comes to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measure {
    /// What results and charts call it.
    pub(crate) name: String,
    /// What it is, for people.
    pub(crate) title: Option<String>,
    /// Of which series.
    pub(crate) series: Series,
    /// Of which VM or VMs, `*` for all; of the host if of none.
    pub(crate) vm: Option<String>,
    /// How several VMs become one.
    #[serde(default)]
    pub(crate) across: Across,
    /// How the points become one.
    pub(crate) reduce: Reduce,
    /// From when on.
    #[serde(default)]
    pub(crate) from_s: f64,
    /// Until when; until the end if nothing is given.
    pub(crate) to_s: Option<f64>,
    /// How long after each of its phases a VM is left out.
    #[serde(default)]
    pub(crate) settle_s: f64,
    /// One point in so many seconds is enough.
    pub(crate) every_s: Option<f64>,
    /// See `Reduce::Until`.
    pub(crate) reach: Option<Series>,
    /// See `Reduce::Until`.
    pub(crate) reach_percent: Option<f64>,
}

/// What a measure should be.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResultText {
    /// What is said to be so.
    pub(crate) what: String,
    /// Of which measure.
    pub(crate) measure: String,
    /// In which runs; in all if nothing is given.
    #[serde(default)]
    pub(crate) at: BTreeMap<String, Value>,
    /// The runs that those are compared with: the change in percent counts then.
    #[serde(default)]
    pub(crate) against: BTreeMap<String, Value>,
    /// What others measured.
    pub(crate) paper: Option<String>,
    /// It is met if the figure is no less
    pub(crate) at_least: Option<f64>,
    /// and no more than this.
    pub(crate) at_most: Option<f64>,
    /// The figure of every run counts, not their median.
    #[serde(default)]
    pub(crate) every_run: bool,
}

/// A drawing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chart {
    /// Its file, without `.svg`.
    pub(crate) name: String,
    /// What it shows.
    pub(crate) title: String,
    /// The variation along the bottom; time if none is given.
    pub(crate) x: Option<String>,
    /// In which runs; one drawing for each, if several are left.
    #[serde(default)]
    pub(crate) at: BTreeMap<String, Value>,
    /// What is drawn.
    #[serde(rename = "line")]
    pub(crate) lines: Vec<Line>,
    /// An area between two series.
    pub(crate) band: Option<Band>,
}

/// A line, or one for each VM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    /// As the legend calls it.
    pub(crate) label: Option<String>,
    /// Over time: a series,
    pub(crate) series: Option<Series>,
    /// and whose.
    pub(crate) vm: Option<String>,
    /// Over a variation: a measure.
    pub(crate) measure: Option<String>,
}

/// The area between two series of a VM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Band {
    pub(crate) label: String,
    pub(crate) vm: String,
    pub(crate) low: Series,
    pub(crate) high: Series,
}

/// Where things stand in a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a>(&'a str);

impl<'a> Places<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }

    pub(super) fn at<T>(
        self,
        section: &'static str,
        part: &Spanned<T>,
    ) -> impl FnOnce(Problem) -> ScenarioError {
        let before = self.0.get(..part.span().start).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        move |problem| ScenarioError::Line {
            line,
            section,
            problem,
        }
    }
}

impl Places<'_> {
    /// Checks all parts of a kind.
    fn each<T>(
        self,
        section: &'static str,
        parts: &[Spanned<T>],
        mut check: impl FnMut(&T) -> Result<(), Problem>,
    ) -> Result<(), ScenarioError> {
        let mut parts = parts.iter();
        parts.try_for_each(|part| check(part.get_ref()).map_err(self.at(section, part)))
    }
}

impl Scenario {
    /// Reads one and checks all but whether it can be planned.
    pub(super) fn checked(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        let numbers = scenario.check_numbers();
        numbers.map_err(ScenarioError::Number)?;
        let places = Places::new(text);
        let mut names = [const { BTreeSet::new() }; 3];
        let [variations, measures, charts] = &mut names;
        places.each("variation", &scenario.variations, |variation| {
            variation.check()?;
            unique(variations, &variation.name)
        })?;
        places.each("phase", &scenario.phases, |phase| {
            scenario.check_phase(phase)
        })?;
        places.each("vm", &scenario.vms, |vm| {
            scenario.check_time("start_s", vm.start_s)?;
            scenario.check_conditions("only", &vm.only)
        })?;
        places.each("measure", &scenario.measures, |measure| {
            unique(measures, &measure.name)?;
            scenario.check_measure(measure)
        })?;
        places.each("result", &scenario.results, |result| {
            scenario.named_measure(&result.measure)?;
            scenario.check_conditions("at", &result.at)?;
            scenario.check_conditions("against", &result.against)
        })?;
        places.each("chart", &scenario.charts, |chart| {
            unique(charts, &chart.name)?;
            scenario.check_chart(chart)
        })?;
        Ok(scenario)
    }

    fn check_numbers(&self) -> Result<(), Problem> {
        within("seconds", self.seconds, 1..=MOST_SECONDS)?;
        within("sample_ms", self.sample_ms, SAMPLE_MS)?;
        within("repetitions", self.repetitions, 1..=100)?;
        Ok(())
    }

    fn check_phase(&self, phase: &PhaseText) -> Result<(), Problem> {
        self.check_time("at_s", phase.at_s)?;
        let for_vm = phase.workload.is_some()
            || phase.active.is_some()
            || phase.min.is_some()
            || phase.max.is_some()
            || phase.shares.is_some()
            || phase.hold.is_some()
            || phase.stop;
        let for_host = phase.memory.is_some()
            || phase.sharing.is_some()
            || phase.large_pages.is_some()
            || phase.sample_period_s.is_some()
            || phase.rebalance_interval_s.is_some();
        match &phase.vm {
            None if for_vm => Err(Problem::Shape("say which vm this happens to")),
            Some(_) if for_host => Err(Problem::Shape(
                "memory, sharing, large_pages, sample_period_s and rebalance_interval_s are the host's: leave vm out",
            )),
            Some(name) => self.check_vm("vm", name.as_str()),
            None => Ok(()),
        }
    }

    fn check_time(&self, field: &'static str, seconds: f64) -> Result<(), Problem> {
        let wanted = || format!("0 to {}, the length of a run", self.seconds);
        match (0.0..=f64::from(self.seconds)).contains(&seconds) {
            true => Ok(()),
            false => Err(Problem::value(field, seconds, wanted())),
        }
    }

    fn check_vm(&self, field: &'static str, name: &str) -> Result<(), Problem> {
        let names = self.vms.iter().map(|vm| &vm.get_ref().name);
        match name == "*" || names.clone().any(|known| is_meant(name, known.as_str())) {
            true => Ok(()),
            false => {
                let names: Vec<String> = names.map(ToString::to_string).collect();
                Err(Problem::unknown(field, name, names.iter()))
            }
        }
    }

    fn variation(&self, field: &'static str, name: &str) -> Result<&Variation, Problem> {
        let known = || self.variations.iter().map(Spanned::get_ref);
        let named = known().find(|known| known.name == name);
        named.ok_or_else(|| Problem::unknown(field, name, known().map(|known| &known.name)))
    }

    fn check_conditions(
        &self,
        field: &'static str,
        conditions: &BTreeMap<String, Value>,
    ) -> Result<(), Problem> {
        for (name, value) in conditions {
            let known = &self.variation(field, name)?.values;
            if !known.contains(value) {
                let name = format!("{name}={}", value.0);
                let known = known.iter().map(|Value(value)| value);
                return Err(Problem::unknown(field, name, known));
            }
        }
        Ok(())
    }

    fn check_measure(&self, measure: &Measure) -> Result<(), Problem> {
        self.check_time("from_s", measure.from_s)?;
        self.check_time("to_s", measure.to_s.unwrap_or_default())?;
        if let Some(vm) = &measure.vm {
            self.check_vm("vm", vm)?;
        }
        let reaches = measure.reach.is_some() && measure.reach_percent.is_some();
        if (measure.reduce == Reduce::Until) != reaches {
            return Err(Problem::Shape(
                "reach and reach_percent belong to reduce = \"until\", both of them",
            ));
        }
        Ok(())
    }

    fn named_measure(&self, name: &str) -> Result<&Measure, Problem> {
        let known = self.measures.iter().map(|known| &known.get_ref().name);
        let unknown = || Problem::unknown("measure", name, known);
        self.measure(name).ok_or_else(unknown)
    }

    fn check_chart(&self, chart: &Chart) -> Result<(), Problem> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if chart.name.is_empty() || !chart.name.chars().all(plain) {
            let wanted = "letters, digits and '-': it is a file's name";
            return Err(Problem::value("name", &chart.name, wanted));
        }
        self.check_conditions("at", &chart.at)?;
        for line in &chart.lines {
            if let Some(vm) = &line.vm {
                self.check_vm("vm", vm)?;
            }
            match (&chart.x, line.series, &line.measure) {
                (None, Some(_), None) => {}
                (Some(_), None, Some(measure)) => {
                    self.named_measure(measure)?;
                }
                _ => {
                    return Err(Problem::Shape(
                        "a line over time has a series, one over a variation x a measure",
                    ));
                }
            }
        }
        let mut along = chart.x.iter();
        along.try_for_each(|name| self.variation("x", name).map(drop))
    }

    /// A measure by its name.
    #[must_use]
    pub(crate) fn measure(&self, name: &str) -> Option<&Measure> {
        let mut measures = self.measures.iter().map(Spanned::get_ref);
        measures.find(|measure| measure.name == name)
    }

    /// Whether guests have to be asked.
    #[must_use]
    pub fn asks_guests(&self) -> bool {
        let measures = self.measures.iter().map(|measure| measure.get_ref().series);
        let charts = self.charts.iter().flat_map(|chart| &chart.get_ref().lines);
        measures
            .chain(charts.filter_map(|line| line.series))
            .any(Series::is_guests)
    }
}

fn unique(names: &mut BTreeSet<String>, name: &str) -> Result<(), Problem> {
    match names.insert(name.into()) {
        true => Ok(()),
        false => Err(Problem::Twice(name.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"name = "x"
title = "x"
seconds = 10
[host]
memory = "256M"
idle_tax = "$tau"
[[variation]]
name = "tau"
values = [0, 75]
[[vm]]
name = "a"
count = 2
memory = "64M"
min = "16M"
max = "32M"
workload = "toucher:size=8M"
[[phase]]
at_s = 2
vm = "a"
workload = "idle"
[[measure]]
name = "held"
series = "held"
vm = "a-1"
reduce = "mean"
[[result]]
what = "it holds little"
measure = "held"
at = { tau = 75 }
at_most = 40
[[chart]]
name = "held"
title = "Held"
[[chart.line]]
series = "held"
vm = "*"
"#;

    fn refusal(of: &str, by: &str) -> String {
        assert!(GOOD.contains(of), "{of} is not there");
        Scenario::parse(&GOOD.replace(of, by))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_good_one_is_good() {
        let scenario = Scenario::parse(GOOD).unwrap();
        assert!(!scenario.asks_guests());
        assert!(scenario.measure("held").is_some());
    }

    /// What is wrong, where it stands, and what would be right.
    #[test]
    fn what_makes_no_sense_is_refused_by_its_name_and_place() {
        for (of, by, words) in [
            ("min =", "mim =", ["line 14", "mim", "trust_group"]),
            (
                "toucher:size",
                "toocher:size",
                ["line 16", "`toocher`", "verify"],
            ),
            (
                "toucher:size",
                "toucher:sice",
                ["line 16", "`sice`", "active"],
            ),
            ("\"16M\"", "\"sixteen\"", ["line 14", "'sixteen'", "512M"]),
            (
                "\"16M\"",
                "\"48M\"",
                ["line 10", "min 48 MiB", "max 32 MiB"],
            ),
            (
                "\"32M\"",
                "\"128M\"",
                ["line 10", "max 128 MiB", "size 64 MiB"],
            ),
            (
                "[0, 75]",
                "[0, 75, 100]",
                ["host", "idle_tax", "less than 100 %"],
            ),
            ("\"$tau\"", "100", ["line 6", "100 %", "less than 100 %"]),
            ("\"$tau\"", "\"$tao\"", ["host", "'tao'", "tau"]),
            (
                "count = 2",
                "count = 65",
                ["line 10", "count = 65", "0 to 64"],
            ),
            ("count = 2", "count = -1", ["line 12", "-1", "count"]),
            (
                "seconds = 10",
                "seconds = 0",
                ["seconds = 0", "1 to 3600", ""],
            ),
            ("at_s = 2", "at_s = 11", ["line 17", "at_s = 11", "0 to 10"]),
            ("at_s = 2", "at_s = -2", ["line 17", "at_s = -2", "0 to 10"]),
            ("vm = \"a\"\nw", "vm = \"b\"\nw", ["line 17", "'b'", "is a"]),
            ("vm = \"a\"\nw", "w", ["line 17", "which vm", ""]),
            (
                "workload = \"idle\"",
                "memory = \"1G\"",
                ["line 17", "leave vm out", ""],
            ),
            (
                "series = \"held\"\nvm = \"a-1\"",
                "series = \"helt\"",
                ["line 23", "helt", "covered"],
            ),
            (
                "reduce = \"mean\"",
                "reduce = \"average\"",
                ["line 25", "average", "median"],
            ),
            (
                "reduce = \"mean\"",
                "reduce = \"until\"",
                ["line 21", "reach", "until"],
            ),
            (
                "measure = \"held\"",
                "measure = \"hold\"",
                ["line 26", "'hold'", "is held"],
            ),
            (
                "at = { tau = 75 }",
                "at = { tau = 50 }",
                ["line 26", "tau=50", "0, 75"],
            ),
            (
                "at = { tau = 75 }",
                "at = { tua = 75 }",
                ["line 26", "'tua'", "is tau"],
            ),
            (
                "title = \"Held\"",
                "title = \"Held\"\nx = \"tua\"",
                ["line 31", "measure", ""],
            ),
            (
                "name = \"held\"\ntitle",
                "name = \"../held\"\ntitle",
                ["line 31", "../held", "file"],
            ),
            (
                "name = \"tau\"",
                "name = \"seed\"",
                ["line 7", "seed", "letters"],
            ),
            ("[0, 75]", "[]", ["line 7", "values", "at least one"]),
        ] {
            let refusal = refusal(of, by);
            for word in words {
                assert!(refusal.contains(word), "'{word}' is not in: {refusal}");
            }
        }
    }

    #[test]
    fn more_runs_than_anyone_waits_for_are_refused() {
        let values: Vec<String> = (0..100).map(|value| value.to_string()).collect();
        let values = format!("[{}]", values.join(","));
        let many: String = (0..9)
            .map(|index| format!("[[variation]]\nname = \"v{index}\"\nvalues = {values}\n"))
            .collect();
        let error = Scenario::parse(&format!("{GOOD}{many}")).unwrap_err();
        assert!(matches!(error, ScenarioError::TooManyRuns(_)), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(cut in 0..GOOD.len(), junk in "\\PC{0,12}") {
            let text = format!("{}{junk}{}", &GOOD[..cut], &GOOD[cut..]);
            drop(Scenario::parse(&text));
        }
    }
}
