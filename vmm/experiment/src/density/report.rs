//! The report of a comparison: the scores, what bounds each, what else was seen, and how to get it all again.

use super::judge::{Miss, Speed};
use super::record::{Probe, Sample};
use super::scenario::{Density, Side};
use super::search::{Bound, Length, Score};
use crate::plot::{Plot, PlotLine};
use crate::report::{Circumstances, cell, number};
use serde::Serialize;

/// How much of what comes a guest alone does where nothing else is to be done, in percent at least.
const QUIET_PERCENT: f64 = 98.0;

/// What came out for a side.
#[derive(Clone, Debug, Serialize)]
pub struct SideOutcome {
    /// Which.
    pub side: Side,
    /// Why it cannot be run on this machine.
    pub problem: Option<String>,
    /// What the kernel's settings were that a side changes, as words.
    pub settings: Vec<String>,
    /// How fast a guest is alone.
    pub solo: Option<Speed>,
    /// Every run, in order, with what was missed in it.
    pub probes: Vec<Judged>,
    /// How many guests hold.
    pub score: Option<Score>,
}

/// A run and why it does not hold.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// The run.
    #[serde(flatten)]
    pub probe: Probe,
    /// Nothing if it holds.
    pub misses: Vec<Miss>,
}

/// All that a report is made of.
#[derive(Debug, Serialize)]
pub struct DensityReport<'a> {
    /// What was done.
    pub density: &'a Density,
    /// As it was written.
    #[serde(skip)]
    pub text: &'a str,
    /// In the order of the scenario.
    pub sides: &'a [SideOutcome],
    /// Where.
    pub circumstances: Circumstances,
    /// How long it took.
    pub took_s: f64,
    /// What was written beside.
    pub files: Vec<String>,
}

impl SideOutcome {
    /// The long run of the score's number.
    fn confirmed(&self) -> Option<&Judged> {
        let count = self.score?.count;
        let mut probes = self.probes.iter();
        probes.find(|judged| {
            let question = judged.probe.question;
            question.count == count && question.length == Length::Long && judged.misses.is_empty()
        })
    }

    /// What stopped it: the misses of the lowest number that did not hold, by the longest run of it.
    fn bounded_by(&self) -> Option<&Judged> {
        let above = self
            .probes
            .iter()
            .filter(|judged| !judged.misses.is_empty());
        above
            .filter(|judged| {
                let count = self.score.map_or(0, |score| score.count);
                judged.probe.question.count > count
            })
            .min_by_key(|judged| {
                let question = judged.probe.question;
                (question.count, question.length == Length::Short)
            })
    }

    fn score_words(&self) -> String {
        match (&self.problem, self.score) {
            (Some(problem), _) => format!("not run: {problem}"),
            (None, None) => "not known".into(),
            (None, Some(score)) => {
                let bound = match score.bound {
                    Bound::Seen => "",
                    Bound::Most => " (no more were tried)",
                    Bound::Unknown => " or more",
                };
                let doubt = if score.is_confirmed {
                    ""
                } else {
                    " (not confirmed)"
                };
                format!("{}{bound}{doubt}", score.count)
            }
        }
    }

    fn bound_words(&self) -> String {
        self.bounded_by().map_or_else(String::new, |judged| {
            format!("{}: {}", judged.probe.question.count, judged.words())
        })
    }
}

impl Judged {
    /// Why it does not hold, in words; `holds` if it does.
    #[must_use]
    pub fn words(&self) -> String {
        match self.misses.as_slice() {
            [] => "holds".into(),
            misses => misses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "),
        }
    }

    fn least_percent(&self, solo: &Speed) -> Option<f64> {
        let speeds = self.probe.guests.iter().filter_map(|guest| guest.speed());
        speeds.map(|speed| speed.percent_of(solo)).reduce(f64::min)
    }

    fn worst_p99_ms(&self) -> Option<f64> {
        let speeds = self.probe.guests.iter().filter_map(|guest| guest.speed());
        speeds.map(|speed| speed.p99_us() / 1000.0).reduce(f64::max)
    }

    /// GiB · minutes of memory for each guest and minute.
    fn gib_each(&self) -> Option<f64> {
        let mean = mean(self.probe.measured(), |sample| sample.used_bytes)?;
        Some(mean / f64::from(1 << 30) / f64::from(self.probe.question.count))
    }

    /// Percent of a core for each guest.
    fn cpu_each(&self) -> Option<f64> {
        let guest_s = self.probe.measured_s * f64::from(self.probe.question.count);
        (guest_s > 0.0).then(|| 100.0 * self.probe.cpu_s / guest_s)
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
fn mean<'a>(
    samples: impl Iterator<Item = &'a Sample>,
    value: impl Fn(&Sample) -> u64,
) -> Option<f64> {
    let values: Vec<f64> = samples.map(|sample| value(sample) as f64).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), number)
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = line(head.iter().map(ToString::to_string).collect());
    text.push_str(&format!("|{}\n", " --- |".repeat(head.len())));
    rows.into_iter().for_each(|row| text.push_str(&line(row)));
    text.push('\n');
    text
}

impl DensityReport<'_> {
    /// The scores, for a terminal.
    #[must_use]
    pub fn scores(&self) -> String {
        let line = |outcome: &SideOutcome| {
            let bound = match outcome.bound_words() {
                nothing if nothing.is_empty() => nothing,
                words => format!("   ({words})"),
            };
            format!(
                "{:<16} {}{bound}\n",
                outcome.side.name,
                outcome.score_words()
            )
        };
        self.sides.iter().map(line).collect()
    }

    /// The whole report, with links to its charts by file and title.
    #[must_use]
    pub fn markdown(&self, charts: &[(String, String)]) -> String {
        let Density {
            title, about, name, ..
        } = self.density;
        let mut text = format!("# {title}\n\n`{name}`\n\n{}\n\n", about.trim());
        text.push_str(&self.result());
        for (file, title) in charts {
            text.push_str(&format!("![{title}]({file})\n\n"));
        }
        text.push_str(&self.figures());
        text.push_str(&self.side_list());
        text.push_str(&self.runs());
        text.push_str(&self.end());
        text
    }

    fn result(&self) -> String {
        let rows = self.sides.iter().map(|outcome| {
            vec![
                outcome.side.name.clone(),
                outcome.score_words(),
                outcome.bound_words(),
            ]
        });
        let table = table(
            &["side", "guests at full speed", "what stops one more"],
            rows,
        );
        format!(
            "## Result\n\nIn {} MiB, guests of {} MiB:\n\n{table}{}",
            self.density.budget_bytes() >> 20,
            self.density.vm().bytes() >> 20,
            self.doubt()
        )
    }

    /// What is to be said where the machine had other work.
    fn doubt(&self) -> String {
        let (rate, ops) = self.density.rates();
        let is_behind = |speed: f64, rate: u32| 100.0 * speed < QUIET_PERCENT * f64::from(rate);
        let behind = self.sides.iter().filter(|outcome| {
            let solo = outcome.solo.as_ref();
            solo.is_some_and(|solo| {
                is_behind(solo.transactions, rate) || is_behind(solo.operations, ops)
            })
        });
        let names: Vec<&str> = behind.map(|outcome| outcome.side.name.as_str()).collect();
        match names.is_empty() {
            true => String::new(),
            false => format!(
                "**The machine was busy with other work**: a guest alone did not do all that came of {}. These figures \
                 are not to be relied on.\n\n",
                names.join(", ")
            ),
        }
    }

    /// Of each side at its score.
    fn figures(&self) -> String {
        let head = [
            "side",
            "alone: transactions/s",
            "alone: operations/s",
            "alone: p99 (ms)",
            "worst guest (% of alone)",
            "worst p99 (ms)",
            "host CPU per guest (% of a core)",
            "GiB·min per guest and minute",
            "most used (MiB)",
            "saved by sharing (MiB)",
            "256 MiB back in (s)",
            "touch of what is out, p50 / p99 (µs)",
            "all woken: back at 95 % in (s)",
        ];
        let rows = self.sides.iter().map(|outcome| {
            let solo = outcome.solo.unwrap_or_default();
            let mut row = vec![
                outcome.side.name.clone(),
                shown(outcome.solo.map(|solo| solo.transactions)),
                shown(outcome.solo.map(|solo| solo.operations)),
                shown(outcome.solo.map(|solo| solo.p99_us() / 1000.0)),
            ];
            match outcome.confirmed() {
                None => row.extend((0..9).map(|_| shown(None))),
                Some(judged) => row.extend(at_score(judged, &solo)),
            }
            row
        });
        format!(
            "## Each side at its score\n\nFrom the long run that confirmed it. A latency is the upper bound of its bucket; \
             buckets are 16, 24, 32, 48, 64 µs and so on.\n\n{}",
            table(&head, rows)
        )
    }

    fn side_list(&self) -> String {
        let mut text = String::from("## Sides\n\n");
        for outcome in self.sides {
            text.push_str(&format!("* `{}`: {}", outcome.side.name, outcome.side.what));
            for setting in &outcome.settings {
                text.push_str(&format!(" `{setting}`;"));
            }
            text.push('\n');
        }
        text.push('\n');
        text
    }

    fn runs(&self) -> String {
        let head = [
            "began (s)",
            "side",
            "guests",
            "",
            "worst guest (%)",
            "worst p99 (ms)",
            "most used (MiB)",
            "outcome",
        ];
        let mut all: Vec<(&SideOutcome, &Judged)> = Vec::new();
        for outcome in self.sides {
            all.extend(outcome.probes.iter().map(|judged| (outcome, judged)));
        }
        all.sort_by(|(_, a), (_, b)| a.probe.at_s.total_cmp(&b.probe.at_s));
        let rows = all.into_iter().map(|(outcome, judged)| {
            let solo = outcome.solo.unwrap_or_default();
            vec![
                format!("{:.0}", judged.probe.at_s),
                outcome.side.name.clone(),
                judged.probe.question.count.to_string(),
                match judged.probe.question.length {
                    Length::Short => "short".into(),
                    Length::Long => "long".into(),
                },
                shown(judged.least_percent(&solo)),
                shown(judged.worst_p99_ms()),
                (judged.probe.peak_bytes() >> 20).to_string(),
                judged.words(),
            ]
        });
        format!("## Every run\n\n{}", table(&head, rows))
    }

    fn end(&self) -> String {
        let Circumstances {
            version, command, ..
        } = &self.circumstances;
        let machine = self.circumstances.machine();
        format!(
            "## Circumstances\n\n* ballonet {version}; {:.0} minutes; sides take turns, run by run\n* {machine}\n\
             * Again: `{command}`\n\nAll that was seen is in `data.json`. The scenario:\n\n```toml\n{}\n```\n",
            self.took_s / 60.0,
            self.text.trim_end()
        )
    }

    /// The content of all drawings.
    #[must_use]
    pub fn plots(&self) -> Vec<Plot> {
        vec![
            self.plot_scores(),
            self.plot_speeds(),
            self.plot_over_time("memory", "Memory used at the score", |sample| {
                sample.used_bytes
            }),
            self.plot_over_time("sharing", "Saved by sharing at the score", |sample| {
                sample.saved_bytes
            }),
            self.plot_over_time("swapped", "Out of memory at the score", |sample| {
                sample.swapped_bytes
            }),
        ]
    }

    fn plot_scores(&self) -> Plot {
        let known = self.sides.iter().filter_map(|outcome| {
            let score = outcome.score?;
            Some((outcome.side.name.clone(), f64::from(score.count)))
        });
        let (names, scores): (Vec<String>, Vec<f64>) = known.unzip();
        let places = (0_u32..).map(f64::from);
        let line = PlotLine {
            label: "guests".into(),
            points: places.zip(scores).collect(),
        };
        Plot {
            name: "score".into(),
            title: "Guests at full speed".into(),
            y_label: "guests".into(),
            x_names: names,
            lines: vec![line],
            has_points: true,
            ..Plot::default()
        }
    }

    fn plot_speeds(&self) -> Plot {
        let line = |outcome: &SideOutcome| {
            let solo = outcome.solo?;
            let mut points: Vec<(f64, f64)> = outcome
                .probes
                .iter()
                .filter_map(|judged| {
                    let count = f64::from(judged.probe.question.count);
                    Some((count, judged.least_percent(&solo)?))
                })
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            (!points.is_empty()).then(|| PlotLine {
                label: outcome.side.name.clone(),
                points,
            })
        };
        Plot {
            name: "speed".into(),
            title: "The slowest guest, by how many there are".into(),
            x_label: "guests".into(),
            y_label: "% of alone".into(),
            lines: self.sides.iter().filter_map(line).collect(),
            has_points: true,
            ..Plot::default()
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    fn plot_over_time(&self, name: &str, title: &str, value: impl Fn(&Sample) -> u64) -> Plot {
        let line = |outcome: &SideOutcome| {
            let probe = &outcome.confirmed()?.probe;
            let point = |sample: &Sample| {
                let mib = value(sample) as f64 / f64::from(1 << 20);
                (sample.time_s, mib)
            };
            Some(PlotLine {
                label: format!("{} ({})", outcome.side.name, probe.question.count),
                points: probe.samples.iter().map(point).collect(),
            })
        };
        Plot {
            name: name.into(),
            title: title.into(),
            x_label: "seconds".into(),
            y_label: "MiB".into(),
            lines: self.sides.iter().filter_map(line).collect(),
            ..Plot::default()
        }
    }
}

fn at_score(judged: &Judged, solo: &Speed) -> [String; 9] {
    let probe = &judged.probe;
    let saved = mean(probe.measured(), |sample| sample.saved_bytes);
    let wait = probe.swap_in_us.map(|[p50, p99]| format!("{p50} / {p99}"));
    let wake = probe.wake.map(|wake| match wake.back == wake.guests {
        true => number(wake.slowest_s),
        false => format!(
            "{} of {} in {}",
            wake.back,
            wake.guests,
            number(wake.slowest_s)
        ),
    });
    [
        shown(judged.least_percent(solo)),
        shown(judged.worst_p99_ms()),
        shown(judged.cpu_each()),
        shown(judged.gib_each()),
        (probe.peak_bytes() >> 20).to_string(),
        shown(saved.map(|bytes| bytes / f64::from(1 << 20))),
        shown(probe.reclaim_s),
        wait.unwrap_or_else(|| shown(None)),
        wake.unwrap_or_else(|| shown(None)),
    ]
}
