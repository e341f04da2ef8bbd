//! Closes, on a thread of its own, what others may have put something into.
//!
//! A socket that is closed takes with it what nobody has read, and the descriptors in that: each may have been
//! made so that to close it takes as long as its maker likes (see `protocol::peek`). No thread of the host may
//! wait for that, whoever drops the last hold.

use std::ops::{Deref, DerefMut};
use std::thread;

/// What is dropped on a thread of its own.
#[derive(Debug)]
// `None` only while it is being dropped.
pub(super) struct DropElsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> From<T> for DropElsewhere<T> {
    fn from(inner: T) -> Self {
        Self(Some(inner))
    }
}

impl<T: Send + 'static> Deref for DropElsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only its drop takes it")
    }
}

impl<T: Send + 'static> DerefMut for DropElsewhere<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("only its drop takes it")
    }
}

impl<T: Send + 'static> Drop for DropElsewhere<T> {
    fn drop(&mut self) {
        let inner = self.0.take();
        let thread = thread::Builder::new().name("closer".into());
        if let Err(error) = thread.spawn(move || drop(inner)) {
            tracing::warn!("no thread to close on, closed at once: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    struct Slow(Receiver<()>);

    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.recv().expect("the test lets it go");
        }
    }

    #[test]
    fn who_drops_does_not_wait() {
        let (let_go, waits) = channel();
        drop(DropElsewhere::from(Slow(waits)));
        let_go.send(()).expect("it waits elsewhere");
    }
}
