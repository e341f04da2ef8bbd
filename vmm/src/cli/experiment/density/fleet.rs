//! Guests of a side, whoever runs them.

use anyhow::Result;
use experiment::density::TileReport;
use std::time::Duration;

/// What came of a guest's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Started {
    Runs,
    /// There is no room for it.
    Refused(String),
}

/// What a look at them shows, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    pub(super) used: u64,
    pub(super) saved: u64,
    pub(super) swapped: u64,
}

/// Equal guests.
pub(super) trait Fleet {
    /// Starts one more.
    async fn start(&mut self) -> Result<Started>;
    /// Asks all of them at once. None of one that does not answer in time.
    async fn ask(&mut self, patience: Duration) -> Vec<Option<TileReport>>;
    /// Types a line on the consoles of all.
    async fn type_line(&mut self, line: &str) -> Result<()>;
    /// Which of them have ended.
    fn have_ended(&mut self) -> Vec<bool>;
    /// What the kernel says of them.
    fn look(&mut self) -> Result<Look>;
    /// Processes that were ended for want of memory.
    fn oom_kills(&self) -> Result<u64>;
    /// Time on processors of all that belongs to the side so far, in seconds.
    fn cpu_s(&self) -> f64;
    /// How long touches of what is out waited: half of them, and all but one of a hundred, in microseconds; the worst guest's.
    fn swap_in_us(&self) -> Option<[u64; 2]>;
    /// Lets them have that many bytes less from now on, or as many as before for 0. False where that cannot be done.
    async fn take_back(&mut self, bytes: u64) -> Result<bool>;
}
