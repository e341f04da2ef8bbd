//! Claims about `ballonet experiment`: what is written is carried out on real guests, what comes out can
//! be read, and what makes no sense or is interrupted leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tests::process::{self, Signal};
use tests::{Place, Value, text, wait_for, wait_until};

/// Ten seconds of two VMs, in two ways.
const SMALL: &str = r#"
name = "small"
title = "Two guests & a <tax>"
about = "One works, one rests, wakes, gives memory up, and ends."
seconds = 12
sample_ms = 250
[host]
memory = "256M"
interval_ms = 250
sample_period_s = 1
idle_tax = "$tau"
[[variation]]
name = "tau"
values = [0, 75]
[[vm]]
name = "busy"
memory = "64M"
workload = "toucher:size=16M,rate=1000"
[[vm]]
name = "other"
memory = "96M"
disk = "16M"
start_s = 0.5
[[phase]]
at_s = 1.5
vm = "other"
workload = "toucher:size=24M,rate=1000"
hold = "64M"
[[phase]]
at_s = 11
vm = "other"
stop = true
[[measure]]
name = "speed"
series = "touches"
vm = "busy"
reduce = "rate"
from_s = 1
[[measure]]
name = "least"
series = "held"
vm = "other"
reduce = "min"
[[measure]]
name = "killed"
series = "alive"
vm = "*"
across = "min"
reduce = "min"
[[result]]
what = "Both work on"
measure = "killed"
at_least = 1
every_run = true
[[result]]
what = "The other gives up a third"
measure = "least"
paper = "64"
at_most = 64
[[result]]
what = "Nobody is this fast"
measure = "speed"
at = { tau = 75 }
at_least = 1000000
[[result]]
what = "The tax slows nobody"
measure = "speed"
at = { tau = 75 }
against = { tau = 0 }
[[chart]]
name = "held"
title = "What they hold"
[[chart.line]]
series = "held"
vm = "*"
[[chart]]
name = "speed"
title = "How fast it is"
x = "tau"
[[chart.line]]
measure = "speed"
"#;

/// A scenario in a file of the place's.
fn scenario(place: &Place, text: &str) -> PathBuf {
    let path = place.path().join("tmp/scenario.toml");
    fs::write(&path, text).expect("a file can be written");
    path
}

fn name(path: &Path) -> &str {
    path.to_str().expect("a name in letters")
}

fn verdicts(results: &Value) -> Vec<&str> {
    let results = results["results"].as_array().expect("there are results");
    results
        .iter()
        .map(|result| text(result, "/verdict"))
        .collect()
}

/// The file's lines, each as what its columns hold.
fn rows(path: &Path) -> Vec<csv::StringRecord> {
    let mut table = csv::Reader::from_path(path).expect("it is there");
    let header: Vec<String> = table
        .headers()
        .expect("it has a header")
        .iter()
        .map(Into::into)
        .collect();
    let columns = "time_s run repetition variation vm series value unit";
    assert_eq!(header.join(" "), columns);
    table
        .records()
        .map(|row| row.expect("a whole row"))
        .collect()
}

#[test]
fn a_scenario_is_carried_out_and_all_that_comes_out_can_be_read() {
    let place = Place::new();
    let file = scenario(&place, SMALL);
    let out = place.path().join("tmp/out");
    let run = ["experiment", "run", name(&file), "--out", name(&out)];
    let results = place.json(&run);
    assert_eq!(
        verdicts(&results),
        ["met", "met", "missed", "reported"],
        "{results:#}"
    );
    assert_eq!(results["runs"], 2);

    let rows = rows(&out.join("data.csv"));
    let column = |index: usize| -> BTreeSet<&str> { rows.iter().map(|row| &row[index]).collect() };
    assert_eq!(column(1), BTreeSet::from(["1", "2"]));
    assert_eq!(column(3), BTreeSet::from(["tau=0", "tau=75"]));
    assert_eq!(column(4), BTreeSet::from(["busy", "host", "other"]));
    assert!(column(5).is_superset(&BTreeSet::from([
        "alive", "estimate", "held", "touches", "used"
    ])));
    for row in &rows {
        let time_s: f64 = row[0].parse().expect("a time");
        assert!((0.0..60.0).contains(&time_s), "{row:?}");
        assert!(
            row[6].parse::<f64>().expect("a value").is_finite(),
            "{row:?}"
        );
    }

    let files = ["held-tau-0.svg", "held-tau-75.svg", "speed.svg"];
    for file in files {
        let drawn = fs::read_to_string(out.join(file)).expect("it was drawn");
        let tree = roxmltree::Document::parse(&drawn).expect("it is XML");
        assert_eq!(tree.root_element().tag_name().name(), "svg");
        assert!(
            tree.descendants().any(|node| node.has_tag_name("polyline")),
            "{drawn}"
        );
    }
    let report = fs::read_to_string(out.join("report.md")).expect("it was written");
    let words = [
        "| The other gives up a third | 64 |",
        "MISSED",
        "Linux ",
        "seed 1",
        "idle_tax = \"$tau\"",
    ];
    for word in words.into_iter().chain(files).chain([name(&file)]) {
        assert!(report.contains(word), "'{word}' is not in {report}");
    }
    fs::remove_dir_all(&out).expect("it can be removed");
    fs::remove_file(&file).expect("it can be removed");
}

/// Each result is judged for each of those who ran VMs.
#[test]
fn a_scenario_is_run_by_us_and_by_qemu_side_by_side_in_one_report() {
    let place = Place::new();
    let file = scenario(
        &place,
        &SMALL
            .replace("values = [0, 75]", "values = [75]")
            .replace("against = { tau = 0 }", ""),
    );
    let out = place.path().join("tmp/out");
    let run = [
        "experiment",
        "run",
        name(&file),
        "--vmm",
        "both",
        "--out",
        name(&out),
    ];
    let results = place.json(&run);
    let expected = [
        "met", "met", "met", "met", "missed", "missed", "reported", "reported",
    ];
    assert_eq!(verdicts(&results), expected, "{results:#}");
    assert_eq!(text(&results, "/results/1/what"), "Both work on (qemu)");
    assert_eq!(results["runs"], 2);
    let rows = rows(&out.join("data.csv"));
    let of_qemu: Vec<_> = rows
        .iter()
        .filter(|row| row[3].contains("vmm=qemu"))
        .collect();
    for series in ["touches", "held", "used", "truth"] {
        assert!(of_qemu.iter().any(|row| &row[5] == series), "no {series}");
    }
    assert!(
        !of_qemu
            .iter()
            .any(|row| row[5].contains("shared") || row[5].contains("estimate")),
        "nobody knows that"
    );
    let report = fs::read_to_string(out.join("report.md")).expect("it was written");
    for word in [
        "Guests of QEMU",
        "sample_period_s",
        "--vmm both",
        "tau=75, vmm=qemu",
    ] {
        assert!(report.contains(word), "'{word}' is not in {report}");
    }
    fs::remove_dir_all(&out).expect("it can be removed");
    let run = ["experiment", "run", "sharing-best-case", "--vmm", "qemu"];
    place.fails(&run, 1, &["'reclaimed'", "QEMU", "--vmm ballonet"]);
    let run = ["experiment", "run", "idle-tax", "--vmm", "xen"];
    place.fails(&run, 1, &["'xen'", "both"]);
    fs::remove_file(&file).expect("it can be removed");
}

#[test]
fn a_missed_result_fails_only_a_check() {
    let place = Place::new();
    let short = SMALL
        .replace("values = [0, 75]", "values = [75]")
        .replace("against = { tau = 0 }", "");
    let file = scenario(&place, &short);
    let out = place.path().join("tmp/out");
    let run = [
        "experiment",
        "run",
        name(&file),
        "--out",
        name(&out),
        "--check",
    ];
    place.fails(&run, 1, &["1 of 4 results"]);
    assert!(out.join("report.md").exists(), "what was measured is kept");
    fs::remove_dir_all(&out).expect("it can be removed");
    fs::remove_file(&file).expect("it can be removed");
}

#[test]
fn an_interrupted_experiment_leaves_nothing_behind() {
    let place = Place::new();
    let file = scenario(&place, &SMALL.replace("seconds = 12", "seconds = 600"));
    let out = place.path().join("tmp/out");
    let mut experiment = place
        .command(&["experiment", "run", name(&file), "--out", name(&out)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program can be run");
    wait_until("both VMs run", || place.processes().len() == 3);
    process::signal(experiment.id(), Signal::INT);
    let status = wait_for("the experiment ends", || {
        experiment.try_wait().expect("a child can be waited for")
    });
    assert_eq!(status.code(), Some(130));
    fs::remove_file(&file).expect("it can be removed");
    // The place looks for processes and files when it is dropped.
}

#[test]
fn what_cannot_be_carried_out_is_refused_before_anything_runs() {
    let place = Place::new();
    let refused = |text: &str, words: &[&str]| {
        let file = scenario(&place, text);
        place.fails(&["experiment", "run", name(&file)], 1, words);
        fs::remove_file(&file).expect("it can be removed");
    };
    refused(
        &SMALL.replace("hold =", "holt ="),
        &["holt", "line 28", "hold"],
    );
    refused(
        &SMALL.replace("toucher:size=16M", "juggler"),
        &["juggler", "toucher"],
    );
    refused(
        &SMALL.replace("[0, 75]", "[0, 75, 100]"),
        &["idle_tax", "less than 100 %"],
    );
    let min = "memory = \"64M\"\nmin = \"48M\"\nmax = \"32M\"";
    refused(
        &SMALL.replace("memory = \"64M\"", min),
        &["'busy'", "min 48 MiB", "max 32 MiB"],
    );
    place.fails(
        &["experiment", "run", "idle-taxes"],
        1,
        &["'idle-taxes'", "active-sampling"],
    );
    place.fails(&["experiment", "run", "./none.toml"], 1, &["./none.toml"]);
    let full = SMALL.replace("memory = \"256M\"", "memory = \"64M\"");
    let file = scenario(&place, &full);
    let out = place.path().join("tmp/out");
    // A host finds out that memory is too small; then no folder is left either.
    let run = ["experiment", "run", name(&file), "--out", name(&out)];
    place.fails(&run, 1, &["tau=0", "VM 'other'"]);
    fs::remove_file(&file).expect("it can be removed");
}

#[test]
fn a_built_in_experiment_is_a_file_like_any_other() {
    let place = Place::new();
    let listed = place.json(&["experiment", "list"]);
    let listed = listed.as_array().expect("a list");
    assert!(listed.iter().any(|one| one["name"] == "sharing-best-case"));
    let built_in = place.ok(&["experiment", "show", "sharing-best-case"]);
    let quick = built_in
        .replace("values = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", "values = [3]")
        .replace("count = 10 }", "count = 3 }")
        .replace("count = 1 }", "count = 3 }");
    assert_ne!(quick, built_in);
    let file = scenario(&place, &quick);
    let out = place.path().join("tmp/out");
    let results = place.json(&["experiment", "run", name(&file), "--out", name(&out)]);
    let shared = results.pointer("/measures/3/figures/0/value/median");
    assert!(
        shared.and_then(Value::as_f64).expect("a figure") > 20.0,
        "{results:#}"
    );
    assert_eq!(verdicts(&results).last(), Some(&"met"), "{results:#}");
    fs::remove_dir_all(&out).expect("it can be removed");
    fs::remove_file(&file).expect("it can be removed");
}

/// What comes out of a comparison has its shape on any machine; what it says of one that is busy is not looked at.
#[test]
fn a_comparison_of_how_many_guests_fit_says_so_for_each_side() {
    let place = Place::new();
    let out = place.path().join("tmp/out");
    let run = [
        "experiment",
        "run",
        "density",
        "--quick",
        "--sides",
        "ballonet,qemu,qemu-managed",
        "--out",
        name(&out),
    ];
    let results = place.json(&run);
    let sides = results["sides"].as_array().expect("there are sides");
    let names: Vec<&str> = sides.iter().map(|side| text(side, "/side/name")).collect();
    assert_eq!(names, ["ballonet", "qemu", "qemu-managed"]);
    for side in sides {
        if let Some(problem) = side["problem"].as_str() {
            let known = ["memory cgroup", "qemu-system"];
            assert!(known.iter().any(|word| problem.contains(word)), "{problem}");
            continue;
        }
        let count = side.pointer("/score/count").and_then(Value::as_u64);
        assert!(count.is_some(), "{side:#}");
        let probes = side["probes"].as_array().expect("it was tried");
        assert!(!probes.is_empty());
        for probe in probes {
            assert_eq!(wrong_bytes(probe), 0, "{probe:#}");
            let samples = probe["samples"].as_array().expect("it was looked at");
            assert!(!samples.is_empty(), "{probe:#}");
        }
    }
    for file in ["score.svg", "speed.svg", "memory.svg"] {
        let drawn = fs::read_to_string(out.join(file)).expect("it was drawn");
        roxmltree::Document::parse(&drawn).expect("it is XML");
    }
    let report = fs::read_to_string(out.join("report.md")).expect("it was written");
    for word in [
        "guests at full speed",
        "Every run",
        "Linux ",
        "score.svg",
        "--quick",
    ] {
        assert!(report.contains(word), "'{word}' is not in {report}");
    }
    fs::remove_dir_all(&out).expect("it can be removed");
}

/// Of all guests of a run.
fn wrong_bytes(probe: &Value) -> u64 {
    let guests = probe["guests"].as_array().expect("it has guests");
    let last = guests.iter().filter_map(|guest| guest["last"].as_object());
    last.flat_map(|last| ["errors", "leaks", "disk_errors"].map(|name| &last[name]))
        .filter_map(Value::as_u64)
        .sum()
}

#[test]
fn a_comparison_without_such_a_side_is_refused() {
    let place = Place::new();
    let run = ["experiment", "run", "density", "--sides", "ballonet,xen"];
    place.fails(&run, 1, &["'xen'", "qemu-ksm-zram"]);
    place.fails(
        &["experiment", "run", "idle-tax", "--quick"],
        1,
        &["--quick"],
    );
    place.fails(
        &["experiment", "run", "density", "--seed", "3"],
        1,
        &["--seed"],
    );
}
