//! The figures as Prometheus reads them.
//!
//! A registry is made for each scrape from the figures of the moment, so that a VM that has gone is
//! gone from the next answer, and labels are as bounded as VMs are: a VM's name, and words from lists
//! in these files. A state is a gauge for each that there is, of which one is 1.

mod devices;
mod host;
mod metric;
mod vms;

use api::Figures;
use metric::Metrics;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Text that a scraper asks for by its `Accept` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own, older one.
    Prometheus,
}

impl Format {
    pub(super) fn wanted(accept: Option<&str>) -> Self {
        let accept = accept.unwrap_or_default();
        let open = weight(accept, &["application/openmetrics-text"]).unwrap_or(0.0);
        let plain = weight(accept, &["text/plain", "text/*", "*/*"]).unwrap_or(0.0);
        match open > 0.0 && open >= plain {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// How much a client wants what has one of these names, from 0 to 1: as it says under the first of them that it
/// names (RFC 9110, 12.5.1).
fn weight(accept: &str, names: &[&str]) -> Option<f32> {
    let said = |name: &str| {
        let ranges = accept
            .split(',')
            .map(|range| range.split(';').map(str::trim));
        let weights = ranges.filter_map(|mut words| {
            let is_it = words.next()?.eq_ignore_ascii_case(name);
            let given = words.find_map(|word| word.strip_prefix("q=").or(word.strip_prefix("Q=")));
            let weight = given.map_or(Some(1.0), |text| text.parse().ok());
            weight.filter(|weight| is_it && (0.0..=1.0).contains(weight))
        });
        weights.reduce(f32::max)
    };
    names.iter().find_map(|name| said(name))
}

/// All figures as text.
pub(super) fn text(figures: &Figures, format: Format) -> String {
    let mut registry = Registry::with_prefix("ballonet");
    let mut metrics = host::metrics(figures);
    metrics.extend(vms::metrics(&figures.vms));
    metrics.extend(devices::metrics(&figures.vms));
    registry.register_collector(Box::new(Metrics {
        metrics,
        histograms: vec![vms::waits(&figures.vms)],
    }));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a text in memory takes everything");
    match format {
        Format::OpenMetrics => text,
        Format::Prometheus => as_prometheus(&text),
    }
}

/// OpenMetrics as the older format. A counter's samples end in `_total` in both; in the older one its
/// description does as well. Units and the end mark are not known there.
fn as_prometheus(open_metrics: &str) -> String {
    let is_counter = |name: &str| open_metrics.contains(&format!("# TYPE {name} counter\n"));
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some(kind), Some(name), Some(rest)) if is_counter(name) => {
                text.push_str(&format!("# {kind} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_under_the_name_of_their_samples() {
        let open_metrics = "# HELP a_b Pages.\n# TYPE a_b counter\na_b_total 3\n# HELP c_bytes Size.\n# TYPE c_bytes gauge\n# UNIT c_bytes bytes\nc_bytes 5\n# EOF\n";
        assert_eq!(
            as_prometheus(open_metrics),
            "# HELP a_b_total Pages.\n# TYPE a_b_total counter\na_b_total 3\n# HELP c_bytes Size.\n# TYPE c_bytes gauge\nc_bytes 5\n"
        );
    }

    #[test]
    fn the_last_bucket_of_a_histogram_has_no_end() {
        let mut waits = protocol::Latencies::default();
        waits.add(std::time::Duration::from_micros(3));
        let histogram = metric::Histogram {
            name: "wait",
            help: "How long",
            samples: vec![(vec![("vm", "a".into())], waits)],
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Metrics {
            metrics: Vec::new(),
            histograms: vec![histogram],
        }));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(
            text.contains("wait_seconds_bucket{le=\"+Inf\",vm=\"a\"} 1"),
            "{text}"
        );
    }

    #[test]
    fn the_format_is_what_the_scraper_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";
        assert_eq!(Format::wanted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::wanted(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::wanted(None), Format::Prometheus);
        let open = "application/openmetrics-text";
        for (accept, format) in [
            (open.to_owned(), Format::OpenMetrics),
            (format!("{open};q=0"), Format::Prometheus),
            (
                format!("{open}; version=1.0.0; q=0.0, */*"),
                Format::Prometheus,
            ),
            (format!("{open};q=0.3,text/plain;q=0.5"), Format::Prometheus),
            (
                format!("{open};q=0.3,text/plain;q=0.2,*/*"),
                Format::OpenMetrics,
            ),
            (format!("{open};q=much"), Format::Prometheus),
            (format!("{open}-not"), Format::Prometheus),
            (
                "Application/OpenMetrics-Text;Q=0.1".into(),
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::wanted(Some(&accept)), format, "{accept}");
        }
    }

    #[test]
    fn an_empty_host_is_text_with_units_and_an_end() {
        let text = text(&Figures::default(), Format::OpenMetrics);
        assert!(
            text.contains("# UNIT ballonet_host_budget_bytes bytes\n"),
            "{text}"
        );
        assert!(
            text.contains("ballonet_host_memory_bytes{use=\"free\"} 0\n"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
