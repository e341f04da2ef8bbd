//! What is to be simulated, as people write it: sizes in MiB, times in seconds. Made for TOML.

use super::host_swap::FAULT_US;
use super::{ProxmoxSettings, SwapOrder};
use crate::{
    BalloonSettings, InvalidSettings, REBALANCE_INTERVAL, SAMPLE_PERIOD, SIZE_LIMIT, Scale,
    SharesSpec, TaxRate, VmSettings,
};
use page::PageCount;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;

/// No simulation has more VMs.
pub const MOST_VMS: u64 = 20_000;
/// Nor records more points, each some hundred bytes.
pub const MOST_POINTS: u64 = 10_000_000;

/// A host, its VMs and what they do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Equal seeds give equal traces.
    #[serde(default)]
    pub seed: u64,
    /// How long.
    pub seconds: u32,
    /// A point of the trace each so many seconds.
    #[serde(default = "every_second")]
    pub record_every_s: u32,
    /// What came before, guests that start say, does not count in the outcome.
    #[serde(default)]
    pub measured_from_s: u32,
    /// The host.
    pub host: HostModel,
    /// Its VMs.
    pub vms: Vec<VmModel>,
}

/// The host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostModel {
    /// Its budget.
    pub memory_mib: u64,
    /// Its idle tax in thousandths.
    #[serde(default)]
    pub idle_tax_permille: TaxRate,
    /// Where its memory states begin.
    #[serde(default)]
    pub scale: Scale,
    /// What its VMs are promised in swap. It only bounds admission: this crate's rules make a host swap nothing.
    #[serde(default)]
    pub swap_mib: u64,
    /// How long each sample is watched.
    #[serde(default = "sample_period_s")]
    pub sample_period_s: u32,
    /// How long targets hold if nothing happens.
    #[serde(default = "rebalance_interval_s")]
    pub rebalance_interval_s: u32,
    /// How balloons are used.
    #[serde(default)]
    pub balloon: BalloonSettings,
    /// Which pages its kernel swaps, under rules that let it come to that.
    #[serde(default)]
    pub swap_order: SwapOrder,
    /// How long a touch waits for a page that it has swapped, in microseconds.
    #[serde(default = "swap_fault_us")]
    pub swap_fault_us: u32,
    /// Proxmox' rules, where they decide.
    #[serde(default)]
    pub proxmox: ProxmoxSettings,
}

/// A VM, or many equal ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmModel {
    /// Its name; with a number behind where there are many.
    pub name: String,
    /// How many of them.
    #[serde(default = "one")]
    pub count: u32,
    /// What its guest sees.
    pub size_mib: u64,
    /// As in [`VmSettings::new`].
    #[serde(default)]
    pub min_mib: Option<u64>,
    /// As in [`VmSettings::new`].
    #[serde(default)]
    pub max_mib: Option<u64>,
    /// Its weight.
    #[serde(default)]
    pub shares: SharesSpec,
    /// Its own idle tax in thousandths.
    #[serde(default)]
    pub idle_tax_permille: Option<TaxRate>,
    /// When the first is to start.
    #[serde(default)]
    pub start_s: u32,
    /// How much later than the one before each further one starts.
    #[serde(default)]
    pub apart_s: u32,
    /// How long after its start it ends, if it does.
    #[serde(default)]
    pub life_s: Option<u32>,
    /// How its guest answers the balloon.
    #[serde(default)]
    pub driver: Driver,
    /// What becomes of memory that its guest no longer works on.
    #[serde(default)]
    pub leaves: Leaves,
    /// What it does, in order of time. Idle before the first.
    #[serde(default)]
    pub phases: Vec<Phase>,
}

/// How a guest answers its balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// As fast as it can.
    #[default]
    Willing,
    /// It takes memory back and never gives any up.
    #[serde(alias = "deaf")]
    Absent,
}

/// What a guest says of memory that it has used and no longer works on. It has it in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leaves {
    /// That it holds files.
    #[default]
    Cache,
    /// That it is free.
    Free,
}

/// What a guest does from some time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// After its start.
    #[serde(default)]
    pub at_s: u32,
    /// The memory that it goes over, each page as often as any other.
    pub working_set_mib: u64,
    /// The chance, in percent, that it touches a page of that in a second.
    #[serde(default = "all")]
    pub touched_percent_per_s: u64,
    /// The chance, in percent, that a touch is a write.
    #[serde(default)]
    pub write_percent: u64,
}

fn every_second() -> u32 {
    1
}

fn sample_period_s() -> u32 {
    whole_seconds(SAMPLE_PERIOD)
}

fn rebalance_interval_s() -> u32 {
    whole_seconds(REBALANCE_INTERVAL)
}

fn swap_fault_us() -> u32 {
    FAULT_US
}

fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

fn one() -> u32 {
    1
}

fn all() -> u64 {
    100
}

/// Why a scenario cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it, with the fields by name")]
pub enum InvalidScenario {
    #[error("{field} is 0: give at least 1")]
    Zero { field: &'static str },
    #[error("{count} VMs are more than the {MOST_VMS} that can be simulated: give smaller counts")]
    TooManyVms { count: u64 },
    #[error(
        "{points} points are more than the {MOST_POINTS} that can be kept: raise record_every_s or lower seconds"
    )]
    TooManyPoints { points: u64 },
    #[error("the phases of {name:?} are not in order of time: sort them by at_s")]
    PhasesOutOfOrder { name: String },
    #[error("{mebibytes} MiB is more than can be addressed: give less")]
    TooLarge { mebibytes: u64 },
    #[error("VM {name:?}: {source}")]
    Settings {
        name: String,
        source: InvalidSettings,
    },
}

impl HostModel {
    /// One that is told nothing else.
    pub(super) fn new(memory_mib: u64, idle_tax_permille: TaxRate) -> Self {
        Self {
            memory_mib,
            idle_tax_permille,
            scale: Scale::default(),
            swap_mib: 0,
            sample_period_s: sample_period_s(),
            rebalance_interval_s: rebalance_interval_s(),
            balloon: BalloonSettings::default(),
            swap_order: SwapOrder::default(),
            swap_fault_us: swap_fault_us(),
            proxmox: ProxmoxSettings::default(),
        }
    }
}

impl Phase {
    /// From the start on.
    pub(super) fn new(working_set_mib: u64) -> Self {
        Self {
            at_s: 0,
            working_set_mib,
            touched_percent_per_s: all(),
            write_percent: 0,
        }
    }
}

impl Scenario {
    /// Whether it makes sense and can be done.
    pub fn check(&self) -> Result<(), InvalidScenario> {
        let nonzero = [
            ("seconds", self.seconds),
            ("record_every_s", self.record_every_s),
            ("sample_period_s", self.host.sample_period_s),
            ("rebalance_interval_s", self.host.rebalance_interval_s),
            ("swap_fault_us", self.host.swap_fault_us),
            ("proxmox.every_s", self.host.proxmox.every_s),
        ];
        if let Some(&(field, _)) = nonzero.iter().find(|(_, number)| *number == 0) {
            return Err(InvalidScenario::Zero { field });
        }
        let count = self.vms.iter().map(|vm| u64::from(vm.count)).sum();
        if count > MOST_VMS {
            return Err(InvalidScenario::TooManyVms { count });
        }
        let points = count * u64::from(self.seconds / self.record_every_s);
        if points > MOST_POINTS {
            return Err(InvalidScenario::TooManyPoints { points });
        }
        self.vms.iter().try_for_each(VmModel::check)?;
        pages(self.host.memory_mib)?;
        pages(self.host.proxmox.most_change_mib)?;
        pages(self.host.swap_mib).map(drop)
    }
}

impl VmModel {
    /// One that is idle, from the start on.
    pub(super) fn new(name: String, size_mib: u64) -> Self {
        Self {
            name,
            count: one(),
            size_mib,
            min_mib: None,
            max_mib: None,
            shares: SharesSpec::default(),
            idle_tax_permille: None,
            start_s: 0,
            apart_s: 0,
            life_s: None,
            driver: Driver::default(),
            leaves: Leaves::default(),
            phases: Vec::new(),
        }
    }

    fn check(&self) -> Result<(), InvalidScenario> {
        let in_order = self.phases.is_sorted_by_key(|phase| phase.at_s);
        if !in_order {
            let name = self.name.clone();
            return Err(InvalidScenario::PhasesOutOfOrder { name });
        }
        for phase in &self.phases {
            pages(phase.working_set_mib)?;
        }
        self.settings().map(drop)
    }

    pub(super) fn settings(&self) -> Result<VmSettings, InvalidScenario> {
        let size = pages(self.size_mib)?;
        let min = self.min_mib.map(pages).transpose()?;
        let max = self.max_mib.map(pages).transpose()?;
        let settings = VmSettings::new(size, min, max, self.shares).map_err(|source| {
            let name = self.name.clone();
            InvalidScenario::Settings { name, source }
        })?;
        Ok(VmSettings {
            idle_tax: self.idle_tax_permille,
            ..settings
        })
    }

    /// What it does so long after its start.
    pub(super) fn phase_at(&self, age_s: u32) -> Phase {
        let begun = |phase: &&Phase| phase.at_s <= age_s;
        let last = self.phases.iter().take_while(begun).last();
        last.copied().unwrap_or(Phase {
            at_s: 0,
            working_set_mib: 0,
            touched_percent_per_s: 0,
            write_percent: 0,
        })
    }
}

/// Checked, so that no sum of them overflows.
pub(super) fn pages(mebibytes: u64) -> Result<PageCount, InvalidScenario> {
    if mebibytes > SIZE_LIMIT.0 / PageCount::from_mebibytes(1).0 {
        return Err(InvalidScenario::TooLarge { mebibytes });
    }
    Ok(PageCount::from_mebibytes(mebibytes))
}
