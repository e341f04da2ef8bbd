//! A pool of threads on a machine that forgets an interrupt which finds nobody asleep, as real
//! processors do.

use std::sync::{Condvar, Mutex};
use std::thread;

use super::*;

/// A processor's interrupt: under the lock, looking at a word and falling asleep are one step.
#[derive(Default)]
struct Sleeper {
    lock: Mutex<()>,
    interrupt: Condvar,
}

impl Sleeper {
    fn sleep_while_zero(&self, word: &AtomicU64) {
        let guard = self.lock.lock().unwrap();
        if word.load(Ordering::Relaxed) == 0 {
            drop(self.interrupt.wait(guard).unwrap());
        }
    }

    fn wake(&self) {
        drop(self.lock.lock().unwrap());
        self.interrupt.notify_all();
    }
}

#[derive(Default)]
struct Threads {
    lead: Sleeper,
    workers: Sleeper,
    lead_thread: Mutex<Option<thread::ThreadId>>,
}

impl Machine for Threads {
    fn wake_workers(&self) {
        self.workers.wake();
    }

    fn wake_lead(&self) {
        self.lead.wake();
    }

    fn sleep_while_zero(&self, word: &AtomicU64) {
        let is_lead = *self.lead_thread.lock().unwrap() == Some(thread::current().id());
        let sleeper = if is_lead { &self.lead } else { &self.workers };
        sleeper.sleep_while_zero(word);
    }
}

/// Runs `test` as the lead of so many workers.
pub(crate) fn with_pool(workers: usize, test: impl FnOnce(&Lead<'_>)) {
    let pool = Pool::new();
    let machine = Threads::default();
    *machine.lead_thread.lock().unwrap() = Some(thread::current().id());
    let dismissed = AtomicU32::new(0);
    thread::scope(|scope| {
        for worker in 1..=workers {
            let (pool, machine, dismissed) = (&pool, &machine, &dismissed);
            scope.spawn(move || {
                pool.join(worker);
                while dismissed.load(Ordering::Relaxed) & 1 << worker == 0 {
                    pool.serve(worker, machine);
                }
            });
        }
        while (1..=workers).any(|worker| !pool.has_joined(worker)) {
            thread::yield_now();
        }
        let lead = Lead::new(&pool, &machine);
        let dismissal = Dismissal(&lead, &dismissed);
        test(&lead);
        drop(dismissal);
    });
}

/// Ends the threads, even when a test has failed.
struct Dismissal<'l>(&'l Lead<'l>, &'l AtomicU32);

impl Drop for Dismissal<'_> {
    fn drop(&mut self) {
        self.0.run(
            &|worker| {
                self.1.fetch_or(1 << worker, Ordering::Relaxed);
            },
            || while_called(self.0.pool),
        );
    }
}

fn while_called(pool: &Pool) {
    while pool
        .calls
        .iter()
        .any(|call| call.0.load(Ordering::Relaxed) != 0)
    {
        thread::yield_now();
    }
}

/// The lead's frame is the lead's alone again when the work has ended.
#[test]
fn no_worker_is_at_work_after_the_end() {
    with_pool(PROCESSORS_MAX - 1, |lead| {
        let mut begun = 0;
        for round in 0..if cfg!(miri) { 20 } else { 5_000_u64 } {
            let stop = AtomicBool::new(false);
            let inside = AtomicU64::new(0);
            // Plain memory, written by the lead before and after.
            let mut plain = round;
            let plain_ref = &plain;
            lead.run(
                &|_| {
                    inside.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(*plain_ref, round);
                    while !stop.load(Ordering::Relaxed) {
                        spin_loop();
                        thread::yield_now();
                    }
                    begun_by_now(&inside);
                },
                || {
                    if round % 3 == 0 {
                        while inside.load(Ordering::Relaxed) == 0 {
                            thread::yield_now();
                        }
                    }
                    stop.store(true, Ordering::Relaxed);
                },
            );
            plain += 1;
            let entered = inside.load(Ordering::Relaxed);
            thread::yield_now();
            assert_eq!(inside.load(Ordering::Relaxed), entered, "none begins late");
            begun += entered / LEFT;
            assert_eq!(entered % LEFT, 0, "all that began have ended");
            assert_eq!(plain, round + 1);
        }
        assert!(begun > 0);
    });
}

/// Beginning counts one, ending the rest of this.
const LEFT: u64 = 1 << 32;

fn begun_by_now(inside: &AtomicU64) {
    inside.fetch_add(LEFT - 1, Ordering::Relaxed);
}

/// Work that each worker must do, round after round: no call and no end is slept through.
#[test]
fn no_wake_up_is_lost() {
    for workers in [1, 2, 7] {
        with_pool(workers, |lead| {
            assert_eq!(lead.workers() as usize, workers);
            for _ in 0..if cfg!(miri) { 20 } else { 3_000 } {
                let done = AtomicU64::new(0);
                lead.run(
                    &|worker| {
                        done.fetch_or(1 << worker, Ordering::Relaxed);
                    },
                    // Waits until all have heard.
                    || {
                        while_called(lead.pool);
                    },
                );
                let all = (2 << workers) - 2;
                assert_eq!(done.load(Ordering::Relaxed), all);
            }
        });
    }
}

/// The lead sleeps, and is woken, when a worker takes long.
#[test]
fn the_lead_waits_for_a_slow_worker() {
    with_pool(2, |lead| {
        for _ in 0..20 {
            let done = AtomicU32::new(0);
            lead.run(
                &|_| {
                    thread::sleep(std::time::Duration::from_millis(2));
                    done.fetch_add(1, Ordering::Relaxed);
                },
                || while_called(lead.pool),
            );
            assert_eq!(done.load(Ordering::Relaxed), 2);
        }
    });
}

/// What nobody has heard is taken back: a worker that sleeps on delays nothing.
#[test]
fn a_member_that_never_wakes_is_not_waited_for() {
    let pool = Pool::new();
    let machine = Threads::default();
    pool.join(5);
    let lead = Lead::new(&pool, &machine);
    lead.run(&|_| panic!("nobody is there"), || {});
    assert!(!pool.take_call(5), "and it finds nothing when it wakes");
}

/// A worker that came after the lead looked is never called.
#[test]
fn a_late_worker_is_no_member() {
    let pool = Pool::new();
    let machine = Threads::default();
    let lead = Lead::new(&pool, &machine);
    pool.join(1);
    lead.run(&|_| {}, || assert!(!pool.take_call(1)));
    assert_eq!(lead.workers(), 0);
}

/// Work within work would replace the first.
#[test]
#[should_panic(expected = "one work at a time")]
fn a_pool_has_one_work_at_a_time() {
    let pool = Pool::new();
    let machine = Threads::default();
    pool.join(1);
    let lead = Lead::new(&pool, &machine);
    lead.run(&|_| {}, || lead.run(&|_| {}, || {}));
}
