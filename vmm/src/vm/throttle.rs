//! Stops a VM's vCPUs when its guest has touched more than it may, for guests whose balloons do not keep them within it
//! (`policy::touch_limit` says when and how much).
//!
//! The host looks once a second, and a guest can touch a gigabyte in that time. So the VM process watches
//! by itself, on this thread: it reads how much the memory file holds, again before the guest can have
//! touched what is left. Nothing is looked at while there is no limit, and none outlives its host.
//!
//! Beyond its limit a guest runs in slices, for a balloon driver that does not run gives nothing up. Devices
//! and the agent go on all the time.

use crate::memory::ram::GuestRam;
use crate::vm::gate::Gate;
use page::PageCount;
use policy::TouchLimit;
use protocol::BlockedTime;
use std::ffi::{c_int, c_void};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use vmm_sys_util::signal::{Killable, register_signal_handler};

/// The signal that makes a vCPU leave its guest.
pub(super) fn vcpu_signal() -> c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

/// What a guest is believed to touch at most: 1.6 GB/s, which is a core that clears pages.
const PAGES_PER_MS: u64 = 400;
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(50);
/// A guest beyond its limit runs for so long,
const SLICE: Duration = Duration::from_millis(5);
/// and then not for so long: a tenth of the time is left to it.
const PAUSE: Duration = Duration::from_millis(45);
/// How long a vCPU that was sent a signal is waited for before it is sent another.
const STOP_PATIENCE: Duration = Duration::from_millis(1);
/// How often at most: one that waits for the agent, or for a core, is left to come by itself.
const STOP_TRIES: u32 = 20;

/// Watches one guest.
#[derive(Debug)]
pub(super) struct Throttle {
    orders: Sender<Option<TouchLimit>>,
    blocked: Arc<Blocked>,
    started: Instant,
}

/// How long a guest was stopped.
#[derive(Debug, Default)]
struct Blocked {
    is_now: AtomicBool,
    total_us: AtomicU64,
}

/// What to do with a guest that has touched so much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It runs, and is looked at again after this time.
    Run(Duration),
    /// It runs for so long, and is stopped then.
    Slice(Duration),
    /// It stands still.
    Stop,
}

impl Verdict {
    fn on(limit: TouchLimit, backed: PageCount) -> Self {
        let left = |above: PageCount| {
            let ms = above.saturating_sub(backed).0 / PAGES_PER_MS;
            Duration::from_millis(ms).max(SHORTEST_LOOK)
        };
        match backed {
            backed if backed <= limit.slow_above => {
                Self::Run(left(limit.slow_above).min(LONGEST_LOOK))
            }
            backed if backed < limit.stop_above => Self::Slice(left(limit.stop_above).min(SLICE)),
            _ => Self::Stop,
        }
    }
}

impl Throttle {
    /// Watches the guest that these threads run and that passes this gate.
    pub(super) fn start(
        ram: GuestRam,
        gate: Arc<Gate>,
        vcpus: Vec<JoinHandle<()>>,
    ) -> io::Result<Self> {
        register_signal_handler(vcpu_signal(), interrupt).map_err(io::Error::from)?;
        let (orders, inbox) = channel();
        let blocked = Arc::new(Blocked::default());
        let watch = Watch {
            ram,
            gate,
            vcpus,
            inbox,
            blocked: Arc::clone(&blocked),
            since: None,
        };
        thread::Builder::new()
            .name("throttle".into())
            .spawn(move || watch.run())?;
        Ok(Self {
            orders,
            blocked,
            started: Instant::now(),
        })
    }

    /// From now on the guest may have touched so much; anything, without a limit.
    pub(super) fn set(&self, limit: Option<TouchLimit>) {
        let is_heard = self.orders.send(limit).is_ok();
        debug_assert!(is_heard, "the thread ends only with this");
    }

    pub(super) fn blocked(&self) -> BlockedTime {
        BlockedTime {
            is_now: self.blocked.is_now.load(Ordering::Relaxed),
            total_us: self.blocked.total_us.load(Ordering::Relaxed),
            at_us: microseconds(self.started.elapsed()),
        }
    }
}

/// A signal is there to interrupt what a thread does; there is nothing else to do about it.
extern "C" fn interrupt(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

/// The throttle's thread.
struct Watch {
    ram: GuestRam,
    gate: Arc<Gate>,
    vcpus: Vec<JoinHandle<()>>,
    inbox: Receiver<Option<TouchLimit>>,
    blocked: Arc<Blocked>,
    /// Since when the gate is closed.
    since: Option<Instant>,
}

impl Watch {
    fn run(mut self) {
        let mut limit = None;
        loop {
            let next = match limit {
                None => self.inbox.recv().map_err(RecvTimeoutError::from),
                Some(limit) => {
                    let pause = self.look(limit);
                    self.inbox.recv_timeout(pause)
                }
            };
            match next {
                Ok(order) => limit = order,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if limit.is_none() {
                self.let_run();
            }
        }
    }

    /// Looks once, and does what is to be done. How long it then takes until the next look.
    fn look(&mut self, limit: TouchLimit) -> Duration {
        let Ok(backed) = self.ram.allocated() else {
            self.let_run();
            return LONGEST_LOOK;
        };
        match Verdict::on(limit, backed) {
            Verdict::Run(time) => {
                self.let_run();
                time
            }
            Verdict::Slice(time) => {
                self.let_run();
                thread::sleep(time);
                self.stop();
                PAUSE
            }
            Verdict::Stop => {
                self.stop();
                PAUSE
            }
        }
    }

    fn let_run(&mut self) {
        self.gate.open();
        self.note_blocked_time();
        self.since = None;
        self.blocked.is_now.store(false, Ordering::Relaxed);
    }

    fn stop(&mut self) {
        self.gate.close();
        self.note_blocked_time();
        self.since = Some(Instant::now());
        self.blocked.is_now.store(true, Ordering::Relaxed);
        for _ in 0..STOP_TRIES {
            if self.gate.is_waited_at_by(self.vcpus.len(), Duration::ZERO) {
                return;
            }
            self.interrupt_all();
            if self.gate.is_waited_at_by(self.vcpus.len(), STOP_PATIENCE) {
                return;
            }
        }
    }

    fn interrupt_all(&self) {
        for vcpu in &self.vcpus {
            if let Err(error) = vcpu.kill(vcpu_signal()) {
                tracing::debug!("a vCPU is not interrupted: {error}");
            }
        }
    }

    fn note_blocked_time(&self) {
        let us = self.since.map_or(0, |since| microseconds(since.elapsed()));
        self.blocked.total_us.fetch_add(us, Ordering::Relaxed);
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(backed: u64) -> Verdict {
        let limit = TouchLimit {
            slow_above: PageCount(10_000),
            stop_above: PageCount(12_000),
        };
        Verdict::on(limit, PageCount(backed))
    }

    #[test]
    fn a_guest_is_looked_at_before_it_can_have_touched_what_is_left() {
        let ms = Duration::from_millis;
        assert_eq!(verdict(0), Verdict::Run(ms(25)));
        assert_eq!(verdict(6000), Verdict::Run(ms(10)));
        assert_eq!(verdict(10_000), Verdict::Run(ms(1)));
        assert_eq!(verdict(10_001), Verdict::Slice(ms(4)));
        assert_eq!(verdict(11_990), Verdict::Slice(ms(1)));
        assert_eq!(verdict(12_000), Verdict::Stop);
        assert_eq!(verdict(u64::MAX), Verdict::Stop);
    }
}
