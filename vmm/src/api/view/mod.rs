//! What clients see.

mod device;
mod host;
mod sharing;
mod vm;

pub use device::{DiskView, NetView};
pub use host::{EventView, HostView, Overview, QueuedView};
pub use sharing::{ScanPriority, ScanTotals, SharingPace, SharingView, VmSharingView};
#[cfg(test)]
pub use vm::BalloonView;
pub(in crate::api) use vm::believed;
pub use vm::{ExplanationView, StatesView, TouchLimitView, VmPhase, VmView, WorkingSetView};
