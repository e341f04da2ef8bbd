//! What signals do to a host and to a VM process. Neither may end by accident: a host's death leaves VMs that
//! nobody manages, a VM's is a power cut to its guest.
//!
//! One that was ignored at the start stays ignored, as nohup(1) and shells with jobs in the background want it.

use rustix::process::Signal;
use std::fs;

/// These end a host or a VM in order.
pub(crate) const ENDING: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP];

/// These would end a process that does not look after them, and are sent by habit, by those who rotate logs, and by
/// the kernel when a limit of size or time is reached.
pub(crate) const HARMLESS: [Signal; 10] = [
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::IO,
    Signal::POWER,
    Signal::STKFLT,
    Signal::XCPU,
    Signal::XFSZ,
];

/// Those of `signals` that this process does not ignore already.
pub(crate) fn not_ignored(signals: &[Signal]) -> Vec<Signal> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_in(&status);
    let is_ignored = |signal: &Signal| ignored >> (signal.as_raw() - 1) & 1 == 1;
    let signals = signals.iter().copied();
    signals.filter(|signal| !is_ignored(signal)).collect()
}

/// The set of ignored signals in `/proc/PID/status`: bit 0 is signal 1.
fn ignored_in(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_found_in_the_kernels_words() {
        let status = "Name:\tballonet\nSigBlk:\tffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        let ignored = ignored_in(status);
        let is_ignored = |signal: Signal| ignored >> (signal.as_raw() - 1) & 1 == 1;
        assert!(is_ignored(Signal::HUP) && is_ignored(Signal::PIPE));
        assert!(!is_ignored(Signal::TERM));
        // Rust's runtime ignores it in every program.
        assert!(not_ignored(&[Signal::PIPE]).is_empty());
        assert_eq!(not_ignored(&[Signal::TERM]), [Signal::TERM]);
    }
}
