//! Takes a lock whoever panicked while holding it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nothing that a guest sends can panic while a lock is held; if our own code did, what it guards is
/// still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
