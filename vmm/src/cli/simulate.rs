//! `ballonet simulate`: the policy over a described load, and others' rules over the same.

use super::args::{RulesArg, SimulateArgs};
use super::scenarios::{BUILT_IN, BuiltIn};
use super::{print, show, table};
use crate::host::recording::parse_recording;
use crate::regular_file::read_text;
use anyhow::{Context, Result, bail};
use page::{PageCount, Size};
use policy::simulate::{
    HostPoint, Outcome, Rules, Scenario, Trace, VmPoint, VmTrace, simulate as run,
};
use serde::Serialize;
use std::path::Path;

/// Bytes of a scenario, or of a recording.
const LARGEST: u64 = super::replay::LARGEST;

pub(super) fn simulate(args: &SimulateArgs) -> Result<()> {
    if args.list {
        return show(args.json, &listed(), |listed| {
            table::aligned(&["NAME", "WHAT HAPPENS"], listed.iter().map(listed_row))
        });
    }
    if args.show {
        return args
            .scenarios
            .iter()
            .try_for_each(|name| print(&shown(name)?));
    }
    match (args.rules.as_slice(), args.scenarios.as_slice()) {
        ([], [scenario]) => one(scenario, Rules::Ours, args),
        ([RulesArg::One(rules)], [scenario]) => one(scenario, *rules, args),
        _ if args.csv => bail!("--csv shows one scenario under one set of rules: give one of each"),
        (rules, scenarios) => show(
            args.json,
            &comparison(scenarios, &wanted(rules), args.memory)?,
            |rows| table::aligned(&COMPARED, rows.iter().map(compared_row)),
        ),
    }
}

fn one(name: &str, rules: Rules, args: &SimulateArgs) -> Result<()> {
    let trace = trace_of(name, rules, args.memory)?;
    show(args.json, &trace, if args.csv { points } else { summary })
}

fn trace_of(name: &str, rules: Rules, memory: Option<Size>) -> Result<Trace> {
    let text = text_of(name)?;
    let mut scenario: Scenario = match is_recording(&text) {
        true => recorded(name, &text)?,
        false => toml::from_str(&text).with_context(|| format!("{name} is not a scenario"))?,
    };
    if let Some(memory) = memory {
        scenario.host.memory_mib = memory.0.bytes() >> 20;
    }
    run(&scenario, rules).with_context(|| format!("cannot simulate {name}"))
}

/// A line of JSON, which no scenario begins with.
fn is_recording(text: &str) -> bool {
    text.starts_with('{')
}

/// The VMs of a recording, each working on what it was believed to need.
fn recorded(name: &str, text: &str) -> Result<Scenario> {
    let decisions = parse_recording(text)
        .with_context(|| format!("{name} is neither scenario nor recording"))?;
    let moments = decisions
        .iter()
        .map(|decision| (decision.at_ms, &decision.snapshot));
    Scenario::recorded(moments).context("nothing is recorded")
}

fn shown(name: &str) -> Result<String> {
    let text = text_of(name)?;
    match is_recording(&text) {
        true => toml::to_string(&recorded(name, &text)?).context("cannot print what was recorded"),
        false => Ok(text),
    }
}

/// A built-in scenario's text, or a file's. A file of such a name is meant by `./NAME`.
fn text_of(name: &str) -> Result<String> {
    if let Some(built_in) = BUILT_IN.iter().find(|built_in| built_in.name == name) {
        return Ok(built_in.text.to_owned());
    }
    let path = Path::new(name);
    read_text(path, LARGEST).with_context(|| match path.exists() {
        true => format!("cannot read {name}"),
        false => format!("cannot read {name}, and no scenario of that name is built in (--list)"),
    })
}

/// A built-in scenario, as a list shows it.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    title: &'static str,
}

fn listed() -> Vec<Listed> {
    let listed = |built_in: &BuiltIn| Listed {
        name: built_in.name,
        title: built_in.title(),
    };
    BUILT_IN.iter().map(listed).collect()
}

fn listed_row(listed: &Listed) -> Vec<String> {
    vec![listed.name.into(), listed.title.into()]
}

/// Each set of rules once, in the order of their first mention.
fn wanted(rules: &[RulesArg]) -> Vec<Rules> {
    let mut wanted: Vec<Rules> = Vec::new();
    for rules in rules {
        let meant = match rules {
            RulesArg::All => &Rules::ALL[..],
            RulesArg::One(rules) => std::slice::from_ref(rules),
        };
        for rules in meant {
            if !wanted.contains(rules) {
                wanted.push(*rules);
            }
        }
    }
    match wanted.is_empty() {
        true => vec![Rules::Ours],
        false => wanted,
    }
}

/// What came of a scenario under a set of rules.
#[derive(Debug, Serialize)]
struct Compared {
    scenario: String,
    rules: Rules,
    #[serde(flatten)]
    outcome: Outcome,
    /// VMs that were not admitted.
    refused: usize,
}

fn comparison(
    scenarios: &[String],
    rules: &[Rules],
    memory: Option<Size>,
) -> Result<Vec<Compared>> {
    let compared = |scenario: &String, rules: Rules| {
        let trace = trace_of(scenario, rules, memory)?;
        Ok(Compared {
            scenario: scenario.clone(),
            rules,
            outcome: trace.outcome,
            refused: trace.refused.len(),
        })
    };
    let pairs = scenarios
        .iter()
        .flat_map(|scenario| rules.iter().map(move |rules| (scenario, *rules)));
    pairs
        .map(|(scenario, rules)| compared(scenario, rules))
        .collect()
}

/// Sizes in MiB, reactions in seconds. `IN-` is of innocent guests.
const COMPARED: [&str; 11] = [
    "SCENARIO",
    "RULES",
    "BUSY%",
    "WAKES",
    "REACT",
    "SLOWEST",
    "IN-SWAP",
    "IN-WAIT",
    "IN-SPEED%",
    "SWAP",
    "USED",
];

fn compared_row(row: &Compared) -> Vec<String> {
    let outcome = &row.outcome;
    let (wakes, answered) = outcome.wakes();
    let speed = |permille: Option<u64>| permille.map_or_else(|| "-".into(), percent);
    let seconds = |seconds: Option<u32>| match seconds {
        Some(seconds) => seconds.to_string(),
        None if wakes == 0 => "-".into(),
        None => "never".into(),
    };
    vec![
        row.scenario.clone(),
        row.rules.to_string(),
        speed(outcome.busy_throughput_permille),
        format!("{answered}/{wakes}"),
        seconds(outcome.median_reaction_s()),
        seconds(outcome.slowest_reaction_s()),
        mebibytes(outcome.innocent_swapped),
        mebibytes(outcome.innocent_waited_for),
        speed(outcome.innocent_throughput_permille),
        mebibytes(outcome.most_swapped),
        mebibytes(outcome.used),
    ]
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
            "SECOND", "STATE", "USED", "FREE", "SWAP", "RUNNING", "WAITING", "SPEED%",
        ],
        trace.host.iter().map(host_row),
    );
    text.push('\n');
    text.push_str(&table::aligned(
        &[
            "NAME", "TARGET", "HELD", "BACKED", "SWAP", "WAITED", "BELIEVED", "USES", "SPEED%",
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
        mebibytes(point.swapped),
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
        mebibytes(last.swapped),
        mebibytes(last.waited_for),
        last.active
            .map_or_else(|| "-".into(), |active| mebibytes(active.pages)),
        mebibytes(last.working_set),
        percent(last.throughput_permille),
    ])
}

/// A line for each point of each VM.
fn points(trace: &Trace) -> String {
    let mut text = String::from(
        "second,vm,target_bytes,held_bytes,backed_bytes,active_bytes,active_low_bytes,active_high_bytes,working_set_bytes,blocked,throughput_permille,swapped_bytes,waited_for_bytes\n",
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
        point.swapped.bytes().to_string(),
        point.waited_for.bytes().to_string(),
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
        let trace = run(&scenario, Rules::Ours).unwrap();
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
    fn all_rules_are_each_of_them_once_in_the_order_of_their_mention() {
        use RulesArg::{All, One};
        assert_eq!(wanted(&[]), [Rules::Ours]);
        assert_eq!(
            wanted(&[One(Rules::Mom), One(Rules::Ours), One(Rules::Mom)]),
            [Rules::Mom, Rules::Ours]
        );
        let mom_first = [Rules::Mom, Rules::Ours, Rules::Proxmox, Rules::None];
        assert_eq!(wanted(&[One(Rules::Mom), All]), mom_first);
    }

    /// A wake that nobody answered is no number, and neither is one that there was not.
    #[test]
    fn a_comparison_tells_never_from_nothing() {
        let row = |reactions_s| {
            compared_row(&Compared {
                scenario: "a".into(),
                rules: Rules::Mom,
                outcome: Outcome {
                    reactions_s,
                    ..Outcome::default()
                },
                refused: 0,
            })
        };
        assert_eq!(row(vec![])[2..6], ["-", "0/0", "-", "-"]);
        assert_eq!(
            row(vec![Some(3), None, Some(1)])[3..6],
            ["2/3", "3", "never"]
        );
        assert_eq!(row(vec![Some(3)]).len(), COMPARED.len());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let wrong = SCENARIO.replace("size_mib", "sise_mib");
        let error = toml::from_str::<Scenario>(&wrong).unwrap_err().to_string();
        assert!(error.contains("sise_mib"), "{error}");
    }
}
