//! As `memory/swap/keeper`: what the log wants done besides. It rests as long as the schedule lets it.

use crate::chance::choose;
use crate::event::lock;
use crate::swap::Swap;
use shuttle::thread;
use swap::{CleanJob, Cleaning, Victim, When, Work, WriteOrder};

/// Records moved under one hold of the lock.
const RECORDS_AT_ONCE: usize = 2;

pub(crate) fn run(swap: &Swap) {
    while !swap.is_over() {
        swap.keeper.wait();
        work(swap, choose(&[When::Now, When::Idle]));
    }
}

pub(crate) fn work(swap: &Swap, when: When) {
    while let Some(work) = next_work(swap, when) {
        match work {
            Work::Clean(victim) => clean(swap, victim),
            Work::Write(order) => write(swap, order),
        }
    }
}

fn next_work(swap: &Swap, when: When) -> Option<Work> {
    lock(&swap.log).next_work(when)
}

fn write(swap: &Swap, order: WriteOrder) {
    let written = swap.file.write(order.position, &order.bytes);
    let mut log = lock(&swap.log);
    match written {
        Ok(()) => log.written(order),
        Err(after) => log.write_failed(order, after),
    }
}

fn clean(swap: &Swap, victim: Victim) {
    let read = victim.read().map(|range| swap.file.read(range));
    let mut job = victim.into_job(read.unwrap_or_default());
    let step = |job: &mut CleanJob| lock(&swap.log).clean(job, RECORDS_AT_ONCE);
    loop {
        match step(&mut job) {
            Cleaning::More => thread::yield_now(),
            Cleaning::Done => return,
            Cleaning::Unreadable => panic!("{}: what the file holds is not all there", crate::LOST),
            Cleaning::NoRoom => match next_work(swap, When::Now) {
                Some(Work::Write(order)) => write(swap, order),
                // One is cleaned at a time.
                Some(Work::Clean(_)) | None => return,
            },
        }
    }
}
