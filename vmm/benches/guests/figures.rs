//! Samples, their medians and spread, and the table.

/// Measurements of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn describe(&self) -> String {
        let (least, most) = (self.0[0], self.0[self.0.len() - 1]);
        format!(
            "{} ({} to {})",
            number(self.median()),
            number(least),
            number(most)
        )
    }
}

impl From<Vec<f64>> for Samples {
    fn from(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

fn number(value: f64) -> String {
    match value {
        10_000.0.. => format!("{:.2} M", value / 1e6),
        100.0.. => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    ours: Samples,
    peer: Option<(&'static str, Samples)>,
    limit: Option<(&'static str, Samples)>,
}

impl Row {
    pub(crate) fn new(what: &str, unit: &'static str, ours: Samples) -> Self {
        Self {
            what: what.into(),
            unit,
            ours,
            peer: None,
            limit: None,
        }
    }

    pub(crate) fn beside(self, name: &'static str, peer: Samples) -> Self {
        Self {
            peer: Some((name, peer)),
            ..self
        }
    }

    pub(crate) fn limit(self, name: &'static str, limit: Samples) -> Self {
        Self {
            limit: Some((name, limit)),
            ..self
        }
    }
}

/// Prints medians with least and most, and the ratio of the medians.
pub(crate) fn print_table(rows: &[Row]) {
    println!("| what | unit | ballonet: median (least to most) | peer | ratio | limit |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let column = |other: &Option<(&str, Samples)>| {
            other.as_ref().map_or(String::new(), |(name, samples)| {
                format!("{name}: {}", samples.describe())
            })
        };
        let ratio = row.peer.as_ref().map_or(String::new(), |(_, peer)| {
            format!("{:.2}", row.ours.median() / peer.median())
        });
        println!(
            "| {} | {} | {} | {} | {ratio} | {} |",
            row.what,
            row.unit,
            row.ours.describe(),
            column(&row.peer),
            column(&row.limit)
        );
    }
}
