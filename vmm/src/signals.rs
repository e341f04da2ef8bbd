//! What signals do to a host and to a VM process. Neither may end by accident: a host's death leaves VMs that
//! nobody manages, a VM's is a power cut to its guest.
//!
//! One that was ignored at the start stays ignored, as nohup(1) and shells with jobs in the background want it.

use std::ffi::c_int;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// These end a host or a VM in order.
pub(crate) const ENDING: [c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];

/// These would end a process that does not look after them, and are sent by habit, by those who rotate logs, and by
/// the kernel when a limit of size or time is reached.
const HARMLESS: [c_int; 10] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// Those, and all that mean nothing by themselves: the real-time signals.
pub(crate) fn harmless() -> Vec<c_int> {
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    HARMLESS.into_iter().chain(real_time).collect()
}

/// Those of `signals` that this process does not ignore already.
pub(crate) fn not_ignored(signals: &[c_int]) -> Vec<c_int> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_in(&status);
    let signals = signals.iter().copied();
    signals.filter(|&signal| !is_in(ignored, signal)).collect()
}

/// Signals of one kind, as they come.
pub(crate) type SignalStream = (c_int, Signal);

/// Listens for those of `signals` that are not ignored. From now on they end nothing, listened for or not.
///
/// # Errors
/// When the kernel or the runtime refuses.
pub(crate) fn listen(signals: &[c_int]) -> io::Result<Vec<SignalStream>> {
    let heeded = not_ignored(signals).into_iter();
    heeded
        .map(|kind| Ok((kind, signal(SignalKind::from_raw(kind))?)))
        .collect()
}

/// The first of the signals that comes.
pub(crate) async fn first_of(signals: &mut [SignalStream]) -> c_int {
    poll_fn(|context| {
        let mut came = signals.iter_mut();
        let came =
            came.find_map(|(kind, signals)| signals.poll_recv(context).is_ready().then_some(*kind));
        came.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

fn is_in(set: u64, signal: c_int) -> bool {
    set >> (signal - 1) & 1 == 1
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
        assert!(is_in(ignored, libc::SIGHUP) && is_in(ignored, libc::SIGPIPE));
        assert!(!is_in(ignored, libc::SIGTERM));
        // Rust's runtime ignores it in every program.
        assert!(not_ignored(&[libc::SIGPIPE]).is_empty());
        assert_eq!(not_ignored(&[libc::SIGTERM]), [libc::SIGTERM]);
    }
}
