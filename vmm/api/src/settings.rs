//! What an administrator sets of a host, when it starts or later: the defaults, and how a change makes new settings
//! of old ones. Whatever is set, by whatever way, comes through here.

use crate::{HostChange, ScanChange, ScanPriority};
use page::{PAGE_SIZE, PageCount};
use policy::{PERIOD_RANGE_S, REBALANCE_INTERVAL, SAMPLE_PERIOD, TaxRate};
use sharing::RateSettings;
use std::time::Duration;
use thiserror::Error;

/// Why a number cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it, with the numbers")]
pub enum InvalidNumber {
    #[error(
        "memory of {size_bytes} bytes is not a whole number of pages: give a multiple of 4096, as in 512M"
    )]
    NotWholePages { size_bytes: u64 },
    #[error(
        "scan rates must be above zero, and the part of a core from 1 to 100 %: set scan-pass, scan-vm, scan-host or scan-core anew"
    )]
    Rates,
    #[error(
        "a sample cannot be watched for {0} s: set sample-period to {least} to {most}",
        least = PERIOD_RANGE_S.start(),
        most = PERIOD_RANGE_S.end()
    )]
    SamplePeriod(u32),
    #[error(
        "targets cannot hold for {0} s: set rebalance-interval to {least} to {most}",
        least = PERIOD_RANGE_S.start(),
        most = PERIOD_RANGE_S.end()
    )]
    RebalanceInterval(u32),
}

/// The settings of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// Machine memory for all VMs together.
    pub budget: PageCount,
    /// Whether equal pages are shared.
    pub sharing: bool,
    /// Whether memory is made large pages where there is enough of it.
    pub large_pages: bool,
    /// Whether VMs that start from now on may have pages compressed that they may not hold.
    pub compression: bool,
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
            large_pages: true,
            compression: false,
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
    pub fn with(&self, change: &HostChange) -> Result<Self, InvalidNumber> {
        let HostChange {
            memory_bytes,
            sharing,
            large_pages,
            compression,
            scan,
            idle_tax_permille,
            sample_period_s,
            rebalance_interval_s,
        } = *change;
        Ok(Self {
            budget: whole_pages_or(memory_bytes, self.budget)?,
            sharing: sharing.unwrap_or(self.sharing),
            large_pages: large_pages.unwrap_or(self.large_pages),
            compression: compression.unwrap_or(self.compression),
            rates: rates_with(self.rates, scan)?,
            scan_priority: scan.priority.unwrap_or(self.scan_priority),
            idle_tax: idle_tax_permille.unwrap_or(self.idle_tax),
            sample_period: period(sample_period_s, self.sample_period)
                .map_err(InvalidNumber::SamplePeriod)?,
            rebalance_interval: period(rebalance_interval_s, self.rebalance_interval)
                .map_err(InvalidNumber::RebalanceInterval)?,
        })
    }
}

/// The rates with a change, each a number that a scanner can keep to.
fn rates_with(old: RateSettings, change: ScanChange) -> Result<RateSettings, InvalidNumber> {
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
        false => Err(InvalidNumber::Rates),
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

/// As many pages as make up `size_bytes`.
///
/// # Errors
/// When these are not whole pages.
pub fn whole_pages(size_bytes: u64) -> Result<PageCount, InvalidNumber> {
    if size_bytes.is_multiple_of(PAGE_SIZE) {
        Ok(PageCount(size_bytes / PAGE_SIZE))
    } else {
        Err(InvalidNumber::NotWholePages { size_bytes })
    }
}

/// As many pages as make up `size_bytes`; the old ones if no others are wanted.
///
/// # Errors
/// When these are not whole pages.
pub fn whole_pages_or(
    size_bytes: Option<u64>,
    otherwise: PageCount,
) -> Result<PageCount, InvalidNumber> {
    size_bytes.map_or(Ok(otherwise), whole_pages)
}
