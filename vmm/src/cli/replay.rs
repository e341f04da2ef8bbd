//! `ballonet replay`: makes recorded decisions again.

use super::show;
use crate::host::recording::parse_recording;
use crate::regular_file::read_text;
use anyhow::{Context, Result, bail};
use policy::differences;
use serde::Serialize;
use std::path::Path;

/// Bytes of a recording: a host's own has 1 MiB, several may have been joined.
const LARGEST: u64 = 1 << 28;
/// Decisions whose differences are printed; what is wrong shows in the first few.
const MOST_SHOWN: usize = 10;

/// What came of it.
#[derive(Debug, Serialize)]
struct Replay {
    decisions: usize,
    different: usize,
    /// The first of them.
    differences: Vec<DecisionDifferences>,
}

#[derive(Debug, Serialize)]
struct DecisionDifferences {
    /// When it was made, since its host's start.
    at_ms: u64,
    lines: Vec<String>,
}

pub(super) fn replay(file: &Path, json: bool) -> Result<()> {
    let shown = file.display();
    let text = read_text(file, LARGEST).with_context(|| format!("cannot read {shown}"))?;
    let decisions = parse_recording(&text).with_context(|| format!("cannot replay {shown}"))?;
    let mut differing = decisions
        .iter()
        .filter_map(|decision| Some((decision, decision.differs()?)));
    let first: Vec<DecisionDifferences> = differing
        .by_ref()
        .take(MOST_SHOWN)
        .map(|(decision, now)| DecisionDifferences {
            at_ms: decision.at_ms,
            lines: differences(&decision.plan, &now),
        })
        .collect();
    let replay = Replay {
        decisions: decisions.len(),
        different: first.len() + differing.count(),
        differences: first,
    };
    show(json, &replay, describe)?;
    match replay.different {
        0 => Ok(()),
        different => bail!(
            "{different} of {} decisions would be others now: they were recorded by another version, or changed since",
            replay.decisions
        ),
    }
}

fn describe(replay: &Replay) -> String {
    let Replay {
        decisions,
        different,
        ..
    } = replay;
    let mut text = format!("{decisions} decisions, {different} different\n");
    for DecisionDifferences { at_ms, lines } in &replay.differences {
        for line in lines {
            text.push_str(&format!(
                "  {}.{:03} s: {line}\n",
                at_ms / 1000,
                at_ms % 1000
            ));
        }
    }
    text
}
