//! What threads wait for.

use shuttle::sync::{Condvar, Mutex, MutexGuard};

/// As the VM process's: signalled until somebody has seen it.
#[derive(Default)]
pub(crate) struct Event {
    is_signalled: Mutex<bool>,
    signalled: Condvar,
}

impl Event {
    pub(crate) fn signal(&self) {
        *lock(&self.is_signalled) = true;
        self.signalled.notify_one();
    }

    pub(crate) fn drain(&self) -> bool {
        std::mem::take(&mut *lock(&self.is_signalled))
    }

    /// By one thread.
    pub(crate) fn wait(&self) {
        let mut is_signalled = lock(&self.is_signalled);
        while !*is_signalled {
            is_signalled = self.signalled.wait(is_signalled).unwrap();
        }
        *is_signalled = false;
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
