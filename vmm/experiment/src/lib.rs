//! Experiments: what is measured on real guests, again and again, by a recipe that can be read.
//!
//! ```text
//!  TOML ── scenario ──▶ plan ──▶ runs ── perform ──▶ records ── outcome ──▶ report, charts, CSV
//!          (as written)         (each with what     (what was    (figures, and what
//!                                happens when)       seen)        was met or missed)
//! ```
//!
//! [`scenario`] and [`plan`] refuse what makes no sense before anything runs. `perform` (the command's,
//! in `cli/experiment` of the program) is the only part that acts: it has a host of its own for each run, in a folder that
//! goes with it, so that no run inherits anything from the one before and no user's host is touched.
//! Everything after it is computed from its records, which the CSV holds in full: whoever doubts a figure
//! can compute it again.

#![forbid(unsafe_code)]

pub mod active;
pub mod builtin;
mod closed_form;
pub mod density;
pub mod draw;
mod measure;
pub mod outcome;
pub mod plan;
pub mod plot;
pub mod reading;
pub mod record;
pub mod report;
pub mod scenario;
pub mod series;
mod setting;
mod statistics;
pub mod vmm;
