//! A VM as clients see it.

use super::{DiskView, NetView, VmSharingView};
use crate::RestartPolicy;
use page::{PageStates, VmId};
use policy::{BalloonHealth, Capabilities, Explanation, SharesSpec, TaxRate, TouchLimit, Witness};
use protocol::{
    BalloonCounters, BalloonView as Balloon, GuestStatistics, JailReport, Latencies, VmCounters,
    VmName,
};
use serde::{Deserialize, Serialize};
use sharing::TrustGroup;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;
use utoipa::ToSchema;

/// How far a VM's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmPhase {
    /// Admitted; its memory is being taken from others.
    Waiting,
    /// Its process is being started.
    Starting,
    /// Its guest runs.
    Running,
    /// It was told to end.
    Stopping,
}

/// Who runs a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmKind {
    /// This host.
    #[default]
    Ballonet,
    /// A QEMU that was adopted.
    Qemu,
}

/// A word names nobody who runs VMs.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' runs no VMs: give ballonet or qemu")]
pub struct InvalidVmKind(String);

impl FromStr for VmKind {
    type Err = InvalidVmKind;

    fn from_str(text: &str) -> Result<Self, InvalidVmKind> {
        match text {
            "ballonet" => Ok(Self::Ballonet),
            "qemu" => Ok(Self::Qemu),
            _ => Err(InvalidVmKind(text.into())),
        }
    }
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// Its name.
    pub name: VmName,
    /// Its number.
    pub id: VmId,
    /// Its process, once there is one.
    pub pid: Option<u32>,
    /// Who runs it.
    #[serde(default)]
    pub kind: VmKind,
    /// What can be done to it, and known of it.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Whether nothing but its guest's word tells what it needs, and that is old: no more is taken from it then.
    #[serde(default)]
    pub stale: bool,
    /// Whether its vCPUs do not run.
    #[serde(default)]
    pub paused: bool,
    /// How far its life has come.
    pub phase: VmPhase,
    /// Whether its process answered the last question in time.
    pub responding: bool,
    /// Whether all that its process ever said of itself can be true. What cannot be is not taken in.
    #[serde(default = "believed")]
    pub credible: bool,
    /// Seconds since it was asked for.
    pub uptime_s: f64,
    /// When it is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Processors.
    pub vcpus: u8,
    /// Who it may share pages with.
    pub trust_group: Option<TrustGroup>,
    /// What it was promised at most.
    pub size_bytes: u64,
    /// What it can count on.
    pub min_bytes: u64,
    /// What it may hold at most.
    pub max_bytes: u64,
    /// Its weight as it was given.
    pub shares: SharesSpec,
    /// Its weight as a number.
    pub shares_count: u64,
    /// What the policy wants it to hold.
    pub target_bytes: u64,
    /// What it was told it may hold.
    pub granted_bytes: u64,
    /// What an administrator fixed that it holds.
    pub pinned_bytes: Option<u64>,
    /// Machine memory that it uses: its memory file and the anonymous memory of its process.
    pub used_bytes: u64,
    /// Machine memory that its memory file holds.
    pub memory_file_bytes: u64,
    /// Anonymous memory of its process.
    pub anonymous_bytes: u64,
    /// Its pages by state; they add up to its size.
    pub states: StatesView,
    /// Its balloon.
    pub balloon: BalloonView,
    /// What its guest says.
    pub guest: Option<GuestStatistics>,
    /// What its process counted.
    pub counters: VmCounters,
    /// Its network cards.
    pub nets: Vec<NetView>,
    /// Its disks, once its process has answered.
    pub disks: Vec<DiskView>,
    /// The file that keeps what it prints.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub console_log: Option<PathBuf>,
    /// Page sharing.
    pub sharing: VmSharingView,
    /// What it uses, once a sample was watched to its end.
    #[serde(default)]
    pub working_set: Option<WorkingSetView>,
    /// Its own tax on idle memory, in thousandths.
    #[serde(default)]
    pub idle_tax_permille: Option<TaxRate>,
    /// Whether its memory is made large pages, where the host makes any.
    #[serde(default)]
    pub large_pages: bool,
    /// How its balloon follows.
    #[serde(default)]
    pub balloon_health: Option<BalloonHealth>,
    /// What its guest may have touched before it is stopped, where its balloon does not keep it within its memory.
    #[serde(default)]
    pub touch_limit: Option<TouchLimitView>,
    /// What of it is out of memory, and how it goes there and comes back, where pages may.
    #[serde(default)]
    pub swap: Option<SwapView>,
    /// The part of its time that it was stopped in the last second, in thousandths.
    #[serde(default)]
    pub blocked_permille: u64,
    /// How long it was stopped since it started, in microseconds.
    #[serde(default)]
    pub blocked_us: u64,
    /// Time from its process's first message to its guest's first instruction, in microseconds.
    pub start_us: Option<u64>,
    /// Memory whose faults its agent holds.
    pub userfault_bytes: u64,
    /// How its process is jailed, and which layers of that hold on this machine.
    #[serde(default)]
    pub jail: Option<JailReport>,
}

/// Of a VM of which nothing else is known.
pub(crate) fn believed() -> bool {
    true
}

/// A VM's pages that are out of memory: in the compressed pool or in the swap file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SwapView {
    /// What of its guest's memory should be out, by its limit.
    pub target_bytes: u64,
    /// Bytes a second read from its swap file for pages that came back,
    pub read_per_s: u64,
    /// and written to it.
    pub written_per_s: u64,
    /// Bytes a second of pages that were compressed,
    pub zipped_per_s: u64,
    /// and that came back from the pool.
    pub unzipped_per_s: u64,
    /// What the pool takes of memory,
    pub pool_bytes: u64,
    /// what of that are records of pages that are out,
    pub pool_used_bytes: u64,
    /// and what it may take.
    pub pool_limit_bytes: u64,
    /// What the segments in its swap file hold, records that are worth nothing any more among it,
    pub file_bytes: u64,
    /// and what of that are records of pages that are out.
    pub file_used_bytes: u64,
    /// Bytes moved to and from the disk for each byte that was new in the file; none if nothing was written.
    pub write_cost: Option<f64>,
    /// How long touches of pages in the pool waited, since it started,
    pub pool_wait_us: WaitView,
    /// and of pages in the file.
    pub file_wait_us: WaitView,
}

/// How long something was waited for, in microseconds: upper bounds, by powers of two. None where nobody waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitView {
    /// Half of them waited no longer,
    pub p50: Option<u64>,
    /// and all but one of a hundred no longer than this.
    pub p99: Option<u64>,
}

impl WaitView {
    /// What these show.
    #[must_use]
    pub fn of(waits: &Latencies) -> Self {
        Self {
            p50: waits.quantile_us(500),
            p99: waits.quantile_us(990),
        }
    }
}

/// What a VM's guest may have touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TouchLimitView {
    /// Beyond this it runs a tenth of the time.
    pub slow_above_bytes: u64,
    /// Beyond this it stands still.
    pub stop_above_bytes: u64,
}

impl From<TouchLimit> for TouchLimitView {
    fn from(limit: TouchLimit) -> Self {
        Self {
            slow_above_bytes: limit.slow_above.bytes(),
            stop_above_bytes: limit.stop_above.bytes(),
        }
    }
}

/// What a VM uses, estimated from a few random pages. The three percentages are those of its sampled
/// memory, under esxtop's names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkingSetView {
    /// What it uses: what samples that agree show on average, and all that it touched anew since.
    pub estimate_bytes: u64,
    /// What the policy takes it for: by the largest of the estimate and the three averages.
    #[serde(default)]
    pub believed_bytes: u64,
    /// With 95 % confidence it uses no less than this,
    pub low_bytes: u64,
    /// and no more than this.
    pub high_bytes: u64,
    /// What it writes to (TCHD_W).
    pub written_bytes: u64,
    /// Pages that are watched now.
    pub samples: u32,
    /// How the guest's word compares with that.
    pub witness: Witness,
    /// %ACTV: the fast average, with the current period as it stands.
    pub actv_percent: f64,
    /// %ACTVS: over about eight periods.
    pub actvs_percent: f64,
    /// %ACTVF: over hardly more than the last.
    pub actvf_percent: f64,
}

/// Why a VM holds what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplanationView {
    /// Which VM.
    pub name: VmName,
    /// Everything that decided on it, in pages.
    pub explanation: Explanation,
    /// The same in sentences.
    pub text: String,
}

/// Memory by state, in bytes.
pub type StatesView = PageStates<u64>;

/// A balloon, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BalloonView {
    /// Whether the guest has a driver that is ready.
    pub has_driver: bool,
    /// What it should hold.
    pub target: u64,
    /// What it holds by the device's record.
    pub held: u64,
    /// What the guest claims that it holds.
    pub claimed: u64,
    /// What went through it, in pages.
    pub counters: BalloonCounters,
}

impl From<Balloon> for BalloonView {
    fn from(balloon: Balloon) -> Self {
        Self {
            has_driver: balloon.has_driver,
            target: balloon.target.bytes(),
            held: balloon.held.bytes(),
            claimed: balloon.claimed.bytes(),
            counters: balloon.counters,
        }
    }
}
