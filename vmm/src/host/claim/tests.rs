//! Whatever a VM process says, its host goes on: from the door to all that clients can see.

use super::*;
use crate::host::console::Console;
use crate::host::metrics;
use crate::host::round::act;
use crate::host::runtime_dir::Place;
use crate::host::vm::process::take_answer;
use crate::host::vm::{AnyBackend, Life, Link, Question, Running, Vm, VmProcess};
use crate::host::{Host, HostOptions};
use api::HistoryQuery;
use page::VmId;
use proptest::prelude::*;
use protocol::{Channel, DiskCounters, DiskFigures, GuestStatistics, NetState, ToVm};
use rustix::fs::MemfdFlags;
use serde_json::Value;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

const SIZE: PageCount = PageCount::from_mebibytes(64);
const VM: VmId = VmId(1);
const AGE: Duration = Duration::from_secs(60);

/// A VM with a network card and a disk.
fn config() -> VmConfig {
    super::fuzz::config(1, 1)
}

/// Half of it is in the balloon.
fn honest() -> Observation {
    let half = PageCount(SIZE.0 / 2);
    Observation {
        sequence: 0,
        states: PageStates {
            private: half,
            ballooned: half,
            ..PageStates::default()
        },
        balloon: BalloonView {
            has_driver: true,
            target: half,
            held: half,
            ..BalloonView::default()
        },
        statistics: Some(GuestStatistics::default()),
        blocked: BlockedTime::default(),
        counters: VmCounters::default(),
        nets: vec![NetState::default()],
        disks: vec![DiskFigures {
            size_bytes: 0,
            counters: DiskCounters::default(),
            last_error: None,
        }],
    }
}

fn check(said: Observation) -> Result<Checked, Untrue> {
    Checked::new(said, &config(), AGE)
}

#[test]
fn what_adds_up_is_believed() {
    assert_eq!(check(honest()).map(|checked| checked.0), Ok(honest()));
}

#[test]
fn counters_are_cut_off_where_their_sum_could_overflow() {
    let mut said = honest();
    said.counters.sharing.shared = PageCount(1 << 63);
    said.balloon.claimed = PageCount(1 << 60);
    said.balloon.counters.inflated = u64::MAX;
    let checked = check(said).unwrap();
    assert_eq!(checked.counters.sharing.shared.0, MOST_COUNTED);
    assert_eq!(checked.balloon.counters.inflated, MOST_COUNTED);
    assert_eq!(checked.balloon.claimed, MOST_CLAIMED);
}

type Lie = fn(&mut Observation, PageCount);

#[test]
fn what_does_not_fit_the_vm_is_refused() {
    let more = SIZE + PageCount(1);
    let lies: [(&str, Lie); 8] = [
        ("add up", |said, _| said.states.empty = PageCount(1)),
        ("add up", |said, _| {
            // Modulo 2^64 it does.
            said.states.empty = PageCount(1 << 63);
            said.states.swapped = PageCount(1 << 63);
        }),
        ("balloon holds", |said, more| said.balloon.held = more),
        ("is to hold", |said, more| said.balloon.target = more),
        ("shared", |said, more| said.counters.sharing.mapped = more),
        ("stopped", |said, _| said.blocked.total_us = 1),
        ("stopped", |said, _| said.blocked.at_us = u64::MAX),
        ("2 disks", |said, _| said.disks.push(said.disks[0])),
    ];
    for (words, lie) in lies {
        let mut said = honest();
        lie(&mut said, more);
        let untrue = check(said).expect_err(words).to_string();
        assert!(untrue.contains(words), "{untrue}");
    }
}

#[test]
fn memory_is_mapped_at_a_block_and_ends_where_there_are_addresses() {
    for right in [0, 1 << 40, u64::MAX - (2 << 20) + 1 - (SIZE.bytes())] {
        assert_eq!(check_place(right, SIZE), Ok(()));
    }
    for wrong in [1, 4096, (1 << 40) + (1 << 20), u64::MAX - (2 << 20) + 1] {
        assert_eq!(check_place(wrong, SIZE), Err(Untrue::Place(wrong)));
    }
}

#[test]
fn words_are_short_and_in_one_line() {
    assert_eq!(words("a\nb\u{1b}[2Jc"), "a b [2Jc");
    assert_eq!(words(&"ü\n".repeat(5000)).chars().count(), MOST_CHARACTERS);
}

#[test]
fn one_memory_file_is_taken_and_nothing_else() {
    let memory = || {
        let ram = crate::memory::GuestRam::new(SIZE).unwrap();
        OwnedFd::from(ram.file().try_clone().unwrap())
    };
    assert!(memory_file(vec![memory()], SIZE).is_ok());
    assert!(memory_file(vec![memory()], SIZE + PageCount(1)).is_err());
    for wrong in [vec![], vec![memory(), memory()]] {
        let why = memory_file(wrong, SIZE).unwrap_err().to_string();
        assert!(why.contains("should have sent one"), "{why}");
    }
    let null = File::open("/dev/null").unwrap();
    let why = memory_file(vec![null.into()], SIZE).unwrap_err();
    assert!(crate::error_chain(&why).contains("no file in memory"));
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..3u64,
        SIZE.0 - 1..=SIZE.0 + 1,
        (0..64u32, 0..3u64).prop_map(|(bit, less)| (1 << bit) - less.min(1)),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

/// Puts other numbers into a message, as many as it has and may have.
fn replace_numbers(value: &mut Value, numbers: &mut impl Iterator<Item = u64>) {
    match value {
        Value::Object(fields) => fields
            .iter_mut()
            // It has fewer bits than the others, and is but looked up.
            .filter(|(name, _)| *name != "last_error")
            .for_each(|(_, value)| replace_numbers(value, numbers)),
        Value::Array(items) => items
            .iter_mut()
            .for_each(|value| replace_numbers(value, numbers)),
        Value::Number(_) | Value::Null => *value = numbers.next().expect("enough").into(),
        Value::Bool(_) | Value::String(_) => {}
    }
}

/// Any numbers everywhere; in some, what has to fit the VM does.
fn said() -> impl Strategy<Value = Observation> {
    let numbers = prop::collection::vec(number(), 256);
    (numbers, any::<bool>()).prop_map(|(numbers, fits)| {
        let mut said = serde_json::to_value(honest()).unwrap();
        replace_numbers(&mut said, &mut numbers.into_iter());
        let mut said: Observation = serde_json::from_value(said).unwrap();
        if fits {
            let honest = honest();
            said.states = honest.states;
            said.blocked = honest.blocked;
            said.balloon.held = PageCount(said.balloon.held.0 % (SIZE.0 + 1));
            said.balloon.target = PageCount(said.balloon.target.0 % (SIZE.0 + 1));
            let mapped = &mut said.counters.sharing.mapped;
            *mapped = PageCount(mapped.0 % (SIZE.0 + 1));
        }
        said
    })
}

fn host() -> Host {
    let options = HostOptions {
        // Every round counts as a whole one.
        interval: Duration::from_nanos(2),
        ..HostOptions::new(PageCount::from_mebibytes(128))
    };
    let folder = tempfile::tempdir().unwrap();
    let place = Place::prepare(&folder.path().join("host.sock")).unwrap();
    Host::start(&options, &place).unwrap()
}

/// A VM whose process is this one. Also returns its end of the channel.
fn add_vm(host: &Host) -> (Channel, UnixStream) {
    let (ours, theirs) = Channel::pair().unwrap();
    let (our_console, their_console) = UnixStream::pair().unwrap();
    let mut vm = Vm::new(config(), oneshot::channel().0);
    vm.life = Life::Running(Running {
        pid: std::process::id(),
        backend: AnyBackend::Process(VmProcess {
            pid: std::process::id(),
            link: Arc::new(Link::new(ours).unwrap()),
            console: Console::new(our_console, None),
            memory_file: Arc::new(File::from(
                rustix::fs::memfd_create("ram", MemfdFlags::CLOEXEC).unwrap(),
            )),
            start_us: 0,
            userfault_pages: SIZE,
            jail: protocol::JailReport::default(),
            coming: None,
        }),
        since: Instant::now(),
        kill: Arc::default(),
        gone: watch::Sender::new(()),
    });
    host.lock().durable.vms.insert(VM, vm);
    (theirs, their_console)
}

/// The host asks, and gets this answer.
fn answer(host: &Host, channel: &Channel, mut said: Observation) {
    let sequence = {
        let mut state = host.lock();
        state.round += 1;
        state.round
    };
    host.lock()
        .durable
        .vms
        .get_mut(&VM)
        .unwrap()
        .observe(Question {
            sequence,
            recount: true,
            statistics: true,
        });
    while !matches!(channel.hear::<ToVm>(), Ok(ToVm::Observe { .. })) {}
    said.sequence = sequence;
    assert!(take_answer(host, VM, said.clone()), "it was asked for");
    assert!(!take_answer(host, VM, said), "it was asked for once");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_host_survives_whatever_a_vm_says(all in prop::collection::vec(said(), 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let host = host();
        let (channel, _console) = add_vm(&host);
        for said in all {
            answer(&host, &channel, said);
            act(&host);
            let overview = host.overview();
            let vm = &overview.vms[0];
            let sum: u64 = vm.states.iter().map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(sum, SIZE.bytes());
            prop_assert!(vm.responding);
            let figures = host.figures();
            for format in [metrics::Format::Prometheus, metrics::Format::OpenMetrics] {
                prop_assert!(metrics::text(&figures, format).contains("vm_credible"));
            }
            host.history(&HistoryQuery::default()).unwrap();
            host.explain("a", Some(1 << 20)).unwrap();
            serde_json::to_string(&overview).unwrap();
        }
    }
}
