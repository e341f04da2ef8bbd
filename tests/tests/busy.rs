//! Claims about a host on a machine that has more to do than it can: what is said to be free is free, the
//! budget holds by the kernel's figures whatever is killed, and every audit ends.

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tests::machine_memory::used_bytes;
use tests::process::{self, Signal};
use tests::sharing::{check_bytes, check_sums, clean_audit};
use tests::{MIB, TestHost, number, text, vms, wait_until};

/// How long guests are troubled; `BALLONET_LONG` says otherwise, in seconds.
const TROUBLE: Duration = Duration::from_secs(60);
const LONG_VARIABLE: &str = "BALLONET_LONG";

/// Whoever frees it, and whenever that has its turn on a core: a VM that is not there any more holds nothing.
#[test]
fn a_killed_vms_memory_is_free_when_the_host_says_so_however_busy_the_machine_is() {
    let host = TestHost::start("700M");
    let busy = ["b1", "b2", "b3", "b4"];
    for name in busy {
        let words = ["--memory", "64M", "--workload", "toucher:size=32M"];
        host.boot_vm(name, &words);
    }
    for _ in 0..3 {
        host.boot_vm(
            "large",
            &["--memory", "300M", "--workload", "verify:size=max"],
        );
        wait_until("it holds much", || {
            number(&host.vm("large"), "/used_bytes") > 200 * MIB
        });
        process::signal(host.pid("large"), Signal::KILL);
        let mut overview = host.overview();
        wait_until("the host notices", || {
            overview = host.overview();
            vms(&overview).len() == busy.len()
        });
        let pids: Vec<u32> = busy.iter().map(|name| host.pid(name)).collect();
        let (used, told) = (
            used_bytes(host.host_pid(), &pids),
            number(&overview, "/host/used_bytes"),
        );
        assert!(
            used <= told + 16 * MIB,
            "{used} bytes are used by the kernel's count, {told} by the host's"
        );
    }
    clean_audit(&host);
}

/// Guests that want more than there is, and what is done to them.
struct Fleet<'a> {
    host: &'a TestHost,
    names: [&'static str; 5],
    /// All processes of VMs that may be there.
    pids: Mutex<Vec<u32>>,
}

impl Fleet<'_> {
    const MEMORY: u64 = 192;

    /// Starts it when there is room for it.
    fn start(&self, name: &str) {
        let words = [
            "run",
            "--name",
            name,
            "--memory",
            "192M",
            "--min",
            "70M",
            "--trust-group",
            "g",
            "--workload",
            "verify:rate=0,common=50",
        ];
        // A balloon that is fixed gives nothing to a newcomer.
        for vm in vms(&self.host.overview()) {
            self.host.ok(&["balloon", text(vm, "/name"), "auto"]);
        }
        wait_until("there is room for it", || {
            let run = self.host.run(&words);
            if run.status != Some(0) {
                println!("{}{}", run.stderr, self.explained());
            }
            run.status == Some(0)
        });
        let pid = self.host.pid(name);
        self.pids.lock().expect("no thread has panicked").push(pid);
    }

    /// Why each holds what it holds.
    fn explained(&self) -> String {
        let overview = self.host.overview();
        let names = vms(&overview).iter().map(|vm| text(vm, "/name"));
        let all: Vec<String> = names
            .map(|name| self.host.run(&["explain", name]).stdout)
            .collect();
        all.join("\n")
    }

    fn kill(&self, name: &str) {
        let pid = self.host.pid(name);
        process::signal(pid, Signal::KILL);
        self.wait_until_gone(name);
    }

    fn wait_until_gone(&self, name: &str) {
        wait_until("the host notices", || {
            let overview = self.host.overview();
            !vms(&overview).iter().any(|vm| text(vm, "/name") == name)
        });
    }

    /// What all use by the kernel's count, dead VMs' memory that anybody holds included.
    fn used(&self) -> u64 {
        let pids = self.pids.lock().expect("no thread has panicked").clone();
        used_bytes(self.host.host_pid(), &pids)
    }

    fn trouble(&self, random: &mut SmallRng, end: Instant) -> u64 {
        let (mut audits, mut audited) = (0, Instant::now());
        while Instant::now() < end {
            let name = self.names[random.random_range(0..self.names.len())];
            self.one_trouble(name, random);
            if audited.elapsed() > Duration::from_secs(8) {
                self.check();
                audits += 1;
                audited = Instant::now();
            }
            sleep(Duration::from_millis(random.random_range(0..200)));
        }
        audits
    }

    fn one_trouble(&self, name: &str, random: &mut SmallRng) {
        let host = self.host;
        match random.random_range(0..24) {
            0 => {
                self.kill(name);
                self.start(name);
            }
            1 => {
                host.ok(&["stop", name]);
                self.start(name);
            }
            2 => drop(host.ok(&["set", "host", "sharing=off"])),
            3..=5 => drop(host.ok(&["set", "host", "sharing=on"])),
            6..=12 => {
                let shares = random.random_range(1..5000);
                host.ok(&["set", name, &format!("shares={shares}")]);
            }
            13 => drop(host.ok(&["balloon", name, "auto"])),
            _ => {
                let size = random.random_range(0..=(Self::MEMORY - 70) * 256) * 4;
                host.ok(&["balloon", name, &format!("{size}K")]);
            }
        }
    }

    fn check(&self) {
        let audit = clean_audit(self.host);
        println!(
            "{} pages mapped, {} frames",
            audit["mapped_pages"], audit["frames"]
        );
        check_sums(&self.host.overview());
        for name in self.names {
            check_bytes(&mut self.host.console(name));
        }
    }
}

/// Says that it is over when it is dropped, a failure included: who samples would not end.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn whatever_is_killed_ballooned_and_shared_the_budget_holds_and_every_audit_is_clean() {
    const BUDGET: u64 = 500 * MIB;
    let host = TestHost::start("500M");
    let fleet = Fleet {
        host: &host,
        names: ["v1", "v2", "v3", "v4", "v5"],
        pids: Mutex::default(),
    };
    for name in fleet.names {
        fleet.start(name);
    }
    let seconds = env::var(LONG_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok());
    let end = Instant::now() + seconds.map_or(TROUBLE, Duration::from_secs);
    let seed = rand::random();
    println!("seed {seed}");
    let is_over = AtomicBool::new(false);
    let (audits, (samples, most, excess)) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let (mut samples, mut most, mut excess) = (0, 0, Vec::new());
            while !is_over.load(Ordering::Relaxed) {
                let used = fleet.used();
                samples += 1;
                most = most.max(used);
                if used > BUDGET {
                    excess.push(used - BUDGET);
                }
                sleep(Duration::from_millis(50));
            }
            (samples, most, excess)
        });
        let over = Over(&is_over);
        let audits = fleet.trouble(&mut SmallRng::seed_from_u64(seed), end);
        drop(over);
        (audits, sampler.join().expect("sampling does not panic"))
    });
    println!("{samples} samples, at most {most} bytes; {audits} audits");
    assert!(excess.is_empty(), "more than the budget, by {excess:?}");
    assert!(audits > 1);
    fleet.check();
}
