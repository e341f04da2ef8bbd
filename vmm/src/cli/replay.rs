//! `ballonet replay`: makes recorded decisions again.

use super::savings::{SavingsView, VmSavingsView, gib_h};
use super::{show, table};
use crate::host::recording::parse_recording;
use crate::regular_file::read_text;
use anyhow::{Context, Result, bail};
use page::VmId;
use policy::{Savings, differences};
use serde::Serialize;
use std::path::Path;

/// Bytes of a recording: a host's own has 1 MiB, several may have been joined.
pub(super) const LARGEST: u64 = 1 << 28;
/// Decisions whose differences are printed; what is wrong shows in the first few.
const MOST_SHOWN: usize = 10;

/// What came of it.
#[derive(Debug, Serialize)]
struct Replay {
    decisions: usize,
    different: usize,
    /// The first of them.
    differences: Vec<DecisionDifferences>,
    /// If it is of QEMUs that were looked at only (`advise`): what would have been saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    savings: Option<SavingsView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vms: Vec<ReplayedVm>,
}

#[derive(Debug, Serialize)]
struct ReplayedVm {
    id: VmId,
    #[serde(flatten)]
    savings: VmSavingsView,
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
    let mut savings = Savings::default();
    for decision in &decisions {
        savings.see(decision.at_ms, &decision.snapshot);
    }
    let replayed = |(id, vm)| ReplayedVm {
        id,
        savings: VmSavingsView::of(vm),
    };
    let vms: Vec<ReplayedVm> = savings.vms().map(replayed).collect();
    let replay = Replay {
        savings: (!vms.is_empty()).then(|| SavingsView::of(&savings)),
        vms,
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
        savings,
        vms,
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
    if let Some(savings) = savings {
        text.push_str(&describe_savings(savings, vms));
    }
    text
}

fn describe_savings(savings: &SavingsView, vms: &[ReplayedVm]) -> String {
    let SavingsView {
        seconds,
        saved_mib_s,
        used_mib_s,
        squeezes,
        faults,
    } = savings;
    let mean = saved_mib_s / (*seconds).max(1);
    let mut text = format!(
        "in {seconds} s {} GiB·h would have been saved of {} GiB·h used, {mean} MiB on average; guests would have come to hold less than \
         they need {squeezes} times, and had {faults} faults\n\n",
        gib_h(*saved_mib_s),
        gib_h(*used_mib_s),
    );
    let row = |ReplayedVm { id, savings: vm }: &ReplayedVm| {
        vec![
            id.to_string(),
            gib_h(vm.saved_mib_s),
            gib_h(vm.used_mib_s),
            vm.squeezes.to_string(),
            vm.squeezed_s.to_string(),
            vm.faults.to_string(),
        ]
    };
    let header = [
        "VM",
        "SAVED GiB·h",
        "USED GiB·h",
        "SQUEEZED",
        "SECONDS",
        "FAULTS",
    ];
    text.push_str(&table::aligned(&header, vms.iter().map(row)));
    text
}
