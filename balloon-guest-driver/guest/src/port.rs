//! Port I/O. Each access leaves the guest and costs tens of microseconds at CPL 3.

use core::arch::asm;

/// Writes one byte.
pub(crate) fn write(port: u16, value: u8) {
    // SAFETY: the ports used here are the serial line's and those that end the machine; none of
    // them changes memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Writes a 16-bit word.
pub(crate) fn write_word(port: u16, value: u16) {
    // SAFETY: as for `write`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

/// Reads one byte.
pub(crate) fn read(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as for `write`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes all bytes to one port with one instruction.
pub(crate) fn write_all(port: u16, bytes: &[u8]) {
    // SAFETY: the string instruction reads exactly the slice.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
             inout("rcx") bytes.len() => _, options(readonly, nostack));
    }
}
