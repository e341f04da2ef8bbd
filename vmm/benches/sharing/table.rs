//! Samples, their medians and spread, goals, and the table.

/// Measurements of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    fn median(&self) -> Option<f64> {
        self.0.get(self.0.len() / 2).copied()
    }

    fn describe(&self) -> String {
        let (Some(median), Some(&least), Some(&most)) =
            (self.median(), self.0.first(), self.0.last())
        else {
            return String::new();
        };
        match self.0.len() {
            1 => number(median),
            _ => format!("{} ({} to {})", number(median), number(least), number(most)),
        }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        let mut samples = Self::default();
        values.into_iter().for_each(|value| samples.add(value));
        samples
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        1e6.. => format!("{:.2} M", value / 1e6),
        1e4.. => format!("{:.1} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// What a row should show.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// The ratio to the peer.
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// The figure itself.
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn describe(self, ours: Option<f64>, ratio: Option<f64>) -> String {
        let (text, is_met) = match self {
            Self::RatioAtLeast(goal) => (format!("≥ {goal}x"), ratio.map(|ratio| ratio >= goal)),
            Self::RatioAtMost(goal) => (format!("≤ {goal}x"), ratio.map(|ratio| ratio <= goal)),
            Self::AtLeast(goal) => (format!("≥ {}", number(goal)), ours.map(|ours| ours >= goal)),
            Self::AtMost(goal) => (format!("≤ {}", number(goal)), ours.map(|ours| ours <= goal)),
        };
        let met = is_met.map_or("", |is_met| if is_met { ": met" } else { ": missed" });
        text + met
    }
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    ours: Samples,
    peer: Option<(&'static str, Samples)>,
    goal: Option<Goal>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, ours: Samples) -> Self {
        Self {
            what: what.into(),
            unit,
            ours,
            peer: None,
            goal: None,
        }
    }

    /// Nothing is compared where the peer was not measured.
    pub(crate) fn beside(self, name: &'static str, peer: Samples) -> Self {
        Self {
            peer: Some((name, peer)),
            ..self
        }
    }

    pub(crate) fn goal(self, goal: Goal) -> Self {
        Self {
            goal: Some(goal),
            ..self
        }
    }

    fn ratio(&self) -> Option<f64> {
        let peer = self.peer.as_ref()?.1.median()?;
        Some(self.ours.median()? / peer)
    }

    fn print(&self) {
        let peer =
            self.peer
                .as_ref()
                .map_or(String::new(), |(name, samples)| match samples.median() {
                    Some(_) => format!("{name}: {}", samples.describe()),
                    None => format!("{name}: skipped"),
                });
        let ratio = self
            .ratio()
            .map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let goal = self.goal.map_or(String::new(), |goal| {
            goal.describe(self.ours.median(), self.ratio())
        });
        let ours = self.ours.describe();
        println!(
            "| {} | {} | {ours} | {peer} | {ratio} | {goal} |",
            self.what, self.unit
        );
    }
}

/// Prints medians with least and most, the ratio of the medians, and whether the goal is met.
pub(crate) fn print_table(rows: &[Row]) {
    println!("| what | unit | ballonet: median (least to most) | peer | ratio | goal |");
    println!("| --- | --- | --- | --- | --- | --- |");
    rows.iter().for_each(Row::print);
}
