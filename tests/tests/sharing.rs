//! Claims about page sharing between whole guests. What is saved is measured by the kernel's figures,
//! and what could be saved by reading all that the guests hold.

use std::collections::BTreeSet;
use std::env;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tests::machine_memory::{
    area_count, distinct_contents, mapped_frames, shown_bytes, store_descriptors, stored_bytes,
    used_bytes,
};
use tests::outer_machine::test_inside;
use tests::process::{self, Signal, cpu_ticks};
use tests::sharing::{
    Trouble, boot, check_bytes, check_sums, clean_audit, held_bytes, sharing_host, wait_until_held,
};
use tests::{
    MIB, TestHost, Value, number, vms, wait_until, wait_until_at_least, wait_until_at_most,
    wait_while_progress,
};

/// How long guests are troubled; `BALLONET_LONG` says otherwise, in seconds.
const TROUBLE: Duration = Duration::from_secs(60);
const LONG_VARIABLE: &str = "BALLONET_LONG";
/// Of what could be saved, in thousandths.
const LEAST_SAVED: u64 = 970;
/// What is to be kept of it while guests rewrite a percent of their pages each second. A page that was written to is
/// shared again after a pass or two and a turn of its agent, so how much more it is depends on the machine's other work.
const LEAST_KEPT: u64 = 800;

const CLONES: [&str; 4] = ["c1", "c2", "c3", "c4"];

fn pids(host: &TestHost, names: &[&str]) -> Vec<u32> {
    names.iter().map(|name| host.pid(name)).collect()
}

/// Guests whose memory is held, read and measured from outside.
struct Measured {
    host: TestHost,
    pids: Vec<u32>,
}

impl Measured {
    fn used(&self) -> u64 {
        used_bytes(self.host.host_pid(), &self.pids)
    }

    /// What is used when it has not changed for a while.
    fn settled(&self) -> u64 {
        let mut last = (self.used(), self.passes());
        wait_while_progress("memory comes to rest", || {
            let (used, passes) = (self.used(), self.passes());
            if used.abs_diff(last.0) > MIB {
                last = (used, passes);
            }
            match passes > last.1 + 3 {
                true => Ok(used),
                false => Err(passes),
            }
        })
    }

    /// What was saved of what could be, in thousandths, if so much is used. All that the VMs' processes
    /// use counts against it, and pages that no workload wrote count for nothing.
    fn saved_permille(&self, used: u64) -> u64 {
        let held = held_bytes(&self.host, &CLONES);
        let ideal = held - distinct_contents(&self.pids) * 4096;
        let saved = held.saturating_sub(used);
        println!("{saved} bytes of {ideal} are saved, {used} of {held} used");
        saved * 1000 / ideal
    }

    /// How often the scanner has gone over each of the guests, at least.
    fn passes(&self) -> u64 {
        let overview = self.host.overview();
        let passes = vms(&overview)
            .iter()
            .map(|vm| number(vm, "/sharing/passes"));
        passes.min().expect("there are guests")
    }

    /// Until the scanner has gone over all guests so many times more.
    fn wait_for_passes(&self, count: u64) {
        let enough = self.passes() + count;
        wait_until_at_least("the scanner goes over all", enough, || self.passes());
    }

    /// What is used on average over ten seconds.
    fn average(&self) -> u64 {
        let (mut sum, mut samples) = (0, 0);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(10) {
            sum += self.used();
            samples += 1;
            sleep(Duration::from_millis(100));
        }
        sum / samples
    }
}

/// A quarter zero, 35 % equal in all, the rest each guest's own.
fn clones(keys: &str) -> Measured {
    let host = sharing_host("2G");
    for name in CLONES {
        boot(&host, name, "256M", Some("g"), &format!("clone:{keys}"));
    }
    for name in CLONES {
        wait_until_held(&host, name, 248 * MIB);
    }
    let pids = pids(&host, &CLONES);
    Measured { host, pids }
}

fn nearly_all_is_saved_and_stays_so(shuffle: &str) {
    let guests = clones(&format!("rewrite=0,{shuffle}"));
    let permille = guests.saved_permille(guests.settled());
    println!("{permille} thousandths of the ideal are reached at rest");
    assert!(permille >= LEAST_SAVED, "{permille} thousandths");
    // What the host says that is used is what the kernel says.
    wait_until("the host's figure is the kernel's", || {
        let told = number(&guests.host.overview(), "/host/used_bytes");
        told.abs_diff(guests.used()) <= MIB / 4
    });
    clean_audit(&guests.host);

    for name in CLONES {
        let mut console = guests.host.console(name);
        console.workload(&format!("clone:rewrite=1,{shuffle}"));
    }
    for name in CLONES {
        wait_until_held(&guests.host, name, 248 * MIB);
    }
    guests.wait_for_passes(20);
    wait_until("most is kept while guests write", || {
        let kept = guests.saved_permille(guests.average());
        println!("{kept} thousandths of the ideal are kept while guests write");
        kept >= LEAST_KEPT
    });
    check_sums(&guests.host.overview());
    clean_audit(&guests.host);
}

#[test]
fn of_what_clones_could_save_nearly_all_is_saved_and_stays_so_while_they_write() {
    nearly_all_is_saved_and_stays_so("shuffle=0");
}

#[test]
fn clones_whose_equal_pages_lie_elsewhere_in_each_save_as_much() {
    nearly_all_is_saved_and_stays_so("shuffle=1");
}

/// They are broken where that brings something, only once memory is short, and made again when it is not.
#[test]
fn clones_with_large_pages_save_as_much_once_memory_is_short_and_have_them_again_when_it_is_not() {
    let host = sharing_host("2G");
    host.ok(&["set", "host", "large-pages=on"]);
    for name in CLONES {
        boot(&host, name, "256M", Some("g"), "clone:rewrite=0,shuffle=0");
        wait_until_held(&host, name, 248 * MIB);
    }
    let pids = pids(&host, &CLONES);
    let guests = Measured { host, pids };
    guests.wait_for_passes(2);
    let sum = |pointer: &str| -> u64 {
        let overview = guests.host.overview();
        vms(&overview).iter().map(|vm| number(vm, pointer)).sum()
    };
    let counted = |what: &str| sum(&format!("/counters/large/{what}"));
    let (made, early) = (counted("made"), counted("broken_by_sharing"));
    // One may become large between a look at it and what follows.
    assert!(
        early * 50 <= made,
        "there is enough for all: {early} of {made}"
    );
    wait_until_at_least("what is large is read all the same", 3 * 248 * MIB, || {
        sum("/sharing/hint_bytes")
    });
    // 60 % of what they may have.
    guests.host.ok(&["set", "host", "memory=614M"]);
    wait_until_at_least("nearly all is saved", LEAST_SAVED, || {
        guests.saved_permille(guests.settled())
    });
    // As long as the machine had any in one piece.
    assert!(made == 0 || counted("broken_by_sharing") > early);
    check_sums(&guests.host.overview());
    clean_audit(&guests.host);

    guests.host.ok(&["set", "host", "memory=2G"]);
    wait_until_at_most("what was shared comes home", MIB, || sum("/states/shared"));
    wait_until(
        "blocks are large, or there is no memory in one piece",
        || {
            let (large, backed) = (counted("mapped") * 4096, sum("/memory_file_bytes"));
            // Sampling looks into a quarter of them at most, and an idle guest gives it no reason to let go.
            large > backed / 10 * 6 || counted("no_memory") > 0
        },
    );
    for name in CLONES {
        check_bytes(&mut guests.host.console(name));
    }
    check_sums(&guests.host.overview());
    clean_audit(&guests.host);
}

/// All five write the same contents, and each has many pages that equal its own others.
#[test]
fn vms_of_different_trust_groups_and_of_none_never_map_one_frame() {
    const GROUPS: [(&str, Option<&str>); 5] = [
        ("a", Some("g")),
        ("b", Some("g")),
        ("c", Some("h")),
        ("d", None),
        ("e", None),
    ];
    let host = sharing_host("512M");
    for (name, group) in GROUPS {
        boot(
            &host,
            name,
            "32M",
            group,
            "verify:common=90,write=10,rate=500",
        );
    }
    let pids = pids(&host, &GROUPS.map(|(name, _)| name));
    let frames = || -> Vec<BTreeSet<_>> { pids.iter().map(|&pid| mapped_frames(pid)).collect() };
    wait_until(
        "each shares with its own pages, and two with each other",
        || {
            let frames = frames();
            frames.iter().all(|own| !own.is_empty()) && !frames[0].is_disjoint(&frames[1])
        },
    );
    let own_stores: Vec<_> = pids.iter().map(|&pid| store_descriptors(pid)).collect();
    for round in 0..20 {
        for (number, own) in frames().iter().enumerate() {
            let stores: BTreeSet<u64> = own.iter().map(|frame| frame.store).collect();
            let alone: BTreeSet<u64> = own_stores[number].keys().copied().collect();
            assert!(
                stores.is_subset(&alone),
                "round {round}, VM {number}: {stores:?}"
            );
        }
        sleep(Duration::from_millis(100));
    }
    for (number, own) in own_stores.iter().enumerate() {
        assert_eq!(own.len(), 1, "VM {number} has one store: {own:?}");
        let others = own_stores.iter().enumerate().skip(number + 1);
        for (other, theirs) in others {
            let are_one_group = (number, other) == (0, 1);
            assert_eq!(own == theirs, are_one_group, "{number} and {other}");
        }
        assert!(own.values().all(|is_writable| !is_writable), "{own:?}");
    }
    for (name, _) in GROUPS {
        assert!(number(&host.vm(name), "/sharing/shared_bytes") > 0);
        check_bytes(&mut host.console(name));
    }
    clean_audit(&host);
}

#[test]
fn whatever_is_shared_broken_and_ballooned_every_byte_is_what_its_guest_wrote() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let host = sharing_host("256M");
    for (name, vcpus) in NAMES.into_iter().zip(["1", "1", "2"]) {
        let words = [
            "--memory",
            "64M",
            "--min",
            "24M",
            "--vcpus",
            vcpus,
            "--trust-group",
            "g",
        ];
        host.boot_vm(
            name,
            &[&words[..], &["--workload", "verify:rate=0,common=50"]].concat(),
        );
    }
    let pids = pids(&host, &NAMES);
    let seconds = env::var(LONG_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok());
    let trouble = Trouble {
        names: &NAMES,
        largest_balloon: 40,
        time: seconds.map_or(TROUBLE, Duration::from_secs),
        pause: Duration::from_millis(40),
        audit_every: Duration::from_secs(10),
        budget: 256 * MIB,
    };
    let mut audits = trouble.make(&host);
    // How much of it comes in that time depends on the machine.
    for round in 0.. {
        let overview = host.overview();
        let (least, seen) = least_trouble(&overview);
        if seen > 1000 && audits > 1 {
            break;
        }
        assert!(round < 5, "{seen} pages were {least}: {overview:#}");
        audits += trouble.make(&host);
    }
    let overview = host.overview();
    println!("{:#}", overview["host"]["sharing"]["totals"]);
    host.ok(&["stop", "a", "b"]);
    clean_audit(&host);
    check_bytes(&mut host.console("c"));
    host.ok(&["stop", "c"]);
    the_store_becomes_empty(&host);
    assert!(pids.iter().all(|&pid| !process::is_alive(pid)));
}

/// Of what is to happen to the pages of every VM, what happened to the fewest, and to how many.
fn least_trouble(overview: &Value) -> (&'static str, u64) {
    let counters = [
        "/counters/sharing/shared",
        "/counters/sharing/rehomed",
        "/balloon/counters/inflated",
    ];
    let of_all = |counter| {
        let vms = vms(overview).iter();
        vms.map(|vm| number(vm, counter)).min()
    };
    let counts = counters.map(|counter| (counter, of_all(counter).unwrap_or(0)));
    counts
        .into_iter()
        .min_by_key(|&(_, count)| count)
        .expect("there are counters")
}

/// The same where the kernel's own nested paging is at work.
#[test]
fn on_nested_paging_too_every_byte_is_what_its_guest_wrote() {
    test_inside(
        900,
        "whatever_is_shared_broken_and_ballooned_every_byte_is_what_its_guest_wrote",
    );
}

fn the_store_becomes_empty(host: &TestHost) {
    wait_until("the store is empty", || {
        number(&host.overview(), "/host/sharing/common_bytes") == 0
            && stored_bytes(&[host.host_pid()]) == 0
    });
    assert_eq!(number(&clean_audit(host), "/stored_frames"), 0);
}

/// What one guest breaks must not cost the machine more than there is.
#[test]
fn a_guest_that_breaks_its_shared_pages_as_fast_as_it_can_stays_within_the_budget() {
    const BUDGET: u64 = 640 * MIB;
    let host = sharing_host("640M");
    for name in ["c1", "c2", "c3"] {
        boot(&host, name, "256M", Some("g"), "clone:rewrite=0");
    }
    boot(&host, "breaker", "256M", Some("g"), "breaker:size=max");
    let pids = pids(&host, &["c1", "c2", "c3", "breaker"]);
    wait_until("the breaker shares much and savings are lent", || {
        let overview = host.overview();
        let breaker = &vms(&overview)[3];
        number(breaker, "/sharing/shared_bytes") > 32 * MIB
            && number(&overview, "/host/sharing/lent_bytes") > 0
    });
    println!("{:#}", host.overview()["host"]["sharing"]);
    host.console("breaker").workload("breaker:size=max,loop=1");

    let begin = Instant::now();
    let (mut most, mut excess) = (0, Vec::new());
    while begin.elapsed() < Duration::from_secs(20) {
        let used = used_bytes(host.host_pid(), &pids);
        most = most.max(used);
        if used > BUDGET {
            excess.push((begin.elapsed(), used - BUDGET));
        }
        sleep(Duration::from_millis(50));
    }
    println!("at most {most} bytes were used");
    assert!(excess.is_empty(), "more than the budget: {excess:?}");
    let overview = host.overview();
    assert!(number(&overview, "/host/used_max_bytes") <= BUDGET);
    assert_eq!(vms(&overview).len(), 4, "{overview:#}");
    assert!(pids.iter().all(|&pid| process::is_alive(pid)));
    let report = host.report("breaker");
    assert!(number(&report, "/breaks") > 10_000, "{report:#}");
    check_sums(&overview);
    clean_audit(&host);
}

/// At the rates that a host has by itself a pass takes minutes; what is written to meanwhile must be noticed
/// all the same.
#[test]
fn guests_that_rewrite_what_they_share_cost_no_memory_and_the_saving_told_is_the_kernels() {
    let host = TestHost::start("500M");
    for name in ["a", "b"] {
        boot(&host, name, "256M", Some("g"), "clone:rewrite=1");
    }
    boot(&host, "t", "300M", None, "toucher:size=200M,rate=50000");
    let pids = pids(&host, &["a", "b", "t"]);
    wait_until("much is shared", || {
        number(&host.overview(), "/host/sharing/shared_bytes") > 4 * MIB
    });
    let signed = |bytes: u64| i64::try_from(bytes).expect("less than there is");
    let by_kernel = || {
        let shown: u64 = pids.iter().map(|&pid| shown_bytes(pid)).sum();
        signed(shown) - signed(stored_bytes(&[host.host_pid()]))
    };
    // A frame is left with one user at once, and given up within half a minute.
    sleep(Duration::from_secs(30));
    let (mut told_sum, mut samples) = (0, 0);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(30) {
        let before = by_kernel();
        let sharing = host.overview()["host"]["sharing"].clone();
        let told = sharing["saving_bytes"].as_i64().expect("a number");
        // What is told was found a moment ago.
        let most = before.max(by_kernel()) + signed(2 * MIB);
        assert!(
            told <= most,
            "{told} are told, the kernel's figures say {most}"
        );
        (told_sum, samples) = (told_sum + told, samples + 1);
        sleep(Duration::from_millis(500));
    }
    println!("{} bytes are saved on average", told_sum / samples);
    assert!(told_sum >= 0, "sharing costs {} bytes", -told_sum / samples);
    clean_audit(&host);
}

/// Two that check their bytes, and two clones of one image.
fn four_of_a_group(host: &TestHost) {
    for name in ["a", "b"] {
        boot(
            host,
            name,
            "32M",
            Some("g"),
            "verify:common=90,rate=0,write=10",
        );
    }
    for name in ["c", "d"] {
        boot(
            host,
            name,
            "64M",
            Some("g"),
            "clone:zero=0,common=100,rewrite=0",
        );
    }
    let pids = pids(host, &["a", "b", "c", "d"]);
    wait_until("all share", || {
        let frames: Vec<_> = pids.iter().map(|&pid| mapped_frames(pid)).collect();
        !frames[0].is_disjoint(&frames[1]) && frames[2].intersection(&frames[3]).count() > 12_000
    });
}

#[test]
fn a_vm_that_is_killed_leaves_its_frames_to_those_that_show_them() {
    let host = sharing_host("512M");
    four_of_a_group(&host);
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| host.pid(name));
    process::signal(c, Signal::KILL);
    wait_until("the host notices", || vms(&host.overview()).len() == 3);
    clean_audit(&host);
    let of_d = mapped_frames(d);
    assert!(
        of_d.len() > 12_000,
        "{} frames are left to the other",
        of_d.len()
    );

    process::signal(d, Signal::KILL);
    wait_until("the host notices", || vms(&host.overview()).len() == 2);
    wait_until("what nobody shows is free", || {
        let shown: BTreeSet<_> = [a, b].into_iter().flat_map(mapped_frames).collect();
        stored_bytes(&[host.host_pid(), a]) <= shown.len() as u64 * 4096
    });
    for name in ["a", "b"] {
        let mut console = host.console(name);
        let before = number(&console.report(), "/checks");
        console.wait_for_checks(before + 50_000);
        check_bytes(&mut console);
    }
    check_sums(&host.overview());
    clean_audit(&host);
    host.ok(&["stop", "a", "b"]);
    the_store_becomes_empty(&host);
}

/// A guest that finds a wrong byte stops working: without a host that shows from outside alone.
#[test]
fn guests_that_share_outlive_a_killed_host_and_read_what_they_wrote() {
    let mut host = sharing_host("512M");
    four_of_a_group(&host);
    let pids = pids(&host, &["a", "b", "c", "d"]);
    for name in ["a", "b"] {
        check_bytes(&mut host.console(name));
    }
    host.end_by(Signal::KILL);
    let place = host.into_place();
    for &pid in &pids[..2] {
        let before = cpu_ticks(pid);
        // Ten times as much as it takes to check every page once.
        wait_until("the guest works on", || cpu_ticks(pid) > before + 300);
        assert!(
            !mapped_frames(pid).is_empty(),
            "it shows the store's frames still"
        );
    }
    assert!(pids.iter().all(|&pid| process::is_alive(pid)));

    // What is wrong is found: else all this would show nothing.
    write_into_memory_file(pids[0]);
    wait_until("the guest that finds a wrong byte stops", || {
        let before = cpu_ticks(pids[0]);
        sleep(Duration::from_millis(500));
        cpu_ticks(pids[0]) <= before + 1
    });
    place.clear();
    wait_until("all have ended", || {
        pids.iter().all(|&pid| !process::is_alive(pid))
    });
}

/// A byte in every page that the memory file holds beyond the guest's own first MiBs.
fn write_into_memory_file(pid: u32) {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(process::memory_file(pid))
        .expect("root may open it");
    let page = seek(&file, SeekFrom::Data(16 * MIB)).expect("it holds pages");
    file.write_all_at(b"xyz", page + 1234)
        .expect("it can be written");
}

fn shows_no_frame(pids: &[u32]) -> bool {
    pids.iter().all(|&pid| mapped_frames(pid).is_empty())
}

#[test]
fn switched_off_sharing_brings_all_pages_home_and_switched_on_it_shares_again() {
    const NAMES: [&str; 3] = ["a", "c", "d"];
    let host = sharing_host("512M");
    boot(
        &host,
        "a",
        "32M",
        Some("g"),
        "verify:common=90,rate=0,write=10",
    );
    for name in ["c", "d"] {
        boot(
            &host,
            name,
            "64M",
            Some("g"),
            "clone:zero=0,common=100,rewrite=0",
        );
    }
    let pids = pids(&host, &NAMES);
    for _ in 0..3 {
        wait_until("all share", || {
            pids.iter().all(|&pid| !mapped_frames(pid).is_empty())
                && mapped_frames(pids[1]).len() > 12_000
        });
        let printed = host.ok(&["set", "host", "sharing=off"]);
        assert!(shows_no_frame(&pids), "{printed}");
        let audit = clean_audit(&host);
        assert_eq!(number(&audit, "/mapped_pages"), 0, "{audit:#}");
        assert_eq!(stored_bytes(&pids), 0);
        let sharing = &host.overview()["host"]["sharing"];
        assert_eq!(sharing["on"], false, "{sharing:#}");
        for zero in [
            "shared_bytes",
            "common_bytes",
            "missing_bytes",
            "broken_bytes",
        ] {
            assert_eq!(sharing[zero], 0, "{zero}: {sharing:#}");
        }
        check_bytes(&mut host.console("a"));
        host.ok(&["set", "host", "sharing=on"]);
    }
    clean_audit(&host);
}

#[test]
fn sharing_that_cannot_be_undone_for_want_of_memory_says_how_much_and_loses_nothing() {
    const NAMES: [&str; 3] = ["a", "c", "d"];
    let host = sharing_host("512M");
    boot(
        &host,
        "a",
        "32M",
        Some("g"),
        "verify:common=90,rate=0,write=10",
    );
    // Guests without a balloon make no room.
    for name in ["c", "d"] {
        let words = ["--memory", "128M", "--trust-group", "g"];
        let workload = "clone:zero=0,common=100,rewrite=0";
        let more = ["--cmdline", "balloon=off", "--workload", workload];
        host.start_vm(name, &[&words[..], &more[..]].concat());
    }
    let pids = pids(&host, &NAMES);
    wait_until("all share", || mapped_frames(pids[1]).len() > 30_000);
    host.ok(&["set", "host", "memory=200M"]);
    host.ok(&["set", "host", "sharing=off"]);
    let sharing = host.overview()["host"]["sharing"].clone();
    assert!(number(&sharing, "/missing_bytes") > 0, "{sharing:#}");
    assert!(number(&sharing, "/shared_bytes") > 0, "{sharing:#}");
    let used = used_bytes(host.host_pid(), &pids);
    assert!(used <= 200 * MIB, "{used} bytes are used");
    clean_audit(&host);
    check_bytes(&mut host.console("a"));

    host.ok(&["set", "host", "memory=512M"]);
    wait_until("with more memory all comes home", || shows_no_frame(&pids));
    host.ok(&["set", "host", "sharing=on"]);
    wait_until("all share again", || mapped_frames(pids[1]).len() > 30_000);
    check_bytes(&mut host.console("a"));
    check_sums(&host.overview());
    clean_audit(&host);
}

#[test]
fn states_add_up_at_every_sample_while_pages_are_shared_and_broken() {
    let host = sharing_host("256M");
    for name in ["a", "b"] {
        boot(&host, name, "64M", Some("g"), "verify:common=50,rate=0");
    }
    boot(&host, "c", "64M", Some("g"), "breaker:size=32M,loop=1");
    let mut seen = Vec::new();
    wait_until(
        "there were many samples, with pages shared and broken",
        || {
            let overview = host.overview();
            check_sums(&overview);
            let sharing = &overview["host"]["sharing"];
            seen.push((
                number(sharing, "/shared_bytes"),
                number(sharing, "/broken_bytes"),
            ));
            let has = |figure: fn(&(u64, u64)) -> u64| seen.iter().any(|sample| figure(sample) > 0);
            seen.len() > 200 && has(|sample| sample.0) && has(|sample| sample.1)
        },
    );
    let overview = host.overview();
    assert_eq!(vms(&overview).len(), 3);
    for vm in vms(&overview) {
        has_fields(&vm["sharing"], VM_FIELDS);
    }
    let sharing = &overview["host"]["sharing"];
    has_fields(sharing, HOST_FIELDS);
    has_fields(&sharing["totals"], TOTALS);
    has_fields(&sharing["rates"], RATES);
}

const HOST_FIELDS: &str = "on shared_bytes common_bytes saving_bytes zero_bytes broken_bytes reserve_bytes \
    lent_bytes pace missing_bytes covered_per_s read_per_s core_permille merges_per_s breaks_per_s hints \
    hints_limit replaced_hints table_bytes totals rates priority";
const TOTALS: &str = "covered read filled fill_failures requests cpu_us surprises";
const RATES: &str = "pass_s vm_pages_per_s host_pages_per_s core_share_permille short_factor";
const VM_FIELDS: &str = "problem shared_bytes zero_bytes broken_bytes charge_bytes areas areas_limit passes \
    covered read covered_per_s merges_per_s breaks_per_s";

fn has_fields(value: &Value, fields: &str) {
    for field in fields.split_whitespace() {
        assert!(value.get(field).is_some(), "no {field} in {value:#}");
    }
}

#[test]
fn scan_settings_that_make_no_sense_are_refused_and_change_nothing() {
    let host = TestHost::start("128M");
    let settings = || {
        let sharing = &host.overview()["host"]["sharing"];
        (
            sharing["on"].clone(),
            sharing["rates"].clone(),
            sharing["priority"].clone(),
        )
    };
    let before = settings();
    for (word, said) in [
        ("sharing=maybe", "sharing=on or sharing=off"),
        ("scan-pass=0", "above zero"),
        ("scan-vm=-1", "above zero"),
        ("scan-host=many", "above zero"),
        ("scan-core=200", "1 to 100 %"),
        ("scan-core=18446744073709551615", "1 to 100 %"),
        (
            "scan-priority=high",
            "scan-priority=idle or scan-priority=normal",
        ),
        ("scan=1", "scan-pass"),
    ] {
        let (key, _) = word.split_once('=').expect("a key and a value");
        host.fails(&["set", "host", word], 1, &[key, said]);
    }
    assert_eq!(settings(), before);
}

/// The kernel that has so few areas is the outer machine's: all processes of this one would have few.
#[test]
fn at_the_limit_of_memory_areas_sharing_stops_and_says_so_and_nothing_fails() {
    test_inside(400, "with_few_memory_areas_lone_pages_are_left_alone");
}

#[test]
#[ignore = "changes vm.max_map_count, for all processes of the machine"]
fn with_few_memory_areas_lone_pages_are_left_alone() {
    const LIMIT: u64 = 1000;
    std::fs::write("/proc/sys/vm/max_map_count", LIMIT.to_string()).expect("root may");
    let host = sharing_host("512M");
    for name in ["c", "d"] {
        boot(&host, name, "48M", Some("g"), "clone:rewrite=0,shuffle=1");
    }
    let areas = |name: &str| number(&host.vm(name), "/sharing/areas");
    wait_until("most areas are used up", || {
        ["c", "d"].iter().any(|name| areas(name) > LIMIT * 6 / 10)
    });
    // More passes change nothing for the worse.
    let passes = || number(&host.vm("c"), "/sharing/passes");
    let before = passes();
    wait_until("it was looked at again and again", || {
        passes() > before + 20
    });
    for name in ["c", "d"] {
        let vm = host.vm(name);
        assert!(number(&vm, "/sharing/areas_limit") <= LIMIT, "{vm:#}");
        assert!(area_count(host.pid(name)) < LIMIT, "{vm:#}");
        assert_eq!(number(&vm, "/counters/sharing/no_areas"), 0, "{vm:#}");
        assert!(number(&vm, "/sharing/shared_bytes") > 0, "{vm:#}");
        assert_eq!(vm["sharing"]["problem"], Value::Null, "{vm:#}");
    }
    // A VM that has no area left to split can still give memory up and take it back.
    host.ok(&["balloon", "c", "16M"]);
    wait_until("its balloon is full", || {
        number(&host.vm("c"), "/states/ballooned") == 16 * MIB
    });
    host.ok(&["balloon", "c", "0"]);
    check_sums(&host.overview());
    clean_audit(&host);
    println!("{}", host.ok(&["stats"]));
    host.ok(&["set", "host", "sharing=off"]);
    assert!(shows_no_frame(&[host.pid("c"), host.pid("d")]));
}

/// The limit itself is tried in the outer machine; here is what is true everywhere.
#[test]
fn memory_areas_are_what_the_kernel_counts() {
    let host = sharing_host("512M");
    for name in ["c", "d"] {
        boot(&host, name, "64M", Some("g"), "clone:rewrite=0,shuffle=1");
    }
    let pid = host.pid("d");
    wait_until("lone pages are shared", || area_count(pid) > 5_000);
    wait_until("the host's figure is the kernel's", || {
        let told = number(&host.vm("d"), "/sharing/areas");
        told.abs_diff(area_count(pid)) < 64
    });
    clean_audit(&host);
}
