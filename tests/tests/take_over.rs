//! Claims about a host in whose place another comes: its VMs notice nothing, and the new one knows all that was agreed.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::env;
use std::fs;
use std::thread::sleep;
use std::time::Duration;
use tests::process::{self, Signal};
use tests::sharing::{FULL_SPEED, boot, check_bytes, check_sums, clean_audit, sharing_host};
use tests::{
    GuestConsole, MIB, TestHost, Value, number, text, vms, wait_until, wait_until_at_least,
};

const SMALL: [&str; 4] = ["--memory", "64M", "--workload", "verify:size=16M"];

fn pids(host: &TestHost) -> Vec<(String, u64)> {
    let overview = host.overview();
    let vms = vms(&overview).iter();
    vms.map(|vm| (text(vm, "/name").to_owned(), number(vm, "/pid")))
        .collect()
}

fn told(host: &TestHost, name: &str) -> String {
    let overview = host.overview();
    let events = overview["host"]["events"].as_array().expect("a list");
    let own = events.iter().filter(|event| event["vm"] == name);
    let told = own.map(|event| text(event, "/what").to_owned());
    told.collect::<Vec<_>>().join("; ")
}

#[test]
fn another_host_takes_over_what_runs_and_knows_what_was_agreed() {
    let mut host = TestHost::start("256M");
    for name in ["a", "b", "c"] {
        host.boot_vm(name, &SMALL);
    }
    host.console("a").wait_until_held(16 * MIB);
    host.ok(&["set", "a", "shares=high", "min=40M"]);
    host.ok(&["balloon", "b", "30M"]);
    host.wait_for_balloon("b", 30 * MIB);
    let (before, a) = (pids(&host), host.vm("a"));
    host.die_and_start_again();

    assert_eq!(pids(&host), before);
    let after = host.vm("a");
    for figure in [
        "/shares",
        "/min_bytes",
        "/max_bytes",
        "/size_bytes",
        "/start_us",
    ] {
        assert_eq!(after.pointer(figure), a.pointer(figure), "{figure}");
    }
    assert!(
        after["uptime_s"].as_f64() >= a["uptime_s"].as_f64(),
        "{after:#}"
    );
    assert!(
        told(&host, "a").contains("taken over"),
        "{}",
        told(&host, "a")
    );
    host.wait_for_balloon("b", 30 * MIB);
    // It answers, prints, listens, obeys, and is not mixed up with one that starts.
    check_bytes(&mut host.console("a"));
    host.ok(&["balloon", "b", "auto"]);
    host.ok(&["set", "a", "min=16M"]);
    host.boot_vm("d", &SMALL);
    host.ok(&["stop", "b"]);
    host.ok(&["stop", "d"]);
    assert_eq!(pids(&host), [before[0].clone(), before[2].clone()]);

    process::signal(host.pid("c"), Signal::KILL);
    wait_until("the host notices", || pids(&host) == before[..1]);
    assert!(
        told(&host, "c").contains("free again"),
        "{}",
        told(&host, "c")
    );
    host.die_and_start_again();
    assert_eq!(pids(&host), before[..1]);
}

#[test]
fn a_process_that_hangs_delays_nobody_and_one_that_has_ended_leaves_nothing() {
    let mut host = TestHost::start("256M");
    for name in ["a", "b", "c"] {
        host.boot_vm(name, &SMALL);
        host.console(name).wait_until_held(16 * MIB);
    }
    let (before, hung) = (pids(&host), host.pid("b"));
    let ended = host.pid("c");
    host.end_by(Signal::KILL);
    process::signal(hung, Signal::STOP);
    process::signal(ended, Signal::KILL);
    wait_until("it has ended", || !process::is_alive(ended));
    host.start_again();

    assert_eq!(pids(&host), before[..2]);
    assert!(told(&host, "c").contains("ended while there was no host"));
    assert!(!host.host_folder().join("vms/c").exists());
    check_bytes(&mut host.console("a"));
    // It is counted by the kernel's word.
    let hung_vm = host.vm("b");
    assert!(
        number(&hung_vm, "/memory_file_bytes") >= 16 * MIB,
        "{hung_vm:#}"
    );
    // A third host comes before it wakes.
    host.die_and_start_again();
    process::signal(hung, Signal::CONT);
    wait_until("it says how it is", || {
        number(&host.vm("b"), "/start_us") > 0
    });
    check_bytes(&mut host.console("b"));
    host.ok(&["stop", "b"]);
}

/// Four clones, of which each writes to some of its pages all the time.
fn boot_clones(host: &TestHost) {
    for name in ["a", "b", "c", "d"] {
        boot(host, name, "64M", Some("web"), "clone:size=24M,rewrite=1");
    }
    // Alone in its domain, with equal pages of its own.
    boot(host, "e", "64M", None, "verify:size=16M");
}

fn wait_until_shared(host: &TestHost, least: u64) {
    wait_until_at_least("pages are shared", least, || {
        number(&host.overview(), "/host/sharing/shared_bytes")
    });
}

#[test]
fn shared_pages_stay_shared_under_another_host_and_the_books_are_right() {
    let mut host = sharing_host("512M");
    boot_clones(&host);
    wait_until_shared(&host, 30 * MIB);
    let frames = number(&clean_audit(&host), "/frames");
    host.end_by(Signal::KILL);
    host.start_again();

    wait_until_shared(&host, 30 * MIB);
    let audit = clean_audit(&host);
    assert!(number(&audit, "/vms") == 5, "{audit:#}");
    assert!(number(&audit, "/frames") <= frames + 1024, "{audit:#}");
    check_sums(&host.overview());
    // A VM of the group that starts now finds its pages there.
    host.ok(&FULL_SPEED);
    boot(&host, "f", "64M", Some("web"), "clone:size=24M,rewrite=1");
    wait_until_shared(&host, 40 * MIB);
    for name in ["a", "b", "c", "d", "e", "f"] {
        check_bytes(&mut host.console(name));
    }
    for name in ["a", "b", "c", "d", "f"] {
        clean_audit(&host);
        host.ok(&["stop", name]);
    }
    let audit = clean_audit(&host);
    let stores = fs::read_dir(host.host_folder().join("stores")).expect("it was made");
    assert!(stores.count() <= 1, "{audit:#}");
}

#[test]
fn a_group_shares_again_when_the_last_of_it_has_come() {
    let mut host = sharing_host("512M");
    boot_clones(&host);
    wait_until_shared(&host, 30 * MIB);
    let hung = host.pid("b");
    host.end_by(Signal::KILL);
    process::signal(hung, Signal::STOP);
    host.start_again();
    host.ok(&FULL_SPEED);

    let problem = || host.vm("a")["sharing"]["problem"].clone();
    assert_eq!(problem(), Value::Null);
    check_bytes(&mut host.console("a"));
    // Frames that it may show are neither freed nor filled anew.
    let shared = number(&host.overview(), "/host/sharing/shared_bytes");
    assert!(shared < MIB, "{shared}: of one that shares with itself");
    process::signal(hung, Signal::CONT);
    wait_until_shared(&host, 30 * MIB);
    clean_audit(&host);
    for name in ["a", "b", "c", "d"] {
        check_bytes(&mut host.console(name));
    }
}

#[test]
fn a_vm_whose_start_nobody_was_told_of_is_ended_and_its_name_is_free() {
    let mut host = TestHost::start("256M");
    host.boot_vm("a", &SMALL);
    let half_started = host.pid("a");
    host.end_by(Signal::KILL);
    let agreed = host.host_folder().join("vms/a/vm");
    let text = fs::read(&agreed).expect("it was agreed");
    let mut value: Value = serde_json::from_slice(&text).expect("it is JSON");
    value["memory_file"] = Value::Null;
    fs::write(&agreed, value.to_string()).expect("it can be written");
    host.start_again();

    assert!(!process::is_alive(half_started));
    assert!(told(&host, "a").contains("was being started"));
    host.boot_vm("a", &SMALL);
    let before = pids(&host);
    host.die_and_start_again();
    assert_eq!(pids(&host), before);
    host.ok(&["stop", "a"]);
}

#[test]
fn vms_that_die_while_they_are_taken_over_keep_no_host_from_serving() {
    let mut host = TestHost::start("256M");
    for round in 0..5 {
        for name in ["a", "b", "c", "d"] {
            host.start_vm(name, &SMALL);
        }
        let before = pids(&host);
        host.end_by(Signal::KILL);
        let killer = std::thread::spawn(move || {
            for (_, pid) in before {
                sleep(Duration::from_millis(5 * round));
                let pid = u32::try_from(pid).expect("processes have small numbers");
                process::signal(pid, Signal::KILL);
            }
        });
        host.start_again();
        killer.join().expect("they were there");
        wait_until("all have gone", || pids(&host).is_empty());
    }
    let left = fs::read_dir(host.host_folder().join("vms"));
    assert_eq!(left.map_or(0, Iterator::count), 0);
}

#[test]
fn a_vm_that_obeys_a_later_host_is_counted_and_ended_only_when_it_is_stopped() {
    let mut host = TestHost::start("256M");
    host.boot_vm("a", &SMALL);
    host.console("a").wait_until_held(16 * MIB);
    let pid = host.pid("a");
    let epoch = host.host_folder().join("epoch");
    host.end_by(Signal::KILL);
    fs::write(&epoch, "9223372036854775808").expect("the folder is there");
    host.die_after_start();
    fs::write(&epoch, "1").expect("the folder is there");
    host.start_again();

    wait_until("it is told", || {
        told(&host, "a").contains("does not listen")
    });
    // As long as a process may take that has hung up and is about to end.
    sleep(Duration::from_secs(7));
    assert_eq!(host.pid("a"), pid);
    assert!(number(&host.vm("a"), "/memory_file_bytes") >= 16 * MIB);
    host.ok(&["stop", "a"]);
    assert!(!process::is_alive(pid));
}

#[test]
fn a_host_takes_the_place_of_one_that_lives() {
    let mut host = TestHost::start("256M");
    for name in ["a", "b"] {
        host.boot_vm(name, &SMALL);
        host.console(name).wait_until_held(16 * MIB);
    }
    let (before, first) = (pids(&host), host.host_pid());
    let words = ["host", "--memory", "200M", "--interval-ms", "200"];
    host.fails(&words, 1, &["already serves", &first.to_string()]);
    host.is_replaced_by(&words);
    assert!(!process::is_alive(first));
    assert_eq!(pids(&host), before);
    assert_eq!(number(&host.overview(), "/host/budget_bytes"), 200 * MIB);
    for name in ["a", "b"] {
        check_bytes(&mut host.console(name));
    }
    // Where none lives it is a host like others.
    host.die_and_start_again();
    assert_eq!(pids(&host), before);
}

/// How often a host dies below: more often where somebody has the time.
fn deaths() -> u64 {
    let deaths = env::var("BALLONET_TEST_DEATHS").ok();
    deaths.and_then(|text| text.parse().ok()).unwrap_or(8)
}

/// The longest time in which one of these guests stood still since this was asked before, in µs.
fn longest_pause_us(host: &TestHost, names: &[&str]) -> u64 {
    let pauses = names.iter().map(|name| {
        let report = host.console(name).report();
        number(&report, "/pause_us")
    });
    pauses.max().unwrap_or(0)
}

fn print_pauses(when: &str, mut pauses_us: Vec<u64>) {
    pauses_us.sort_unstable();
    let at = |percent: usize| pauses_us[(pauses_us.len() - 1) * percent / 100] / 1000;
    println!(
        "longest pause of a guest {when}, in ms: median {}, 90 % {}, 99 % {}, most {}, of {}",
        at(50),
        at(90),
        at(99),
        at(100),
        pauses_us.len()
    );
}

fn checked_so_far(console: &mut GuestConsole) -> u64 {
    check_bytes(console);
    number(&console.report(), "/checks")
}

#[test]
fn hosts_that_die_at_any_moment_lose_nothing_and_mix_nothing_up() {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut host = TestHost::start_with_swap("300M");
    host.ok(&FULL_SPEED);
    for name in NAMES {
        let words = ["--memory", "120M", "--min", "24M", "--trust-group", "web"];
        let workload = ["--workload", "verify:size=90M,common=50,rate=1000,write=10"];
        host.start_vm(name, &[&words[..], &workload].concat());
    }
    let mut shares = [0; NAMES.len()];
    let (mut undisturbed_us, mut died_us, mut replaced_us) = (vec![], vec![], vec![]);
    for death in 0..deaths() {
        // What else there is on this machine holds guests up, too.
        longest_pause_us(&host, &NAMES);
        sleep(Duration::from_millis(1500));
        undisturbed_us.push(longest_pause_us(&host, &NAMES));
        // It may be at work on any of these when it dies.
        let extra = format!("x{death}");
        let run = ["run", "--name", &extra, "--memory", "32M"];
        let mut starting = host.start_command(&run);
        for _ in 0..random.random_range(0..4) {
            let number = random.random_range(0..NAMES.len());
            let name = NAMES[number];
            match random.random_range(0..3) {
                0 => {
                    shares[number] = random.random_range(1..1000);
                    host.ok(&["set", name, &format!("shares={}", shares[number])]);
                }
                1 => {
                    let size = format!("{}M", random.random_range(0..90));
                    host.ok(&["balloon", name, &size]);
                }
                _ => drop(host.run(&["balloon", name, "auto"])),
            }
        }
        sleep(Duration::from_millis(random.random_range(0..1500)));
        // Without its host it would start one of its own.
        starting.kill().expect("it is a child");
        drop(starting.wait());
        longest_pause_us(&host, &NAMES);
        if death % 4 == 3 {
            host.is_replaced();
            replaced_us.push(longest_pause_us(&host, &NAMES));
        } else {
            host.die_and_start_again();
            died_us.push(longest_pause_us(&host, &NAMES));
        }
        host.ok(&FULL_SPEED);

        for (name, shares) in NAMES.into_iter().zip(shares) {
            if shares > 0 {
                assert_eq!(
                    number(&host.vm(name), "/shares_count"),
                    shares,
                    "{name} after {death}"
                );
            }
            check_bytes(&mut host.console(name));
        }
        clean_audit(&host);
        check_sums(&host.overview());
        host.stop_all_but_these(&NAMES);
    }
    print_pauses("while its host lives", undisturbed_us);
    print_pauses("while its host dies and another comes", died_us);
    print_pauses("while its host is replaced", replaced_us);
    for name in NAMES {
        host.ok(&["balloon", name, "auto"]);
        let mut console = host.console(name);
        let least = checked_so_far(&mut console) + 1000;
        wait_until_at_least("it goes on", least, || checked_so_far(&mut console));
    }
    for name in NAMES {
        host.ok(&["stop", name]);
    }
    // Whose thread is at its own work when the last VM has stopped.
    let stores = host.host_folder().join("stores");
    wait_until("the scanner notes that no store is left", || {
        fs::read_dir(&stores).map_or(0, Iterator::count) == 0
    });
    host.remove_swap_folder();
}
