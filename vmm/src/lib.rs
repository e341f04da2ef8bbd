#![doc = include_str!("../../ARCHITECTURE.md")]
#![expect(
    unreachable_pub,
    reason = "in a program that nobody links to, pub is what a folder shows to the others"
)]

mod cli;
mod event;
mod host;
mod lock;
mod memory;
mod regular_file;
mod restricted_ring;
mod service_manager;
mod signals;
mod virtio;
mod vm;

pub use cli::main;

/// What benchmarks measure by itself, and fuzz targets feed. Not an interface of the program's.
#[doc(hidden)]
pub mod internals {
    pub use crate::host::sharing::{Conditions, PageSharing, Report, ScannedVmSpec, StoreNotes};
    pub use crate::memory::store::read_all;
    pub use crate::memory::{AgentHandle, GuestRam};
    pub use crate::vm::EMBEDDED_GUEST;
    pub use api::ScanPriority;
    pub use protocol::page_sharing::SharingSocket;

    #[cfg(feature = "fuzzing")]
    pub use crate::host::claim_fuzz::run as fuzz_vm;
    #[cfg(feature = "fuzzing")]
    pub use crate::virtio::{
        fuzz::blk::run as fuzz_blk, fuzz::run as fuzz_balloon, net::fuzz::run as fuzz_net,
    };
    #[cfg(feature = "fuzzing")]
    pub use api::fuzz::run as fuzz_api;
}

/// A text with all characters written out that are not harmless where it is shown.
fn escaped(text: &str, is_harmless: impl Fn(char) -> bool) -> String {
    let shown = |c: char| match is_harmless(c) {
        true => c.to_string(),
        false => c.escape_default().to_string(),
    };
    text.chars().map(shown).collect()
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
