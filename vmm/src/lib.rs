//! Ballonet runs many KVM guests in less memory than they were promised.

pub mod api;
pub mod cli;
mod event;
pub mod host;
pub mod name;
pub mod protocol;
pub mod size;
pub mod virtio;
pub mod vm;

/// An error with all its causes in one line, outermost first.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
