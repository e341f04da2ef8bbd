//! What an administrator sets of a host, when it starts or later, and of a VM: the defaults, and how a change makes new
//! settings of old ones. Whatever is set, by whatever way, comes through here.

use super::error::HostError;
use super::request::{whole_pages, whole_pages_or};
use api::{HostChange, RunRequest, ScanChange, ScanPriority, VmChange, VmIdleTax};
use page::PageCount;
use policy::{PERIOD_RANGE_S, REBALANCE_INTERVAL, SAMPLE_PERIOD, SharesSpec, TaxRate, VmSettings};
use sharing::RateSettings;
use std::time::Duration;

/// The settings of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// Machine memory for all VMs together.
    pub budget: PageCount,
    /// Whether equal pages are shared.
    pub sharing: bool,
    /// How fast memory is scanned.
    pub rates: RateSettings,
    /// The scanner's CPU scheduling priority.
    pub scan_priority: ScanPriority,
    /// The tax on idle memory.
    pub idle_tax: TaxRate,
    /// How long each sample of a VM's pages is watched.
    pub sample_period: Duration,
    /// How long targets hold if nothing happens.
    pub rebalance_interval: Duration,
}

impl HostSettings {
    /// Those of a host that was told nothing but its budget.
    #[must_use]
    pub fn new(budget: PageCount) -> Self {
        Self {
            budget,
            sharing: true,
            rates: RateSettings::default(),
            scan_priority: ScanPriority::default(),
            idle_tax: TaxRate::default(),
            sample_period: SAMPLE_PERIOD,
            rebalance_interval: REBALANCE_INTERVAL,
        }
    }

    /// These settings with a change. Whether the machine and the VMs' promises allow the budget is for others to say.
    ///
    /// # Errors
    /// When a number makes no sense.
    pub fn with(&self, change: &HostChange) -> Result<Self, HostError> {
        let HostChange {
            memory_bytes,
            sharing,
            scan,
            idle_tax_permille,
            sample_period_s,
            rebalance_interval_s,
        } = *change;
        Ok(Self {
            budget: whole_pages_or(memory_bytes, self.budget)?,
            sharing: sharing.unwrap_or(self.sharing),
            rates: rates_with(self.rates, scan)?,
            scan_priority: scan.priority.unwrap_or(self.scan_priority),
            idle_tax: idle_tax_permille.unwrap_or(self.idle_tax),
            sample_period: period(sample_period_s, self.sample_period)
                .map_err(HostError::SamplePeriod)?,
            rebalance_interval: period(rebalance_interval_s, self.rebalance_interval)
                .map_err(HostError::RebalanceInterval)?,
        })
    }
}

/// The rates with a change, each a number that a scanner can keep to.
fn rates_with(old: RateSettings, change: ScanChange) -> Result<RateSettings, HostError> {
    let rates = RateSettings {
        pass_s: change.pass_s.unwrap_or(old.pass_s),
        vm_pages_per_s: change.vm_pages_per_s.unwrap_or(old.vm_pages_per_s),
        host_pages_per_s: change.host_pages_per_s.unwrap_or(old.host_pages_per_s),
        core_share_permille: change
            .core_share_permille
            .unwrap_or(old.core_share_permille),
        ..old
    };
    let is_above_zero = rates.pass_s > 0 && rates.vm_pages_per_s > 0 && rates.host_pages_per_s > 0;
    match is_above_zero && (1..=1000).contains(&rates.core_share_permille) {
        true => Ok(rates),
        false => Err(HostError::Rates),
    }
}

/// The old one if no other is wanted; what is wanted if that is out of range.
fn period(wanted_s: Option<u32>, old: Duration) -> Result<Duration, u32> {
    match wanted_s {
        None => Ok(old),
        Some(seconds) if PERIOD_RANGE_S.contains(&seconds) => {
            Ok(Duration::from_secs(seconds.into()))
        }
        Some(seconds) => Err(seconds),
    }
}

/// The settings of a VM that is wanted on a machine of that size.
pub(super) fn of_vm(request: &RunRequest, machine: PageCount) -> Result<VmSettings, HostError> {
    let size = whole_pages(request.memory_bytes)?;
    if size > machine {
        return Err(HostError::LargerThanMachine { size, machine });
    }
    let min = request.min_bytes.map(whole_pages).transpose()?;
    let max = request.max_bytes.map(whole_pages).transpose()?;
    let shares = request.shares.unwrap_or(SharesSpec::Normal);
    Ok(VmSettings {
        idle_tax: request.idle_tax_permille,
        ..VmSettings::new(size, min, max, shares)?
    })
}

/// The settings of a VM with a change.
pub(super) fn of_vm_with(old: &VmSettings, change: &VmChange) -> Result<VmSettings, HostError> {
    let settings = VmSettings {
        size: old.size,
        min: whole_pages_or(change.min_bytes, old.min)?,
        max: whole_pages_or(change.max_bytes, old.max)?,
        shares: change.shares.unwrap_or(old.shares),
        idle_tax: match change.idle_tax {
            None => old.idle_tax,
            Some(VmIdleTax::Host) => None,
            Some(VmIdleTax::Permille(rate)) => Some(rate),
        },
    };
    settings.check()?;
    Ok(settings)
}
