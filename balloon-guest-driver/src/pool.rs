//! The other processors: they sleep until there is work, do it together with the first one, the
//! lead, and are known to have stopped before the lead goes on.
//!
//! Work is a closure on the lead's stack, and the pages that it touches may go to the host right
//! after. So [`Lead::run`] returns only when no worker has the work any more. Each worker has a
//! call, a word that is not zero when it is wanted, and each call is taken exactly once: by the
//! worker, or by the lead, who takes back what nobody has begun when its own part is done. (A
//! sleeping worker may be long in waking when the host has few processors.) Whoever took a call
//! counts it as done at the end; the last one tells the lead.
//!
//! Sleeping rests on one property of the machine: [`Machine::sleep_while_zero`] looks at the word
//! and falls asleep in one step as far as interrupts go. Both sides write the word first and
//! interrupt second, so either the sleeper sees the word or the interrupt finds it asleep.
//! Interrupts too many are harmless: who wakes looks again. So is a worker that starts too late
//! to be a member: nobody calls it.
#![expect(
    unsafe_code,
    reason = "work on one processor's stack is done by the others"
)]

use core::fmt;
use core::hint::spin_loop;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Processors at most, the lead included. Their numbers are below this.
pub const PROCESSORS_MAX: usize = 8;

/// How often the lead looks whether the workers have stopped before it falls asleep: for longer
/// than they take when all of them are running.
const LOOKS: u32 = 500;

/// How processors sleep and wake one another.
pub trait Machine: Sync {
    /// Interrupts all processors but the one that calls.
    fn wake_workers(&self);
    /// Interrupts the lead.
    fn wake_lead(&self);
    /// Sleeps until the next interrupt if the word is zero. An interrupt that comes after the
    /// word was looked at ends the sleep, however short after. May return early.
    fn sleep_while_zero(&self, word: &AtomicU64);
}

/// What workers do, told its worker's number.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// A word on a cache line of its own, for it is waited for.
#[derive(Debug)]
#[repr(align(64))]
struct Call(AtomicU64);

/// What the processors know of one another.
#[derive(Debug)]
pub struct Pool {
    calls: [Call; PROCESSORS_MAX],
    /// Bit n: processor n is a worker that serves.
    present: AtomicU32,
    /// The work, while there are calls. It is a `*const Work`, on the stack of `Lead::run`.
    work: AtomicPtr<()>,
    /// Calls that are not counted as done.
    working: AtomicU32,
    /// Not zero when none is left.
    finished: AtomicU64,
    /// The lead may be asleep.
    waiting: AtomicBool,
    /// Work is under way.
    led: AtomicBool,
}

impl Pool {
    /// Nobody is there yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            calls: [const { Call(AtomicU64::new(0)) }; PROCESSORS_MAX],
            present: AtomicU32::new(0),
            work: AtomicPtr::new(ptr::null_mut()),
            working: AtomicU32::new(0),
            finished: AtomicU64::new(1),
            waiting: AtomicBool::new(false),
            led: AtomicBool::new(false),
        }
    }

    /// The worker can be called from now on.
    ///
    /// # Panics
    /// If the number is not below [`PROCESSORS_MAX`].
    pub fn join(&self, worker: usize) {
        assert!(worker < PROCESSORS_MAX, "processor {worker}");
        self.present.fetch_or(1 << worker, Ordering::AcqRel);
    }

    /// Whether the worker has joined.
    #[must_use]
    pub fn has_joined(&self, worker: usize) -> bool {
        self.present.load(Ordering::Acquire) & 1 << worker != 0
    }

    /// A worker's part: does the work if there is a call, and sleeps if there is none. To be
    /// called again and again.
    pub fn serve(&self, worker: usize, machine: &dyn Machine) {
        if self.take_call(worker) {
            let work = self.work.load(Ordering::Relaxed).cast::<Work<'_>>();
            // SAFETY: `Lead::run` put it there before the call that was just taken, and waits
            // with its end until this call is counted as done.
            let work = unsafe { *work };
            work(worker);
            self.count_done(1, machine);
        } else {
            machine.sleep_while_zero(&self.calls[worker].0);
        }
    }

    fn take_call(&self, worker: usize) -> bool {
        self.calls[worker].0.swap(0, Ordering::Acquire) != 0
    }

    /// Counts calls as done: what was done in them has happened, and will not be touched again.
    fn count_done(&self, count: u32, machine: &dyn Machine) {
        if self.working.fetch_sub(count, Ordering::AcqRel) == count {
            // In one order with the lead, which says first that it waits and looks second.
            self.finished.store(1, Ordering::SeqCst);
            if self.waiting.load(Ordering::SeqCst) {
                machine.wake_lead();
            }
        }
    }

    fn begin(&self, members: u32, work: *const Work<'_>, machine: &dyn Machine) {
        self.work
            .store(work.cast_mut().cast::<()>(), Ordering::Relaxed);
        self.working.store(members.count_ones(), Ordering::Relaxed);
        self.finished.store(0, Ordering::Relaxed);
        // A call releases all of that to the worker that takes it.
        for worker in numbers(members) {
            self.calls[worker].0.store(1, Ordering::Release);
        }
        machine.wake_workers();
    }

    /// Takes back the calls that nobody took and waits for the others to be done.
    fn end(&self, members: u32, machine: &dyn Machine) {
        let unheard = numbers(members).map(|worker| u32::from(self.take_call(worker)));
        let unheard = unheard.sum();
        if unheard > 0 {
            self.count_done(unheard, machine);
        }
        let is_finished = || self.finished.load(Ordering::SeqCst) != 0;
        if (0..LOOKS).any(|_| {
            spin_loop();
            is_finished()
        }) {
            return;
        }
        self.waiting.store(true, Ordering::SeqCst);
        while !is_finished() {
            machine.sleep_while_zero(&self.finished);
        }
        self.waiting.store(false, Ordering::SeqCst);
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

fn numbers(members: u32) -> impl Iterator<Item = usize> {
    (0..PROCESSORS_MAX).filter(move |worker| members & 1 << worker != 0)
}

/// The lead's end of a pool: the workers that were there when it was made.
pub struct Lead<'c> {
    pool: &'c Pool,
    machine: &'c dyn Machine,
    members: u32,
}

impl<'c> Lead<'c> {
    /// Leads those workers of the pool that have joined.
    #[must_use]
    pub fn new(pool: &'c Pool, machine: &'c dyn Machine) -> Self {
        Self {
            pool,
            machine,
            members: pool.present.load(Ordering::Acquire),
        }
    }

    /// How many workers there are.
    #[must_use]
    pub const fn workers(&self) -> u32 {
        self.members.count_ones()
    }

    /// Has the workers do `work` while the lead does `own`. When it returns, they have stopped, or
    /// never begun; a worker that has not begun when `own` returns does not begin any more.
    ///
    /// # Panics
    /// If the pool has work already.
    pub fn run(&self, work: Work<'_>, own: impl FnOnce()) {
        if self.members == 0 {
            return own();
        }
        let was_led = self.pool.led.swap(true, Ordering::Acquire);
        assert!(!was_led, "a pool has one work at a time");
        // However `own` ends, this frame stays until the workers are done with it.
        let ending = Ending(self);
        self.pool.begin(self.members, &raw const work, self.machine);
        own();
        drop(ending);
    }
}

impl fmt::Debug for Lead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lead")
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

struct Ending<'l, 'c>(&'l Lead<'c>);

impl Drop for Ending<'_, '_> {
    fn drop(&mut self) {
        let Lead {
            pool,
            machine,
            members,
        } = *self.0;
        pool.end(members, machine);
        pool.led.store(false, Ordering::Release);
    }
}

#[cfg(test)]
pub(crate) mod tests;
