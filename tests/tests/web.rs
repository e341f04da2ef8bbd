//! Claims about the host on TCP: what browsers and scrapers get, and what they do not.

use std::collections::BTreeSet;
use std::io::{BufRead, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::program::run_with_input;
use tests::raw_client::ask;
use tests::web::{Web, json, next_moment};
use tests::{MIB, Place, TestHost, Value, number, run_to_end, text, wait_for, wait_until};

fn dashboard(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../vmm/dashboard")
        .join(file)
}

#[test]
fn anybody_on_this_machine_may_look_and_only_who_has_the_token_may_change() {
    let (host, web) = Web::start("256M");
    host.start_vm("a", &["--memory", "64M"]);
    assert_eq!(
        number(&json(&web.get("/v1/overview").body), "/host/budget_bytes"),
        256 * MIB
    );
    let change = r#"{"shares":"high"}"#;
    let refused = web.ask("PATCH", "/v1/vms/a", &[], change);
    assert_eq!(refused.status, 401, "{refused:?}");
    assert_eq!(
        refused.header("content-type"),
        Some("application/problem+json")
    );
    assert!(
        json(&refused.body)["detail"]
            .as_str()
            .is_some_and(|text| text.contains("token"))
    );
    assert_eq!(text(&host.vm("a"), "/shares"), "normal");
    let done = web.ask("PATCH", "/v1/vms/a", &[&web.authorization()], change);
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(text(&host.vm("a"), "/shares"), "high");
}

/// A page of another site can make a browser send all this.
#[test]
fn other_sites_and_rebound_names_are_refused_whatever_they_know() {
    let (host, web) = Web::start("256M");
    host.start_vm("a", &["--memory", "64M"]);
    let token = web.authorization();
    for line in [
        "Host: evil.example",
        "Origin: http://evil.example",
        "Sec-Fetch-Site: cross-site",
    ] {
        let answer = web.ask("DELETE", "/v1/vms/a", &[&token, line], "");
        assert_eq!(answer.status, 403, "{line}: {answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
        let read = web.ask("GET", "/v1/overview", &[line], "");
        assert_eq!(read.status, 403, "{line}: {read:?}");
    }
    let preflight = web.ask(
        "OPTIONS",
        "/v1/vms/a",
        &[
            "Origin: http://evil.example",
            "Access-Control-Request-Method: DELETE",
        ],
        "",
    );
    assert_eq!(preflight.status, 403);
    assert_eq!(number(&host.vm("a"), "/size_bytes"), 64 * MIB);
}

#[test]
fn the_token_is_for_the_owner_alone_and_goes_with_the_host() {
    let (host, web) = Web::start("256M");
    let file = host.host_folder().join("token");
    let mode = std::fs::metadata(file)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(web.token.len() >= 32);
    // That it goes is what the place looks for at its end.
}

#[test]
fn other_machines_are_served_only_when_that_is_wanted() {
    let host = TestHost::start("256M");
    let other = host.path().join("other.sock");
    let other = other.to_str().expect("it has a plain name");
    host.fails(
        &["--socket", other, "host", "--http", "0.0.0.0:0"],
        1,
        &["0.0.0.0:0", "--http-remote", "127.0.0.1"],
    );
    host.fails(
        &["host", "--http", "nowhere"],
        2,
        &["'nowhere'", "localhost:9000"],
    );
    host.fails(
        &["host", "--http-name", "http://box"],
        2,
        &["'http://box'", "box.lan"],
    );
}

#[test]
fn a_host_is_served_where_people_say_and_reached_by_names_that_it_was_given() {
    let place = Place::new();
    let words = [
        "host",
        "--memory",
        "128M",
        "--http",
        "localhost:0",
        "--http-name",
        "VMs.example.com",
    ];
    let command = place.command(&words);
    let host = TestHost::start_by(place, command);
    let web = Web::of(&host);
    assert!(web.address.ip().is_loopback());
    let token = web.authorization();
    let by_name = |name: &str, token: &str| {
        let named = format!("Host: {name}");
        let head = [&named, "Origin: https://vms.example.com", token];
        web.ask("GET", "/v1/host", &head, "").status
    };
    assert_eq!(by_name("vms.example.com", &token), 200);
    assert_eq!(by_name("vms.example.com.", &token), 200);
    assert_eq!(by_name("vms.example.com", "Accept: */*"), 401);
    assert_eq!(by_name("evil.example.com", &token), 403);
    let refused = ["Accept: application/openmetrics-text;q=0"];
    let answer = web.ask("GET", "/metrics", &refused, "");
    let kind = answer.header("content-type").expect("it has one");
    assert!(kind.starts_with("text/plain"), "{kind}");
}

#[test]
fn every_page_comes_with_a_policy_that_lets_nothing_foreign_in() {
    let (_host, web) = Web::start("256M");
    for path in [
        "/",
        "/app.js",
        "/style.css",
        "/uplot/uPlot.iife.min.js",
        "/v1/overview",
        "/nowhere",
    ] {
        let answer = web.get(path);
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(
            policy.starts_with("default-src 'none'"),
            "{path}: {answer:?}"
        );
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.status == 200, path != "/nowhere");
        assert!(!answer.body.is_empty(), "{path}");
    }
}

#[test]
fn histories_have_a_point_a_second_for_the_host_and_each_vm() {
    let (host, web) = Web::start("256M");
    host.start_vm("a", &["--memory", "64M"]);
    for path in ["/v1/history?span=10m", "/v1/history?vm=a&span=10m"] {
        let history = wait_for("three points", || {
            let history = json(&web.get(path).body);
            (history["time_ms"].as_array()?.len() >= 3).then_some(history)
        });
        let times: Vec<u64> = history["time_ms"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
            .collect();
        assert!(times.is_sorted(), "{times:?}");
        for column in history["columns"].as_array().into_iter().flatten() {
            assert_eq!(
                column["values"].as_array().map(Vec::len),
                Some(times.len()),
                "{column}"
            );
        }
    }
    let day = json(&web.get("/v1/history?vm=a&span=1d").body);
    let minutes = day["time_ms"].as_array().map_or(0, Vec::len);
    assert!(minutes > 0, "{day}");
    for (path, status) in [
        ("/v1/history?vm=b", 404),
        ("/v1/history?span=2h", 400),
        ("/v1/history?spam=10m", 400),
    ] {
        let answer = web.get(path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
}

#[test]
fn prometheus_understands_what_it_scrapes_and_the_alerts_on_it() {
    let place = Place::new();
    let words = [
        "host",
        "--memory",
        "256M",
        "--interval-ms",
        "200",
        "--http",
        "127.0.0.1:0",
    ];
    let command = place.command(&[&words[..], &["--sample-period", "1"]].concat());
    let host = TestHost::start_by(place, command);
    let web = Web::of(&host);
    host.boot_vm("a", &["--memory", "64M"]);
    host.start_driverless_vm("driverless", &["--min", "16M"]);
    // What not every VM has.
    wait_until(
        "a sample was watched to its end, and a limit was set",
        || {
            let scraped = web.get("/metrics").body;
            scraped.contains("ballonet_vm_touched_bytes{vm=\"a\"}")
                && scraped.contains("ballonet_vm_touch_limit_slow_bytes{vm=\"driverless\"}")
        },
    );
    let scraped = web.get("/metrics");
    assert_eq!(
        scraped.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]);
    let said = run_with_input(&mut promtool, scraped.body.as_bytes());
    assert!(said.stderr.is_empty(), "{}", said.stderr);
    let _listed = said.expect_success();
    assert!(
        scraped
            .body
            .contains("ballonet_vm_size_bytes{vm=\"a\"} 67108864\n"),
        "{}",
        scraped.body
    );
    let open_metrics = web.ask(
        "GET",
        "/metrics",
        &["Accept: application/openmetrics-text; version=1.0.0"],
        "",
    );
    assert!(open_metrics.body.ends_with("# EOF\n"));
    let mut promtool = Command::new("promtool");
    let rules = run_to_end(
        promtool
            .args(["check", "rules"])
            .arg(dashboard("alerts.yml")),
    );
    assert!(rules.expect_success().contains("16 rules found"));
    // Nor this: it is served in another network, but for the socket.
    let with_devices = TestHost::start_with_taps("256M");
    let disk = with_devices.temporary_folder().join("disk");
    std::fs::write(&disk, [0; 4096]).expect("a file can be made");
    let words = ["--memory", "64M", "--net", "tap=tap0", "--disk"];
    with_devices.boot_vm("a", &[&words[..], &[&disk.display().to_string()]].concat());
    let devices = ask(&with_devices.socket(), "GET", "/metrics", b"");
    std::fs::remove_file(&disk).expect("it was made above");
    let known: BTreeSet<&str> = &names(&scraped.body) | &names(&devices);
    for file in ["alerts.yml", "grafana.json"] {
        let content = std::fs::read_to_string(dashboard(file)).expect("it is there");
        for name in names(&content) {
            assert!(
                known.contains(name),
                "{file} wants {name}, which nobody serves"
            );
        }
    }
}

#[test]
fn alerts_are_raised_when_they_should_be_and_not_before() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("prometheus/alerts.yml");
    let mut promtool = Command::new("promtool");
    let done = run_to_end(promtool.args(["test", "rules"]).arg(cases));
    assert!(done.expect_success().contains("SUCCESS"));
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("ballonet_")).collect()
}

#[test]
fn the_sum_of_what_memory_is_used_for_is_the_budget() {
    let (host, web) = Web::start("256M");
    host.boot_vm("a", &["--memory", "64M"]);
    let scraped = web.get("/metrics").body;
    let sum = |prefix: &str| -> u64 {
        let lines = scraped.lines().filter_map(|line| line.strip_prefix(prefix));
        lines
            .map(|line| {
                line.rsplit(' ')
                    .next()
                    .and_then(|word| word.parse::<u64>().ok())
                    .expect("a number")
            })
            .sum()
    };
    assert_eq!(sum("ballonet_host_memory_bytes{"), 256 * MIB);
    assert_eq!(sum("ballonet_vm_memory_bytes{"), 64 * MIB);
}

#[test]
fn a_stream_tells_each_event_once_and_the_figures_of_every_round() {
    let (host, web) = Web::start("256M");
    let mut stream = web.follow();
    let first = next_moment(&mut stream);
    assert_eq!(first["figures"]["vms"].as_array().map(Vec::len), Some(0));
    host.start_vm("a", &["--memory", "64M"]);
    let mut started = 0;
    let mut rounds_with_vm = 0;
    // It is listed while it is being started.
    while started == 0 || rounds_with_vm < 3 {
        let moment = next_moment(&mut stream);
        rounds_with_vm += moment["figures"]["vms"].as_array().map_or(0, Vec::len);
        let events = moment["events"].as_array().cloned().unwrap_or_default();
        started += events
            .iter()
            .filter(|event| {
                event["what"]
                    .as_str()
                    .is_some_and(|what| what.contains("started"))
            })
            .count();
    }
    assert_eq!(started, 1);
}

/// They connect, ask, and never read.
#[test]
fn clients_that_never_read_hold_up_nobody() {
    let (host, web) = Web::start("256M");
    host.start_vm("a", &["--memory", "64M"]);
    let stalled: Vec<_> = (0..64).map(|_| web.follow()).collect();
    wait_until("all places are taken", || {
        let mut stream = web.connect();
        write!(
            stream,
            "GET /v1/events/stream HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            web.address
        )
        .expect("the host listens");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("the host answers");
        head.ends_with(b"503")
    });
    let before = number(&host.overview(), "/host/samples");
    wait_until("rounds go on", || {
        number(&host.overview(), "/host/samples") > before + 5
    });
    drop(stalled);
    wait_until("places are free again", || {
        let mut stream = web.follow();
        let mut line = String::new();
        stream.read_line(&mut line).expect("the host answers");
        line.contains("200")
    });
}

#[test]
fn a_file_of_settings_is_followed_and_the_command_line_wins() {
    let place = Place::new();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("host.toml");
    let path = file.to_str().expect("it has a plain name");
    std::fs::write(&file, "memory = \"128M\"\ninterval_ms = 100\nsharing = \"off\"\nidle_tax = 50\nhttp = 0\n[scan]\npass_s = 7\npriority = \"normal\"\n").expect("it can be written");
    let command = place.command(&["host", "--config", path, "--memory", "192M"]);
    let host = TestHost::start_by(place, command);
    let web = Web::of(&host);
    let seen = json(&web.get("/v1/host").body);
    assert_eq!(number(&seen, "/budget_bytes"), 192 * MIB);
    assert_eq!(number(&seen, "/sharing/rates/pass_s"), 7);
    assert_eq!(text(&seen, "/sharing/priority"), "normal");
    assert_eq!(number(&seen, "/idle_tax_permille"), 500);
    // What is shown of sharing is what the last round found.
    wait_until("nothing is shared", || {
        json(&web.get("/v1/host").body)["sharing"]["on"] == false
    });
    let other = host.path().join("other.sock");
    let other = other.to_str().expect("it has a plain name");
    for (content, said) in [
        ("memroy = \"1G\"", "memroy"),
        ("[scan]\ncore_share_permille = 0", "scan-core"),
    ] {
        std::fs::write(&file, content).expect("it can be written");
        host.fails(
            &[
                "--socket", other, "host", "--config", path, "--memory", "64M",
            ],
            1,
            &[said],
        );
    }
    host.fails(
        &["host", "--config", "nowhere.toml"],
        1,
        &["nowhere.toml", "--config"],
    );
}
