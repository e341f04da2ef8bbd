//! What a simulation shows.

use super::Outcome;
use crate::{ActiveSet, BalloonHealth, MemoryState, Reason};
use page::PageCount;
use serde::{Deserialize, Serialize};

/// Everything that was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The host over time.
    pub host: Vec<HostPoint>,
    /// Each VM over time, in the scenario's order.
    pub vms: Vec<VmTrace>,
    /// VMs that were not admitted.
    pub refused: Vec<RefusedVm>,
    /// The most that VMs could have touched at any moment, with their overhead.
    pub most_exposed: PageCount,
    /// What came of it in all.
    pub outcome: Outcome,
}

/// The host at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPoint {
    /// When.
    pub at_s: u32,
    /// How short memory was.
    pub state: MemoryState,
    /// Backed pages of all guests less those in swap, and overhead.
    pub used: PageCount,
    /// Backed pages of all guests that the host has swapped.
    pub swapped: PageCount,
    /// What of the budget was not.
    pub free: PageCount,
    /// VMs that ran.
    pub running: u32,
    /// VMs that waited for memory to start.
    pub waiting: u32,
    /// Why targets changed in this second, if they did.
    pub rebalanced: Option<Reason>,
    /// What balloons did not bring.
    pub by_other_means: PageCount,
    /// How fast the VMs with something to do worked on average, in thousandths of full speed.
    pub throughput_permille: u64,
    /// The work done by all in this second, in thousandths of what one VM does at full speed.
    pub work_permille: u64,
}

/// One VM over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmTrace {
    /// Its name.
    pub name: String,
    /// While it was admitted.
    pub points: Vec<VmPoint>,
}

/// One VM at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmPoint {
    /// When.
    pub at_s: u32,
    /// What it was to hold.
    pub target: PageCount,
    /// What it held.
    pub held: PageCount,
    /// What of that was backed.
    pub backed: PageCount,
    /// What of that the host had swapped.
    pub swapped: PageCount,
    /// Pages that it had to wait for since it started, from the host's swap or its own disk.
    pub waited_for: PageCount,
    /// What it was believed to use.
    pub active: Option<ActiveSet>,
    /// What it used, or would have with enough memory.
    pub working_set: PageCount,
    /// How its balloon followed.
    pub balloon: BalloonHealth,
    /// Whether it was blocked.
    pub is_blocked: bool,
    /// How fast it worked, in thousandths of full speed.
    pub throughput_permille: u64,
}

/// A VM that was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedVm {
    /// Its name.
    pub name: String,
    /// When it came.
    pub at_s: u32,
    /// Why.
    pub why: String,
}
