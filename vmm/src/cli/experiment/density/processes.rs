//! What processes have cost, as the kernel counts it.

use std::fs;

/// Ticks in a second that the kernel tells processes' times in.
const TICKS: f64 = 100.0;

/// Time that all threads of a process had on processors, in seconds; nothing of one that has ended.
pub(super) fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks_of(&stat).unwrap_or(0.0) / TICKS
}

/// Those of user and kernel, from a line of `stat`, whose second field, a name, may hold anything.
fn ticks_of(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some(ticks()? + ticks()?)
}

/// The kernel's thread of that name.
pub(super) fn kernel_thread(name: &str) -> Option<u32> {
    let folders = fs::read_dir("/proc").ok()?;
    let mut pids = folders.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 1 0 100";
        assert_eq!(ticks_of(stat), Some(300.0));
        assert!(cpu_s(std::process::id()) >= 0.0);
    }
}
