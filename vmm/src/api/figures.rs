//! The figures of one moment, under the names that an administrator knows from esxtop's memory panel.
//! Sizes are bytes, where esxtop shows megabytes. What a host does not know is absent, not zero.

use super::{DiskView, EventView, LimitView, NetView, QueuedView, StatesView, VmPhase};
use crate::name::VmName;
use page::VmId;
use policy::{BalloonHealth, Thresholds, Witness};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Everything that is counted of a host and its VMs at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// Which look at the machine this is: what carries the same number was seen at the same moment.
    #[serde(default)]
    pub publication: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// The host.
    pub host: HostFigures,
    /// Its VMs, oldest first.
    pub vms: Vec<VmFigures>,
    /// VMs that wait to be admitted, the first in front.
    #[serde(default)]
    pub queue: Vec<QueuedView>,
}

/// What is counted of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostFigures {
    /// Seconds since it started.
    pub uptime_s: f64,
    /// PMEM total: the budget.
    pub pmem_total: u64,
    /// PMEM used: what the VMs and the store use, as the kernel counts it.
    pub pmem_used: u64,
    /// PMEM free: the rest of the budget.
    pub pmem_free: u64,
    /// The most that was ever used.
    pub used_max: u64,
    /// Σ(min + overhead): what the VMs were promised.
    pub promised: u64,
    /// Σ size: what was configured.
    pub configured: u64,
    /// The state of memory: high, clear, soft, hard or low.
    pub state: Option<String>,
    /// What should be free for the state to be high.
    pub minfree: Option<u64>,
    /// Free memory below which each state begins.
    #[serde(default)]
    pub state_below: Option<StateThresholds>,
    /// MEM overcommit avg over 1, 5 and 15 minutes: Σ size / budget − 1.
    pub overcommit_avg: [f64; 3],
    /// PSHARE shared: guest memory that shows frames of the store.
    pub pshare_shared: u64,
    /// PSHARE common: the machine memory of those frames.
    pub pshare_common: u64,
    /// PSHARE saving: shared less common. Below zero where sharing costs.
    pub pshare_saving: i64,
    /// SWAP curr.
    pub swap_curr: u64,
    /// ZIP zipped: guest memory in the compressed pool.
    pub zip_zipped: u64,
    /// MEMCTL curr: what balloons hold.
    pub memctl_curr: u64,
    /// MEMCTL target: what they should hold.
    pub memctl_target: u64,
    /// MEMCTL max: what they can be asked to hold.
    pub memctl_max: u64,
    /// Beyond esxtop: guest memory once shared and written since.
    pub broken: u64,
    /// Beyond esxtop: what is kept free because guests may break shared pages at any time.
    pub reserve: u64,
    /// Beyond esxtop: what the processes of the VMs use besides guest memory.
    pub overhead: u64,
    /// Pages a second that became shared or were given back as zero.
    pub merges_per_s: u64,
    /// Pages a second that guests un-shared by writing to them.
    pub breaks_per_s: u64,
    /// Pages a second that the scanner looked over.
    pub covered_per_s: u64,
    /// The scanner's part of a core, in thousandths.
    pub scan_core_permille: u64,
    /// Beyond esxtop: VMs that wait to be admitted.
    #[serde(default)]
    pub queued: u64,
    /// Beyond esxtop: how long the one of them has waited that came first.
    #[serde(default)]
    pub queue_wait_s: u64,
    /// Observations whose page states did not add up. Zero, or there is a bug.
    pub state_sum_violations: u64,
}

/// Free memory below which each state of the host's memory begins, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateThresholds {
    pub clear: u64,
    pub soft: u64,
    pub hard: u64,
    pub low: u64,
}

impl From<Thresholds> for StateThresholds {
    fn from(thresholds: Thresholds) -> Self {
        Self {
            clear: thresholds.clear.bytes(),
            soft: thresholds.soft.bytes(),
            hard: thresholds.hard.bytes(),
            low: thresholds.low.bytes(),
        }
    }
}

/// What is counted of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmFigures {
    /// Its name.
    pub name: VmName,
    /// Its number.
    pub id: VmId,
    /// How far its life has come.
    pub phase: VmPhase,
    /// Whether its process answered the last question in time.
    pub responding: bool,
    /// Whether all that its process ever said of itself can be true. What cannot be is not taken in.
    #[serde(default = "super::believed")]
    pub credible: bool,
    /// Seconds since it was asked for.
    pub uptime_s: f64,
    /// MEMSZ: its size.
    pub memsz: u64,
    /// GRANT: guest memory that is backed; shared pages count whole.
    pub grant: u64,
    /// CNSM: the same with shared pages charged by their references.
    pub cnsm: u64,
    /// SZTGT: what the policy wants it to hold.
    pub sztgt: u64,
    /// TCHD: its working set, where it is estimated.
    pub tchd: Option<u64>,
    /// Beyond esxtop: with 95 % confidence it is no less than this,
    pub tchd_low: Option<u64>,
    /// and no more than this.
    pub tchd_high: Option<u64>,
    /// Beyond esxtop: what the policy takes it for: the largest of its estimate and the three averages.
    #[serde(default)]
    pub tchd_believed: Option<u64>,
    /// TCHD_W: what of it is written to.
    pub tchd_w: Option<u64>,
    /// %ACTV: the part of its memory that was touched, with the period under way.
    pub actv: Option<f64>,
    /// %ACTVS: the same over about eight periods.
    pub actvs: Option<f64>,
    /// %ACTVF: the same over hardly more than the last.
    pub actvf: Option<f64>,
    /// Beyond esxtop: how its guest's word compares with its touches.
    #[serde(default)]
    pub witness: Option<Witness>,
    /// Beyond esxtop: how its balloon follows.
    #[serde(default)]
    pub balloon_health: Option<BalloonHealth>,
    /// Beyond esxtop: what its guest may have touched before it is stopped, where its balloon does not keep it within its memory.
    #[serde(default)]
    pub limit: Option<LimitView>,
    /// Beyond esxtop: the part of its time that it was stopped in the last second, in thousandths.
    #[serde(default)]
    pub blocked_permille: u64,
    /// Beyond esxtop: how long it was stopped since it started, in microseconds.
    #[serde(default)]
    pub blocked_us: u64,
    /// MCTL?: whether a balloon driver is there.
    pub mctl: bool,
    /// MCTLSZ: what its balloon holds.
    pub mctlsz: u64,
    /// MCTLTGT: what its balloon should hold.
    pub mctltgt: u64,
    /// MCTLMAX: what its balloon can be asked to hold.
    pub mctlmax: u64,
    /// SWCUR.
    pub swcur: u64,
    /// Guest memory in the compressed pool.
    pub zip: u64,
    /// ZERO: guest memory that was found zero and given back.
    pub zero: u64,
    /// SHRD: guest memory that shows frames of the store.
    pub shrd: u64,
    /// SHRDSVD: machine memory that this saves.
    pub shrdsvd: u64,
    /// COWH: guest memory that is nominated for sharing.
    #[serde(default)]
    pub cowh: u64,
    /// OVHD: anonymous memory of its process that is not the guest's.
    pub ovhd: u64,
    /// OVHDMAX: what is set aside for that.
    pub ovhdmax: u64,
    /// AMIN: its reservation.
    pub amin: u64,
    /// AMAX: its limit.
    pub amax: u64,
    /// ASHRS: its shares as a number.
    pub ashrs: u64,
    /// What an administrator fixed that it holds.
    pub pinned: Option<u64>,
    /// Machine memory that it uses, as the kernel counts it.
    pub used: u64,
    /// Guest memory in its own memory file.
    pub private: u64,
    /// Guest memory that nothing backs.
    pub empty: u64,
    /// Guest memory that its guest gave up, as pages by state count it.
    pub ballooned: u64,
    /// Beyond esxtop: guest memory once shared and written since.
    pub broken: u64,
    /// Beyond esxtop: memory areas that sharing costs its process.
    pub areas: u64,
    /// Beyond esxtop: memory areas that its process may have.
    pub areas_limit: u64,
    /// Pages a second that became shared or were given back as zero.
    pub merges_per_s: u64,
    /// Pages a second that its guest un-shared by writing to them.
    pub breaks_per_s: u64,
    /// Pages that went into its balloon since it started.
    pub inflated_pages: u64,
    /// Pages that came out of its balloon since it started.
    pub deflated_pages: u64,
    /// Its network cards.
    #[serde(default)]
    pub nets: Vec<NetView>,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<DiskView>,
}

impl VmFigures {
    /// Its memory by state, in bytes.
    #[must_use]
    pub fn states(&self) -> StatesView {
        StatesView {
            private: self.private,
            broken: self.broken,
            shared: self.shrd,
            compressed: self.zip,
            swapped: self.swcur,
            ballooned: self.ballooned,
            empty: self.empty,
        }
    }
}

/// How far back a history goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Span {
    /// Ten minutes, a point each second.
    #[default]
    #[serde(rename = "10m")]
    TenMinutes,
    /// A day, a point each minute: the mean of its seconds, but of the state of memory the worst.
    #[serde(rename = "1d")]
    Day,
}

/// Which history is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Of which VM; of the host if none is given.
    #[serde(default)]
    pub vm: Option<VmName>,
    /// How far back.
    #[serde(default)]
    pub span: Span,
}

/// A history as columns of equal length, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryView {
    /// Of which VM, or of the host.
    pub vm: Option<VmName>,
    /// How far back it goes.
    pub span: Span,
    /// When, in milliseconds since 1970.
    pub time_ms: Vec<u64>,
    /// What was counted then: bytes, but for the host's `state`, which goes from 0 (high) to 4 (low).
    pub columns: Vec<HistoryColumn>,
}

/// One figure over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryColumn {
    /// Which.
    pub name: String,
    /// How much; nothing where that was not known.
    pub values: Vec<Option<u64>>,
}

impl HistoryColumn {
    /// Its values, with zero for what was not known.
    #[must_use]
    pub fn known_or_zero(&self) -> Vec<u64> {
        let values = self.values.iter();
        values.map(|value| value.unwrap_or(0)).collect()
    }
}

/// One message of the stream of events: what changed with a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Moment {
    /// The figures of the round.
    pub figures: Figures,
    /// What happened since the round before, oldest first.
    pub events: Vec<EventView>,
}
