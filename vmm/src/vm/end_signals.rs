//! Signals to a VM process, as `kill PID` sends them: an event that its main thread waits for.

use super::throttle::vcpu_signal;
use crate::event::Event;
use crate::signals::{ENDING, harmless, not_ignored};
use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;
use vmm_sys_util::signal::{block_signal, register_signal_handler, unblock_signal};

static ENDS: OnceLock<Event> = OnceLock::new();

/// The signals that were taken, until the process ends.
#[derive(Debug)]
pub(super) struct EndSignals {
    taken: Vec<c_int>,
    event: Event,
}

impl EndSignals {
    /// From here on no such signal ends the process. They wait until [`Self::let_in`]: threads that are started
    /// before that are never interrupted by one.
    pub(super) fn take() -> io::Result<Self> {
        let event = Event::new()?;
        let event = ENDS.get_or_init(|| event).clone();
        let mut taken = Vec::new();
        let mut harmless = harmless();
        harmless.retain(|&signal| signal != vcpu_signal());
        for (signals, handler) in [(&ENDING[..], end as Handler), (&harmless, ignore)] {
            for number in not_ignored(signals) {
                // Fails only for one that is blocked already.
                drop(block_signal(number));
                register_signal_handler(number, handler).map_err(io::Error::from)?;
                taken.push(number);
            }
        }
        Ok(Self { taken, event })
    }

    /// The calling thread is interrupted by signals from here on.
    pub(super) fn let_in(&self) {
        for &number in &self.taken {
            drop(unblock_signal(number));
        }
    }

    /// Readable when the process was told to end.
    pub(super) fn event(&self) -> &Event {
        &self.event
    }
}

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// An event is a write(2), which a handler may do.
extern "C" fn end(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    if let Some(event) = ENDS.get() {
        event.signal();
    }
}

extern "C" fn ignore(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
