//! From the records of all runs to the figures of every combination, and to what was met or missed.

use super::plan::Combination;
use super::record::Record;
use super::scenario::{Measure, ResultText, Scenario};
use super::series::Unit;
use super::setting::Value;
use super::statistics::Spread;
use super::vmm::VARIATION;
use serde::Serialize;
use std::collections::BTreeMap;

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct Performed {
    /// Which repetition it belonged to.
    pub repetition: u32,
    /// What was varied in it.
    pub combination: Combination,
    /// What was seen.
    pub record: Record,
}

/// A number with its spread over the repetitions, in the unit that people read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What is varied.
    pub combination: Combination,
    /// None where nothing was seen.
    pub value: Option<Spread>,
}

/// A measure in every combination.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasureOutcome {
    /// What results and charts call it.
    pub name: String,
    /// What it is, for people.
    pub title: String,
    /// What it counts.
    pub unit: &'static str,
    /// Its values.
    pub figures: Vec<Figure>,
}

/// Whether a claim held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It did.
    Met,
    /// It did not.
    Missed,
    /// Nothing was claimed.
    Reported,
}

/// A result and what was said of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResultOutcome {
    /// What is said to be so.
    pub what: String,
    /// What others measured.
    pub paper: Option<String>,
    /// What the figures count.
    pub unit: &'static str,
    /// What was wanted of them, in words.
    pub wanted: String,
    /// What they are.
    pub figures: Vec<Figure>,
    /// Whether that is so.
    pub verdict: Verdict,
}

/// All that came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Of each measure.
    pub measures: Vec<MeasureOutcome>,
    /// Of each result.
    pub results: Vec<ResultOutcome>,
}

impl Outcome {
    /// What the runs of a scenario come to.
    #[must_use]
    pub fn of(scenario: &Scenario, performed: &[Performed]) -> Self {
        let measures = scenario.measures.iter().map(|measure| measure.get_ref());
        let results = scenario.results.iter().flat_map(|result| {
            let measure = scenario.measure(&result.get_ref().measure);
            let judged = |measure| {
                let by_side = by_side(result.get_ref(), performed);
                by_side.map(move |result| judge(&result, measure, performed))
            };
            measure.map(judged).into_iter().flatten()
        });
        Self {
            measures: measures
                .map(|measure| outcome(measure, performed))
                .collect(),
            results: results.collect(),
        }
    }

    /// Claims that were missed.
    pub fn missed(&self) -> impl Iterator<Item = &ResultOutcome> {
        let results = self.results.iter();
        results.filter(|result| result.verdict == Verdict::Missed)
    }
}

/// A result for each of those who ran VMs, so that each is met or missed by itself; as it is where that does not vary, or where
/// the result says itself whom it is of.
fn by_side(
    result: &ResultText,
    performed: &[Performed],
) -> impl Iterator<Item = ResultText> + use<> {
    let combinations = combinations(performed);
    let values = combinations.iter().filter_map(|all| all.get(VARIATION));
    let mut sides: Vec<Option<String>> = Vec::new();
    for side in values.map(|value| Some(value.to_owned())) {
        if !sides.contains(&side) {
            sides.push(side);
        }
    }
    let says_itself = [&result.at, &result.against]
        .iter()
        .any(|conditions| conditions.contains_key(VARIATION));
    if sides.len() < 2 || says_itself {
        sides = vec![None];
    }
    let result = result.clone();
    sides.into_iter().map(move |side| {
        let mut result = result.clone();
        if let Some(side) = side {
            result.what = format!("{} ({side})", result.what);
            result.at.insert(VARIATION.into(), Value(side));
        }
        result
    })
}

fn outcome(measure: &Measure, performed: &[Performed]) -> MeasureOutcome {
    let figure = |combination: &Combination| Figure {
        combination: combination.clone(),
        value: Spread::of(&values(measure, performed, |run| {
            run.combination == *combination
        })),
    };
    MeasureOutcome {
        name: measure.name.clone(),
        title: measure.title().into(),
        unit: measure.unit().symbol(),
        figures: combinations(performed).iter().map(figure).collect(),
    }
}

impl Measure {
    /// What it is, for people.
    #[must_use]
    pub(crate) fn title(&self) -> &str {
        self.title.as_deref().unwrap_or(&self.name)
    }

    /// What it is in a run, in the unit that people read.
    #[must_use]
    pub(crate) fn shown(&self, record: &Record) -> Option<f64> {
        self.of(record).map(|value| self.unit().shown(value))
    }
}

/// All combinations that were run, sorted as they were planned.
#[must_use]
pub(crate) fn combinations(performed: &[Performed]) -> Vec<Combination> {
    let first = performed.iter().filter(|run| run.repetition == 0);
    first.map(|run| run.combination.clone()).collect()
}

/// What else varies in the runs that are chosen, sorted as they were planned.
pub(super) fn rests(
    performed: &[Performed],
    at: &BTreeMap<String, Value>,
    left_out: impl Fn(&str) -> bool,
) -> Vec<Combination> {
    let mut rests = Vec::new();
    for combination in combinations(performed) {
        let rest = combination.without(&left_out);
        if combination.has(at) && !rests.contains(&rest) {
            rests.push(rest);
        }
    }
    rests
}

fn values(
    measure: &Measure,
    performed: &[Performed],
    is_meant: impl Fn(&Performed) -> bool,
) -> Vec<f64> {
    let meant = performed.iter().filter(|run| is_meant(run));
    meant.filter_map(|run| measure.shown(&run.record)).collect()
}

fn judge(result: &ResultText, measure: &Measure, performed: &[Performed]) -> ResultOutcome {
    let chosen: Vec<&Performed> = performed
        .iter()
        .filter(|run| run.combination.has(&result.at))
        .collect();
    let compares = !result.against.is_empty();
    let fixed = |name: &str| result.at.contains_key(name);
    let meant = rests(performed, &result.at, fixed);
    let value = |run: &Performed| match compares {
        true => change(result, measure, run, performed),
        false => measure.shown(&run.record),
    };
    let figure = |combination: &Combination| {
        let runs = chosen
            .iter()
            .filter(|run| run.combination.without(fixed) == *combination);
        let values: Vec<Option<f64>> = runs.map(|run| value(run)).collect();
        let seen: Vec<f64> = values.iter().copied().flatten().collect();
        // What was not seen in one run is not known of all.
        let is_whole = seen.len() == values.len();
        Figure {
            combination: combination.clone(),
            value: Spread::of(&seen).filter(|_| is_whole || !result.every_run),
        }
    };
    let figures: Vec<Figure> = meant.iter().map(figure).collect();
    let unit = if compares {
        Unit::Percent
    } else {
        measure.unit()
    };
    ResultOutcome {
        what: result.what.clone(),
        paper: result.paper.clone(),
        unit: unit.symbol(),
        wanted: wanted(result, unit),
        verdict: verdict(result, &figures),
        figures,
    }
}

/// How much more it is, in percent, than in the run of the same repetition that it is compared with.
fn change(
    result: &ResultText,
    measure: &Measure,
    run: &Performed,
    performed: &[Performed],
) -> Option<f64> {
    let compared = |name: &str| result.against.contains_key(name);
    let rest = run.combination.without(compared);
    let other = performed.iter().find(|other| {
        other.repetition == run.repetition
            && other.combination.has(&result.against)
            && other.combination.without(compared) == rest
    })?;
    let before = measure.of(&other.record).filter(|&before| before != 0.0)?;
    Some(100.0 * (measure.of(&run.record)? / before - 1.0))
}

fn wanted(result: &ResultText, unit: Unit) -> String {
    let symbol = unit.symbol();
    let bound = |words: &str, value: f64| format!("{words} {value} {symbol}").trim_end().to_owned();
    let bounds = [
        result.at_least.map(|value| bound("at least", value)),
        result.at_most.map(|value| bound("at most", value)),
    ];
    bounds.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn verdict(result: &ResultText, figures: &[Figure]) -> Verdict {
    if result.at_least.is_none() && result.at_most.is_none() {
        return Verdict::Reported;
    }
    let is_within = |value: f64| {
        result.at_least.is_none_or(|least| value >= least)
            && result.at_most.is_none_or(|most| value <= most)
    };
    let is_met = |figure: &Figure| {
        figure.value.is_some_and(|spread| match result.every_run {
            true => is_within(spread.least) && is_within(spread.most),
            false => is_within(spread.median),
        })
    };
    match !figures.is_empty() && figures.iter().all(is_met) {
        true => Verdict::Met,
        false => Verdict::Missed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Point, Subject};
    use super::super::series::Series;
    use super::*;

    const SCENARIO: &str = r#"
        name = "x"
        title = "x"
        seconds = 10
        [host]
        memory = "256M"
        [[variation]]
        name = "held"
        values = [1, 2]
        [[variation]]
        name = "way"
        values = ["born", "made"]
        [[vm]]
        name = "a"
        memory = "64M"
        [[measure]]
        name = "speed"
        series = "checks"
        vm = "a"
        reduce = "last"
    "#;

    fn scenario(result: &str) -> Scenario {
        let result = format!("{SCENARIO}\n[[result]]\nwhat = \"w\"\nmeasure = \"speed\"\n{result}");
        Scenario::parse(&result).unwrap()
    }

    fn performed(held: &str, way: &str, repetition: u32, value: f64) -> Performed {
        let mut record = Record::default();
        let point = Point { time_s: 1.0, value };
        record.add(Subject::Vm("a".parse().unwrap()), Series::Checks, point);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Performed {
            repetition,
            combination: Combination(vec![pair("held", held), pair("way", way)]),
            record,
        }
    }

    /// Made is 10 % slower with 1, and as fast with 2; in the first repetition all is twice as fast.
    fn runs() -> Vec<Performed> {
        let mut runs = Vec::new();
        for repetition in 0..3 {
            let speed = if repetition == 0 { 200.0 } else { 100.0 };
            for (held, made) in [("1", 0.9), ("2", 1.0)] {
                runs.push(performed(held, "born", repetition, speed));
                runs.push(performed(held, "made", repetition, speed * made));
            }
        }
        runs
    }

    fn outcome_of(result: &str) -> ResultOutcome {
        Outcome::of(&scenario(result), &runs())
            .results
            .swap_remove(0)
    }

    #[test]
    fn what_is_compared_is_compared_within_its_repetition() {
        let against = "at = { way = \"made\" }\nagainst = { way = \"born\" }";
        let outcome = outcome_of(against);
        let medians: Vec<f64> = outcome
            .figures
            .iter()
            .map(|figure| figure.value.unwrap().median.round())
            .collect();
        assert_eq!(medians, [-10.0, 0.0]);
        assert_eq!(outcome.figures[0].combination.to_string(), "held=1");
        assert_eq!(outcome.verdict, Verdict::Reported);
        let outcome = outcome_of(&format!("{against}\nat_least = -5"));
        assert_eq!(outcome.verdict, Verdict::Missed);
        assert_eq!(outcome.wanted, "at least -5 %");
        let outcome = outcome_of(&format!("{against}\nat_least = -11"));
        assert_eq!(outcome.verdict, Verdict::Met);
    }

    #[test]
    fn the_median_counts_unless_every_run_does() {
        let at = "at = { held = 2, way = \"born\" }\nat_most = 150";
        assert_eq!(outcome_of(at).verdict, Verdict::Met);
        let every = format!("{at}\nevery_run = true");
        assert_eq!(outcome_of(&every).verdict, Verdict::Missed);
    }

    #[test]
    fn a_claim_of_what_was_not_seen_is_missed() {
        let claim = scenario("at_most = 1000");
        let unseen = Performed {
            record: Record::default(),
            ..performed("1", "born", 0, 0.0)
        };
        let outcome = Outcome::of(&claim, &[unseen]);
        assert_eq!(outcome.results[0].verdict, Verdict::Missed);
        assert_eq!(outcome.missed().count(), 1);
        assert_eq!(outcome.measures[0].figures[0].value, None);
    }
}
