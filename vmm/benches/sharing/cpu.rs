//! Processor time of threads by name, and memory of processes, as the kernel counts them.

use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

/// What all threads of that name in a process have used.
pub(crate) fn of_threads(pid: u32, name: &str) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        // A thread may end meanwhile.
        let is_named = |comm: String| comm.trim() == name;
        if fs::read_to_string(path.join("comm")).is_ok_and(is_named)
            && let Ok(text) = fs::read_to_string(path.join("schedstat"))
        {
            sum += time(&text)?;
        }
    }
    Ok(sum)
}

/// What ksmd has used.
pub(crate) fn of_ksmd() -> Result<Duration> {
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == "ksmd") {
            return time(&fs::read_to_string(path.join("schedstat"))?);
        }
    }
    anyhow::bail!("there is no ksmd")
}

/// The first figure of schedstat is the time on a processor in nanoseconds.
fn time(schedstat: &str) -> Result<Duration> {
    let first = schedstat.split_ascii_whitespace().next();
    let nanoseconds = first.context("schedstat is empty")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// A line of a file such as `/proc/PID/status`, in kibibytes.
pub(crate) fn kibibytes(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.with_context(|| format!("{path} has no {name}"))?;
    Ok(number.trim().trim_end_matches(" kB").trim().parse()?)
}
