//! Where vCPU threads wait while their guest must not run.
//!
//! A vCPU comes by after each exit. One that is in the guest makes no exit by itself, so whoever closes the
//! gate sends each a signal, again until all wait: a signal that comes just before a vCPU enters the guest
//! interrupts nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One gate for all vCPUs of a VM. It is open at first.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Looked at without the lock, for the gate is nearly always open.
    is_closed: AtomicBool,
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// One that nobody passes before it is opened.
    pub(super) fn closed() -> Self {
        let gate = Self::default();
        gate.close();
        gate
    }

    /// Returns when the gate is open.
    pub(super) fn pass(&self) {
        if !self.is_closed.load(Ordering::Acquire) {
            return;
        }
        let mut waiting = self.lock();
        *waiting += 1;
        self.changed.notify_all();
        while self.is_closed.load(Ordering::Acquire) {
            let woken = self.changed.wait(waiting);
            waiting = woken.unwrap_or_else(PoisonError::into_inner);
        }
        *waiting -= 1;
    }

    pub(super) fn open(&self) {
        let waiting = self.lock();
        self.is_closed.store(false, Ordering::Release);
        drop(waiting);
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Whether so many vCPUs wait, now or within this time.
    pub(super) fn is_waited_at_by(&self, vcpus: usize, time: Duration) -> bool {
        let waiting = self.lock();
        let awaited = self
            .changed
            .wait_timeout_while(waiting, time, |waiting| *waiting < vcpus);
        let (waiting, _) = awaited.unwrap_or_else(PoisonError::into_inner);
        *waiting >= vcpus
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    #[test]
    fn who_comes_by_waits_while_it_is_closed_and_not_longer() {
        let (gate, passed) = (Arc::new(Gate::default()), Arc::new(AtomicU64::new(0)));
        let is_over = Arc::new(AtomicBool::new(false));
        let walkers: Vec<_> = (0..3)
            .map(|_| {
                let (gate, passed) = (Arc::clone(&gate), Arc::clone(&passed));
                let is_over = Arc::clone(&is_over);
                thread::spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        gate.pass();
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..10 {
            gate.close();
            while !gate.is_waited_at_by(3, Duration::from_millis(10)) {}
            let before = passed.load(Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
            assert_eq!(passed.load(Ordering::Relaxed), before);
            gate.open();
        }
        is_over.store(true, Ordering::Relaxed);
        walkers
            .into_iter()
            .for_each(|walker| walker.join().unwrap());
    }
}
