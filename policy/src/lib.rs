//! Decides how much memory each VM should hold.
//!
//! The host describes what is, in a [`Snapshot`]; this crate answers with what to do, in a [`Plan`].
//! On the way there, [`targets`] says what each VM deserves by its shares within its min and max, and
//! [`plan`] how to get there without ever giving memory that has not been taken yet. Before that,
//! [`admit`] and its siblings refuse promises that could not be kept.
//!
//! ```text
//! settings ── admit ──▶ Snapshot ── targets ──▶ what each deserves ── plan ──▶ grants, free, shortfall
//!                          ▲                                                        │
//!                          └──────────── the host acts, guests follow ◀─────────────┘
//! ```
//!
//! Nothing in this crate does I/O, reads a clock, starts a thread, draws a random number or keeps
//! state between calls: equal snapshots give equal plans, so that a recorded one can be replayed.
//! Nothing here computes with floating point, so memory adds up to the page. No snapshot, however
//! senseless, makes it panic.

#![forbid(unsafe_code)]

mod admission;
mod divide;
mod plan;
mod settings;
mod shares;
mod snapshot;
mod targets;
mod tax;

#[cfg(test)]
mod generate;
#[cfg(test)]
mod rounds;

pub use admission::{OVERHEAD, Refusal, admit, admit_budget, admit_change};
pub use plan::{Plan, START_FLOOR, Step, plan};
pub use settings::{BALLOON_LIMIT_PERCENT, InvalidSettings, SIZE_LIMIT, VmSettings};
pub use shares::{InvalidShares, Shares, SharesSpec};
pub use snapshot::{Snapshot, Stage, VmSnapshot};
pub use tax::{InvalidTaxRate, TaxRate};
pub use targets::{Target, targets};
