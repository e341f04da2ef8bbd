//! What is counted of a host.

use super::table::{self, Figure, Reading, figures};
use super::{StateThresholds, VmFigures};
use crate::Overview;
use policy::MemoryState;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

figures! {
    /// What is counted of a host.
    #[derive(Default)]
    pub struct HostFigures, HOST_FIGURES, from(overview: &Overview, vms: &[VmFigures], overcommit: [f64; 3]) {
        let sum = |figure: fn(&VmFigures) -> u64| vms.iter().map(figure).sum();
        let Overview { host, queue, .. } = overview;
        let sharing = &host.sharing;
    }
    /// Configured memory over the budget, less one: averages over 1, 5 and 15 minutes
    overcommit_avg: [f64; 3] = overcommit
        => (|host| Reading::Ratio(host.overcommit_avg[0])), counter: "Memory Overcommit (1 Minute Avg)"
        => (|host| Reading::Ratio(host.overcommit_avg[1])), counter: "Memory Overcommit (5 Minute Avg)"
        => (|host| Reading::Ratio(host.overcommit_avg[2])), counter: "Memory Overcommit (15 Minute Avg)";
    /// The budget: machine memory for all VMs together
    pmem_total: u64 = host.budget_bytes
        => size, counter: "Machine MBytes", metric: "host_budget", history: "budget";
    /// Machine memory that VMs and the store use, by the kernel's count
    pmem_used: u64 = host.used_bytes
        => size, counter: "Used MBytes", metric: "host_used"
        => (|host| Reading::Size(host.private())), history: "private";
    /// The rest of the budget
    pmem_free: u64 = host.budget_bytes.saturating_sub(host.used_bytes)
        => size, counter: "Free MBytes", history: "free";
    /// What should be free for the state to be high
    minfree: Option<u64> = Some(host.min_free_bytes)
        => size, counter: "Kernel MinFree MBytes";
    /// How short memory is
    state: Option<MemoryState> = Some(host.state)
        => state, counter: "Kernel State", history: "state", is_degree: true;
    /// Guest memory that shows frames of the store
    pshare_shared: u64 = sharing.shared_bytes
        => size, counter: "PShare Shared MBytes", metric: "host_shared", history: "shared";
    /// The machine memory of those frames
    pshare_common: u64 = sharing.common_bytes
        => size, counter: "PShare Common MBytes", history: "common";
    /// Guest memory that shows frames less the memory of the frames: below zero where sharing costs
    pshare_saving: i64 = sharing.saving_bytes
        => difference, counter: "PShare Savings MBytes", metric: "host_sharing_saved";
    /// What balloons hold
    memctl_curr: u64 = sum(|vm| vm.mctlsz)
        => size, counter: "Memctl Current MBytes", metric: "host_balloon", history: "ballooned";
    /// What balloons should hold
    memctl_target: u64 = sum(|vm| vm.mctltgt)
        => size, counter: "Memctl Target MBytes", metric: "host_balloon_target";
    /// What balloons can be asked to hold
    memctl_max: u64 = sum(|vm| vm.mctlmax)
        => size, counter: "Memctl Max MBytes", metric: "host_balloon_limit";
    /// The sum of the sizes of the VMs
    configured: u64 = host.configured_bytes
        => size, counter: "Configured MBytes", metric: "host_configured", history: "configured";
    /// What the VMs can count on, overhead included: Σ(min + overhead)
    promised: u64 = host.promised_bytes
        => size, counter: "Promised MBytes", metric: "host_promised";
    /// Guest memory once shared and written since
    broken: u64 = sharing.broken_bytes
        => size, counter: "Broken MBytes", metric: "host_broken", history: "broken";
    /// Memory kept free for shared pages that guests may write to
    reserve: u64 = sharing.reserve_bytes
        => size, counter: "Sharing Reserve MBytes", metric: "host_sharing_reserve";
    /// Pages a second that became shared or were given back as zero
    merges_per_s: u64 = sharing.merges_per_s
        => number, counter: "Pages Shared/sec", metric: "host_merges_per_second";
    /// Shared pages a second that guests wrote to
    breaks_per_s: u64 = sharing.breaks_per_s
        => number, counter: "Pages Broken/sec", metric: "host_breaks_per_second";
    /// VMs that wait to be admitted
    #[serde(default)]
    queued: u64 = queue.len() as u64
        => number, counter: "VMs Queued", metric: "host_queued_vms";
    /// How long the first of those that wait to be admitted has waited
    /// (seconds)
    #[serde(default)]
    queue_wait_s: u64 = queue.first().map_or(0, |first| first.waited_s)
        => whole_seconds, counter: "Queue Wait Seconds", metric: "host_queue_wait";
    /// Time since it started
    /// (seconds)
    uptime_s: f64 = host.uptime_s
        => seconds, metric: "host_uptime";
    /// The most machine memory that was ever used
    used_max: u64 = host.used_max_bytes
        => size, metric: "host_used_max";
    /// What the processes of the VMs use besides guest memory
    overhead: u64 = sum(|vm| vm.ovhd)
        => size, history: "overhead";
    /// Guest memory in the compressed pool
    zip_zipped: u64 = sum(|vm| vm.zip)
        => size, metric: "host_compressed";
    /// Guest memory that is swapped out
    swap_curr: u64 = sum(|vm| vm.swcur)
        => size, metric: "host_swapped", history: "swapped";
    /// Guest memory that should be out, by the VMs' limits
    #[serde(default)]
    swap_target: u64 = sum(|vm| vm.swtgt.unwrap_or(0))
        => size, counter: "Swap Target MBytes", metric: "host_swap_target";
    /// What is read from swap files a second, for pages that come back
    #[serde(default)]
    swap_read_per_s: u64 = sum(|vm| vm.swr.unwrap_or(0))
        => size, counter: "Swap Read MBytes/sec";
    /// What is written to swap files a second
    #[serde(default)]
    swap_written_per_s: u64 = sum(|vm| vm.sww.unwrap_or(0))
        => size, counter: "Swap Written MBytes/sec";
    /// Machine memory that compressed pools take
    #[serde(default)]
    pool: u64 = sum(|vm| vm.cachesz.unwrap_or(0))
        => size, counter: "Cache Size MBytes", metric: "host_pool", history: "pool";
    /// Pages a second that the scanner looked over
    covered_per_s: u64 = sharing.covered_per_s
        => number, metric: "host_scanned_pages_per_second";
    /// The part of a core that the scanner has
    /// (thousandths)
    scan_core_permille: u64 = sharing.core_permille
        => permille, metric: "host_scanner_core";
    /// Observations whose page states did not add up: zero, or there is a bug
    state_sum_violations: u64 = host.state_sum_violations
        => number, metric: "host_state_sum_violations", is_total: true;
    /// Free memory below which each state begins
    #[serde(default)]
    state_below: Option<StateThresholds> = Some(host.state_below);
}

impl HostFigures {
    /// What guests use that is neither shared nor broken. Counted at one moment or another, the parts may exceed
    /// the whole: this gives way.
    fn private(&self) -> u64 {
        let others = self.broken + self.pshare_common + self.pool + self.overhead;
        self.pmem_used.saturating_sub(others)
    }
}
