//! What whole guests cost and how fast their memory moves, beside QEMU with the same guest image
//! in the same run, and beside what the kernel alone can do. Prints a table; asserts nothing.
//!
//! `cargo bench` runs all; `cargo bench -- balloon` those whose name has that word; `--rounds N`
//! sets how often each is measured (the two sides in turn, so that a change in the machine's speed
//! meets both).
#![allow(missing_docs, reason = "a program, not a library")]
#![allow(clippy::cast_precision_loss, reason = "figures for people to read")]
#![allow(dead_code, reason = "the benchmark of swap drives the same guests")]

mod ballonet;
mod figures;
mod limit;
mod machine;
mod process;
mod qemu;

use anyhow::{Context, Result};
use figures::{Row, Samples, print_table};
use machine::Machine;
use std::thread::sleep;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Guest memory in the balloon benchmark, and how much of it moves.
const BALLOON_VM: u64 = 1024 * MIB;
const BALLOON_MOVE: u64 = 512 * MIB;
/// VMs and time of the benchmark of idle VMs.
const IDLE_VMS: usize = 20;
const IDLE_VM: u64 = 512 * MIB;
const IDLE_TIME: Duration = Duration::from_secs(20);
/// VMs of a host that is watched, and how many follow it.
const WATCHED_VMS: usize = 100;
const WATCHED_VM: u64 = 16 * MIB;
const FOLLOWERS: [usize; 3] = [0, 1, 50];

/// A guest whose touches are sampled: what it works on, for how long each time, and how often it is sampled
/// meanwhile. That causes up to 32 faults a second, twice what a sample of 30 s does.
const SAMPLED_WORKLOAD: &str = "toucher:size=128M";
const SAMPLED_TIME: Duration = Duration::from_secs(6);
const SETTLING_TIME: Duration = Duration::from_secs(2);
/// A guest that touches most of its memory all the time, and for how long.
const TOUCHER_VM: u64 = 1024 * MIB;
const TOUCHER: &str = "toucher:size=900M";
const TOUCHED: u64 = 900 * MIB;
/// One that writes as much once.
const FILLER: &str = "clone:size=900M,zero=0,common=0,rewrite=0";
const OFTEN: &str = "sample-period=2";
const NEVER: &str = "sample-period=3600";

struct Options {
    words: Vec<String>,
    rounds: usize,
}

fn main() -> Result<()> {
    let options = options();
    let mut rows = Vec::new();
    for (name, bench) in [
        ("start", start as fn(&Options) -> Result<Vec<Row>>),
        ("overhead", overhead),
        ("balloon", balloon),
        ("idle", idle),
        ("watch", watch),
        ("sampling", sampling),
        ("touches", touches),
    ] {
        if options.words.is_empty() || options.words.iter().any(|word| name.contains(word)) {
            eprintln!("measuring: {name}");
            rows.extend(bench(&options)?);
        }
    }
    print_table(&rows);
    Ok(())
}

/// Cargo adds `--bench`; other options are not ours.
fn options() -> Options {
    let mut options = Options {
        words: Vec::new(),
        rounds: 7,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => {
                options.rounds = args
                    .next()
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(options.rounds)
                    .max(1)
            }
            word if !word.starts_with('-') => options.words.push(word.into()),
            _ => {}
        }
    }
    options
}

/// Time from the command to the guest's first instruction and to its first line.
fn start(options: &Options) -> Result<Vec<Row>> {
    let host = ballonet::Host::start()?;
    let (mut instruction, mut ours, mut theirs) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..options.rounds {
        instruction.add(host.time_to_first_instruction(IDLE_VM)?.as_secs_f64() * 1e3);
        ours.add(host.time_to_first_line(IDLE_VM)?.as_secs_f64() * 1e3);
        theirs.add(qemu::time_to_first_line(IDLE_VM)?.as_secs_f64() * 1e3);
    }
    Ok(vec![
        Row::new("run to first instruction", "ms", instruction),
        Row::new("run to first console line", "ms", ours).beside("QEMU microvm", theirs),
    ])
}

/// Memory of a VM's process that is not guest memory.
fn overhead(options: &Options) -> Result<Vec<Row>> {
    let host = ballonet::Host::start()?;
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..options.rounds.min(3) {
        let vm = host.vm(IDLE_VM, "idle")?;
        ours.add(process::pss_besides_guest(vm.pid(), IDLE_VM)? as f64 / MIB as f64);
        drop(vm);
        let qemu = qemu::Qemu::start(IDLE_VM, "idle")?;
        theirs.add(process::pss_besides_guest(qemu.pid(), IDLE_VM)? as f64 / MIB as f64);
    }
    Ok(vec![
        Row::new("memory of a VM process (PSS)", "MiB", ours).beside("QEMU microvm", theirs),
    ])
}

/// Pages a second into and out of a balloon, as the guest's clock tells: memory that the guest has
/// touched, and memory that it has not.
fn balloon(options: &Options) -> Result<Vec<Row>> {
    let host = ballonet::Host::start()?;
    let mut ours = host.vm(BALLOON_VM, "idle")?;
    let mut theirs = qemu::Qemu::start(BALLOON_VM, "idle")?;
    let mut rows = Vec::new();
    for (what, touched) in [("untouched", false), ("touched", true)] {
        let mut speeds: [Samples; 4] = Default::default();
        let mut limit = Samples::default();
        for _ in 0..options.rounds {
            let ours = balloon_once(&mut ours, touched)?;
            let theirs = balloon_once(&mut theirs, touched)?;
            for (samples, speed) in speeds.iter_mut().zip([ours.0, ours.1, theirs.0, theirs.1]) {
                samples.add(speed);
            }
            limit.add(limit::punch(BALLOON_MOVE)?);
        }
        let [our_inflate, our_deflate, their_inflate, their_deflate] = speeds;
        let row = |what: String, ours, theirs| {
            Row::new(&what, "pages/s", ours).beside("QEMU virtio-balloon", theirs)
        };
        let inflate = row(
            format!("inflate 512 MiB, {what}"),
            our_inflate,
            their_inflate,
        );
        // Memory that was never touched need not be freed.
        rows.push(if touched {
            inflate.limit("one fallocate", limit)
        } else {
            inflate
        });
        rows.push(row(
            format!("deflate 512 MiB, {what}"),
            our_deflate,
            their_deflate,
        ));
    }
    Ok(rows)
}

/// Inflates and deflates once; pages a second of each.
fn balloon_once(machine: &mut impl Machine, touched: bool) -> Result<(f64, f64)> {
    if touched {
        // Writes each page once, then only holds them.
        machine.command("workload clone:size=max,zero=0,common=0,rewrite=0")?;
        machine.wait_until_resident(BALLOON_VM / 100 * 95)?;
    }
    let inflate = machine.move_balloon(BALLOON_MOVE)?;
    // The workload would take pages and touch them as they come back.
    machine.command("stop")?;
    let deflate = machine.move_balloon(0)?;
    Ok((inflate, deflate))
}

/// Processor time of VMs that do nothing, and of their host.
fn idle(_: &Options) -> Result<Vec<Row>> {
    let host = ballonet::Host::start()?;
    let vms = (0..IDLE_VMS)
        .map(|_| host.vm(IDLE_VM, "idle"))
        .collect::<Result<Vec<_>>>()?;
    let pids = vms
        .iter()
        .map(Machine::pid)
        .chain([host.pid()])
        .collect::<Vec<_>>();
    let ours = process::cpu_percent(&pids, IDLE_TIME)?;
    drop(vms);
    let qemus = (0..IDLE_VMS)
        .map(|_| qemu::Qemu::start(IDLE_VM, "idle"))
        .collect::<Result<Vec<_>>>()?;
    let pids = qemus.iter().map(Machine::pid).collect::<Vec<_>>();
    let theirs = process::cpu_percent(&pids, IDLE_TIME)?;
    let name = format!("processor for {IDLE_VMS} idle VMs");
    Ok(vec![
        Row::new(&name, "% of a core", ours).beside("QEMU microvm", theirs),
    ])
}

/// Processor time of a host alone that has many VMs and is followed by some, its scanner apart, and how much it
/// tells each of them every second.
fn watch(_: &Options) -> Result<Vec<Row>> {
    let host = ballonet::Host::start()?;
    let vms = (0..WATCHED_VMS)
        .map(|_| host.vm(WATCHED_VM, "idle"))
        .collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for count in FOLLOWERS {
        let followers = (0..count)
            .map(|_| host.follow())
            .collect::<Result<Vec<_>>>()?;
        let costs = process::cpu_percent_without(&[host.pid()], "scanner", IDLE_TIME)?;
        drop(followers);
        for (part, cost) in ["host", "its scanner"].into_iter().zip(costs) {
            let name = format!("processor for {WATCHED_VMS} idle VMs, {count} follow: {part}");
            rows.push(Row::new(&name, "% of a core", cost));
        }
    }
    let bytes = host.follow()?.bytes_of_a_message()? as f64 / 1024.0;
    let name = format!("message of {WATCHED_VMS} VMs, every second");
    rows.push(Row::new(&name, "KiB", vec![bytes].into()));
    drop(vms);
    Ok(rows)
}

/// Touches and faults a second of a guest while it is sampled, and while it is not.
fn sampling(options: &Options) -> Result<Vec<Row>> {
    let host = ballonet::Host::start()?;
    host.set(&["sharing=off", NEVER])?;
    let mut vm = host.vm(2 * IDLE_VM, SAMPLED_WORKLOAD)?;
    vm.wait_until_resident(128 * MIB)?;
    let (mut sampled, mut left_alone): ([Samples; 2], [Samples; 2]) = Default::default();
    for round in 0..options.rounds {
        let mut turns = [(OFTEN, &mut sampled), (NEVER, &mut left_alone)];
        if round % 2 > 0 {
            turns.reverse();
        }
        for (period, samples) in turns {
            host.set(&[period])?;
            // A new period begins with a new sample, whose pages have been touched by then.
            sleep(SETTLING_TIME);
            for (samples, rate) in samples.iter_mut().zip(touches_and_faults(&mut vm)?) {
                samples.add(rate);
            }
        }
    }
    let names = ["touches while sampled", "faults while sampled"];
    let pairs = sampled.into_iter().zip(left_alone);
    let row = |(name, (sampled, left_alone))| {
        Row::new(name, "1/s", sampled).beside("not sampled", left_alone)
    };
    Ok(names.into_iter().zip(pairs).map(row).collect())
}

/// Touches a second of a guest with large pages and of one without, and how long each takes to touch its memory for the
/// first time. Each has a machine to itself.
fn touches(options: &Options) -> Result<Vec<Row>> {
    let host = ballonet::Host::start()?;
    let mut rows = Vec::new();
    for vcpus in [1, 2] {
        let (mut ours, mut theirs): ([[Samples; 2]; 2], [Samples; 2]) = Default::default();
        for _ in 0..options.rounds {
            for (setting, samples) in ["large-pages=on", "large-pages=off"].iter().zip(&mut ours) {
                host.set(&[setting])?;
                // A VM begins with what the last plan says.
                sleep(SETTLING_TIME);
                let mut vm = host.vm_of(TOUCHER_VM, vcpus, "idle")?;
                add(samples, touches_once(&mut vm)?);
            }
            let mut vm = qemu::Qemu::start_with(TOUCHER_VM, vcpus, "idle")?;
            add(&mut theirs, touches_once(&mut vm)?);
        }
        for (how, ours) in ["on", "off"].iter().zip(ours) {
            let whats = [("first touch of 900 MiB", "ms"), ("touches", "1/s")];
            for (((what, unit), ours), theirs) in whats.iter().zip(ours).zip(&theirs) {
                let name = format!("{what}, {vcpus} vCPU, large pages {how}");
                rows.push(Row::new(&name, unit, ours).beside("QEMU microvm", theirs.clone()));
            }
        }
    }
    Ok(rows)
}

fn add(samples: &mut [Samples; 2], figures: [f64; 2]) {
    for (samples, figure) in samples.iter_mut().zip(figures) {
        samples.add(figure);
    }
}

/// The milliseconds of first touches, by the guest's clock, and touches a second afterwards.
fn touches_once(machine: &mut impl Machine) -> Result<[f64; 2]> {
    let fill = machine.time_to_hold(FILLER, TOUCHED)?;
    machine.command(&format!("workload {TOUCHER}"))?;
    machine.wait_until_resident(TOUCHED)?;
    sleep(SETTLING_TIME);
    let [touches, _] = touches_and_faults(machine)?;
    Ok([fill, touches])
}

/// A second, by the guest's clock.
fn touches_and_faults(vm: &mut impl Machine) -> Result<[f64; 2]> {
    let mut figures = || -> Result<[f64; 3]> {
        let report = vm.report()?;
        let figure = |name: &str| report[name].as_f64().context("the report has it");
        let faults = process::faults(vm.pid(), "vcpu")? as f64;
        Ok([figure("touches")?, faults, figure("uptime_ms")? / 1e3])
    };
    let [touches_before, faults_before, before] = figures()?;
    sleep(SAMPLED_TIME);
    let [touches, faults, now] = figures()?;
    let rate = |count: f64| count / (now - before);
    Ok([rate(touches - touches_before), rate(faults - faults_before)])
}
