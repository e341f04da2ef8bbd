//! What a guest loses that has less memory than it uses: with this program's compressed pool and swap file, and under QEMU in a
//! memory cgroup with the kernel's own swap, on zram (lz4) and in a file. The same guest image, in the same run, one after the
//! other; prints a table and asserts nothing.
//!
//! `cargo bench --bench swap` measures all; words choose sides (`pool`, `file`, `zram`, `kernel-file`). `--rate N` sets how
//! often the guest touches a page in a second (50,000; 0 for as often as it can), `--rounds N` how often all is measured.
//!
//! A guest touches 200 MiB at random, half of the touches write. Then 10, 25 and 50 % of that are taken from it. The pool is part
//! of what the VM may hold; what zram needs is not counted to QEMU, and told beside. Of QEMU's own memory 4 MiB are taken to be
//! in use; the rest of it goes out first, so its guest keeps a little more.
#![allow(missing_docs, reason = "a program, not a library")]
#![allow(clippy::cast_precision_loss, reason = "figures for people to read")]
#![allow(dead_code, reason = "the guests of another benchmark can do more")]

#[path = "../guests/ballonet.rs"]
mod ballonet;
#[path = "../guests/figures.rs"]
mod figures;
#[path = "../../src/cli/experiment/density/kernel.rs"]
mod kernel;
#[path = "../guests/machine.rs"]
mod machine;
#[path = "../guests/process.rs"]
mod process;
#[path = "../guests/qemu.rs"]
mod qemu;

use anyhow::{Context, Result, bail};
use kernel::{MemoryGroup, SwapDevice};
use machine::{Machine, PATIENCE};
use protocol::SwapCounters;
use qemu::Qemu;
use std::thread::sleep;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const DEVICE_BYTES: u64 = 1 << 30;
const VM: u64 = 256 * MIB;
const WORKING_SET: u64 = 200 * MIB;
/// Of it, in percent, what is taken.
const TAKEN: [u64; 3] = [10, 25, 50];
const DISTRIBUTIONS: [&str; 2] = ["zipf", "uniform"];
const SIDES: [&str; 4] = ["pool", "file", "zram", "kernel-file"];
/// Memory of QEMU's own that it uses.
const QEMUS_OWN: u64 = 4 * MIB;
const SETTLING: Duration = Duration::from_secs(6);
const MEASURED: Duration = Duration::from_secs(6);

/// What a second brought.
#[derive(Clone, Copy, Debug)]
struct Figures {
    touches: f64,
    pages_in: f64,
    pages_out: f64,
    /// Of the process, in cores.
    cpu: f64,
}

/// How often pages came and went so far.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    pages_in: u64,
    pages_out: u64,
}

/// A guest of which memory can be taken.
trait Side {
    fn machine(&mut self) -> &mut dyn Machine;
    /// Lets its guest hold so many bytes.
    fn limit(&mut self, bytes: u64) -> Result<()>;
    fn moved(&mut self) -> Result<Moved>;
    /// What else there is to tell.
    fn remark(&mut self) -> Result<String>;
}

struct Ours<'a>(ballonet::Vm<'a>);

impl Side for Ours<'_> {
    fn machine(&mut self) -> &mut dyn Machine {
        &mut self.0
    }

    fn limit(&mut self, bytes: u64) -> Result<()> {
        self.0.set(&format!("max={bytes}"))
    }

    fn moved(&mut self) -> Result<Moved> {
        let counters = self.0.stats()?["counters"]["swap"].take();
        let counters: SwapCounters = serde_json::from_value(counters)?;
        Ok(Moved {
            pages_in: counters.came_back(),
            pages_out: counters.out,
        })
    }

    fn remark(&mut self) -> Result<String> {
        let swap = &self.0.stats()?["swap"];
        let wait = |tier: &str| match (swap[tier]["p50"].as_u64(), swap[tier]["p99"].as_u64()) {
            (Some(half), Some(most)) => format!("{half} / {most} µs"),
            _ => "none".into(),
        };
        let (pool, file) = (wait("pool_wait_us"), wait("file_wait_us"));
        Ok(format!("a touch waits p50 / p99: pool {pool}, file {file}"))
    }
}

struct Theirs<'a> {
    qemu: Qemu,
    group: MemoryGroup,
    swap: &'a SwapDevice,
}

impl Side for Theirs<'_> {
    fn machine(&mut self) -> &mut dyn Machine {
        &mut self.qemu
    }

    fn limit(&mut self, bytes: u64) -> Result<()> {
        self.group.limit(bytes + QEMUS_OWN)
    }

    fn moved(&mut self) -> Result<Moved> {
        let (pages_in, pages_out) = kernel::swapped()?;
        Ok(Moved {
            pages_in,
            pages_out,
        })
    }

    fn remark(&mut self) -> Result<String> {
        let used = self.swap.used_bytes()?;
        Ok(match used {
            0 => String::new(),
            used => format!(
                "{:.1} MiB of zram besides",
                used as f64 / f64::from(1 << 20)
            ),
        })
    }
}

struct Options {
    sides: Vec<String>,
    rate: u64,
    rounds: usize,
}

fn main() -> Result<()> {
    let options = options()?;
    println!(
        "{:<12} {:<8} {:>6} {:>12} {:>7} {:>9} {:>9} {:>7} {:>8}  remarks",
        "side", "touches", "taken", "touches/s", "kept", "in/s", "out/s", "CPU", "µs/page"
    );
    for _ in 0..options.rounds {
        for distribution in DISTRIBUTIONS {
            for side in &options.sides {
                let workload = format!(
                    "toucher:size={}M,dist={distribution},rate={}",
                    WORKING_SET / MIB,
                    options.rate
                );
                // One that cannot be measured here keeps nobody from the others.
                if let Err(error) = measure_side(side, distribution, &workload) {
                    println!("{side:<12} {distribution:<8} {error:#}");
                }
            }
        }
    }
    Ok(())
}

/// Cargo adds `--bench`.
fn options() -> Result<Options> {
    let mut options = Options {
        sides: Vec::new(),
        rate: 50_000,
        rounds: 1,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64> {
            let text = words.next().context("a number is missing")?;
            Ok(text.parse()?)
        };
        match word.as_str() {
            "--rate" => options.rate = number()?,
            "--rounds" => options.rounds = usize::try_from(number()?)?,
            "--bench" => {}
            side if SIDES.contains(&side) => options.sides.push(word),
            _ => bail!("no side is called {word:?}; there are {SIDES:?}"),
        }
    }
    if options.sides.is_empty() {
        options.sides = SIDES.map(String::from).into();
    }
    Ok(options)
}

fn measure_side(side: &str, distribution: &str, workload: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ours = |words: &[&str]| -> Result<()> {
        let host = ballonet::Host::start_with(words)?;
        let vm = host.vm_with(VM, &["--min", "16M", "--cmdline", "balloon=off"])?;
        measure_all((side, distribution), Ours(vm), workload)
    };
    let theirs = |swap: SwapDevice| -> Result<()> {
        let group = MemoryGroup::new("bench")?;
        let qemu = Qemu::start_idle_in(VM, |pid| group.take(pid))?;
        let swap = &swap;
        measure_all((side, distribution), Theirs { qemu, group, swap }, workload)
    };
    match side {
        "pool" => ours(&["--compression", "on"]),
        "file" => ours(&[
            "--swap",
            folder.path().to_str().context("its path is text")?,
        ]),
        "zram" => theirs(SwapDevice::zram(DEVICE_BYTES)?),
        _ => theirs(SwapDevice::file(folder.path(), DEVICE_BYTES)?),
    }
}

fn measure_all(name: (&str, &str), mut side: impl Side, workload: &str) -> Result<()> {
    let (side_name, distribution) = name;
    let machine = side.machine();
    machine.command(&format!("workload {workload}"))?;
    let begin = Instant::now();
    while machine.resident()? < WORKING_SET {
        if begin.elapsed() > PATIENCE {
            bail!("the guest does not touch its memory in time");
        }
        sleep(Duration::from_millis(200));
    }
    sleep(SETTLING);
    let resident = side.machine().resident()?;
    let alone = measure(&mut side)?;
    let print = |taken: u64, found: Figures, remark: &str| {
        println!(
            "{side_name:<12} {distribution:<8} {taken:>4} % {:>12.0} {:>5.1} % {:>9.0} {:>9.0} {:>5.1} % {:>8.0}  {remark}",
            found.touches,
            100.0 * found.touches / alone.touches,
            found.pages_in,
            found.pages_out,
            100.0 * found.cpu,
            // Of a page that goes and comes, beside what the touches alone take.
            1e6 * (found.cpu - alone.cpu * found.touches / alone.touches) / found.pages_in.max(1.0),
        );
    };
    print(0, alone, "");
    for taken in TAKEN {
        side.limit(resident - WORKING_SET * taken / 100)?;
        sleep(SETTLING);
        match measure(&mut side) {
            Ok(found) => print(taken, found, &side.remark()?),
            Err(error) => bail!("{taken} % taken: it did not live through that: {error:#}"),
        }
    }
    Ok(())
}

fn measure(side: &mut impl Side) -> Result<Figures> {
    let mut now = || -> Result<(Instant, f64, Moved, Duration)> {
        let moved = side.moved()?;
        let machine = side.machine();
        let touches = machine.report()?["touches"].as_f64();
        let cpu = process::cpu_time(machine.pid())?;
        let touches = touches.context("a toucher reports touches")?;
        Ok((Instant::now(), touches, moved, cpu))
    };
    let (begin, touches, moved, cpu) = now()?;
    sleep(MEASURED);
    let after = now()?;
    let seconds = (after.0 - begin).as_secs_f64();
    Ok(Figures {
        touches: (after.1 - touches) / seconds,
        pages_in: (after.2.pages_in - moved.pages_in) as f64 / seconds,
        pages_out: (after.2.pages_out - moved.pages_out) as f64 / seconds,
        cpu: (after.3 - cpu).as_secs_f64() / seconds,
    })
}
