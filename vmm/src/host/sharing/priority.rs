//! The scanner's place among all that want a core: the last, while there is memory and nobody waits for
//! it; as any other thread when there is not, for then its work is what the VMs wait for.
//!
//! Whoever waits for the scanner lends it a place of its own meanwhile: on a busy machine the last place
//! may be none for many seconds, and what the scanner frees, or is asked, must not take so long.
#![expect(unsafe_code, reason = "scheduling classes have no safe wrapper")]

use api::ScanPriority;
use sharing::Pressure;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;

/// Scheduling classes of a thread (sched(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Idle,
    Normal,
}

impl Class {
    /// Sets it for a thread of this process; zero is the calling one.
    fn set(self, thread: i32) -> io::Result<()> {
        let class = match self {
            Self::Idle => libc::SCHED_IDLE,
            Self::Normal => libc::SCHED_OTHER,
        };
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the parameters outlive the call.
        match unsafe { libc::sched_setscheduler(thread, class, &raw const parameters) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Whether a thread of this process that went idle could come back: without CAP_SYS_NICE the kernel
/// allows that by RLIMIT_NICE alone, which is zero by default.
fn can_come_back() -> bool {
    let tried = thread::spawn(|| Class::Idle.set(0).and_then(|()| Class::Normal.set(0)));
    matches!(tried.join(), Ok(Ok(())))
}

/// Between the scanner and those who wait for it. Nothing here blocks: a thread that has the last place
/// would hold up whoever waits for its lock.
#[derive(Debug, Default)]
pub(super) struct Loan {
    /// The scanner's thread; zero before it runs.
    thread: AtomicI32,
    /// What is waited for.
    wanted: AtomicU32,
    /// How often the scanner was lent a place. Told after it was.
    lent: AtomicU32,
}

impl Loan {
    /// From now on something is waited for. To be said before the scanner is told what.
    pub(super) fn want(&self) {
        self.wanted.fetch_add(1, Ordering::SeqCst);
    }

    /// Lends the scanner a place if anybody waits. To be called when it was told, and now and then after.
    pub(super) fn lend(&self) {
        let thread = self.thread.load(Ordering::SeqCst);
        if thread == 0 || !self.is_wanted() {
            return;
        }
        if let Err(error) = Class::Normal.set(thread) {
            tracing::debug!("the scanner is lent no priority: {error}");
        }
        self.lent.fetch_add(1, Ordering::SeqCst);
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) > 0
    }

    /// The scanner has done one thing that was waited for.
    pub(super) fn done(&self) {
        self.wanted.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The scanner's own view of its place.
#[derive(Debug)]
pub(super) struct Place {
    may_idle: bool,
    own: Class,
    /// How many loans it has given back.
    returned: u32,
}

impl Place {
    /// Of the calling thread, which is the scanner.
    pub(super) fn of_scanner(loan: &Loan) -> Self {
        let may_idle = can_come_back();
        if !may_idle {
            tracing::info!(
                "page sharing runs at normal priority: without CAP_SYS_NICE a thread that went idle could not come back"
            );
        }
        // SAFETY: the call takes nothing and returns a number.
        let thread = unsafe { libc::gettid() };
        loan.thread.store(thread, Ordering::SeqCst);
        Self {
            may_idle,
            own: Class::Normal,
            returned: 0,
        }
    }

    /// What is right for a scanner of this priority; `is_home_coming` while shared pages are brought home,
    /// which somebody asked for.
    pub(super) fn set(
        &mut self,
        priority: ScanPriority,
        pressure: Pressure,
        is_home_coming: bool,
        loan: &Loan,
    ) {
        self.own = match (priority, pressure) {
            (ScanPriority::Idle, Pressure::Plenty) if self.may_idle && !is_home_coming => {
                Class::Idle
            }
            _ => Class::Normal,
        };
        self.take(loan);
    }

    /// Gives back what was lent, when nobody waits any more.
    pub(super) fn give_back(&mut self, loan: &Loan) {
        let lent = loan.lent.load(Ordering::SeqCst);
        if lent != self.returned && !loan.is_wanted() {
            self.returned = lent;
            self.take(loan);
        }
    }

    fn take(&self, loan: &Loan) {
        let class = if loan.is_wanted() {
            Class::Normal
        } else {
            self.own
        };
        let mut result = class.set(0);
        // Who came to wait in this moment may have lent before it was taken.
        if class == Class::Idle && loan.is_wanted() {
            result = Class::Normal.set(0);
        }
        if let Err(error) = result {
            tracing::debug!("the scanner keeps its priority: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class_of(thread: i32) -> i32 {
        // SAFETY: the call takes a number and returns one.
        unsafe { libc::sched_getscheduler(thread) }
    }

    #[test]
    fn an_idle_scanner_has_a_place_of_its_own_as_long_as_anybody_waits_for_it() {
        if !can_come_back() {
            println!("skipped: this needs CAP_SYS_NICE");
            return;
        }
        let loan = Loan::default();
        let mut place = Place::of_scanner(&loan);
        place.set(ScanPriority::Idle, Pressure::Plenty, false, &loan);
        assert_eq!(class_of(0), libc::SCHED_IDLE);
        loan.lend();
        assert_eq!(class_of(0), libc::SCHED_IDLE, "nobody waits");

        loan.want();
        loan.want();
        loan.lend();
        assert_eq!(class_of(0), libc::SCHED_OTHER);
        loan.done();
        place.give_back(&loan);
        place.set(ScanPriority::Idle, Pressure::Plenty, false, &loan);
        assert_eq!(class_of(0), libc::SCHED_OTHER, "one waits still");
        loan.done();
        place.give_back(&loan);
        assert_eq!(class_of(0), libc::SCHED_IDLE);

        for (priority, pressure, is_home_coming) in [
            (ScanPriority::Normal, Pressure::Plenty, false),
            (ScanPriority::Idle, Pressure::Short, false),
            (ScanPriority::Idle, Pressure::Plenty, true),
        ] {
            place.set(priority, pressure, is_home_coming, &loan);
            assert_eq!(class_of(0), libc::SCHED_OTHER);
        }
    }
}
