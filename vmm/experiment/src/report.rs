//! The report: what came out beside what others have, under which circumstances, and how to get it again.

use super::outcome::{Figure, MeasureOutcome, Outcome, ResultOutcome, Verdict};
use super::scenario::Scenario;
use super::statistics::Spread;
use serde::Serialize;

/// The machine, and what was typed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Circumstances {
    /// The program's version.
    pub version: &'static str,
    /// The kernel.
    pub kernel: String,
    /// The processor, by its own name.
    pub processor: String,
    /// How many of it.
    pub cores: usize,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// What does the same again.
    pub command: String,
}

/// All that a report is made of.
#[derive(Debug)]
pub struct Report<'a> {
    /// What was done,
    pub scenario: &'a Scenario,
    /// as it was written.
    pub text: &'a str,
    /// What came out.
    pub outcome: &'a Outcome,
    /// Where.
    pub circumstances: Circumstances,
    /// In how many runs.
    pub runs: usize,
    /// What is lost on guests of QEMU, if it ran any.
    pub lost_on_qemu: &'a [String],
}

/// The same for machines.
#[derive(Debug, Serialize)]
pub struct ReportData<'a> {
    experiment: &'a str,
    title: &'a str,
    seed: u64,
    repetitions: u32,
    runs: usize,
    lost_on_qemu: &'a [String],
    #[serde(flatten)]
    outcome: &'a Outcome,
    circumstances: &'a Circumstances,
    files: &'a [String],
}

impl Report<'_> {
    /// For machines.
    #[must_use]
    pub fn as_data<'a>(&'a self, files: &'a [String]) -> ReportData<'a> {
        ReportData {
            experiment: &self.scenario.name,
            title: &self.scenario.title,
            seed: self.scenario.seed,
            repetitions: self.scenario.repetitions,
            runs: self.runs,
            lost_on_qemu: self.lost_on_qemu,
            outcome: self.outcome,
            circumstances: &self.circumstances,
            files,
        }
    }

    /// What was met and missed, for a terminal.
    #[must_use]
    pub fn verdicts(&self) -> String {
        let line = |result: &ResultOutcome| {
            format!(
                "{:<8} {}: {}\n",
                verdict(result.verdict),
                result.what,
                found(result, "; ")
            )
        };
        self.outcome.results.iter().map(line).collect()
    }

    /// The whole report, with links to its charts by file and title.
    #[must_use]
    pub fn markdown(&self, charts: &[(String, String)]) -> String {
        let Scenario {
            name, title, about, ..
        } = self.scenario;
        let mut text = format!("# {title}\n\n`{name}`");
        if let Some(paper) = &self.scenario.paper {
            text.push_str(&format!(", after {paper}"));
        }
        text.push_str(&format!("\n\n{}\n\n", about.trim()));
        text.push_str(&self.results());
        for (file, title) in charts {
            text.push_str(&format!("![{title}]({file})\n\n"));
        }
        text.push_str(&self.figures());
        text.push_str(&self.lost());
        text.push_str(&self.circumstances());
        text
    }

    fn lost(&self) -> String {
        let lost = self.lost_on_qemu.iter();
        let lost: String = lost.map(|what| format!("* {what}\n")).collect();
        match lost.is_empty() {
            true => lost,
            false => format!(
                "## Guests of QEMU\n\nThe run's host has adopted them, and has nothing but their balloons. Of what the scenario \
                 asks, this is lost on them:\n\n{lost}\n"
            ),
        }
    }

    fn results(&self) -> String {
        let mut text = String::from(
            "## Results\n\n| what | paper | ours | wanted | |\n| --- | --- | --- | --- | --- |\n",
        );
        for result in &self.outcome.results {
            let paper = result.paper.as_deref().unwrap_or("");
            let row = [
                &result.what,
                paper,
                &found(result, "<br>"),
                &result.wanted,
                verdict(result.verdict),
            ];
            text.push_str(&format!("| {} |\n", row.map(cell).join(" | ")));
        }
        text.push_str(
            "\nA figure is the median of its repetitions, with the least and the most.\n\n",
        );
        text
    }

    /// A row for each combination, a column for each measure.
    fn figures(&self) -> String {
        let measures = &self.outcome.measures;
        let Some(first) = measures.first() else {
            return String::new();
        };
        let heads = measures
            .iter()
            .map(MeasureOutcome::head)
            .collect::<Vec<_>>();
        let mut text = format!(
            "## Figures\n\n| | {} |\n|{}\n",
            heads
                .iter()
                .map(|head| cell(head))
                .collect::<Vec<_>>()
                .join(" | "),
            " --- |".repeat(heads.len() + 1)
        );
        for (row, figure) in first.figures.iter().enumerate() {
            let cells = measures
                .iter()
                .map(|measure| value(&measure.figures[row], ""));
            let cells = cells.collect::<Vec<_>>().join(" | ");
            text.push_str(&format!("| {} | {cells} |\n", figure.combination));
        }
        text.push('\n');
        text
    }

    fn circumstances(&self) -> String {
        let Circumstances {
            version, command, ..
        } = &self.circumstances;
        let machine = self.circumstances.machine();
        let Scenario {
            seed,
            repetitions,
            seconds,
            ..
        } = self.scenario;
        let runs = self.runs;
        let mut text = String::from("## Circumstances\n\n");
        text.push_str(&format!(
            "* ballonet {version}; {runs} runs of {seconds} s; {repetitions} repetitions; seed {seed}\n\
             * {machine}\n\
             * Again: `{command}`\n\n\
             All values that were seen are in `data.csv`. The scenario:\n\n```toml\n{}\n```\n",
            self.text.trim_end()
        ));
        text
    }
}

impl Circumstances {
    /// What the machine is, in a line.
    pub(crate) fn machine(&self) -> String {
        let Self {
            kernel,
            processor,
            cores,
            memory_bytes,
            ..
        } = self;
        let memory = memory_bytes >> 20;
        format!("Linux {kernel}; {cores} of {processor}; {memory} MiB of memory")
    }
}

impl MeasureOutcome {
    fn head(&self) -> String {
        match self.unit {
            "" => self.title.clone(),
            unit => format!("{} ({unit})", self.title),
        }
    }
}

/// In a table nothing may end a cell or a line.
pub(crate) fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
        Verdict::Reported => "",
    }
}

fn found(result: &ResultOutcome, separator: &str) -> String {
    let one = |figure: &Figure| {
        let value = value(figure, result.unit);
        match figure.combination.0.is_empty() {
            true => value,
            false => format!("{}: {value}", figure.combination),
        }
    };
    match result.figures.as_slice() {
        [] => "nothing was seen".into(),
        [first, rest @ ..]
            if !rest.is_empty() && rest.iter().all(|figure| figure.value == first.value) =>
        {
            format!(
                "{} in all {}",
                value(first, result.unit),
                result.figures.len()
            )
        }
        figures => figures.iter().map(one).collect::<Vec<_>>().join(separator),
    }
}

fn value(figure: &Figure, unit: &str) -> String {
    let Some(Spread {
        median,
        least,
        most,
        count,
    }) = figure.value
    else {
        return "not seen".into();
    };
    let text = format!("{} {unit}", number(median)).trim_end().to_owned();
    match count {
        1 => text,
        _ => format!("{text} ({} to {})", number(least), number(most)),
    }
}

/// With as many digits as people want to read.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        whole if whole.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Combination;
    use super::*;

    fn figure(held: &str, median: f64, count: usize) -> Figure {
        Figure {
            combination: Combination(vec![("held".into(), held.into())]),
            value: Some(Spread {
                median,
                least: median - 1.0,
                most: median + 1.0,
                count,
            }),
        }
    }

    fn result(figures: Vec<Figure>) -> ResultOutcome {
        ResultOutcome {
            what: "w".into(),
            paper: None,
            unit: "MiB",
            wanted: String::new(),
            figures,
            verdict: Verdict::Met,
        }
    }

    #[test]
    fn figures_are_told_with_their_spread_and_equal_ones_once() {
        let two = result(vec![figure("1", 2.0, 3), figure("2", 123.4, 1)]);
        assert_eq!(found(&two, "; "), "held=1: 2 MiB (1 to 3); held=2: 123 MiB");
        let same = result(vec![figure("1", 2.0, 1), figure("2", 2.0, 1)]);
        assert_eq!(found(&same, "; "), "2 MiB in all 2");
        assert_eq!(found(&result(Vec::new()), "; "), "nothing was seen");
        let unseen = Figure {
            value: None,
            ..figure("1", 0.0, 1)
        };
        assert_eq!(found(&result(vec![unseen]), "; "), "held=1: not seen");
    }

    #[test]
    fn nothing_ends_a_cell_of_a_table() {
        assert_eq!(cell("a|b\nc"), "a\\|b c");
    }
}
