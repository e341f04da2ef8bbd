//! An io_uring that carries out the operations that it is made for, and no others.
//!
//! What a ring does is no system call of the thread that asks for it: a filter of those does not see it. So the kernel
//! is told what each ring is for, before it takes the first entry, and refuses the rest for ever.

use io_uring::IoUring;
use io_uring::register::Restriction;
use std::io;

/// One for these operations, by their codes.
///
/// # Errors
/// When the kernel has no io_uring, none that can be restricted, or none for this process.
pub(crate) fn new(entries: u32, operations: &[u8]) -> io::Result<IoUring> {
    let ring = IoUring::builder().setup_r_disabled().build(entries)?;
    let mut restrictions: Vec<_> = operations
        .iter()
        .map(|&operation| Restriction::sqe_op(operation))
        .collect();
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::{opcode, squeue, types};
    use rustix::fd::AsRawFd;

    #[expect(unsafe_code, reason = "the kernel gets addresses")]
    fn result_of(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
        // SAFETY: what the entry points to outlives this call, which waits for its end.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_does_what_it_is_made_for_and_opens_nothing() {
        let mut ring = new(4, &[opcode::Read::CODE]).unwrap();
        let file = std::fs::File::open("/dev/zero").unwrap();
        let mut bytes = [1; 8];
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), bytes.as_mut_ptr(), 8).build();
        assert_eq!(result_of(&mut ring, &read), 8);
        assert_eq!(bytes, [0; 8]);
        let path = c"/dev/zero";
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        assert_eq!(result_of(&mut ring, &open), -libc::EACCES);
        let socket = opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).build();
        assert_eq!(result_of(&mut ring, &socket), -libc::EACCES);
    }
}
