//! What each version says, as it was stored when it was made: in `messages/`, a message a line, those of hosts first. Messages
//! that are read differently are another version's.

use crate::{
    BalloonView, BlockedTime, Description, FromVm, JailReport, NetConfig, NetState, OLDEST_VERSION,
    Observation, OnHostDeath, ToVm, VERSION, VmConfig, VmCounters,
};
use page::{PageCount, PageStates, VmId};
use policy::{LargePages, SharesSpec, TouchLimit, VmSettings};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

fn config() -> VmConfig {
    let size = PageCount(1 << 18);
    VmConfig {
        id: VmId(7),
        name: "web-1".parse().unwrap(),
        settings: VmSettings::new(size, Some(PageCount(1 << 16)), None, SharesSpec::High).unwrap(),
        vcpus: 2,
        trust_group: "shop".parse().ok(),
        kernel: Some("/boot/vmlinuz".into()),
        initrd: Some("/boot/initrd.img".into()),
        nets: vec![NetConfig {
            tap: "tap0".parse().unwrap(),
            mac: "52:54:00:12:34:56".parse().unwrap(),
            bytes_per_s: Some(1_000_000),
        }],
        cmdline: "console=ttyS0 root=/dev/vda".into(),
        disks: vec!["/srv/root.img,ro".parse().unwrap()],
        console_log: Some("/var/log/web-1.log".into()),
        balloon_target: PageCount(5),
        touch_limit: Some(limit()),
        large_pages: LargePages::Full,
        has_swap: true,
        swap_file_for: Some(PageCount(3 << 16)),
        jail: crate::JailMode::Enforce,
        on_host_death: OnHostDeath::Continue,
    }
}

fn limit() -> TouchLimit {
    TouchLimit {
        slow_above: PageCount(100),
        stop_above: PageCount(200),
    }
}

fn description() -> Box<Description> {
    Box::new(Description {
        config: config(),
        pid: 4711,
        start_us: 8538,
        userfault_pages: PageCount(1 << 18),
        ram_address: 0x7f00_0000_0000,
        jail: JailReport::default(),
    })
}

fn of_hosts() -> Vec<ToVm> {
    vec![
        ToVm::Boot(Box::new(config())),
        ToVm::TakeOver {
            epoch: 3,
            speaks: 3,
        },
        ToVm::SetBalloon {
            target: PageCount(9),
        },
        ToVm::SetTouchLimit(Some(limit())),
        ToVm::SetLargePages(LargePages::Off),
        ToVm::SetSettings(config().settings),
        ToVm::Observe {
            sequence: 12,
            recount: true,
            statistics: false,
        },
        ToVm::Describe,
        ToVm::PressPowerButton,
        ToVm::Stop,
    ]
}

fn of_vms() -> Vec<FromVm> {
    let observation = Observation {
        sequence: 12,
        states: PageStates {
            empty: PageCount(1 << 18),
            ..PageStates::default()
        },
        balloon: BalloonView::default(),
        statistics: None,
        blocked: BlockedTime::default(),
        counters: VmCounters::default(),
        nets: vec![NetState::default()],
        disks: Vec::new(),
    };
    vec![
        FromVm::Memory,
        FromVm::Started(description()),
        FromVm::Description(description()),
        FromVm::Observation(Box::new(observation)),
        FromVm::Ended {
            reason: "its guest switched itself off".into(),
            is_switched_off: true,
        },
        FromVm::Failed { error: "no".into() },
    ]
}

fn stored(version: u32) -> String {
    let path = format!("messages/{version}.jsonl");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(path).unwrap_or_default()
}

/// By a VM process or by a host.
fn is_understood(message: &Value) -> bool {
    serde_json::from_value::<ToVm>(message.clone()).is_ok()
        || serde_json::from_value::<FromVm>(message.clone()).is_ok()
}

#[test]
fn this_version_says_what_was_stored_of_it() {
    let mut lines = String::new();
    for message in of_hosts() {
        lines += &serde_json::to_string(&message).unwrap();
        lines += "\n";
    }
    for message in of_vms() {
        lines += &serde_json::to_string(&message).unwrap();
        lines += "\n";
    }
    let parsed = |text: &str| -> Vec<Value> {
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    assert_eq!(
        parsed(&stored(VERSION)),
        parsed(&lines),
        "if hosts and VM processes of before cannot read this, it is a new version; else store it:\n{lines}"
    );
}

#[test]
fn all_that_neighbouring_versions_say_is_understood() {
    for version in OLDEST_VERSION..=VERSION {
        let stored = stored(version);
        assert!(!stored.is_empty(), "version {version}");
        for line in stored.lines() {
            let message: Value = serde_json::from_str(line).unwrap();
            assert!(is_understood(&message), "version {version}: {line}");
        }
    }
}
