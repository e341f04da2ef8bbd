//! Time since boot, from the time stamp counter: reading it costs no exit.

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::apic;

const CALIBRATION_US: u64 = 10_000;
const READINGS: u32 = 10;

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
    let (first_us, first) = both_clocks();
    while apic::timer_us() < first_us + CALIBRATION_US {
        (0..1000).for_each(|_| core::hint::spin_loop());
    }
    let (last_us, last) = both_clocks();
    apic::stop_timer();
    let elapsed = last.wrapping_sub(first).max(1);
    SCALE.store(((last_us - first_us) << 32) / elapsed, Ordering::Relaxed);
}

/// Timer and counter at the same moment: reading the timer leaves the guest, for how long nobody
/// knows, so the quickest of a few readings counts.
fn both_clocks() -> (u64, u64) {
    let reading = |_| {
        let before = ticks();
        let us = apic::timer_us();
        (ticks().wrapping_sub(before), us, before)
    };
    let quickest = (0..READINGS).map(reading).min_by_key(|&(took, ..)| took);
    let (took, us, before) = quickest.unwrap_or_default();
    (us, before.wrapping_add(took / 2))
}

/// Microseconds since boot.
pub(crate) fn now_us() -> u64 {
    since_boot(ticks(), 1)
}

/// Nanoseconds since boot, for timing single things: what comes before has happened, faults and
/// all, and what comes after has not begun.
pub(crate) fn now_ns() -> u64 {
    fence();
    let ticks = ticks();
    fence();
    since_boot(ticks, 1000)
}

/// The CPU goes on when all before is done.
fn fence() {
    // SAFETY: every 64-bit CPU has it, and it changes nothing.
    unsafe { _mm_lfence() };
}

fn since_boot(ticks: u64, units_per_us: u64) -> u64 {
    let elapsed = ticks.wrapping_sub(START.load(Ordering::Relaxed));
    let scale = SCALE.load(Ordering::Relaxed) * units_per_us;
    let scaled = u128::from(elapsed) * u128::from(scale);
    u64::try_from(scaled >> 32).unwrap_or(u64::MAX)
}
