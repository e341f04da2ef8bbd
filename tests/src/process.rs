//! Processes as the kernel shows them.

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The name of a VM's memory file.
pub(crate) const MEMORY_FILE: &str = "ballonet-ram";

/// Sends a signal.
///
/// # Panics
/// If there is no such process.
pub fn signal(pid: u32, signal: Signal) {
    let raw = i32::try_from(pid).expect("processes have small numbers");
    let pid = Pid::from_raw(raw).expect("no process is 0");
    kill_process(pid, signal).unwrap_or_else(|error| panic!("{signal:?} to {raw}: {error}"));
}

/// Whether the process runs. One that has ended and was not waited for does not.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The letter by which ps(1) shows the process's state.
#[must_use]
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Time that a process has had, in the kernel's ticks.
///
/// # Panics
/// If there is no such process.
#[must_use]
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let (_, after_name) = stat.rsplit_once(") ").expect("a name in parentheses");
    let fields = after_name.split(' ').skip(11).take(2);
    fields
        .map(|field| field.parse::<u64>().expect("times are numbers"))
        .sum()
}

/// All processes that live with an environment variable of that value.
#[must_use]
pub fn with_variable(name: &str, value: &str) -> Vec<u32> {
    let word = format!("{name}={value}").into_bytes();
    let has_word = |pid: &u32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.split(|&byte| byte == 0).any(|one| one == word))
    };
    let pids = fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(has_word).filter(|&pid| is_alive(pid)).collect()
}

/// The process's descriptors that lead to something of that name.
#[must_use]
pub fn descriptors(pid: u32, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains(name)))
        .collect()
}

/// The path to a VM's memory file through its process.
///
/// # Panics
/// If it has none.
#[must_use]
pub fn memory_file(pid: u32) -> PathBuf {
    descriptors(pid, MEMORY_FILE)
        .into_iter()
        .next()
        .unwrap_or_else(|| panic!("process {pid} has no memory file"))
}

/// Bytes that a VM's memory file holds, as the kernel counts them.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn memory_file_bytes(pid: u32) -> u64 {
    let metadata = fs::metadata(memory_file(pid)).expect("an open file has metadata");
    metadata.blocks() * 512
}

/// Anonymous memory of a process in bytes; none if it has ended.
#[must_use]
pub fn anonymous_bytes(pid: u32) -> u64 {
    status_bytes(pid, "RssAnon:")
}

/// All memory of a process in bytes; none if it has ended.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// A mapping of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Its length.
    pub bytes: u64,
    /// The kernel's two-letter flags for it.
    pub flags: Vec<String>,
}

/// The mappings of a VM process's memory file.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn memory_mappings(pid: u32) -> Vec<Mapping> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process runs");
    let mut mappings = Vec::new();
    let mut current: Option<Mapping> = None;
    for line in smaps.lines() {
        if let Some((start, end)) = address_range(line) {
            current = line.contains(MEMORY_FILE).then(|| Mapping {
                bytes: end - start,
                flags: Vec::new(),
            });
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && let Some(mut mapping) = current.take()
        {
            mapping.flags = flags.split_whitespace().map(str::to_owned).collect();
            mappings.push(mapping);
        }
    }
    mappings
}

fn address_range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

/// The processes that one of a process's threads has started.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let texts: Vec<String> = lists.collect();
    let words = texts.iter().flat_map(|text| text.split_whitespace());
    words.filter_map(|word| word.parse().ok()).collect()
}
