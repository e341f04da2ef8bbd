//! What clients see.

mod device;
mod host;
mod sharing;
mod vm;

pub use device::{DiskView, NetView};
pub use host::{EventView, HostView, Overview, QueuedView};
pub use sharing::{ScanPriority, ScanTotals, SharingPace, SharingView, VmSharingView};
pub(crate) use vm::believed;
pub use vm::{
    BalloonView, ExplanationView, InvalidVmKind, StatesView, SwapView, TouchLimitView, VmKind,
    VmPhase, VmView, WaitView, WorkingSetView,
};
