//! Does what the log wants done besides: cleans segments, so that what is needed of several lies in one.

use super::{Swap, lock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::sync::Weak;
use std::thread;
use swap::{CleanJob, Cleaning, When, Work};

/// Records moved under one hold of the lock: some 10 µs.
const RECORDS_AT_ONCE: usize = 64;
/// How often is looked for what can be done at rest.
const REST: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

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
                Work::Clean(victim) => clean(&swap, victim.into_job(Vec::new())),
                Work::Write(_) => unreachable!("there is no file"),
            }
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

fn clean(swap: &Swap, mut job: CleanJob) {
    let step = |job: &mut CleanJob| lock(&swap.log).clean(job, RECORDS_AT_ONCE);
    while step(&mut job) == Cleaning::More {
        thread::yield_now();
    }
}
