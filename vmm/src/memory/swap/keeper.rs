//! Does what the log wants done besides: writes segments to the file, and cleans, so that what is needed of several lies in one.

use super::file::read;
use super::{Swap, lock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use swap::{AfterFailure, CleanJob, Cleaning, Victim, When, Work, WriteOrder};

/// Records moved under one hold of the lock: some 10 µs.
const RECORDS_AT_ONCE: usize = 64;
/// How often is looked for what can be done at rest.
const REST: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// How long nothing is written after a write that failed.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Starts the thread, which ends soon after its VM's memory.
pub(super) fn start(swap: Weak<Swap>) -> io::Result<()> {
    let thread = thread::Builder::new().name("swap log".into());
    thread.spawn(move || run(&swap)).map(drop)
}

fn run(swap: &Weak<Swap>) {
    while let Some(swap) = swap.upgrade() {
        let is_asked = swap.keeper.drain();
        let when = match is_asked {
            true => When::Now,
            false => When::Idle,
        };
        while let Some(work) = next_work(&swap, when) {
            match work {
                Work::Clean(victim) => clean(&swap, victim),
                Work::Write(order) => write(&swap, order),
            }
            swap.has_made_room.store(true, Ordering::Relaxed);
            swap.agent.signal();
        }
        swap.agent.signal();
        wait(&swap);
    }
}

fn next_work(swap: &Swap, when: When) -> Option<Work> {
    lock(&swap.log).next_work(when)
}

fn wait(swap: &Swap) {
    let mut source = [PollFd::new(&swap.keeper, PollFlags::IN)];
    match poll(&mut source, Some(&REST)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => panic!("the keeper of the swap log cannot wait: {error}"),
    }
}

fn write(swap: &Swap, order: WriteOrder) {
    let file = swap
        .file
        .as_ref()
        .expect("without a file nothing is written");
    let written = file.write(order.position, &order.bytes);
    swap.is_writing_in_vain
        .store(written.is_err(), Ordering::Relaxed);
    let mut log = lock(&swap.log);
    match written {
        Ok(()) => log.written(order),
        Err(error) => {
            log.write_failed(order, after(&error));
            drop(log);
            lock(&swap.counters).write_errors += 1;
            tracing::warn!("the swap file was not written: {error}");
            thread::sleep(AFTER_ERROR);
        }
    }
}

/// Another try where the disk may have room later; elsewhere that place is spoilt.
fn after(error: &io::Error) -> AfterFailure {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::Interrupted | io::ErrorKind::QuotaExceeded => {
            AfterFailure::Retry
        }
        _ => AfterFailure::Retire,
    }
}

fn clean(swap: &Swap, victim: Victim) {
    let read = match (victim.read(), &swap.file) {
        (Some(range), Some(file)) => read(&file.to_read(), range.position, range.length),
        _ => Ok(Vec::new()),
    };
    let mut job = match read {
        Ok(bytes) => victim.into_job(bytes),
        Err(error) => {
            tracing::warn!("a part of the swap file cannot be read: {error}");
            return lock(&swap.log).unreadable(victim);
        }
    };
    let step = |job: &mut CleanJob| lock(&swap.log).clean(job, RECORDS_AT_ONCE);
    loop {
        match step(&mut job) {
            Cleaning::More => thread::yield_now(),
            Cleaning::Done | Cleaning::Unreadable => return,
            Cleaning::NoRoom => match next_work(swap, When::Now) {
                Some(Work::Write(order)) => write(swap, order),
                // One is cleaned at a time.
                Some(Work::Clean(_)) | None => return,
            },
        }
    }
}
