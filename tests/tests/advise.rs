//! Claims about advice: QEMUs are looked at, and nothing of them is changed.

use std::fs;
use std::path::Path;
use tests::adviser::Adviser;
use tests::process::{self, Signal};
use tests::qemu::Qemu;
use tests::{MIB, Place, Value, number, text, wait_until, wait_until_at_least};

/// It gives up whatever its balloon wants, so by its word it needs little.
const WORKLOAD: &str = "verify:size=max,rate=20000";

fn boot(polled_s: u64) -> Qemu {
    let mut qemu = Qemu::boot_watched("q", "256M", WORKLOAD);
    qemu.poll_statistics(polled_s);
    wait_until_at_least("its guest holds its memory", 200 * 256, || {
        number(&qemu.report(), "/held")
    });
    qemu.leave_monitor();
    qemu
}

/// What it was told by these words, and what was only asked.
fn changes(told: &[Value]) -> Vec<&Value> {
    let looks = |command: &str| {
        command.starts_with("query-")
            || ["qmp_capabilities", "qom-get", "qom-list"].contains(&command)
    };
    let told = told.iter();
    told.filter(|told| !looks(text(told, "/execute"))).collect()
}

fn is_as_it_was(qemu: &mut Qemu, polled_s: u64) {
    qemu.attend();
    let left = qemu.execute("query-balloon", &tests::json!({}));
    assert_eq!(number(&left, "/actual"), 256 * MIB);
    assert_eq!(qemu.statistics_are_polled(), polled_s);
    let report = qemu.report();
    for never in ["/errors", "/leaks", "/balloon_actual"] {
        assert_eq!(number(&report, never), 0, "{report:#}");
    }
    qemu.leave_monitor();
}

#[test]
fn an_adviser_says_what_it_would_do_and_does_nothing_also_when_it_is_killed() {
    let place = Place::new();
    let mut qemu = boot(1);
    let resident = qemu.resident_bytes();
    let before = qemu.was_told().len();
    let spec = format!("{},min=32M", qemu.socket());
    for signal in [Signal::INT, Signal::KILL] {
        let mut adviser = Adviser::start(&place, &["--qmp", &spec, "--memory", "160M"]);
        let mut last = Value::Null;
        wait_until_at_least("it would save what it must", 60 * MIB, || {
            last = adviser.next_line();
            number(&last, "/saved_bytes")
        });
        let vm = last.pointer("/vms/0").expect("it is there");
        assert_eq!(text(vm, "/name"), "q");
        let (target, holds) = (number(vm, "/target_bytes"), number(vm, "/would_hold_bytes"));
        assert!(target <= 160 * MIB && holds < 200 * MIB, "{vm:#}");
        assert!(text(vm, "/why").contains("own word"), "{vm:#}");
        let told = adviser.end_by(signal);
        assert_eq!(told.is_some(), signal != Signal::KILL, "it sums up");
        let told = qemu.was_told();
        assert!(told.len() > before + 10, "it has looked");
        assert!(changes(&told[before..]).is_empty(), "{told:#?}");
    }
    is_as_it_was(&mut qemu, 1);
    assert!(
        qemu.resident_bytes() + 16 * MIB > resident,
        "it gave nothing up"
    );
    place.clear();
    fs::remove_dir_all(place.temporary_folder()).unwrap();
    fs::create_dir(place.temporary_folder()).unwrap();
}

#[test]
fn without_its_guests_word_nothing_would_be_taken_and_polling_is_set_back() {
    let place = Place::new();
    let mut qemu = boot(0);
    let spec = format!("{},min=32M", qemu.socket());
    let words = ["--qmp", &spec, "--memory", "160M"];
    let mut adviser = Adviser::start(&place, &words);
    wait_until("it is decided on", || {
        adviser.next_line().pointer("/vms/0/stale") == Some(&Value::Bool(true))
    });
    let told = adviser.end_by(Signal::INT).unwrap();
    assert_eq!(told.pointer("/vms/0/needs_bytes"), Some(&Value::Null));
    assert_eq!(number(&told, "/saved_bytes"), 0, "{told:#}");
    is_as_it_was(&mut qemu, 0);
    let before = qemu.was_told().len();
    let mut adviser = Adviser::start(&place, &[&words[..], &["--poll"]].concat());
    wait_until_at_least("its guest is asked", 60 * MIB, || {
        number(&adviser.next_line(), "/saved_bytes")
    });
    adviser.end_by(Signal::TERM);
    let told = qemu.was_told();
    let polls: Vec<u64> = changes(&told[before..])
        .into_iter()
        .map(|told| {
            assert_eq!(text(told, "/execute"), "qom-set");
            assert_eq!(
                text(told, "/arguments/property"),
                "guest-stats-polling-interval"
            );
            number(told, "/arguments/value")
        })
        .collect();
    assert_eq!(polls, [2, 0]);
    is_as_it_was(&mut qemu, 0);
}

#[test]
fn an_adviser_that_cannot_set_polling_back_says_so() {
    let place = Place::new();
    let mut qemu = boot(0);
    let words = ["--qmp", qemu.socket(), "--memory", "160M", "--poll"];
    let mut adviser = Adviser::start(&place, &words);
    wait_until_at_least("its guest is asked", 60 * MIB, || {
        number(&adviser.next_line(), "/saved_bytes")
    });
    process::signal(qemu.pid(), Signal::STOP);
    let said = adviser.fail_by(Signal::TERM);
    for word in ["'q'", "guest-stats-polling-interval"] {
        assert!(said.contains(word), "{said}");
    }
    process::signal(qemu.pid(), Signal::CONT);
    qemu.attend();
    assert_eq!(qemu.statistics_are_polled(), 2);
}

#[test]
fn a_recording_says_again_what_would_have_been_saved_and_can_be_simulated() {
    let place = Place::new();
    let mut qemu = boot(1);
    let spec = format!("{},min=32M", qemu.socket());
    let record = place.temporary_folder().join("hour");
    let record = record.to_str().unwrap();
    let words = ["--qmp", &spec, "--memory", "160M", "--record", record];
    let mut adviser = Adviser::start(&place, &words);
    wait_until_at_least("it would have saved something", 500, || {
        number(&adviser.next_line(), "/savings/saved_mib_s")
    });
    let told = adviser.end_by(Signal::INT).unwrap();
    let replayed = place.json(&["replay", record]);
    assert_eq!(number(&replayed, "/different"), 0);
    let (live, again) = (
        number(&told, "/savings/saved_mib_s"),
        number(&replayed, "/savings/saved_mib_s"),
    );
    assert!(again > 0 && again <= live + live / 2, "{live} {replayed:#}");
    assert!(
        place
            .ok(&["replay", record])
            .contains("would have been saved")
    );
    let compared = place.json(&["simulate", record, "--rules", "ours,none"]);
    let used = |index: usize| number(&compared, &format!("/{index}/used"));
    assert!(used(0) <= used(1), "{compared:#}");
    assert!(
        place
            .ok(&["simulate", record, "--show"])
            .contains("memory_mib = 160")
    );
    place.fails(&[&["advise"], &words[..]].concat(), 1, &["not there yet"]);
    fs::remove_file(record).unwrap();
    place.fails(
        &["advise", "--qmp", "/nowhere", "--memory", "64M"],
        1,
        &["/nowhere", "as it was"],
    );
    let nowhere = ["advise", "--qmp", "/nowhere", "--memory", "64M", "--record"];
    place.fails(&[&nowhere[..], &[record]].concat(), 1, &["/nowhere"]);
    assert!(!Path::new(record).exists(), "nothing was recorded");
    place.fails(&["advise", "--memory", "64M"], 2, &["--qmp"]);
    is_as_it_was(&mut qemu, 1);
}
