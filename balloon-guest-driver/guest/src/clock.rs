//! Time since boot, from the time stamp counter: reading it costs no exit.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::apic;

const CALIBRATION_US: u64 = 10_000;

static START: AtomicU64 = AtomicU64::new(0);
/// Microseconds per tick, times 2^32. Before calibration, as at 1 GHz.
static SCALE: AtomicU64 = AtomicU64::new((1 << 32) / 1000);

fn ticks() -> u64 {
    // SAFETY: the counter is there in every 64-bit CPU, and CPL 3 may read it (CR4.TSD is 0).
    unsafe { _rdtsc() }
}

/// Time begins.
pub(crate) fn start() {
    START.store(ticks(), Ordering::Relaxed);
}

/// Measures the counter against the local APIC's timer.
pub(crate) fn calibrate() {
    apic::run_timer();
    let (us_before, before) = (apic::timer_us(), ticks());
    let (us, elapsed) = loop {
        (0..1000).for_each(|_| core::hint::spin_loop());
        let us = apic::timer_us() - us_before;
        if us >= CALIBRATION_US {
            break (us, ticks().wrapping_sub(before));
        }
    };
    apic::stop_timer();
    SCALE.store((us << 32) / elapsed.max(1), Ordering::Relaxed);
}

/// Microseconds since boot.
pub(crate) fn now_us() -> u64 {
    let elapsed = ticks().wrapping_sub(START.load(Ordering::Relaxed));
    let scaled = u128::from(elapsed) * u128::from(SCALE.load(Ordering::Relaxed));
    u64::try_from(scaled >> 32).unwrap_or(u64::MAX)
}
