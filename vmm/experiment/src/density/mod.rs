//! How many guests fit: the largest number of equal, working guests in a budget of memory of which every one is about as
//! fast as alone. Others measure what a side does with a given number of guests; here the number is what is looked for.
//!
//! ```text
//!  TOML ── scenario ──▶ for each side: search ──▶ probe (so many guests, so long) ── judge ──▶ holds, or why not
//!                                        ▲                                                     │
//!                                        └─────────────────────────────────────────────────────┘──▶ report
//! ```
//!
//! The command's `cli/experiment/density` acts; what is here decides, and makes the report.

mod judge;
mod record;
pub mod report;
mod scenario;
mod search;

pub use judge::{Miss, Speed, judge};
pub use record::{GuestRecord, Probe, Sample, TileReport, Wake};
pub use scenario::{
    BallonetSettings, Density, DensityError, ManagedSettings, QemuSettings, Side, Vmm,
};
pub use search::{Bound, Length, Next, Question, Score, Search};
