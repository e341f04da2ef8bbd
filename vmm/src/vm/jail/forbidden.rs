//! The last word of a process that made a forbidden system call: which, and on which thread. Then it ends.
//!
//! This runs in a signal's handler, on a thread that may be anybody's by now, under the same filter: it allocates
//! nothing, takes no lock and makes calls that all threads may make.
#![expect(
    unsafe_code,
    reason = "a signal's handler is given pointers, and ends the process by a call"
)]

use super::names;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::{c_int, c_void};
use std::fmt::{self, Write};
use std::io;
use vmm_sys_util::signal::register_signal_handler;

/// Its status then: that of a program that failed.
const STATUS: c_int = 1;
const LONGEST_NAME: usize = 16;
/// Where `struct siginfo` has the call's number: behind three integers, as many unused bytes, and an address.
const CALL_OFFSET: usize = 24;

/// From here on a call that a filter traps names itself and ends the process.
pub(super) fn name_before_the_end() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, on_forbidden).map_err(io::Error::from)
}

extern "C" fn on_forbidden(_: c_int, about: *mut libc::siginfo_t, _: *mut c_void) {
    let number = about.cast::<c_int>().wrapping_byte_add(CALL_OFFSET);
    // SAFETY: the kernel hands a handler that was registered with SA_SIGINFO a whole structure of 128 bytes, and
    // writes the number there for SIGSYS.
    let call = unsafe { number.read() };
    tell(call.into());
    // SAFETY: it ends the process at once and touches no memory.
    unsafe { libc::_exit(STATUS) }
}

/// In one write, if there is room for it: whoever should read may be gone.
fn tell(call: i64) {
    let mut line = Line::default();
    let name = names::of(call).unwrap_or("of no known name");
    let mut bytes = [0; LONGEST_NAME];
    let thread = thread_name(&mut bytes);
    let written = writeln!(
        line,
        "ballonet: forbidden system call {call} ({name}) in thread {thread}: the jail has ended this process"
    );
    let stderr = rustix::stdio::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec::default();
    if written.is_ok() && matches!(poll(&mut ready, Some(&now)), Ok(1..)) {
        rustix::io::write(stderr, line.text()).ok();
    }
}

/// The calling thread's.
fn thread_name(bytes: &mut [u8; LONGEST_NAME]) -> &str {
    // SAFETY: PR_GET_NAME writes at most 16 bytes, with a zero at the end, and `bytes` has room for these.
    let got = unsafe { libc::prctl(libc::PR_GET_NAME, bytes.as_mut_ptr()) };
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(0);
    match (got, std::str::from_utf8(&bytes[..end])) {
        (0, Ok(name)) => name,
        _ => "of no known name",
    }
}

/// A text of bounded length.
struct Line {
    bytes: [u8; 160],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 160],
            length: 0,
        }
    }
}

impl Line {
    fn text(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_what_there_is_room_for_and_no_more() {
        let mut line = Line::default();
        write!(line, "call {}", 41).unwrap();
        assert_eq!(line.text(), b"call 41");
        assert!(line.write_str(&"x".repeat(160)).is_err());
        assert_eq!(line.text(), b"call 41");
    }
}
