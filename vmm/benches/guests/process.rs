//! What processes cost, as the kernel counts it.

use crate::figures::Samples;
use anyhow::{Context, Result};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A mapping of a process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Mapping {
    size: u64,
    resident: u64,
    /// Resident, shared parts divided by their users.
    proportional: u64,
}

fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let Some((name, bytes)) = bytes_line(line) else {
            continue;
        };
        if name == "Size" {
            mappings.push(Mapping::default());
        }
        let mapping = mappings.last_mut().context("smaps begins with a size")?;
        match name {
            "Size" => mapping.size = bytes,
            "Rss" => mapping.resident = bytes,
            "Pss" => mapping.proportional = bytes,
            _ => {}
        }
    }
    Ok(mappings)
}

/// A line such as `Rss:      12 kB`.
fn bytes_line(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some((name, kibibytes * 1024))
}

/// Bytes of a process's memory that are not its guest's, shared parts divided by their users. Its
/// guest's memory is the mapping of that size.
pub(crate) fn pss_besides_guest(pid: u32, guest_bytes: u64) -> Result<u64> {
    let others = mappings(pid)?
        .into_iter()
        .filter(|mapping| mapping.size != guest_bytes);
    Ok(others.map(|mapping| mapping.proportional).sum())
}

/// Resident bytes of a process's guest memory.
pub(crate) fn guest_resident(pid: u32, guest_bytes: u64) -> Result<u64> {
    let guest = mappings(pid)?
        .into_iter()
        .filter(|mapping| mapping.size == guest_bytes);
    Ok(guest.map(|mapping| mapping.resident).sum())
}

/// The time that a process had on a core so far.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let [of_all, _] = cpu_ns(&[pid], "")?;
    Ok(Duration::from_nanos(of_all))
}

/// Processor time of all threads of some processes, in percent of a core, measured four times.
pub(crate) fn cpu_percent(pids: &[u32], time: Duration) -> Result<Samples> {
    let [of_all, _] = cpu_percent_without(pids, "", time)?;
    Ok(of_all)
}

/// The same of all threads but those of a name, and of these.
pub(crate) fn cpu_percent_without(
    pids: &[u32],
    name: &str,
    time: Duration,
) -> Result<[Samples; 2]> {
    let mut samples: [Samples; 2] = Default::default();
    sleep(Duration::from_secs(3));
    for _ in 0..4 {
        let (begin, before) = (Instant::now(), cpu_ns(pids, name)?);
        sleep(time / 4);
        let after = cpu_ns(pids, name)?;
        for (samples, (before, after)) in samples.iter_mut().zip(before.into_iter().zip(after)) {
            let spent = after.saturating_sub(before);
            samples.add(spent as f64 / begin.elapsed().as_nanos() as f64 * 100.0);
        }
    }
    Ok(samples)
}

/// Of the threads that are not called `name`, and of those that are. The first figure of a thread's schedstat
/// is its time on a processor in nanoseconds.
fn cpu_ns(pids: &[u32], name: &str) -> Result<[u64; 2]> {
    let mut sums = [0; 2];
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?.path();
            let is_named = fs::read_to_string(thread.join("comm"))?.trim() == name;
            let schedstat = fs::read_to_string(thread.join("schedstat"))?;
            let time = schedstat
                .split_ascii_whitespace()
                .next()
                .context("schedstat is empty")?;
            sums[usize::from(is_named)] += time.parse::<u64>()?;
        }
    }
    Ok(sums)
}

/// Faults that the kernel resolved for those threads of a process whose names begin so, guest memory's among them.
pub(crate) fn faults(pid: u32, name: &str) -> Result<u64> {
    let mut faults = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.path();
        if fs::read_to_string(thread.join("comm"))?.starts_with(name) {
            let stat = fs::read_to_string(thread.join("stat"))?;
            let (_, fields) = stat.rsplit_once(')').context("stat has a name")?;
            // The tenth field of all: faults that needed no disk.
            let field = fields.split_ascii_whitespace().nth(7);
            faults += field.context("stat is too short")?.parse::<u64>()?;
        }
    }
    Ok(faults)
}
