//! Ballonet runs many KVM guests in less memory than they were promised.
//!
//! ```text
//!   cli ──api (HTTP on a Unix socket)──▶ host ──protocol (packets)──▶ vm process ──▶ guest
//!                                          │                             │
//!                                  policy, sharing              virtio ──▶ memory (agent)
//! ```
//!
//! One program, three roles. `host` owns the memory budget: it starts a process for every VM,
//! reads from the kernel what each holds, and lets the `policy` crate decide what each should hold.
//! A thread of it, the scanner in `host::sharing`, looks for equal pages; the `sharing` crate
//! decides which become one.
//! `vm` is such a process: one guest with its processors, its `virtio` devices, and its
//! `memory`, whose agent is the only thread that changes what backs it. `cli` is what people
//! type.
//!
//! # A page's life
//! A page of a VM's memory file is a hole until the guest touches it (*empty*), then a page of
//! machine memory (*private*). When the host wants memory it raises the VM's balloon target; the
//! guest's driver picks pages and lists them; the device checks and sorts them, the agent punches
//! them out of the file, and only then is the guest told (*ballooned*). The other way, the guest
//! says which pages it takes back, they are holes (*empty*), and its next touch gets a zero page.
//! What the guest reports free is punched the same way.
//!
//! The scanner hashes private pages. Of two that are equal, the content goes into a frame of their
//! trust domain's store, and both agents are asked to show it: behind a fence that makes writers
//! wait, the agent compares every byte, maps the frame over the page and punches its memory file
//! (*shared*). A zero page is just punched (*empty*). When the guest writes to a shared page, the
//! kernel makes a copy for it (*broken*), which the scanner finds, and the agent either drops, when
//! it equals the frame again, or brings home into the memory file (*private*).
//!
//! # What is not there
//! * Nothing but the agent changes what backs guest memory; the agent decides nothing.
//! * Nothing in `policy` and `sharing` does I/O, reads a clock or starts a thread.
//! * Nothing but an agent's own word, or the end of its process, frees a frame that it mapped.
//! * No number that a guest or client sends is used before a check that names its limit.
//! * No memory is given to a VM that is not free already: see `policy::plan`.

#![expect(
    unreachable_pub,
    reason = "in a program that nobody links to, pub is what a folder shows to the others"
)]

mod api;
mod cli;
mod event;
mod experiment;
mod host;
mod memory;
mod name;
mod protocol;
mod regular_file;
mod signals;
mod size;
mod virtio;
mod vm;

pub use cli::main;

/// What benchmarks measure by itself, and fuzz targets feed. Not an interface of the program's.
#[doc(hidden)]
pub mod internals {
    pub use crate::api::ScanPriority;
    pub use crate::host::sharing::{Conditions, PageSharing, Report, ScannedVmSpec};
    pub use crate::memory::ram::RamPiece;
    pub use crate::memory::store::read_all;
    pub use crate::memory::{AgentHandle, GuestRam};
    pub use crate::protocol::RamMapping;
    pub use crate::protocol::page_sharing::SharingSocket;
    pub use crate::vm::EMBEDDED_GUEST;

    #[cfg(feature = "fuzzing")]
    pub use crate::{
        api::fuzz::run as fuzz_api, virtio::fuzz::blk::run as fuzz_blk,
        virtio::fuzz::run as fuzz_balloon, virtio::net::fuzz::run as fuzz_net,
    };
}

/// An error with all its causes in one line, outermost first.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some errors say their cause in their own text.
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_told_already_is_not_told_again() {
        let cause = std::io::Error::from_raw_os_error(2);
        let told = format!("cannot open it: {cause}; make one");
        let error = anyhow::Error::new(cause).context(told.clone());
        assert_eq!(error_chain(error.as_ref()), told);
        let error = error.context("cannot start");
        assert_eq!(error_chain(error.as_ref()), format!("cannot start: {told}"));
    }
}
