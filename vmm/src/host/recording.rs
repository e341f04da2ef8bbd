//! Every decision on disk, in the host's folder, so that it can be looked at and made again: a line of JSON
//! with the snapshot that was decided on and the plan that came of it. A round that decides what the one before
//! did is not written.

use super::rotating::RotatingFile;
use policy::{Plan, Reason, Snapshot};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Since the host's start, in milliseconds.
    pub at_ms: u64,
    /// Why targets changed, if they did.
    #[serde(default)]
    pub reason: Option<Reason>,
    /// What was known.
    pub snapshot: Snapshot,
    /// What was decided.
    pub plan: Plan,
}

impl Decision {
    /// What would be decided now, if that is another plan.
    #[must_use]
    pub fn differs(&self) -> Option<Plan> {
        let plan = policy::plan(&self.snapshot);
        (plan != self.plan).then_some(plan)
    }
}

/// The file that decisions go to.
#[derive(Debug)]
pub(super) struct Recorder {
    file: RotatingFile,
    last: Option<Plan>,
}

impl Recorder {
    /// Nothing is written before the first decision.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            file: RotatingFile::new(path, ""),
            last: None,
        }
    }

    /// Writes a decision down. A disk that is full stops nobody.
    pub(super) fn record(&mut self, decision: &Decision) {
        let is_new = self.last.as_ref() != Some(&decision.plan) || decision.reason.is_some();
        if !is_new {
            return;
        }
        self.last = Some(decision.plan.clone());
        if let Err(error) = self.write(decision) {
            tracing::debug!("a decision is not recorded: {error}");
        }
    }

    fn write(&mut self, decision: &Decision) -> io::Result<()> {
        let mut line = serde_json::to_vec(decision)?;
        line.push(b'\n');
        self.file.append(&line)
    }
}

/// Why a recording cannot be made again.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableRecording {
    #[error(
        "line {line} is no decision: give a file that a host has recorded, as in its folder beside its socket"
    )]
    Line {
        line: usize,
        source: serde_json::Error,
    },
    #[error("its decision {number} says that it was made more than a year after its host's start")]
    TooLate { number: usize },
    #[error("there is no decision in it")]
    Empty,
}

/// No decision is made later after its host's start, in milliseconds: a year.
const LATEST_MS: u64 = 366 * 24 * 3600 * 1000;

/// The decisions in a recording. A last line without an end is left out: its host died while it wrote.
///
/// # Errors
/// When a line is no decision, or there is none.
pub fn parse_recording(text: &str) -> Result<Vec<Decision>, UnreadableRecording> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate();
    let decisions = lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            let line_number = index + 1;
            serde_json::from_str(line).map_err(|source| UnreadableRecording::Line {
                line: line_number,
                source,
            })
        });
    let decisions: Vec<Decision> = decisions.collect::<Result<_, _>>()?;
    let is_too_late = |decision: &Decision| decision.at_ms > LATEST_MS;
    match decisions.iter().position(is_too_late) {
        _ if decisions.is_empty() => Err(UnreadableRecording::Empty),
        Some(index) => Err(UnreadableRecording::TooLate { number: index + 1 }),
        None => Ok(decisions),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rotating::LIMIT;
    use super::*;
    use page::PageCount;
    use policy::differences;
    use std::fs;

    fn decision(budget: u64, reason: Option<Reason>) -> Decision {
        let snapshot = Snapshot {
            budget: PageCount(budget),
            ..Snapshot::default()
        };
        Decision {
            at_ms: budget,
            reason,
            plan: policy::plan(&snapshot),
            snapshot,
        }
    }

    #[test]
    fn what_is_recorded_can_be_read_also_after_the_file_was_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions");
        let mut recorder = Recorder::new(path.clone());
        for budget in 0..20_000 {
            recorder.record(&decision(budget, None));
        }
        let sizes = fs::read_dir(folder.path()).unwrap();
        let sizes: Vec<u64> = sizes
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|&size| size < LIMIT + 4096), "{sizes:?}");
        let text = fs::read_to_string(path).unwrap();
        let decisions = parse_recording(&text).unwrap();
        assert_eq!(decisions.last(), Some(&decision(19_999, None)));
        assert!(
            decisions
                .iter()
                .all(|decision| decision.differs().is_none())
        );
    }

    #[test]
    fn a_decision_that_changes_nothing_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions");
        let mut recorder = Recorder::new(path.clone());
        let again = [None, None, Some(Reason::Interval), None];
        again
            .iter()
            .for_each(|&reason| recorder.record(&decision(7, reason)));
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(parse_recording(&text).unwrap().len(), 2);
    }

    #[test]
    fn a_cut_line_is_left_out_and_a_wrong_one_is_named() {
        let line = serde_json::to_string(&decision(7, None)).unwrap();
        let cut = format!("{line}\n{}", &line[..20]);
        assert_eq!(parse_recording(&cut).unwrap().len(), 1);
        let wrong = format!("{line}\n{{}}\n");
        let error = parse_recording(&wrong).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(matches!(
            parse_recording(""),
            Err(UnreadableRecording::Empty)
        ));
    }

    #[test]
    fn a_plan_that_would_not_be_made_again_is_found() {
        let mut changed = decision(7, None);
        changed.plan.free = PageCount(8);
        let now = changed.differs().unwrap();
        let lines = differences(&changed.plan, &now);
        assert!(lines[0].starts_with("free: "), "{lines:?}");
    }
}
