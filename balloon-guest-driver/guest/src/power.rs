//! Ending the machine.

use crate::{port, rt};

/// Powers off by the ways that monitors know, from the plainest to the last resort.
pub(crate) fn off() -> ! {
    port::write(0x64, 0xfe);
    port::write_word(0x604, 0x2000);
    // With no interrupt table an exception becomes a triple fault, which resets any machine.
    rt::empty_idt();
    // SAFETY: the exception is the purpose.
    unsafe { core::arch::asm!("ud2", options(noreturn)) }
}
