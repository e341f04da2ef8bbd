//! Claims about what is decided, and why: working sets of real guests, the tax on idle memory, and
//! decisions that can be explained and made again.

use std::fs;
use tests::{MIB, TestHost, Value, number, text, wait_for, wait_until};

/// Seconds that a sample is watched: 96 pages' worth of faults.
const PERIOD: &str = "sample-period=6";

fn policy_host(budget: &str) -> TestHost {
    let host = TestHost::start(budget);
    host.ok(&["set", "host", PERIOD, "sharing=off"]);
    host
}

/// What is known of a VM's use once it is known, and so much of the VM's memory was there.
fn known_use(host: &TestHost, name: &str) -> (Value, u64) {
    wait_for("its working set is known", || {
        let vm = host.vm(name);
        let private = number(&vm, "/states/private");
        let uses = vm.get("working_set").filter(|uses| uses.is_object())?;
        Some((uses.clone(), private))
    })
}

/// All that a guest touches, and no more than it has.
#[test]
fn the_estimate_of_a_working_set_covers_the_truth() {
    let host = policy_host("512M");
    host.boot_vm("a", &["--memory", "256M", "--workload", "toucher:size=64M"]);
    host.console("a").wait_until_held(64 * MIB);
    // The first samples saw how it took its memory.
    wait_until("an estimate covers it", || {
        let (uses, _) = known_use(&host, "a");
        number(&uses, "/high_bytes") >= 64 * MIB
            && number(&uses, "/written_bytes") > 32 * MIB
            && number(&uses, "/samples") > 30
    });
    let (uses, private) = known_use(&host, "a");
    assert!(number(&uses, "/low_bytes") <= private, "{uses:#}");
    let estimate = number(&uses, "/estimate_bytes");
    let ends = number(&uses, "/low_bytes")..=number(&uses, "/high_bytes");
    assert!(ends.contains(&estimate), "{uses:#}");
}

/// 192 MiB that are held and of which hardly any is touched.
#[test]
fn memory_that_a_guest_holds_and_leaves_alone_is_not_in_its_working_set() {
    let host = policy_host("512M");
    host.boot_vm(
        "a",
        &["--memory", "256M", "--workload", "verify:size=192M,rate=1"],
    );
    // The estimate falls slowly by design; the fast average shows the same at once.
    host.wait_for_figure("a", "/states/private", 190 * MIB);
    wait_until("the guest rests", || {
        let vm = host.vm("a");
        let fast = vm.pointer("/working_set/actvf_percent");
        fast.and_then(Value::as_f64).is_some_and(|fast| fast < 10.0)
    });
}

#[test]
fn idle_memory_goes_to_a_busy_guest_if_it_is_taxed_and_only_then() {
    let host = policy_host("300M");
    let vm = |workload| ["--memory", "256M", "--min", "48M", "--workload", workload];
    host.boot_vm("idle", &vm("verify:size=max,rate=1"));
    host.boot_vm("busy", &vm("toucher:size=max"));
    let target = |name: &str| number(&host.vm(name), "/target_bytes");
    known_use(&host, "idle");
    known_use(&host, "busy");
    wait_until("the busy guest is to have more than its share", || {
        target("busy") > target("idle") + 32 * MIB
    });
    wait_until("and has it", || {
        number(&host.vm("busy"), "/memory_file_bytes")
            > number(&host.vm("idle"), "/memory_file_bytes") + 16 * MIB
    });
    wait_until("the tax is named", || {
        host.ok(&["explain", "idle"]).contains("idle tax of 75 %")
    });
    host.ok(&["set", "host", "idle-tax=0"]);
    wait_until("without the tax each has its share", || {
        target("busy").abs_diff(target("idle")) < 4 * MIB
    });
    let overview = host.overview();
    assert!(number(&overview, "/host/used_max_bytes") <= 300 * MIB);
    assert_eq!(number(&overview, "/host/state_sum_violations"), 0);
    let report = host.report("idle");
    assert_eq!(number(&report, "/errors") + number(&report, "/leaks"), 0);

    host.ok(&["set", "host", "idle-tax=75"]);
    host.ok(&["set", "idle", "idle-tax=0"]);
    host.ok(&["set", "busy", "idle-tax=0"]);
    wait_until("nor with a tax that both are spared", || {
        target("busy").abs_diff(target("idle")) < 4 * MIB
    });
}

#[test]
fn recorded_decisions_are_made_again_and_a_changed_one_is_found() {
    let host = policy_host("300M");
    host.boot_vm("a", &["--memory", "128M"]);
    host.boot_vm("b", &["--memory", "128M", "--workload", "verify:size=64M"]);
    let recording = host.host_folder().join("decisions");
    let file = recording.to_str().expect("a name in letters");
    let replayed = wait_for("there are decisions", || {
        let replayed = host.json(&["replay", file]);
        (number(&replayed, "/decisions") > 2).then_some(replayed)
    });
    assert_eq!(number(&replayed, "/different"), 0, "{replayed:#}");
    let lines = fs::read_to_string(&recording).expect("it was just read");
    let mut last: Value = lines
        .lines()
        .last()
        .and_then(|line| serde_json::from_str(line).ok())
        .expect("a line of JSON");
    last["plan"]["free"] = 1.into();
    let changed = host.path().join("tmp/changed");
    fs::write(&changed, format!("{last}\n")).expect("a file can be written");
    let file = changed.to_str().expect("a name in letters");
    host.fails(&["replay", file], 1, &["1 of 1 decisions"]);
    fs::write(&changed, "{}\n").expect("a file can be written");
    host.fails(&["replay", file], 1, &["line 1"]);
    fs::remove_file(&changed).expect("it is there");
    host.fails(&["replay", file], 1, &[file, "cannot read"]);
}

#[test]
fn a_vms_memory_is_explained_in_sentences_and_as_data() {
    let host = policy_host("300M");
    host.boot_vm("a", &["--memory", "128M"]);
    let sentences = host.ok(&["explain", "a", "--more", "16M"]);
    assert!(sentences.contains("should hold 128 MiB"), "{sentences}");
    let data = host.json(&["explain", "a"]);
    assert_eq!(text(&data, "/name"), "a");
    assert_eq!(number(&data, "/explanation/target") * 4096, 128 * MIB);
    host.fails(&["explain", "ghost"], 1, &["'ghost'", "ballonet ps"]);
    let overview = host.overview();
    assert_eq!(text(&overview, "/host/state"), "high");
    assert!(number(&overview, "/host/min_free_bytes") >= 8 * MIB);
    host.fails(&["set", "host", "idle-tax=100"], 1, &["less than 100 %"]);
    host.fails(&["set", "a", "idle-tax=x"], 1, &["x", "percent"]);
    host.fails(&["set", "host", "sample-period=4000"], 1, &["4000", "3600"]);
    let too_long = ["set", "host", "rebalance-interval=4000"];
    host.fails(&too_long, 1, &["4000", "3600"]);
    let too_long = ["set", "host", "sample-period=18446744073709551615"];
    host.fails(&too_long, 1, &["18446744073709551615", "seconds"]);
}

#[test]
fn a_scenario_is_simulated_and_an_unknown_key_refused() {
    let host = TestHost::start("64M");
    let scenario = host.path().join("tmp/load.toml");
    let file = scenario.to_str().expect("a name in letters");
    let load = "seconds = 300\nrecord_every_s = 60\n[host]\nmemory_mib = 400\n\
        [[vms]]\nname = \"busy\"\nsize_mib = 256\nphases = [{ working_set_mib = 240 }]\n\
        [[vms]]\nname = \"idle\"\nsize_mib = 256\n";
    fs::write(&scenario, load).expect("a file can be written");
    let table = host.ok(&["simulate", file]);
    assert!(table.contains("busy") && table.contains("idle"), "{table}");
    let csv = host.ok(&["simulate", file, "--csv"]);
    assert_eq!(csv.lines().count(), 11, "{csv}");
    fs::write(&scenario, load.replace("memory_mib", "memory")).expect("a file can be written");
    host.fails(&["simulate", file], 1, &[file, "`memory`"]);
    fs::remove_file(&scenario).expect("it is there");
    host.fails(&["simulate", file], 1, &[file, "--list"]);
}

#[test]
fn others_rules_are_compared_with_ours_on_what_is_built_in() {
    let host = TestHost::start("64M");
    let list = host.ok(&["simulate", "--list"]);
    assert!(
        list.contains("one-wakes") && list.contains("plenty"),
        "{list}"
    );
    let file = host.ok(&["simulate", "plenty", "--show"]);
    assert!(file.contains("memory_mib"), "{file}");
    let table = host.ok(&["simulate", "plenty", "--rules", "all"]);
    let rows: Vec<&str> = table.lines().skip(1).collect();
    assert_eq!(rows.len(), 4, "{table}");
    for (row, rules) in rows.iter().zip(["ours", "mom", "proxmox", "none"]) {
        assert!(row.contains("plenty") && row.contains(rules), "{table}");
    }
    let compared = ["simulate", "plenty", "--rules", "mom,ours", "--json"];
    let json: serde_json::Value = serde_json::from_str(&host.ok(&compared)).expect("it is JSON");
    assert_eq!(json[0]["rules"], "mom");
    assert_eq!(json[1]["scenario"], "plenty");
    assert!(json[1]["busy_throughput_permille"].is_u64(), "{json}");
    assert!(
        host.ok(&["simulate", "plenty", "--rules", "none"])
            .contains("busy-1")
    );
    host.fails(
        &["simulate", "plenty", "--rules", "x"],
        2,
        &["x", "proxmox"],
    );
    host.fails(
        &["simulate", "plenty", "--rules", "all", "--csv"],
        1,
        &["--csv"],
    );
    host.fails(&["simulate"], 2, &["SCENARIO"]);
}
