//! A VM process: one guest with its memory, processors and devices.
//!
//! ```text
//!   host ──messages──▶ process (main thread: messages, console, device queues)
//!                         │ asks, waits                     ▲ queue notified (ioeventfd)
//!                         ▼                                 │
//!                       agent ──changes──▶ guest memory ◀─ vCPU threads ──▶ registers, ports
//! ```
//!
//! * The agent alone changes what backs guest memory, and never touches it through the mapping
//!   that guest and devices use.
//! * The main thread serves the device queues, but for disks and network cards, each of which has a
//!   thread of its own; a vCPU thread only reads and writes registers.
//! * Nothing here decides how much memory the guest should have. A limit that the host sets is kept by
//!   stopping the vCPUs (`throttle`).

mod boot;
mod bus;
mod console;
mod cpuid;
mod devices;
mod end_signals;
pub mod error;
mod gate;
mod jail;
mod machine;
mod process;
mod throttle;
mod vcpu;

pub use boot::EMBEDDED_GUEST;
pub use devices::MOST_NETS;
pub use jail::close_inherited;
pub use machine::MOST_VCPUS;
pub use process::{POWER_OFF_PATIENCE, main};
