//! `ballonet simulate`: the policy over a described load.

use super::{show, table};
use crate::regular_file::read_text;
use anyhow::{Context, Result};
use page::PageCount;
use policy::simulate::{HostPoint, Scenario, Trace, VmPoint, VmTrace, simulate as run};
use std::path::Path;

/// Bytes of a scenario.
const LARGEST: u64 = 1 << 24;

pub(super) fn simulate(file: &Path, csv: bool, json: bool) -> Result<()> {
    let shown = file.display();
    let text = read_text(file, LARGEST).with_context(|| format!("cannot read {shown}"))?;
    let scenario: Scenario =
        toml::from_str(&text).with_context(|| format!("{shown} is not a scenario"))?;
    let trace = run(&scenario).with_context(|| format!("cannot simulate {shown}"))?;
    show(json, &trace, if csv { points } else { summary })
}

fn mebibytes(pages: PageCount) -> String {
    (pages.bytes() >> 20).to_string()
}

/// `1234` as `123.4`.
fn percent(permille: u64) -> String {
    format!("{}.{}", permille / 10, permille % 10)
}

/// The host over time, then each VM as it was at the end.
fn summary(trace: &Trace) -> String {
    let mut text = table::aligned(
        &[
            "SECOND", "STATE", "USED", "FREE", "RUNNING", "WAITING", "SPEED%",
        ],
        trace.host.iter().map(host_row),
    );
    text.push('\n');
    text.push_str(&table::aligned(
        &[
            "NAME", "TARGET", "HELD", "BACKED", "BELIEVED", "USES", "SPEED%",
        ],
        trace.vms.iter().filter_map(vm_row),
    ));
    for refused in &trace.refused {
        let (name, at_s, why) = (&refused.name, refused.at_s, &refused.why);
        text.push_str(&format!("{name} was not admitted at {at_s} s: {why}\n"));
    }
    text
}

fn host_row(point: &HostPoint) -> Vec<String> {
    vec![
        point.at_s.to_string(),
        point.state.to_string(),
        mebibytes(point.used),
        mebibytes(point.free),
        point.running.to_string(),
        point.waiting.to_string(),
        percent(point.throughput_permille),
    ]
}

fn vm_row(vm: &VmTrace) -> Option<Vec<String>> {
    let last = vm.points.last()?;
    Some(vec![
        vm.name.clone(),
        mebibytes(last.target),
        mebibytes(last.held),
        mebibytes(last.backed),
        last.active
            .map_or_else(|| "-".into(), |active| mebibytes(active.pages)),
        mebibytes(last.working_set),
        percent(last.throughput_permille),
    ])
}

/// A line for each point of each VM.
fn points(trace: &Trace) -> String {
    let mut text = String::from(
        "second,vm,target_bytes,held_bytes,backed_bytes,active_bytes,active_low_bytes,active_high_bytes,working_set_bytes,blocked,throughput_permille\n",
    );
    for vm in &trace.vms {
        for point in &vm.points {
            text.push_str(&point_line(&vm.name, point));
        }
    }
    text
}

fn point_line(name: &str, point: &VmPoint) -> String {
    let active = |of: fn(policy::ActiveSet) -> PageCount| {
        let known = point.active.map(|active| of(active).bytes().to_string());
        known.unwrap_or_default()
    };
    let fields = [
        point.at_s.to_string(),
        quoted(name),
        point.target.bytes().to_string(),
        point.held.bytes().to_string(),
        point.backed.bytes().to_string(),
        active(|active| active.pages),
        active(|active| active.low),
        active(|active| active.high),
        point.working_set.bytes().to_string(),
        point.is_blocked.to_string(),
        point.throughput_permille.to_string(),
    ];
    format!("{}\n", fields.join(","))
}

/// As RFC 4180 has it.
fn quoted(name: &str) -> String {
    match name.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", name.replace('"', "\"\"")),
        false => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENARIO: &str = "
        seconds = 120
        record_every_s = 60
        [host]
        memory_mib = 512
        [[vms]]
        name = \"a,b\"
        size_mib = 256
        phases = [{ working_set_mib = 64 }]
    ";

    #[test]
    fn a_scenario_gives_a_point_a_line() {
        let scenario: Scenario = toml::from_str(SCENARIO).unwrap();
        let trace = run(&scenario).unwrap();
        let csv = points(&trace);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 3, "{csv}");
        let columns = lines[0].split(',').count();
        // The comma in the name is one more.
        assert!(
            lines[1..]
                .iter()
                .all(|line| line.split(',').count() == columns + 1)
        );
        assert!(lines[2].starts_with("60,\"a,b\","), "{csv}");
        assert!(summary(&trace).contains("a,b"));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let wrong = SCENARIO.replace("size_mib", "sise_mib");
        let error = toml::from_str::<Scenario>(&wrong).unwrap_err().to_string();
        assert!(error.contains("sise_mib"), "{error}");
    }
}
