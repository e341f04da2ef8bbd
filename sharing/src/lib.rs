//! Finds pages of virtual machines that hold the same and keeps one copy of them.
//!
//! This crate decides; a scanner in the host looks, and agents in the VM processes act. It does no I/O,
//! reads no clock, starts no thread. What it is told may be old when it is told, and what it asks for
//! may be refused, page by page: nothing depends on a guess being right.
//!
//! ```text
//!  Schedule ──▶ block ──▶ the scanner reads it: holes, zeros, hashes
//!     ▲                        │
//!     │                        ▼
//!     │                  Sharing::examine ──▶ pages to hash again ──▶ the scanner hashes them
//!     │                   index, history                                  │
//!     │                                                                   ▼
//!     │                  Sharing::plan ◀──────────────────────────────────┘
//!     │                   cost, frames
//!     │                        │ fills               ──▶ the host copies pages into new frames
//!     │                        │ requests            ──▶ agents protect, compare, map, punch
//!     │                        ▼                                          │
//!     └──────────────── Sharing::settle ◀── outcome of each request ──────┘
//!                         ledger, references
//!                              │
//!                              └── take_freed ──▶ the host punches the store
//! ```
//!
//! * The **index** finds a frame or a hint by a page's hash. A hash nominates, and so does a hint: the
//!   hinted page is hashed again, and agents compare every byte under write protection.
//! * The **frames** are laid out in guest order, so that what is equal in two VMs for many pages on end
//!   is one mapping, and one clone's window is every clone's window.
//! * The **cost** of calls and memory areas is weighed against what pages are worth, gap by gap.
//! * The **history** keeps volatile pages out, for ever longer.
//! * The **ledger** knows what each VM maps, so that a frame lives exactly as long as it is needed.
//! * The [`reserve`](fn@reserve) says what must stay free because guests may write to what they share.
//!
//! What must stay true, whatever agents answer and guests do: no request names a frame of another trust
//! domain; a frame is free exactly when no page shows it and no request names it; no window of the store
//! changes hands while any mapping of it is left. [`Sharing::audit`] checks it all.

#![forbid(unsafe_code)]

mod block;
mod content;
pub mod cost;
mod frames;
mod history;
mod index;
mod ledger;
mod order;
mod plan;
mod rate;
mod reserve;
mod schedule;
mod sharing;
mod trust;
mod vms;
#[cfg(test)]
mod world;

pub use block::{BLOCK_PAGES, Block, Page, PageSet};
pub use content::{Content, ContentHash, Domain, Seen};
pub use cost::{Areas, Pressure};
pub use frames::{Frame, FrameRange};
pub use index::IndexStats;
pub use ledger::VmCounts;
pub use plan::{BlockPlan, Fill, Outcome, Request, Span, Ticket};
pub use rate::RateSettings;
pub use reserve::{BreakRate, Breakable, FRAMES_IN_FLIGHT, Pace, Reserve, needed_at_home, reserve};
pub use schedule::{Next, Schedule};
pub use sharing::{Counts, Disagreement, Examined, Sharing};
pub use trust::{InvalidTrustGroup, TrustGroup};
pub use vms::{CannotShare, VmSpec};
