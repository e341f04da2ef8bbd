//! Claims about figures: they are the same wherever they are read, and what the kernel says.

use std::collections::BTreeMap;
use std::time::Duration;
use tests::machine_memory::used_bytes;
use tests::process::{self, Signal};
use tests::web::{Web, json, next_moment};
use tests::{MIB, TestHost, Value, number, text, vms, wait_for, wait_until, wait_until_at_least};

/// Every sample of a scrape by its name and labels.
fn samples(scraped: &str) -> BTreeMap<String, f64> {
    let lines = scraped.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// One publication by all ways to it.
#[derive(Debug)]
struct Seen {
    stream: Value,
    figures: Value,
    overview: Value,
    command: Value,
    metrics: BTreeMap<String, f64>,
}

/// Looks by all ways until all show one publication.
fn see(host: &TestHost, web: &Web) -> Seen {
    let mut stream = web.follow();
    wait_for("all ways lead to one publication", || {
        let seen = Seen {
            stream: next_moment(&mut stream)["figures"].clone(),
            figures: json(&web.get("/v1/figures").body),
            metrics: samples(&web.get("/metrics").body),
            command: host.overview(),
            overview: json(&web.get("/v1/overview").body),
        };
        let number = number(&seen.stream, "/publication");
        let numbers = [&seen.figures, &seen.command, &seen.overview];
        let is_one = numbers.iter().all(|value| value["publication"] == number);
        let counted = seen.metrics["ballonet_host_publications_total"];
        (is_one && counted == float(number)).then_some(seen)
    })
}

#[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

/// Pairs of what is one figure in an overview, in the figures and in a scrape.
const OF_HOST: [(&str, &str, &str); 5] = [
    ("budget_bytes", "pmem_total", "ballonet_host_budget_bytes"),
    ("used_bytes", "pmem_used", "ballonet_host_used_bytes"),
    ("used_max_bytes", "used_max", "ballonet_host_used_max_bytes"),
    ("promised_bytes", "promised", "ballonet_host_promised_bytes"),
    (
        "configured_bytes",
        "configured",
        "ballonet_host_configured_bytes",
    ),
];
const OF_VM: [(&str, &str, &str); 6] = [
    ("/size_bytes", "memsz", "ballonet_vm_size_bytes"),
    ("/min_bytes", "amin", "ballonet_vm_min_bytes"),
    ("/max_bytes", "amax", "ballonet_vm_max_bytes"),
    ("/target_bytes", "sztgt", "ballonet_vm_target_bytes"),
    ("/used_bytes", "used", "ballonet_vm_used_bytes"),
    (
        "/balloon/target",
        "mctltgt",
        "ballonet_vm_balloon_target_bytes",
    ),
];

/// The same of what not every VM has: it is nowhere, or everywhere.
const OF_SOME_VMS: [(&str, &str, &str); 4] = [
    (
        "/working_set/estimate_bytes",
        "/tchd",
        "ballonet_vm_touched_bytes",
    ),
    (
        "/working_set/believed_bytes",
        "/tchd_believed",
        "ballonet_vm_touched_believed_bytes",
    ),
    (
        "/touch_limit/slow_above_bytes",
        "/touch_limit/slow_above_bytes",
        "ballonet_vm_touch_limit_slow_bytes",
    ),
    (
        "/touch_limit/stop_above_bytes",
        "/touch_limit/stop_above_bytes",
        "ballonet_vm_touch_limit_stop_bytes",
    ),
];

#[test]
fn one_moment_has_one_set_of_figures_wherever_it_is_read() {
    // Long enough for a busy machine to look in all ways within one.
    let (host, web) = Web::start_with_rounds_of(1000, "256M");
    host.ok(&["set", "host", "sample-period=1"]);
    // Something is to change all the time.
    let busy = [
        "--memory",
        "128M",
        "--workload",
        "clone:size=max,rewrite=50",
    ];
    host.boot_vm("a", &busy);
    host.start_driverless_vm("b", &[&["--min", "16M"], &busy[2..]].concat());
    let late = [
        "run", "--name", "c", "--memory", "192M", "--min", "190M", "--wait",
    ];
    let mut late = host.start_command(&late);
    wait_until("one is blocked, and one waits to be admitted", || {
        let overview = host.overview();
        let a = host.vm("a");
        !a["working_set"].is_null()
            && number(&host.vm("b"), "/blocked_permille") > 0
            && number(&overview, "/queue/0/memory_bytes") == 192 * MIB
    });
    for _ in 0..5 {
        let seen = see(&host, &web);
        assert_eq!(seen.figures, seen.stream, "API and stream");
        assert_eq!(seen.overview, seen.command, "API and command");
        for (name, figure, metric) in OF_HOST {
            let value = number(&seen.overview["host"], &format!("/{name}"));
            assert_eq!(seen.figures["host"][figure], value, "{figure}");
            assert_eq!(seen.metrics[metric], float(value), "{metric}");
        }
        let queue = &seen.overview["queue"];
        assert_eq!(seen.figures["queue"], *queue);
        assert_eq!(seen.figures["host"]["queued"], 1);
        assert_eq!(seen.metrics["ballonet_host_queued_vms"], 1.0);
        let waited = number(queue, "/0/waited_s");
        assert_eq!(seen.figures["host"]["queue_wait_s"], waited);
        let sample = "ballonet_host_queue_wait_seconds";
        assert_eq!(seen.metrics[sample], float(waited), "{sample}");
        let of_vms = vms(&seen.overview).iter().zip(vms(&seen.figures));
        for (vm, figures) in of_vms {
            let vm_name = vm["name"].as_str().expect("a name");
            for (pointer, figure, metric) in OF_VM {
                let value = number(vm, pointer);
                assert_eq!(figures[figure], value, "{figure} of {vm_name}");
                let sample = &format!("{metric}{{vm=\"{vm_name}\"}}");
                assert_eq!(seen.metrics[sample], float(value), "{sample}");
            }
            for (pointer, figure, metric) in OF_SOME_VMS {
                let value = vm.pointer(pointer).and_then(Value::as_u64);
                let figure_value = figures.pointer(figure).and_then(Value::as_u64);
                assert_eq!(figure_value, value, "{figure} of {vm_name}");
                let sample = &format!("{metric}{{vm=\"{vm_name}\"}}");
                let scraped = seen.metrics.get(sample).copied();
                assert_eq!(scraped, value.map(float), "{sample}");
            }
            assert_blocked_alike(vm, figures, &seen.metrics);
            for (state, bytes) in vm["states"].as_object().expect("states") {
                let sample =
                    &format!("ballonet_vm_memory_bytes{{vm=\"{vm_name}\",state=\"{state}\"}}");
                assert_eq!(
                    seen.metrics[sample],
                    float(bytes.as_u64().expect("bytes")),
                    "{sample}"
                );
            }
        }
    }
    process::signal(late.id(), Signal::INT);
    let _status = late.wait().expect("a child can be waited for");
}

/// The part of the last second and the time in all, which scrapes have in their own units.
fn assert_blocked_alike(vm: &Value, figures: &Value, metrics: &BTreeMap<String, f64>) {
    let name = text(vm, "/name");
    let sample = |metric: &str| metrics[&format!("{metric}{{vm=\"{name}\"}}")];
    let permille = number(vm, "/blocked_permille");
    assert_eq!(figures["blocked_permille"], permille);
    let ratio = sample("ballonet_vm_blocked_ratio");
    assert_eq!(ratio, float(permille) / 1000.0);
    let us = number(vm, "/blocked_us");
    assert_eq!(figures["blocked_us"], us);
    let seconds = sample("ballonet_vm_blocked_seconds_total");
    assert_eq!(seconds, Duration::from_micros(us).as_secs_f64());
}

/// Memory files by their blocks, and what is anonymous in the processes: the host's books have no part in it.
#[test]
fn what_vms_hold_is_what_the_kernel_counts_for_their_processes() {
    let (host, _web) = Web::start("512M");
    let holds = [
        "--memory",
        "128M",
        "--trust-group",
        "g",
        "--workload",
        "clone:size=64M,zero=20,common=40",
    ];
    let fast = [
        "large-pages=off",
        "scan-pass=1",
        "scan-vm=1000000",
        "scan-host=1000000",
        "scan-core=100",
    ];
    host.ok(&[&["set", "host", "scan-priority=normal"], &fast[..]].concat());
    host.boot_vm("a", &holds);
    host.boot_vm("b", &holds);
    wait_until_at_least("pages are shared", 20 * MIB, || {
        number(&host.overview(), "/host/sharing/shared_bytes")
    });
    let pids = ["a", "b"].map(|name| host.pid(name));
    // The kernel is asked twice, so that a moment in which something moved is not held against anybody.
    wait_until("the host says what the kernel says, within 1 %", || {
        let before = used_bytes(host.host_pid(), &pids);
        let said = number(&host.overview(), "/host/used_bytes");
        let after = used_bytes(host.host_pid(), &pids);
        before.abs_diff(after) < before / 1000 && said.abs_diff(after) <= after / 100
    });
}
