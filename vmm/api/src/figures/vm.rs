//! What is counted of a VM.

use super::table::{self, Figure, Reading, figures, size};
use crate::{DiskView, NetView, StatesView, TouchLimitView, VmKind, VmPhase, VmView};
use page::VmId;
use policy::{BALLOON_LIMIT_PERCENT, BalloonHealth, Capabilities, OVERHEAD, Witness};
use protocol::{Latencies, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

figures! {
    /// What is counted of a VM.
    pub struct VmFigures, VM_FIGURES, from(vm: &VmView) {
        let (states, sharing, set, swap) = (&vm.states, &vm.sharing, vm.working_set, vm.swap);
        let own = states.private + states.broken;
        // No more than the kernel counts of its process.
        let unshared = vm.anonymous_bytes.saturating_sub(states.broken);
        let pool = swap.map(|swap| swap.pool_bytes.min(unshared));
    }
    /// Its name
    name: VmName = vm.name.clone()
        => (|vm| Reading::Text(vm.name.to_string())), column: "NAME";
    /// Its number
    id: VmId = vm.id;
    /// Whether its guest's word alone tells what it needs, and is old
    #[serde(default)]
    stale: bool = vm.stale
        => flag, metric: "vm_statistics_stale";
    /// Whether its vCPUs do not run
    #[serde(default)]
    paused: bool = vm.paused
        => flag, metric: "vm_paused";
    /// What can be done to it
    #[serde(default)]
    capabilities: Capabilities = vm.capabilities;
    /// Its size
    memsz: u64 = vm.size_bytes
        => size, column: "MEMSZ", counter: "Memory Size MBytes", metric: "vm_size", history: "size";
    /// Guest memory that is backed, shared pages counted whole
    grant: u64 = own + states.shared
        => size, column: "GRANT", counter: "Memory Granted Size MBytes", metric: "vm_granted";
    /// Guest memory that is backed, shared pages charged by their references
    cnsm: u64 = own + sharing.charge_bytes
        => size, column: "CNSM", counter: "Memory Consumed Size MBytes", metric: "vm_consumed";
    /// What the policy wants it to hold
    sztgt: u64 = vm.target_bytes
        => size, column: "SZTGT", counter: "Target Size MBytes", metric: "vm_target", history: "target";
    /// Its working set, where that is estimated
    tchd: Option<u64> = set.map(|set| set.estimate_bytes)
        => size, column: "TCHD", counter: "Touched MBytes", metric: "vm_touched", history: "touched";
    /// The part of its memory that was touched, with the sample under way
    actv: Option<f64> = set.map(|set| set.actv_percent)
        => percent, column: "%ACTV", counter: "% Active Estimate";
    /// What its balloon holds
    mctlsz: u64 = vm.balloon.held
        => size, column: "MCTLSZ", counter: "Memctl MBytes";
    /// What its balloon should hold
    mctltgt: u64 = vm.balloon.target
        => size, column: "MCTLTGT", counter: "Memctl Target MBytes", metric: "vm_balloon_target";
    /// Guest memory that shows frames of the store
    shrd: u64 = states.shared
        => size, column: "SHRD", counter: "Shared MBytes", history: "shared";
    /// Machine memory that sharing saves
    shrdsvd: u64 = states.shared.saturating_sub(sharing.charge_bytes)
        => size, column: "SHRDSVD", counter: "Shared Saved MBytes", metric: "vm_sharing_saved";
    /// The part of the last second that it was stopped, for it touched more than it may
    /// (thousandths)
    #[serde(default)]
    blocked_permille: u64 = vm.blocked_permille
        => permille, column: "%BLKD", counter: "% Blocked", metric: "vm_blocked";
    /// What it may touch before it is slowed down, where its balloon does not suffice
    #[serde(default)]
    touch_limit: Option<TouchLimitView> = vm.touch_limit
        => (|vm| size(&vm.touch_limit.map(|limit| limit.slow_above_bytes))),
            column: "TCHLIM", counter: "Touch Limit MBytes", metric: "vm_touch_limit_slow"
        => (|vm| size(&vm.touch_limit.map(|limit| limit.stop_above_bytes))), metric: "vm_touch_limit_stop";
    /// Guest memory that was found zero and given back
    zero: u64 = sharing.zero_bytes
        => size, column: "ZERO", counter: "Zero MBytes";
    /// Guest memory in large pages, when that was last looked at
    #[serde(default)]
    large: u64 = vm.counters.large.mapped.bytes()
        => size, column: "LARGE", counter: "Large MBytes", metric: "vm_large";
    /// Guest memory that is nominated for sharing
    #[serde(default)]
    cowh: u64 = sharing.hint_bytes
        => size, column: "COWH", counter: "Copy On Write Hint MBytes";
    /// What of its working set is written to
    tchd_w: Option<u64> = set.map(|set| set.written_bytes)
        => size, column: "TCHD_W", counter: "Touched Write MBytes", metric: "vm_touched_written";
    /// %ACTV over about eight samples
    actvs: Option<f64> = set.map(|set| set.actvs_percent)
        => percent, column: "%ACTVS", counter: "% Active Slow Estimate";
    /// %ACTV over hardly more than one sample
    actvf: Option<f64> = set.map(|set| set.actvf_percent)
        => percent, column: "%ACTVF", counter: "% Active Fast Estimate";
    /// Its reservation
    amin: u64 = vm.min_bytes
        => size, column: "AMIN", counter: "Min MBytes", metric: "vm_min";
    /// What it may hold at most
    amax: u64 = vm.max_bytes
        => size, column: "AMAX", counter: "Max MBytes", metric: "vm_max";
    /// Its weight when memory is short
    ashrs: u64 = vm.shares_count
        => number, column: "ASHRS", counter: "Shares", metric: "vm_shares";
    /// Whether a balloon driver is there
    mctl: bool = vm.balloon.has_driver
        => flag, column: "MCTL?", counter: "Memctl?", metric: "vm_balloon_driver";
    /// What its balloon can be asked to hold
    mctlmax: u64 = balloon_limit(vm)
        => size, column: "MCTLMAX", counter: "Memctl Max MBytes", metric: "vm_balloon_limit";
    /// Anonymous memory of its process that is not the guest's, its compressed pool left out
    ovhd: u64 = unshared - pool.unwrap_or(0)
        => size, column: "OVHD", counter: "Overhead MBytes", metric: "vm_overhead";
    /// What is set aside for its overhead
    ovhdmax: u64 = OVERHEAD.bytes()
        => size, column: "OVHDMAX", counter: "Overhead Max MBytes";
    /// How far its life has come
    phase: VmPhase = vm.phase
        => (|vm| Reading::Text(vm.state_word().into())), column: "STATE";
    /// Machine memory that it uses, by the kernel's count
    used: u64 = vm.used_bytes
        => size, column: "USED", counter: "Machine Used MBytes", metric: "vm_used", history: "used";
    /// Its working set is no less, with 95 % confidence
    tchd_low: Option<u64> = set.map(|set| set.low_bytes)
        => size, column: "TCHDLOW", counter: "Touched Low MBytes", metric: "vm_touched_low",
            history: "touched_low";
    /// Its working set is no more, with 95 % confidence
    tchd_high: Option<u64> = set.map(|set| set.high_bytes)
        => size, column: "TCHDTOP", counter: "Touched High MBytes", metric: "vm_touched_high",
            history: "touched_high";
    /// Its working set as the policy takes it: quick to rise, slow to fall
    #[serde(default)]
    tchd_believed: Option<u64> = set.map(|set| set.believed_bytes)
        => size, column: "BELIEF", counter: "Touched Believed MBytes", metric: "vm_touched_believed";
    /// Guest memory once shared and written since
    broken: u64 = states.broken
        => size, column: "BROKEN", counter: "Broken MBytes", history: "broken";
    /// Memory areas that sharing costs its process
    areas: u64 = sharing.areas
        => number, column: "AREAS", counter: "Memory Areas", metric: "vm_memory_areas";
    /// Pages a second that became shared or were given back as zero
    merges_per_s: u64 = sharing.merges_per_s
        => number, column: "MRG/s", counter: "Pages Shared/sec", metric: "vm_merges_per_second";
    /// Shared pages a second that its guest wrote to
    breaks_per_s: u64 = sharing.breaks_per_s
        => number, column: "BRK/s", counter: "Pages Broken/sec", metric: "vm_breaks_per_second";
    /// Memory areas that its process may have
    areas_limit: u64 = sharing.areas_limit
        => number, metric: "vm_memory_areas_limit";
    /// Whether its process answered the last question in time
    responding: bool = vm.responding
        => flag, metric: "vm_responding";
    /// Whether all that its process ever said of itself can be true; what cannot be is not taken in
    #[serde(default = "crate::view::believed")]
    credible: bool = vm.credible
        => flag, metric: "vm_credible";
    /// How long it was stopped since it started
    /// (microseconds)
    #[serde(default)]
    blocked_us: u64 = vm.blocked_us
        => microseconds, metric: "vm_blocked", is_total: true;
    /// Pages that went into its balloon since it started
    inflated_pages: u64 = vm.balloon.counters.inflated
        => number, metric: "vm_balloon_inflated_pages", is_total: true;
    /// Pages that came out of its balloon since it started
    deflated_pages: u64 = vm.balloon.counters.deflated
        => number, metric: "vm_balloon_deflated_pages", is_total: true;
    /// Large pages made of its memory since it started
    #[serde(default)]
    large_made: u64 = vm.counters.large.made
        => number, metric: "vm_large_pages_made", is_total: true;
    /// Large pages of it broken since it started: for its balloon, to share a part, or to watch pages
    #[serde(default)]
    large_broken: u64 = vm.counters.large.broken()
        => number, metric: "vm_large_pages_broken", is_total: true;
    /// Times that the machine had no memory in one piece for a large page
    #[serde(default)]
    large_refused: u64 = vm.counters.large.no_memory
        => number, metric: "vm_large_pages_no_memory", is_total: true;
    /// Pages that left its memory for its log since it started
    #[serde(default)]
    swap_out_pages: u64 = vm.counters.swap.out
        => number, metric: "vm_swap_out_pages", is_total: true;
    /// Pages that came back from its log since it started, pages of one repeated word and neighbours among them
    #[serde(default)]
    swap_in_pages: u64 = vm.counters.swap.came_back()
        => number, metric: "vm_swap_in_pages", is_total: true;
    /// How long touches waited for pages that were out or were not there, since it started
    /// (microseconds)
    #[serde(default)]
    swap_waited_us: u64 = vm.counters.swap.waited_us
        => microseconds, metric: "vm_swap_waited", is_total: true;
    /// Touches that wait for room in its memory
    #[serde(default)]
    swap_waiting: u64 = vm.counters.swap.waiting
        => number, metric: "vm_swap_waiting";
    /// What was written to its swap file since it started
    #[serde(default)]
    swap_written: u64 = vm.counters.swap.written_bytes
        => size, metric: "vm_swap_written", is_total: true;
    /// What was read from its swap file since it started, for pages that came back
    #[serde(default)]
    swap_read: u64 = vm.counters.swap.read_bytes
        => size, metric: "vm_swap_read", is_total: true;
    /// What should be out of its memory, by its limit
    #[serde(default)]
    swtgt: Option<u64> = swap.map(|swap| swap.target_bytes)
        => size, column: "SWTGT", counter: "Swap Target MBytes", metric: "vm_swap_target", is_rare: true;
    /// What is read from its swap file a second, for pages that come back
    #[serde(default)]
    swr: Option<u64> = swap.map(|swap| swap.read_per_s)
        => size, column: "SWR/s", counter: "Swap Read MBytes/sec", is_rare: true;
    /// What is written to its swap file a second
    #[serde(default)]
    sww: Option<u64> = swap.map(|swap| swap.written_per_s)
        => size, column: "SWW/s", counter: "Swap Written MBytes/sec", is_rare: true;
    /// Machine memory that its compressed pool takes
    #[serde(default)]
    cachesz: Option<u64> = pool
        => size, column: "CACHESZ", counter: "Cache Size MBytes", metric: "vm_pool", is_rare: true;
    /// What of its pool are records of pages that are out
    #[serde(default)]
    cacheusd: Option<u64> = swap.map(|swap| swap.pool_used_bytes)
        => size, column: "CACHEUSD", counter: "Cache Used MBytes", metric: "vm_pool_used", is_rare: true;
    /// What its compressed pool may take
    #[serde(default)]
    cachemax: Option<u64> = swap.map(|swap| swap.pool_limit_bytes)
        => size, counter: "Cache Max MBytes", metric: "vm_pool_limit";
    /// Its pages that are compressed a second
    #[serde(default)]
    zip_per_s: Option<u64> = swap.map(|swap| swap.zipped_per_s)
        => size, column: "ZIP/s", counter: "Zip MBytes/sec", is_rare: true;
    /// Its pages that come back from the pool a second
    #[serde(default)]
    unzip_per_s: Option<u64> = swap.map(|swap| swap.unzipped_per_s)
        => size, column: "UNZIP/s", counter: "Unzip MBytes/sec", is_rare: true;
    /// What the segments in its swap file hold
    #[serde(default)]
    swap_file: Option<u64> = swap.map(|swap| swap.file_bytes)
        => size, metric: "vm_swap_file";
    /// What of them are records of pages that are out
    #[serde(default)]
    swap_file_used: Option<u64> = swap.map(|swap| swap.file_used_bytes)
        => size, metric: "vm_swap_file_used";
    /// Bytes moved to and from the disk for each byte that was new in its swap file
    #[serde(default)]
    swap_write_cost: Option<f64> = swap.and_then(|swap| swap.write_cost)
        => ratio, metric: "vm_swap_write_cost";
    /// How long touches waited for pages in the pool
    #[serde(default)]
    pool_waits: Latencies = vm.counters.swap.pool_waits;
    /// How long touches waited for pages in the swap file
    #[serde(default)]
    file_waits: Latencies = vm.counters.swap.file_waits;
    /// Guest memory in its own memory file
    private: u64 = states.private
        => size, history: "private";
    /// Guest memory in the compressed pool
    zip: u64 = states.compressed
        => size, column: "ZIP", counter: "Compressed MBytes", history: "compressed", is_rare: true;
    /// Guest memory that is swapped out
    swcur: u64 = states.swapped
        => size, column: "SWCUR", counter: "Swapped MBytes", history: "swapped", is_rare: true;
    /// Guest memory that its guest gave up
    ballooned: u64 = states.ballooned
        => size, history: "ballooned";
    /// Guest memory that nothing backs
    empty: u64 = states.empty
        => size, history: "empty";
    /// Time since it was asked for
    /// (seconds)
    uptime_s: f64 = vm.uptime_s;
    /// How its guest's word compares with its touches
    #[serde(default)]
    witness: Option<Witness> = set.map(|set| set.witness);
    /// How its balloon follows
    #[serde(default)]
    balloon_health: Option<BalloonHealth> = vm.balloon_health;
    /// What an administrator fixed that it holds
    pinned: Option<u64> = vm.pinned_bytes;
    /// Its network cards
    #[serde(default)]
    nets: Vec<NetView> = vm.nets.clone();
    /// Its disks
    #[serde(default)]
    disks: Vec<DiskView> = vm.disks.clone();
    /// Who runs it, if not this host
    #[serde(default)]
    kind: VmKind = vm.kind
        => (|vm| match vm.kind { VmKind::Ballonet => Reading::Unknown, VmKind::Qemu => Reading::Text("qemu".into()) }),
            column: "KIND", is_rare: true;
}

/// What a balloon can be asked to hold: never what the VM was promised, and a part of its size.
fn balloon_limit(vm: &VmView) -> u64 {
    let part = vm.size_bytes / 100 * BALLOON_LIMIT_PERCENT;
    part.min(vm.size_bytes.saturating_sub(vm.min_bytes))
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

    /// What it does, in a word.
    #[must_use]
    pub fn state_word(&self) -> &'static str {
        match self.phase {
            VmPhase::Waiting => "wait",
            VmPhase::Starting => "start",
            VmPhase::Stopping => "stop",
            VmPhase::Running if !self.responding => "silent",
            VmPhase::Running if self.paused => "pause",
            VmPhase::Running if self.stale => "stale",
            VmPhase::Running if !self.credible => "doubt",
            VmPhase::Running if self.is_blocked() => "block",
            VmPhase::Running => "run",
        }
    }

    /// Whether it was stopped in the last second.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked_permille > 0
    }
}
