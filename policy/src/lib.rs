//! Decides how much memory each VM should hold.
//!
//! The host describes what is, in a [`Snapshot`]; this crate answers with what to do, in a [`Plan`].
//! On the way there, [`targets`] says what each VM deserves by its shares within its min and max, with a
//! tax on what it does not use, and [`plan`] how to get there without ever giving memory that has not been
//! taken yet. Before that, [`admit`] and its siblings refuse promises that could not be kept.
//!
//! ```text
//! settings ── admit ──▶ Snapshot ── targets ──▶ what each deserves ── plan ──▶ grants, free, shortfall
//!                          ▲                                                        │
//!                          └──────────── the host acts, guests follow ◀─────────────┘
//! ```
//!
//! # What a host calls, and when
//!
//! It keeps one [`WorkingSet`] and one [`BalloonWatch`] for each VM, and for itself its [`MemoryState`] and
//! a [`Rebalance`]. A VM that comes is admitted first. Then, in every round (each second, and whenever
//! something has changed):
//!
//! 1. For each VM, [`WorkingSet::count`] with how its sample stands, from the period's beginning. When the
//!    period is over, [`WorkingSet::end`], then [`WorkingSet::begin`] with as many pages as
//!    [`sample_size`] says and the VM has private. [`WorkingSet::active_set`] is its evidence.
//! 2. For each VM, [`BalloonWatch::observe`] with what it was last told to hold and what it holds. That,
//!    and what its guest said last ([`GuestFigures`]), is evidence too.
//! 3. [`MemoryState::next`] with what is free by the kernel's count, against [`Thresholds::of`] the budget.
//!    [`Thresholds::keep_free`] goes into [`Snapshot::keep_free`].
//! 4. The [`Snapshot`] from all that, with [`BalloonRound::elapsed_ms`] since the last plan.
//! 5. [`Rebalance::update`], which says why targets change now and holds active sets if they should not.
//!    What it leaves is what to record: a replay of the plan starts here.
//! 6. [`plan()`], and its steps and orders are carried out.
//!
//! [`explain()`] answers questions about a plan. A host that knows less leaves it out, and the plan is the one
//! by shares alone. [`simulate()`](simulate::simulate) does all this on a model.
//!
//! Nothing in this crate does I/O, reads a clock, starts a thread or keeps state between calls, and
//! nothing that decides draws a random number: equal snapshots give equal plans, so that a recorded one can
//! be replayed. Nothing here computes with floating point, so memory adds up to the page. No snapshot,
//! however senseless, makes it panic.

#![forbid(unsafe_code)]

mod admission;
mod advice;
mod balloon;
mod balloon_settings;
mod balloon_watch;
mod capabilities;
mod differences;
mod divide;
mod explain;
mod fraction;
mod guest;
mod guest_word;
mod kernel_reclaim;
mod large_pages;
mod periods;
mod plan;
mod pool_allowance;
mod rebalance;
mod settings;
mod shares;
pub mod simulate;
mod snapshot;
mod state;
mod step;
mod targets;
mod tax;
mod touch_limit;
mod working_set;

#[cfg(test)]
mod generate;
#[cfg(test)]
mod rounds;

pub use admission::{Keeper, OVERHEAD, Refusal, admit, admit_budget, admit_change};
pub use advice::{Savings, Supposed, SupposedBalloon, VmSavings, needs};
pub use balloon::BalloonBound;
pub use balloon_settings::{BALLOON_LIMIT_PERCENT, BalloonRound, BalloonSettings};
pub use balloon_watch::{BalloonHealth, BalloonWatch, STUCK_ROUNDS};
pub use capabilities::Capabilities;
pub use differences::differences;
pub use explain::{Bound, Explanation, LargePagesReason, More, Price, explain};
pub use fraction::{Fraction, Interval};
pub use guest::{GuestFigures, Witness};
pub use guest_word::GuestWord;
pub use large_pages::{BrokenBlocks, LargePages};
pub use periods::{PERIOD_RANGE_S, REBALANCE_INTERVAL, SAMPLE_PERIOD};
pub use plan::{Plan, START_FLOOR, plan};
pub use pool_allowance::HALF_PERCENT;
pub use rebalance::{Reason, Rebalance};
pub use settings::{InvalidSettings, SIZE_LIMIT, VmSettings};
pub use shares::{InvalidShares, Shares, SharesSpec};
pub use snapshot::{Evidence, Snapshot, Stage, VmSnapshot};
pub use state::{BalloonPace, LEAST_MIN_FREE, MemoryState, Orders, Scale, Thresholds};
pub use step::{Step, TouchLimit};
pub use targets::{Target, targets};
pub use tax::{InvalidTaxRate, TaxRate};
pub use touch_limit::shared_of_limit;
pub use working_set::{
    ActiveSet, Estimate, Population, Precision, Sample, SampleLimits, Source, WorkingSet,
    sample_size,
};
