//! The host as clients see it.

use super::{SharingView, VmView};
use crate::{DefinitionView, StateThresholds};
use policy::{MemoryState, TaxRate};
use protocol::{JailMode, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Everything there is to see at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// Which look at the machine this is: what carries the same number was seen at the same moment.
    #[serde(default)]
    pub publication: u64,
    /// When, in milliseconds since 1970.
    #[serde(default)]
    pub time_ms: u64,
    /// The host.
    pub host: HostView,
    /// Its VMs, oldest first.
    pub vms: Vec<VmView>,
    /// VMs that wait to be admitted, the first in front.
    #[serde(default)]
    pub queue: Vec<QueuedView>,
    /// VMs that are to come back, whether they run or not, in the order in which they are started.
    #[serde(default)]
    pub definitions: Vec<DefinitionView>,
}

/// A VM that waits to be admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueuedView {
    /// Its name.
    pub name: VmName,
    /// What it wants to be promised.
    pub memory_bytes: u64,
    /// How long it has waited.
    pub waited_s: u64,
    /// Why it was not admitted yet.
    pub why: String,
}

/// The host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// The program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: f64,
    /// Machine memory for all VMs together.
    pub budget_bytes: u64,
    /// Machine memory that the VMs use, as the kernel counts it.
    pub used_bytes: u64,
    /// The most that was ever used at a sample.
    pub used_max_bytes: u64,
    /// Samples taken.
    pub samples: u64,
    /// What no VM holds and none was told it may take.
    pub free_bytes: u64,
    /// What the running VMs were promised, their overhead included: Σ(min + overhead).
    pub promised_bytes: u64,
    /// The sum of the VMs' sizes.
    pub configured_bytes: u64,
    /// How much more was configured than there is: Σ size / budget − 1, as esxtop counts it.
    pub overcommit: f64,
    /// Observations whose page states did not add up to the VM's size. Zero, or there is a bug.
    pub state_sum_violations: u64,
    /// Whether memory is made large pages where there is enough of it.
    pub large_pages: bool,
    /// Whether VMs that start now may have pages compressed that they may not hold.
    #[serde(default)]
    pub compression: bool,
    /// How VM processes that start now are jailed.
    #[serde(default)]
    pub jail: JailMode,
    /// Page sharing.
    pub sharing: SharingView,
    /// How short memory is.
    #[serde(default)]
    pub state: MemoryState,
    /// What should be free; below it the state is no longer high (esxtop: minfree).
    #[serde(default)]
    pub min_free_bytes: u64,
    /// Free memory below which each state begins.
    #[serde(default)]
    pub state_below: StateThresholds,
    /// The tax on idle memory of VMs that have none of their own, in thousandths.
    #[serde(default)]
    pub idle_tax_permille: TaxRate,
    /// How long each sample of a VM's pages is watched.
    #[serde(default)]
    pub sample_period_s: u64,
    /// How long targets hold if nothing happens.
    #[serde(default)]
    pub rebalance_interval_s: u64,
    /// What happened last, oldest first.
    pub events: Vec<EventView>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// The VM that it happened to.
    pub vm: Option<VmName>,
    /// What happened, in words.
    pub what: String,
}
