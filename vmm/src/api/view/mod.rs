//! What clients see.

mod device;
mod host;
mod sharing;
mod vm;

pub use device::{DiskView, NetView};
pub use host::{EventView, HostView, Overview, QueuedView};
pub use sharing::{ScanPriority, ScanTotals, SharingPace, SharingView, VmSharingView};
pub(in crate::api) use vm::believed;
pub use vm::{
    BalloonView, ExplanationView, LimitView, StatesView, VmPhase, VmView, WorkingSetView,
};
