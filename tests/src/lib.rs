//! What tests of whole guests are made of.
//!
//! Each test has a [`Place`] of its own: a temporary folder with a socket, in which a host may
//! live. At its end the place looks whether anything was left behind there, a process, a socket,
//! a lock or a file, and fails the test if so. Nothing here measures time: what is waited for
//! comes, or nothing has moved for a long time.

pub mod adviser;
pub mod browser;
pub mod console;
pub mod guest_image;
pub mod hijacked;
pub mod host;
pub mod libvirt;
pub mod linux;
pub mod linux_qemu;
pub mod machine_memory;
pub mod outer_machine;
pub mod place;
pub mod process;
pub mod program;
pub mod qemu;
pub mod raw_client;
pub mod screen;
pub mod sharing;
pub mod terminal;
pub mod wait;
pub mod web;

pub use console::GuestConsole;
pub use host::TestHost;
pub use place::Place;
pub use program::{Done, run_to_end};
pub use serde_json::{Value, json};
pub use wait::{
    patience, wait_for, wait_until, wait_until_at_least, wait_until_at_most, wait_while_progress,
};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// A number somewhere in a JSON value, by a pointer such as `/host/used_bytes`.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn number(value: &Value, pointer: &str) -> u64 {
    value
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no number at {pointer} in {value:#}"))
}

/// A text somewhere in a JSON value.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text at {pointer} in {value:#}"))
}

/// The VMs of an overview.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn vms(overview: &Value) -> &[Value] {
    overview
        .get("vms")
        .and_then(Value::as_array)
        .unwrap_or_else(|| panic!("no VMs in {overview:#}"))
}

/// A VM's page states in all, in bytes.
///
/// # Panics
/// If it has none.
#[must_use]
pub fn states_total(vm: &Value) -> u64 {
    vm.get("states")
        .and_then(Value::as_object)
        .unwrap_or_else(|| panic!("no states in {vm:#}"))
        .values()
        .map(|bytes| bytes.as_u64().expect("states are bytes"))
        .sum()
}
