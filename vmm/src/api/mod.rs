//! What the host and its clients say to each other, as JSON over HTTP on a Unix socket. All sizes
//! are bytes.

pub mod client;
mod figures;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod net;
mod problem;
mod sharing_view;

pub(crate) use figures::shown;
pub use figures::{
    Figure, Figures, HOST_FIGURES, HistoryColumn, HistoryQuery, HistoryView, HostFigures, Moment,
    Reading, Span, StateThresholds, VM_FIGURES, VmFigures,
};
pub use net::{NetRequest, NetView};
pub use problem::{Problem, ProblemKind, ProblemView};
pub use sharing_view::{ScanPriority, ScanTotals, SharingPace, SharingView, VmSharingView};

use crate::name::VmName;
use crate::protocol::{
    BalloonCounters, BalloonView as Balloon, DiskCounters, DiskFigures, DiskSpec, GuestStatistics,
    OnHostDeath, VmCounters,
};
use page::{PageCount, PageStates, VmId};
use policy::{BalloonHealth, Explanation, Limit, MemoryState, SharesSpec, TaxRate, Witness};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use sharing::TrustGroup;
use std::path::PathBuf;
use utoipa::ToSchema;

/// The protocol that a connection changes to for a console.
pub const CONSOLE_PROTOCOL: &str = "ballonet-console";

/// A VM that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Its name; `vm-N` if none is given.
    #[serde(default)]
    pub name: Option<VmName>,
    /// What it is promised.
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub memory_bytes: u64,
    /// Processors; 1 if none are given.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 8)]
    pub vcpus: Option<u8>,
    /// What it can count on at any time.
    #[serde(default)]
    #[schema(minimum = 0, multiple_of = 4096)]
    pub min_bytes: Option<u64>,
    /// What it may hold at most.
    #[serde(default)]
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub max_bytes: Option<u64>,
    /// Its weight; `normal` if none is given.
    #[serde(default)]
    pub shares: Option<SharesSpec>,
    /// What its idle memory is taxed, in thousandths, instead of as that of all VMs of the host.
    #[serde(default)]
    pub idle_tax_permille: Option<TaxRate>,
    /// For how many seconds it may wait to be admitted. It is refused at once if none are given.
    #[serde(default)]
    pub wait_s: Option<u64>,
    /// Who it may share pages with.
    #[serde(default)]
    pub trust_group: Option<TrustGroup>,
    /// A kernel to boot instead of the embedded guest; a path on the host.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk of that kernel; a path on the host.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// Its network cards.
    #[serde(default, deserialize_with = "objects")]
    #[schema(max_items = 4)]
    pub nets: Vec<NetRequest>,
    /// More for the kernel's command line.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// Disks; paths on the host.
    #[serde(default, deserialize_with = "objects")]
    pub disks: Vec<DiskSpec>,
    /// What the embedded guest does.
    #[serde(default)]
    pub workload: Option<String>,
    /// A file that keeps what the VM prints, up to a mebibyte, and the mebibyte before in one beside it; a path on the
    /// host.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub console_log: Option<PathBuf>,
    /// What the VM does when the host dies.
    #[serde(default)]
    pub on_host_death: OnHostDeath,
}

/// Changes to a running VM; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmChange {
    /// What it can count on.
    #[serde(default)]
    #[schema(minimum = 0, multiple_of = 4096)]
    pub min_bytes: Option<u64>,
    /// What it may hold at most.
    #[serde(default)]
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub max_bytes: Option<u64>,
    /// Its weight.
    #[serde(default)]
    pub shares: Option<SharesSpec>,
    /// What its idle memory is taxed.
    #[serde(default)]
    pub idle_tax: Option<VmIdleTax>,
}

/// What idle memory of a VM is taxed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmIdleTax {
    /// As that of all VMs of the host.
    Host,
    /// At a rate of its own, in thousandths.
    Permille(TaxRate),
}

/// Changes to the host; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// Machine memory for all VMs together.
    #[serde(default)]
    #[schema(minimum = 4096, multiple_of = 4096)]
    pub memory_bytes: Option<u64>,
    /// Whether equal pages are shared. When they are no more, what was shared is brought home.
    #[serde(default)]
    pub sharing: Option<bool>,
    /// How fast memory is scanned.
    #[serde(default, deserialize_with = "object")]
    pub scan: ScanChange,
    /// The tax on idle memory, in thousandths.
    #[serde(default)]
    pub idle_tax_permille: Option<TaxRate>,
    /// How long each sample of a VM's pages is watched.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3600)]
    pub sample_period_s: Option<u32>,
    /// How long targets hold if nothing happens.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3600)]
    pub rebalance_interval_s: Option<u32>,
}

/// Changes to how fast memory is scanned; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScanChange {
    /// The time in which every page is to be looked at once, in seconds.
    #[schema(minimum = 1)]
    pub pass_s: Option<u64>,
    /// The most pages a second of one VM.
    #[schema(minimum = 1)]
    pub vm_pages_per_s: Option<u64>,
    /// The most pages a second in all.
    #[schema(minimum = 1)]
    pub host_pages_per_s: Option<u64>,
    /// The most of a core, in thousandths.
    #[schema(minimum = 1, maximum = 1000)]
    pub core_share_permille: Option<u64>,
    /// The scanner's place among all that want a core.
    pub priority: Option<ScanPriority>,
}

/// How large a VM's balloon should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonRequest {
    /// What the balloon should take from the guest; `null` leaves it to the policy again.
    #[schema(minimum = 0, multiple_of = 4096)]
    pub balloon_bytes: Option<u64>,
}

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

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// Its name.
    pub name: VmName,
    /// Its number.
    pub id: VmId,
    /// Its process, once there is one.
    pub pid: Option<u32>,
    /// How far its life has come.
    pub phase: VmPhase,
    /// Whether its process answered the last question in time.
    pub responding: bool,
    /// Whether all that its process ever said of itself can be true. What cannot be is not taken in.
    #[serde(default = "believed")]
    pub credible: bool,
    /// Seconds since it was asked for.
    pub uptime_s: f64,
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
    /// How its balloon follows.
    #[serde(default)]
    pub balloon_health: Option<BalloonHealth>,
    /// What its guest may have touched before it is stopped, where its balloon does not keep it within its memory.
    #[serde(default)]
    pub limit: Option<LimitView>,
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
}

/// Of a VM of which nothing else is known.
fn believed() -> bool {
    true
}

/// What a VM's guest may have touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitView {
    /// Beyond this it runs a tenth of the time.
    pub slow_above_bytes: u64,
    /// Beyond this it stands still.
    pub stop_above_bytes: u64,
}

impl From<Limit> for LimitView {
    fn from(limit: Limit) -> Self {
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

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// Its file on the host.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether the host's page cache is left out.
    pub direct: bool,
    /// Whether the guest gets the file as it stands even where that looks like no raw image.
    #[serde(default)]
    pub raw: bool,
    /// Its size.
    pub size_bytes: u64,
    /// What the guest did with it.
    pub counters: DiskCounters,
    /// What the kernel said of the last request that its file failed.
    #[serde(default)]
    pub last_error: Option<String>,
}

impl DiskView {
    pub(crate) fn new(spec: &DiskSpec, figures: DiskFigures) -> Self {
        Self {
            path: spec.path.clone(),
            read_only: spec.read_only,
            direct: spec.direct,
            raw: spec.raw,
            size_bytes: figures.size_bytes,
            counters: figures.counters,
            last_error: figures.last_error.map(os_error),
        }
    }
}

fn os_error(number: i32) -> String {
    std::io::Error::from_raw_os_error(number).to_string()
}

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

/// Reads an object, and no list of its fields in their order, which serde takes as well: what the document of
/// the interface does not allow is refused.
pub(crate) fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<T, D::Error> {
    let object = Map::deserialize(from)?;
    T::deserialize(Value::Object(object)).map_err(D::Error::custom)
}

fn objects<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Vec<T>, D::Error> {
    let objects = Vec::<Map<String, Value>>::deserialize(from)?;
    let read = |object| T::deserialize(Value::Object(object)).map_err(D::Error::custom);
    objects.into_iter().map(read).collect()
}

/// The words of a change on the command line, `KEY=VALUE`, as a change to a VM.
///
/// # Errors
/// Names the key or value that is not understood.
pub fn parse_vm_change(words: &[String]) -> Result<VmChange, String> {
    let mut change = VmChange::default();
    for word in words {
        let (key, value) = split_word(word)?;
        match key {
            "min" => change.min_bytes = Some(parse_size(value)?.bytes()),
            "max" => change.max_bytes = Some(parse_size(value)?.bytes()),
            "shares" => {
                change.shares = Some(
                    value
                        .parse()
                        .map_err(|error: policy::InvalidShares| error.to_string())?,
                )
            }
            "idle-tax" => {
                change.idle_tax = Some(match value {
                    "host" => VmIdleTax::Host,
                    _ => VmIdleTax::Permille(parse_tax(value)?),
                });
            }
            _ => {
                return Err(format!(
                    "'{key}' cannot be set on a VM: set min, max, shares or idle-tax"
                ));
            }
        }
    }
    Ok(change)
}

/// The words of a change on the command line as a change to the host.
///
/// # Errors
/// Names the key or value that is not understood.
pub fn parse_host_change(words: &[String]) -> Result<HostChange, String> {
    let mut change = HostChange::default();
    for word in words {
        let (key, value) = split_word(word)?;
        match key {
            "memory" => change.memory_bytes = Some(parse_size(value)?.bytes()),
            "sharing" => change.sharing = Some(parse_switch(key, value)?),
            "scan-pass" => change.scan.pass_s = Some(parse_count(key, value)?),
            "scan-vm" => change.scan.vm_pages_per_s = Some(parse_count(key, value)?),
            "scan-host" => change.scan.host_pages_per_s = Some(parse_count(key, value)?),
            "scan-core" => {
                let percent: u64 = parse_count(key, value)?;
                change.scan.core_share_permille = Some(percent.saturating_mul(10));
            }
            "scan-priority" => {
                change.scan.priority = Some(match value {
                    "idle" => ScanPriority::Idle,
                    "normal" => ScanPriority::Normal,
                    _ => return Err(format!("{key}={value}: write {key}=idle or {key}=normal")),
                });
            }
            "idle-tax" => change.idle_tax_permille = Some(parse_tax(value)?),
            "sample-period" => change.sample_period_s = Some(parse_seconds(key, value)?),
            "rebalance-interval" => change.rebalance_interval_s = Some(parse_seconds(key, value)?),
            _ => {
                return Err(format!(
                    "'{key}' cannot be set on the host: set memory, sharing, idle-tax, sample-period, rebalance-interval, scan-pass, scan-vm, scan-host, scan-core or scan-priority"
                ));
            }
        }
    }
    Ok(change)
}

fn split_word(word: &str) -> Result<(&str, &str), String> {
    word.split_once('=')
        .ok_or_else(|| format!("'{word}' is not KEY=VALUE: write for example shares=high"))
}

fn parse_seconds(key: &str, value: &str) -> Result<u32, String> {
    let seconds = parse_count(key, value)?;
    let too_many = |_| format!("{key}={value}: these are more seconds than there can be");
    u32::try_from(seconds).map_err(too_many)
}

fn parse_switch(key: &str, value: &str) -> Result<bool, String> {
    on_or_off(value).ok_or_else(|| format!("{key}={value}: write {key}=on or {key}=off"))
}

/// A switch as people write it.
pub(crate) fn on_or_off(text: &str) -> Option<bool> {
    match text {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

fn parse_count(key: &str, value: &str) -> Result<u64, String> {
    let count = value.parse().ok().filter(|&count| count > 0);
    count.ok_or_else(|| format!("{key}={value}: write a whole number above zero"))
}

fn parse_tax(text: &str) -> Result<TaxRate, String> {
    text.parse()
        .map_err(|error: policy::InvalidTaxRate| error.to_string())
}

fn parse_size(text: &str) -> Result<PageCount, String> {
    text.parse::<crate::size::Size>()
        .map(|size| size.0)
        .map_err(|error| error.to_string())
}
