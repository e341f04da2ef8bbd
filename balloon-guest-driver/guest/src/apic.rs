//! The local APIC and the I/O APIC, programmed by memory-mapped registers from CPL 3.

use core::ptr;

use crate::rt;

const LOCAL: usize = 0xfee0_0000;
const LOCAL_ID: usize = 0x20;
const SPURIOUS: usize = 0xf0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const TIMER_VECTOR: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;
const MASKED: u32 = 1 << 16;
const ENABLED: u32 = 1 << 8;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
const FIXED: u32 = 0x4000;
const TO_ALL_OTHERS: u32 = 0b11 << 18;
const DIVIDE_BY_1: u32 = 0b1011;
const DIVIDE_BY_16: u32 = 0b0011;

const IO: usize = 0xfec0_0000;
const IO_DATA: usize = 0x10;
const IO_REDIRECTIONS: u32 = 0x10;

/// The timer counts at 1 GHz before it is divided, as KVM and QEMU have it.
const TICKS_PER_US: u64 = 1000;

fn read(address: usize) -> u32 {
    // SAFETY: an APIC register; the first 4 GiB are mapped where they are.
    unsafe { ptr::read_volatile(address as *const u32) }
}

fn write(address: usize, value: u32) {
    // SAFETY: an APIC register; none of those written here changes memory.
    unsafe { ptr::write_volatile(address as *mut u32, value) };
}

/// Turns the local APIC on, its timer stopped.
pub(crate) fn start() {
    write(LOCAL + SPURIOUS, ENABLED | u32::from(rt::SPURIOUS_VECTOR));
    write(LOCAL + TIMER_VECTOR, MASKED);
}

/// The number of this CPU.
pub(crate) fn id() -> u8 {
    read(LOCAL + LOCAL_ID).to_be_bytes()[0]
}

/// Has another CPU wait for [`startup`].
pub(crate) fn init(cpu: u8) {
    command(cpu, INIT);
}

/// Has another CPU begin in real mode at the start of a page below 1 MiB, if it waits for that.
pub(crate) fn startup(cpu: u8, page: u8) {
    command(cpu, STARTUP | u32::from(page));
}

/// Interrupts another CPU.
pub(crate) fn wake(cpu: u8) {
    command(cpu, FIXED | u32::from(rt::WAKE_VECTOR));
}

/// Interrupts all other CPUs.
pub(crate) fn wake_all_others() {
    write(
        LOCAL + COMMAND_LOW,
        TO_ALL_OTHERS | FIXED | u32::from(rt::WAKE_VECTOR),
    );
}

/// The second write sends it; stores before it are seen by who is interrupted, for a CPU's
/// stores, and these are some, are seen in order.
fn command(cpu: u8, command: u32) {
    write(LOCAL + COMMAND_HIGH, u32::from(cpu) << 24);
    write(LOCAL + COMMAND_LOW, command);
}

/// Sends edges of the I/O APIC's pin to an interrupt line of this CPU.
pub(crate) fn connect(pin: u8, line: u8) {
    let redirection = IO_REDIRECTIONS + 2 * u32::from(pin);
    let destination = read(LOCAL + LOCAL_ID) & 0xff00_0000;
    write(IO, redirection + 1);
    write(IO + IO_DATA, destination);
    write(IO, redirection);
    write(IO + IO_DATA, u32::from(rt::FIRST_VECTOR + line));
}

/// Lets the timer run freely, for measuring.
pub(crate) fn run_timer() {
    write(LOCAL + TIMER_DIVIDE, DIVIDE_BY_1);
    write(LOCAL + TIMER_INITIAL, u32::MAX);
}

/// Microseconds since [`run_timer`].
pub(crate) fn timer_us() -> u64 {
    u64::from(u32::MAX - read(LOCAL + TIMER_CURRENT)) / TICKS_PER_US
}

/// Has the timer interrupt once on a line, in so many microseconds, a minute at most.
pub(crate) fn arm_timer(line: u8, us: u64) {
    let ticks = us.saturating_mul(TICKS_PER_US) / 16;
    write(LOCAL + TIMER_DIVIDE, DIVIDE_BY_16);
    write(LOCAL + TIMER_VECTOR, u32::from(rt::FIRST_VECTOR + line));
    write(
        LOCAL + TIMER_INITIAL,
        u32::try_from(ticks).unwrap_or(u32::MAX).max(1),
    );
}

/// Stops the timer.
pub(crate) fn stop_timer() {
    write(LOCAL + TIMER_INITIAL, 0);
}
