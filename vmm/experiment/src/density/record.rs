//! What is seen of guests while so many of them run.

use super::search::Question;
use serde::{Deserialize, Serialize};

/// What a guest's report says of its tile. Counters are since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TileReport {
    /// Its clock.
    pub uptime_ms: u64,
    /// Transactions done.
    pub transactions: u64,
    /// Operations on files done.
    pub operations: u64,
    /// How many transactions took how long; see the guest's `Latencies`.
    pub transaction_time: Vec<u64>,
    /// How many operations did.
    pub operation_time: Vec<u64>,
    /// Pages and blocks checked.
    pub checks: u64,
    /// Pages and blocks that were wrong.
    pub errors: u64,
    /// Pages of others.
    pub leaks: u64,
    /// What its disk failed to do.
    pub disk_errors: u64,
    /// Pages that it uses.
    pub held: u64,
    /// Pages in its balloon.
    pub balloon_actual: u64,
    /// Blocks that had to be read.
    pub misses: u64,
}

impl TileReport {
    /// Anything that must never be.
    #[must_use]
    pub(super) const fn wrong(&self) -> u64 {
        self.errors + self.leaks + self.disk_errors
    }
}

/// A guest in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GuestRecord {
    /// What it said when it was warm.
    pub first: Option<TileReport>,
    /// What it said in the end.
    pub last: Option<TileReport>,
    /// It ended meanwhile.
    pub has_ended: bool,
}

/// A look at the machine. Memory is in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Since the first guest was started.
    pub time_s: f64,
    /// What the group of all that belongs to the side uses as the kernel counts it, with what is compressed for it, without
    /// the disks' page cache.
    pub used_bytes: u64,
    /// What sharing saves.
    pub saved_bytes: u64,
    /// What is out of memory.
    pub swapped_bytes: u64,
}

/// How guests came back that were all woken at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Wake {
    /// Guests that were asked.
    pub guests: usize,
    /// Those that were back at speed in time.
    pub back: usize,
    /// How long the slowest of these took.
    pub slowest_s: f64,
}

/// A run of so many guests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// How many, how long.
    pub question: Question,
    /// When it began, after the whole comparison did.
    pub at_s: f64,
    /// How long guests were measured.
    pub measured_s: f64,
    /// Each of them.
    pub guests: Vec<GuestRecord>,
    /// The machine meanwhile, from the start of the first guest.
    pub samples: Vec<Sample>,
    /// When they were measured from.
    pub warm_at_s: f64,
    /// Processes that the kernel ended for want of memory.
    pub oom_kills: u64,
    /// Why no more guests could be started.
    pub refused: Option<String>,
    /// Time on processors while it was measured, of all that belongs to the side, in seconds.
    pub cpu_s: f64,
    /// How long touches of pages out of memory waited, half of them and all but one of a hundred, in microseconds; the worst
    /// guest's.
    pub swap_in_us: Option<[u64; 2]>,
    /// How long it took to get 256 MiB back, in seconds.
    pub reclaim_s: Option<f64>,
    /// How guests woke.
    pub wake: Option<Wake>,
}

impl Probe {
    /// Of such a run, in which nothing was seen yet.
    #[must_use]
    pub fn new(question: Question, at_s: f64) -> Self {
        Self {
            question,
            at_s,
            measured_s: 0.0,
            guests: Vec::new(),
            samples: Vec::new(),
            warm_at_s: 0.0,
            oom_kills: 0,
            refused: None,
            cpu_s: 0.0,
            swap_in_us: None,
            reclaim_s: None,
            wake: None,
        }
    }

    /// The most that was used.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        let used = self.samples.iter().map(|sample| sample.used_bytes);
        used.max().unwrap_or(0)
    }

    /// Samples while it was measured.
    pub(super) fn measured(&self) -> impl Iterator<Item = &Sample> {
        let samples = self.samples.iter();
        samples.filter(|sample| sample.time_s >= self.warm_at_s)
    }
}
