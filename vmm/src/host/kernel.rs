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
            text.lines()
                .find_map(|line| {
                    line.strip_prefix(name)?
                        .trim()
                        .strip_suffix(" kB")?
                        .parse::<u64>()
                        .ok()
                })
                .map(|kibibytes| PageCount(kibibytes * 1024 / PAGE_SIZE))
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
    }
}
