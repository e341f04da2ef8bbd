//! Page sharing as clients see it. Sizes are bytes.

use serde::{Deserialize, Serialize};
use sharing::RateSettings;
use utoipa::ToSchema;

/// Page sharing of the whole host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SharingView {
    /// Whether equal pages are shared; else what was shared is brought home.
    pub on: bool,
    /// Guest memory that shows frames of the store (ESX: PSHARE shared).
    pub shared_bytes: u64,
    /// Machine memory of those frames, as the kernel counts it (common).
    pub common_bytes: u64,
    /// `shared - common` (saving). Below zero where sharing costs: while frames are filled, and until it is
    /// noticed that guests wrote to what they shared.
    pub saving_bytes: i64,
    /// Guest memory that was found zero and given back.
    pub zero_bytes: u64,
    /// Guest memory that was shared and written since.
    pub broken_bytes: u64,
    /// What is to stay free because guests may break pages before the host can react.
    pub reserve_bytes: u64,
    /// What of the saving guests may have.
    pub lent_bytes: u64,
    /// `go_on`, `slow_down` or `stop`: there is no room for more frames then.
    pub pace: SharingPace,
    /// When sharing is off: what is missing to bring the next pages home.
    pub missing_bytes: u64,
    /// Pages a second that were looked over, those included that were not written since.
    pub covered_per_s: u64,
    /// Pages a second that were read and hashed.
    pub read_per_s: u64,
    /// The scanner's part of a core, in thousandths.
    pub core_permille: u64,
    /// Pages a second that were shared or given back as zero.
    pub merges_per_s: u64,
    /// Pages a second that guests wrote to and so un-shared.
    pub breaks_per_s: u64,
    /// Pages of which the content index knows the hash.
    pub hints: u64,
    /// How many it has room for.
    pub hints_limit: u64,
    /// Hints that gave way to others because it was full.
    pub replaced_hints: u64,
    /// Memory of all tables.
    pub table_bytes: u64,
    /// What was done since the host started, in pages.
    pub totals: ScanTotals,
    /// How fast it scans.
    pub rates: RateSettings,
    /// The scanner's place among all that want a core.
    pub priority: ScanPriority,
}

/// The scanner's place among all that want a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScanPriority {
    /// The last, while there is memory; as any other thread when memory is short.
    #[default]
    Idle,
    /// As any other thread.
    Normal,
}

/// How sharing goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SharingPace {
    /// At the rates' pace.
    #[default]
    GoOn,
    /// One block at a time: what is free is less than the reserve.
    SlowDown,
    /// Only zero pages are given back: there is no room for more frames.
    Stop,
}

/// What the scanner did since the host started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScanTotals {
    /// Pages looked over.
    pub covered: u64,
    /// Pages read and hashed.
    pub read: u64,
    /// Frames filled.
    pub filled: u64,
    /// Frames whose page had changed before it was copied.
    pub fill_failures: u64,
    /// Requests sent to agents.
    pub requests: u64,
    /// Microseconds on a core.
    pub cpu_us: u64,
    /// Pages found in a state that nobody brought about. Zero, or there is a bug.
    pub surprises: u64,
}

/// Page sharing of one VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmSharingView {
    /// Why it takes no part, if it does not.
    pub problem: Option<String>,
    /// Memory that shows frames.
    pub shared_bytes: u64,
    /// Memory found zero and given back.
    pub zero_bytes: u64,
    /// Memory that was shared and written since.
    pub broken_bytes: u64,
    /// Its part of the frames, each divided by its references (ESX: CNSM).
    pub charge_bytes: u64,
    /// Memory that is nominated for sharing, should another page be like it (COWH).
    #[serde(default)]
    pub hint_bytes: u64,
    /// Memory areas that sharing costs its process.
    pub areas: u64,
    /// Memory areas that its process may have.
    pub areas_limit: u64,
    /// How often it was gone over.
    pub passes: u64,
    /// Pages looked over since it came.
    pub covered: u64,
    /// Pages read and hashed since it came.
    pub read: u64,
    /// Pages a second that were looked over.
    pub covered_per_s: u64,
    /// Pages a second that were shared or given back as zero.
    pub merges_per_s: u64,
    /// Pages a second that its guest wrote to and so un-shared.
    pub breaks_per_s: u64,
}
