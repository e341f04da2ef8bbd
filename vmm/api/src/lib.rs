//! What the host and its clients say to each other, as JSON over HTTP on a Unix socket. All sizes
//! are bytes.

#![forbid(unsafe_code)]

mod change;
mod figures;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod problem;
mod request;
mod restart;
mod settings;
mod token;
mod view;

pub use change::{
    HostChange, ScanChange, VmChange, VmIdleTax, on_or_off, parse_host_change, parse_vm_change,
};
pub use figures::{
    Figure, Figures, HOST_FIGURES, HistoryColumn, HistoryQuery, HistoryView, HostFigures, Moment,
    Reading, Span, StateThresholds, VM_FIGURES, VmFigures,
};
pub use problem::{Problem, ProblemKind, ProblemView};
pub use request::{AdoptRequest, BalloonRequest, InvalidNet, NetRequest, RunRequest, object};
pub use restart::{DefinitionState, DefinitionView, InvalidRestartPolicy, RestartPolicy};
pub use settings::{HostSettings, InvalidNumber, whole_pages, whole_pages_or};
pub use token::{
    AccessView, InvalidRole, InvalidTokenName, NewToken, Role, TokenName, TokenRequest, TokenView,
};
pub use view::{
    BalloonView, DiskView, EventView, ExplanationView, HostView, InvalidVmKind, NetView, Overview,
    QueuedView, ScanPriority, ScanTotals, SharingPace, SharingView, StatesView, SwapView,
    TouchLimitView, VmKind, VmPhase, VmSharingView, VmView, WaitView, WorkingSetView,
};

/// The protocol that a connection changes to for a console.
pub const CONSOLE_PROTOCOL: &str = "ballonet-console";
