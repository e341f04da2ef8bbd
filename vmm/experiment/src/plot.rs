//! From records to what a drawing shows: its axes, lines and labels, but not its looks.

use super::outcome::{Performed, combinations, rests};
use super::plan::Combination;
use super::record::{Point, Record};
use super::scenario::{Band, Chart, Line, Measure, Scenario};
use super::series::{Series, Unit};
use super::statistics::Spread;
use page::Size;

/// A drawing's content.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plot {
    /// Its file, without `.svg`.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What goes from left to right,
    pub(crate) x_label: String,
    /// and from bottom to top.
    pub(crate) y_label: String,
    /// Labels of the bottom's 0, 1, 2 and so on, where it has no numbers.
    pub(crate) x_names: Vec<String>,
    /// The lines.
    pub(crate) lines: Vec<PlotLine>,
    /// An area behind them.
    pub(crate) band: Option<PlotBand>,
    /// Where something changed.
    pub(crate) marks: Vec<f64>,
    /// Whether single points are shown.
    pub(crate) has_points: bool,
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlotLine {
    /// As the legend calls it.
    pub(crate) label: String,
    /// From left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// An area.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlotBand {
    /// As the legend calls it.
    pub(crate) label: String,
    /// Its lower edge, from left to right,
    pub(crate) low: Vec<(f64, f64)>,
    /// and its upper.
    pub(crate) high: Vec<(f64, f64)>,
}

/// The content of all drawings of a scenario.
#[must_use]
pub fn plots(scenario: &Scenario, performed: &[Performed]) -> Vec<Plot> {
    let charts = scenario.charts.iter().map(|chart| chart.get_ref());
    charts
        .flat_map(|chart| match &chart.x {
            Some(x) => vec![over_variation(scenario, chart, x, performed)],
            None => over_time(scenario, chart, performed),
        })
        // As of what nobody knows of guests of QEMU.
        .filter(|plot| !plot.lines.is_empty())
        .collect()
}

/// One for each combination that is meant, from its first repetition.
fn over_time(scenario: &Scenario, chart: &Chart, performed: &[Performed]) -> Vec<Plot> {
    let is_meant = |run: &&Performed| run.repetition == 0 && run.combination.has(&chart.at);
    let meant: Vec<&Performed> = performed.iter().filter(is_meant).collect();
    let is_single = meant.len() == 1;
    meant
        .into_iter()
        .map(|run| {
            let combination = run.combination.without(|name| chart.at.contains_key(name));
            let mut plot = of_run(chart, &run.record);
            if !is_single && !combination.0.is_empty() {
                plot.title = format!("{} ({combination})", chart.title);
                plot.name = format!("{}-{}", chart.name, in_a_file_name(&combination));
            }
            plot.x_label = "seconds".into();
            plot.marks
                .retain(|&mark| mark > 0.5 && mark <= f64::from(scenario.seconds));
            plot
        })
        .collect()
}

fn in_a_file_name(combination: &Combination) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let pairs = combination.0.iter();
    let pairs: Vec<String> = pairs
        .map(|(name, value)| format!("{name}-{value}"))
        .collect();
    pairs.join("-").chars().map(plain).collect()
}

fn of_run(chart: &Chart, record: &Record) -> Plot {
    let mut marks: Vec<f64> = record.marks.iter().map(|mark| mark.time_s).collect();
    // Those that were made together are one.
    marks.dedup_by(|later, earlier| *later - *earlier < 1.0);
    let series = chart.lines.iter().filter_map(|line| line.series);
    let unit = series.map(Series::unit).next().unwrap_or(Unit::Count);
    Plot {
        name: chart.name.clone(),
        title: chart.title.clone(),
        y_label: unit.symbol().into(),
        lines: chart
            .lines
            .iter()
            .flat_map(|line| time_lines(line, record))
            .collect(),
        band: chart.band.as_ref().and_then(|band| time_band(band, record)),
        marks,
        ..Plot::default()
    }
}

/// A line for each VM that is meant.
fn time_lines(line: &Line, record: &Record) -> Vec<PlotLine> {
    let Some(series) = line.series else {
        return Vec::new();
    };
    let subjects = record.subjects(line.vm.as_deref());
    let is_single = subjects.len() == 1;
    let plot_line = |subject| {
        let label = line.label.clone().unwrap_or_else(|| series.label());
        PlotLine {
            label: if is_single {
                label
            } else {
                format!("{label}, {subject}")
            },
            points: shown(series, record.points(&subject, series)),
        }
    };
    let lines = subjects.into_iter().map(plot_line);
    lines.filter(|line| !line.points.is_empty()).collect()
}

fn time_band(band: &Band, record: &Record) -> Option<PlotBand> {
    let subject = record.subjects(Some(&band.vm)).into_iter().next()?;
    let edge = |series| shown(series, record.points(&subject, series));
    let (low, high) = (edge(band.low), edge(band.high));
    (!low.is_empty()).then(|| PlotBand {
        label: band.label.clone(),
        low,
        high,
    })
}

fn shown(series: Series, points: &[Point]) -> Vec<(f64, f64)> {
    let unit = series.unit();
    let points = points.iter();
    points
        .map(|point| (point.time_s, unit.shown(point.value)))
        .collect()
}

/// A line for each measure and each combination of what varies besides.
fn over_variation(scenario: &Scenario, chart: &Chart, x: &str, performed: &[Performed]) -> Plot {
    let axis = Axis::of(x, performed);
    let measures = chart.lines.iter().filter_map(|line| {
        let measure = scenario.measure(line.measure.as_ref()?)?;
        Some((line, measure))
    });
    let unit = measures.clone().map(|(_, measure)| measure.unit()).next();
    Plot {
        name: chart.name.clone(),
        title: chart.title.clone(),
        x_label: axis.label(x),
        y_label: unit.unwrap_or(Unit::Count).symbol().into(),
        lines: measures
            .flat_map(|(line, measure)| variation_lines(chart, line, measure, x, &axis, performed))
            .collect(),
        x_names: axis.names,
        has_points: true,
        ..Plot::default()
    }
}

fn variation_lines(
    chart: &Chart,
    line: &Line,
    measure: &Measure,
    x: &str,
    axis: &Axis,
    performed: &[Performed],
) -> Vec<PlotLine> {
    let label = line.label.as_deref().unwrap_or(measure.title());
    let left_out = |name: &str| name == x || chart.at.contains_key(name);
    let points = |rest: &Combination| -> Vec<(f64, f64)> {
        let is_meant = |run: &&Performed| {
            run.combination.has(&chart.at) && run.combination.without(left_out) == *rest
        };
        let runs: Vec<&Performed> = performed.iter().filter(is_meant).collect();
        axis.values
            .iter()
            .filter_map(|(value, position)| {
                let at_value = runs
                    .iter()
                    .filter(|run| run.combination.get(x) == Some(value));
                let values: Vec<f64> = at_value
                    .filter_map(|run| measure.shown(&run.record))
                    .collect();
                Some((*position, Spread::of(&values)?.median))
            })
            .collect()
    };
    rests(performed, &chart.at, left_out)
        .iter()
        .map(|rest| PlotLine {
            label: match rest.0.is_empty() {
                true => label.into(),
                false => format!("{label}, {rest}"),
            },
            points: points(rest),
        })
        .collect()
}

/// Where the values of a variation lie on an axis.
struct Axis {
    values: Vec<(String, f64)>,
    names: Vec<String>,
    is_sizes: bool,
}

impl Axis {
    fn of(x: &str, performed: &[Performed]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for combination in combinations(performed) {
            if let Some(value) = combination.get(x)
                && !texts.iter().any(|text| text == value)
            {
                texts.push(value.into());
            }
        }
        let numbers: Option<Vec<f64>> = texts.iter().map(|text| text.parse().ok()).collect();
        let sizes: Option<Vec<f64>> = texts.iter().map(|text| mebibytes(text)).collect();
        let is_sizes = numbers.is_none() && sizes.is_some();
        let places = (0u32..).map(f64::from).take(texts.len());
        let names = match numbers.is_none() && sizes.is_none() {
            true => texts.clone(),
            false => Vec::new(),
        };
        let positions = numbers.or(sizes).unwrap_or_else(|| places.collect());
        Self {
            values: texts.into_iter().zip(positions).collect(),
            names,
            is_sizes,
        }
    }

    fn label(&self, x: &str) -> String {
        match self.is_sizes {
            true => format!("{x} (MiB)"),
            false => x.into(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes for people to read")]
fn mebibytes(text: &str) -> Option<f64> {
    let Size(pages) = text.parse().ok()?;
    Some(Unit::Bytes.shown(pages.bytes() as f64))
}
