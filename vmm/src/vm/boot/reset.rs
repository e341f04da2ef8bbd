//! What a processor finds where it begins after a reset: code that ends the VM.
//!
//! A kernel that reboots may do so by going where a PC's firmware begins. Linux does, with
//! hardware-reduced ACPI and without EFI: it asks neither the reset register nor the keyboard
//! controller first. Were nothing there, it would run through memory forever.

use crate::vm::bus::{RESET_COMMAND, RESET_PORT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where firmware begins for a processor in real mode: 0xf000:0xfff0.
const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);

/// Writes it.
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&code(), RESET_VECTOR)
}

/// `mov al, COMMAND; out PORT, al; hlt`, and back to the `hlt`.
fn code() -> [u8; 7] {
    let port = u8::try_from(RESET_PORT).expect("an `out` names ports below 256");
    [0xb0, RESET_COMMAND, 0xe6, port, 0xf4, 0xeb, 0xfd]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::boot::memory_map::FIRMWARE_END;

    #[test]
    fn it_ends_where_the_firmwares_memory_ends() {
        assert!(RESET_VECTOR.0 + code().len() as u64 <= FIRMWARE_END);
        // The jump goes back over itself and the `hlt`.
        assert_eq!(code()[4..], [0xf4, 0xeb, (-3i8).cast_unsigned()]);
    }
}
