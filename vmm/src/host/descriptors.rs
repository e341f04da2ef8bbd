//! Descriptors: every VM and every client takes some of those that the kernel lets the host have. When they are out
//! nobody can even ask for a VM to be stopped, so no VM is started on the last of them.

use super::error::HostError;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{fs, io};

/// Those that a VM takes: its process's end (1), the ways to the process, its console, its agent and its error
/// output (4), its memory file, page tables and memory (3), and the store of its trust group (1).
const OF_A_VM: u64 = 9;
/// Kept for clients and for what is opened for a moment.
const SPARE: u64 = 8;
/// Clients of one kind may take an eighth of all.
const CLIENTS_PART: u64 = 8;

/// The host may have as many as this user may.
pub(super) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files stays low: {error}");
    }
}

/// Clients of one kind that there may be at the same time: `most`, or fewer where there are few descriptors.
pub(super) fn clients(most: usize) -> usize {
    let part = limit() / CLIENTS_PART;
    most.min(usize::try_from(part).unwrap_or(usize::MAX)).max(1)
}

/// Whether there are enough for one more VM while `starting` are being started. A file that keeps its console is one
/// more.
pub(super) fn check(starting: usize, keeps_console: bool) -> Result<(), HostError> {
    let more = u64::from(keeps_console);
    // If it cannot be counted, starting the VM shows it.
    let Ok(open) = open() else { return Ok(()) };
    let limit = limit();
    match suffice(limit, open + more, starting as u64) {
        true => Ok(()),
        false => Err(HostError::TooFewDescriptors {
            open,
            limit,
            needed: OF_A_VM + more + SPARE,
        }),
    }
}

fn suffice(limit: u64, open: u64, starting: u64) -> bool {
    open + (starting + 1) * OF_A_VM + SPARE <= limit
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn open() -> io::Result<u64> {
    // The folder itself is one while it is read.
    Ok(fs::read_dir("/proc/self/fd")?.count() as u64 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_started_only_if_some_are_left_for_others() {
        assert!(suffice(64, 64 - OF_A_VM - SPARE, 0));
        assert!(!suffice(64, 64 - OF_A_VM - SPARE + 1, 0));
        assert!(!suffice(64, 64 - OF_A_VM - SPARE, 1));
        assert!(suffice(u64::MAX, 1000, 1000));
    }

    #[test]
    fn what_this_process_has_open_is_counted() {
        let before = open().unwrap();
        let _file = fs::File::open("/dev/null").unwrap();
        // Other tests open and close files at the same time.
        assert!(before >= 3 && open().unwrap() >= 4);
    }
}
