//! A metric and its samples, made for one scrape.

use api::{Figure, Reading};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use protocol::Latencies;
use std::fmt;
use std::time::Duration;

/// What tells one sample of a metric from another.
pub(super) type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
pub(super) struct Metric {
    name: &'static str,
    help: &'static str,
    is_total: bool,
    samples: Vec<(Labels, Reading)>,
}

impl Metric {
    /// One of which each sample is what is now.
    pub(super) fn gauge(
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, Reading)>,
    ) -> Self {
        let samples = samples.into_iter();
        Self {
            name,
            help,
            is_total: false,
            samples: samples
                .filter(|(_, reading)| *reading != Reading::Unknown)
                .collect(),
        }
    }

    /// One that only ever rises.
    pub(super) fn total(
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, Reading)>,
    ) -> Self {
        let is_total = true;
        Self {
            is_total,
            ..Self::gauge(name, help, samples)
        }
    }

    /// Those of a table, of all that have its figures.
    pub(super) fn of_table<T>(table: &[Figure<T>], all: &[(Labels, &T)]) -> Vec<Self> {
        let shown = table.iter().filter(|figure| !figure.metric.is_empty());
        let metrics = shown.map(|figure| {
            let readings = all
                .iter()
                .map(|(labels, one)| (labels.clone(), (figure.read)(one)));
            let is_total = figure.is_total;
            Self {
                is_total,
                ..Self::gauge(figure.metric, figure.help, readings)
            }
        });
        metrics.collect()
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        // Of nothing there is no unit, and nothing to tell.
        let Some((_, first)) = self.samples.first() else {
            return Ok(());
        };
        let (suffix, unit) = unit(first);
        let name = format!("{}{suffix}", self.name);
        let help = format!("{}.", self.help);
        let kind = match self.is_total {
            true => MetricType::Counter,
            false => MetricType::Gauge,
        };
        let mut metric = encoder.encode_descriptor(&name, &help, unit.as_ref(), kind)?;
        for (labels, reading) in &self.samples {
            match labels.is_empty() {
                true => self.encode_sample(&mut metric, reading)?,
                false => self.encode_sample(&mut metric.encode_family(labels)?, reading)?,
            }
        }
        Ok(())
    }

    fn encode_sample(&self, encoder: &mut MetricEncoder<'_>, reading: &Reading) -> fmt::Result {
        let whole = match *reading {
            Reading::Difference(bytes) => Some(bytes),
            _ => reading
                .number()
                .map(|number| i64::try_from(number).unwrap_or(i64::MAX)),
        };
        match (self.is_total, whole) {
            (false, Some(whole)) => encoder.encode_gauge(&whole),
            (false, None) => encoder.encode_gauge(&fraction(reading)),
            (true, Some(_)) => {
                let count = reading.number().unwrap_or(0);
                encoder.encode_counter::<NoLabelSet, _, f64>(&count, None)
            }
            (true, None) => encoder.encode_counter::<NoLabelSet, _, f64>(&fraction(reading), None),
        }
    }
}

/// What the name of a metric ends with, by what is measured, and the unit that is told of it.
fn unit(reading: &Reading) -> (&'static str, Option<Unit>) {
    match reading {
        Reading::Size(_) | Reading::Difference(_) => ("", Some(Unit::Bytes)),
        Reading::Seconds(_) => ("", Some(Unit::Seconds)),
        Reading::Percent(_) | Reading::Permille(_) | Reading::Ratio(_) => ("_ratio", None),
        _ => ("", None),
    }
}

fn fraction(reading: &Reading) -> f64 {
    match *reading {
        Reading::Percent(percent) => percent / 100.0,
        #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
        Reading::Permille(count) => count as f64 / 1000.0,
        Reading::Ratio(fraction) | Reading::Seconds(fraction) => fraction,
        _ => f64::NAN,
    }
}

/// How long waits took, in seconds.
#[derive(Debug)]
pub(super) struct Histogram {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) samples: Vec<(Labels, Latencies)>,
}

impl Histogram {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self.samples.is_empty() {
            return Ok(());
        }
        let (help, unit) = (format!("{}.", self.help), Unit::Seconds);
        let kind = MetricType::Histogram;
        let mut metric = encoder.encode_descriptor(self.name, &help, Some(&unit), kind)?;
        for (labels, waits) in &self.samples {
            let mut buckets: Vec<(f64, u64)> = waits.buckets().collect();
            // The last has no end.
            if let Some(last) = buckets.last_mut() {
                last.0 = f64::INFINITY;
            }
            let sum = Duration::from_micros(waits.sum_us).as_secs_f64();
            let mut sample = metric.encode_family(labels)?;
            sample.encode_histogram::<NoLabelSet>(sum, waits.count(), &buckets, None)?;
        }
        Ok(())
    }
}

/// All metrics of a scrape.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) metrics: Vec<Metric>,
    pub(super) histograms: Vec<Histogram>,
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in &self.metrics {
            metric.encode(&mut encoder)?;
        }
        for histogram in &self.histograms {
            histogram.encode(&mut encoder)?;
        }
        Ok(())
    }
}
