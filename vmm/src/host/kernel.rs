//! What the kernel says about memory. The budget is held against these figures, not our own.

use crate::memory::ram::allocated_pages;
use page::{PAGE_SIZE, PageCount};
use std::fs::{self, File};
use std::io;

/// Machine memory of one VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VmUse {
    /// Pages that its memory file holds.
    pub(super) memory_file: PageCount,
    /// Anonymous pages of its process.
    pub(super) anonymous: PageCount,
    /// The part of the last ten seconds in which some of it waited for memory, in thousandths.
    pub(super) pressure_permille: u32,
    /// Of one that is looked at only: what it uses besides, and would have given up.
    pub(super) saved: PageCount,
}

impl VmUse {
    pub(super) fn total(self) -> PageCount {
        self.memory_file + self.anonymous
    }

    /// Reads both figures. A process that has just ended has no anonymous pages.
    pub(super) fn read(pid: u32, memory_file: &File) -> io::Result<Self> {
        Ok(Self {
            memory_file: allocated_pages(memory_file)?,
            anonymous: anonymous_pages(pid).unwrap_or(PageCount::ZERO),
            pressure_permille: 0,
            saved: PageCount::ZERO,
        })
    }
}

/// Anonymous pages of a process: the second field of its statm is all resident pages, the third
/// those of files and shared memory (proc_pid_statm(5)).
pub(super) fn anonymous_pages(pid: u32) -> Option<PageCount> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = statm
        .split_ascii_whitespace()
        .skip(1)
        .map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(PageCount(resident.saturating_sub(shared)))
}

/// Memory of a process that files do not hold: anonymous, and of shared memory files that it has mapped, where a guest's memory
/// may lie. Kept by the kernel as it goes: nothing is walked for it.
pub(super) fn own_memory(pid: u32) -> io::Result<PageCount> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of = |name| in_line(&status, name).unwrap_or(PageCount::ZERO);
    Ok(of("RssAnon:") + of("RssShmem:"))
}

/// What of that is not in mappings as large as its guest. Walks all of its memory once.
pub(super) fn besides(pid: u32, guest_bytes: u64) -> io::Result<PageCount> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut is_guest, mut guest) = (false, PageCount::ZERO);
    for line in maps.lines() {
        if let Some(size) = line.strip_prefix("Size:").and_then(pages) {
            is_guest = size.bytes() >= guest_bytes;
        } else if is_guest && let Some(resident) = line.strip_prefix("Rss:").and_then(pages) {
            guest += resident;
        }
    }
    Ok(own_memory(pid)?.saturating_sub(guest))
}

/// What the kernel says of memory in the first line that begins so.
fn in_line(text: &str, name: &str) -> Option<PageCount> {
    text.lines()
        .find_map(|line| line.strip_prefix(name).and_then(pages))
}

/// As the kernel writes it: `  4096 kB`.
fn pages(value: &str) -> Option<PageCount> {
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(PageCount(kibibytes.saturating_mul(1024) / PAGE_SIZE))
}

/// When a process started, in ticks since the machine did. With its number it is its name for as long as that runs.
pub(super) fn started_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may have anything in it; what follows are numbers (proc_pid_stat(5)): the start is the 22nd of all.
    let ticks = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19)?.parse().ok());
    ticks.ok_or_else(|| io::Error::other("its start is not told"))
}

/// The name of the program that a process runs, unless that is a QEMU's: these are called `qemu-system-ARCH`, and `qemu-kvm` or the
/// like where distributions or their wrappers have other names.
pub(super) fn other_than_qemu(pid: u32) -> io::Result<Option<String>> {
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    Ok((!name.contains("qemu")).then(|| name.into_owned()))
}

/// Memory of this machine, as its kernel counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// All of it.
    pub total: PageCount,
    /// What programs could have without swapping.
    pub available: PageCount,
}

impl MachineMemory {
    /// Reads `/proc/meminfo`.
    ///
    /// # Errors
    /// When it cannot be read or has no such lines.
    pub fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let line = |name: &str| {
            in_line(&text, name)
                .ok_or_else(|| io::Error::other(format!("/proc/meminfo has no line '{name}'")))
        };
        Ok(Self {
            total: line("MemTotal:")?,
            available: line("MemAvailable:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_this_process_uses_some() {
        let memory = MachineMemory::read().unwrap();
        assert!(memory.total >= memory.available && memory.available > PageCount::ZERO);
        assert!(anonymous_pages(std::process::id()).unwrap() > PageCount::ZERO);
        assert_eq!(anonymous_pages(u32::MAX), None);
        let own = other_than_qemu(std::process::id()).unwrap();
        assert!(own.is_some_and(|name| name.starts_with("ballonet")));
    }
}
