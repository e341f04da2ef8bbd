//! What tests of page sharing are made of: a host that scans as fast as it can, guests whose pages are
//! alike, the proof that the host's books are right, and trouble.

use crate::machine_memory::used_bytes;
use crate::{GuestConsole, Place, TestHost, Value, number, states_total, vms};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// As fast as the machine can, and all that is equal: while memory is plentiful large pages are not broken to share.
pub const FULL_SPEED: [&str; 8] = [
    "set",
    "host",
    "large-pages=off",
    "scan-pass=1",
    "scan-vm=1000000",
    "scan-host=1000000",
    "scan-core=100",
    "scan-priority=normal",
];

/// A host with that budget that looks for equal pages as fast as it can.
#[must_use]
pub fn sharing_host(budget: &str) -> TestHost {
    let host = TestHost::start(budget);
    host.ok(&FULL_SPEED);
    host
}

/// Starts a VM of a trust group, or of none.
pub fn boot(host: &TestHost, name: &str, memory: &str, group: Option<&str>, workload: &str) {
    let mut words = vec!["--memory", memory, "--workload", workload];
    words.extend(group.map(|group| ["--trust-group", group]).iter().flatten());
    host.boot_vm(name, &words);
}

/// Waits until a guest's workload holds that much.
pub fn wait_until_held(host: &TestHost, name: &str, bytes: u64) {
    host.console(name).wait_until_held(bytes);
}

/// Has the host compare its books with the kernel's page tables: they must agree.
///
/// # Panics
/// If they do not.
pub fn clean_audit(host: &Place) -> Value {
    let audit = host.json(&["audit"]);
    assert_eq!(number(&audit, "/disagreements"), 0, "{audit:#}");
    audit
}

/// What must be true of every overview.
///
/// # Panics
/// If something is not.
pub fn check_sums(overview: &Value) {
    assert_eq!(number(overview, "/host/state_sum_violations"), 0);
    assert_eq!(number(overview, "/host/sharing/totals/surprises"), 0);
    for vm in vms(overview) {
        assert_eq!(states_total(vm), number(vm, "/size_bytes"), "{vm:#}");
    }
}

/// A guest that has found no wrong byte and no page of another.
///
/// # Panics
/// If it has.
pub fn check_bytes(console: &mut GuestConsole) {
    let report = console.report();
    assert_eq!(
        number(&report, "/errors"),
        0,
        "{report:#}\n{}",
        console.text()
    );
    assert_eq!(
        number(&report, "/leaks"),
        0,
        "{report:#}\n{}",
        console.text()
    );
}

/// Trouble for guests that check their pages: balloons of random sizes, sharing switched off and on,
/// and in between a look at whether all is as it should be.
#[derive(Clone, Copy, Debug)]
pub struct Trouble<'a> {
    /// The guests.
    pub names: &'a [&'a str],
    /// The largest balloon of each, in MiB.
    pub largest_balloon: u64,
    /// How long.
    pub time: Duration,
    /// Between two balloons.
    pub pause: Duration,
    /// Between two audits.
    pub audit_every: Duration,
    /// What may be used.
    pub budget: u64,
}

impl Trouble<'_> {
    /// Makes it. Returns how many audits there were.
    ///
    /// # Panics
    /// If a byte is wrong or a promise broken.
    pub fn make(&self, host: &TestHost) -> u64 {
        let seed = rand::random();
        println!("seed {seed}");
        let end = Instant::now() + self.time;
        let audits = std::thread::scope(|scope| {
            scope.spawn(|| switch(host, SmallRng::seed_from_u64(seed), end));
            self.move_balloons(host, SmallRng::seed_from_u64(!seed), end)
        });
        host.ok(&["set", "host", "sharing=on"]);
        for name in self.names {
            host.ok(&["balloon", name, "auto"]);
        }
        self.check(host);
        audits + 1
    }

    fn move_balloons(&self, host: &TestHost, mut random: SmallRng, end: Instant) -> u64 {
        let pids: Vec<u32> = self.names.iter().map(|name| host.pid(name)).collect();
        let (mut audits, mut audited) = (0, Instant::now());
        while Instant::now() < end {
            let name = self.names[random.random_range(0..self.names.len())];
            let size = random.random_range(0..=self.largest_balloon * 256) * 4;
            let size = match random.random_range(0..8) {
                0 => "auto".into(),
                _ => format!("{size}K"),
            };
            host.ok(&["balloon", name, &size]);
            let used = used_bytes(host.host_pid(), &pids);
            assert!(
                used <= self.budget,
                "{used} bytes are used of {}",
                self.budget
            );
            if audited.elapsed() > self.audit_every {
                self.check(host);
                audits += 1;
                audited = Instant::now();
            }
            sleep(self.pause);
        }
        audits
    }

    fn check(&self, host: &TestHost) {
        let audit = clean_audit(host);
        println!(
            "{} pages mapped, {} frames",
            audit["mapped_pages"], audit["frames"]
        );
        check_sums(&host.overview());
        for name in self.names {
            check_bytes(&mut host.console(name));
        }
    }
}

/// Switches sharing off and on.
fn switch(host: &TestHost, mut random: SmallRng, end: Instant) {
    loop {
        for (word, longest_ms) in [("sharing=on", 8_000), ("sharing=off", 1_000)] {
            if Instant::now() >= end {
                return;
            }
            host.ok(&["set", "host", word]);
            let pause = Duration::from_millis(random.random_range(0..longest_ms));
            sleep(pause.min(end.saturating_duration_since(Instant::now())));
        }
    }
}

/// Bytes that guests hold in all, by their own reports.
#[must_use]
pub fn held_bytes(host: &TestHost, names: &[&str]) -> u64 {
    let held = names.iter().map(|name| number(&host.report(name), "/held"));
    held.sum::<u64>() * 4096
}
