//! What can be followed over time, of the host, of a VM, and of what a guest says of itself.

use serde::{Deserialize, Serialize};

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes of memory, shown as MiB.
    Bytes,
    /// Percent, or points of them.
    Percent,
    /// Things that are counted.
    Count,
    /// The same in a second.
    PerSecond,
    /// Seconds.
    Seconds,
    /// States of memory: 0 high, 1 clear, 2 soft, 3 hard, 4 low.
    State,
}

impl Unit {
    /// As it stands beside a number.
    #[must_use]
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Bytes => "MiB",
            Self::Percent => "%",
            Self::Count => "",
            Self::PerSecond => "/s",
            Self::Seconds => "s",
            Self::State => "state",
        }
    }

    /// A number in the unit that people read.
    #[must_use]
    pub(crate) fn shown(self, value: f64) -> f64 {
        match self {
            Self::Bytes => value / f64::from(1 << 20),
            _ => value,
        }
    }
}

/// Something that is followed over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Series {
    /// Host: machine memory that all VMs use, as the kernel counts it. VM: its part.
    Used,
    /// Host: what of the budget is not used.
    Free,
    /// Host: the budget.
    Budget,
    /// Host: used beyond the budget.
    OverBudget,
    /// Host: what was configured beyond the budget, in percent of it.
    Overcommit,
    /// Host: 0 high, 1 clear, 2 soft, 3 hard, 4 low.
    MemoryState,
    /// Host: observations whose page states did not add up.
    StateSumViolations,
    /// Host and VM: guest memory that shows frames, and zero pages that were given back.
    Shared,
    /// Host and VM: zero pages that were given back.
    Zero,
    /// Host: machine memory that sharing and zero pages save.
    Reclaimed,
    /// The same in percent of what all VMs hold as they see it.
    SharedPercent,
    /// See `shared_percent`.
    ZeroPercent,
    /// See `shared_percent`.
    ReclaimedPercent,
    /// VM: its size.
    Size,
    /// VM: what the policy wants it to hold.
    Target,
    /// VM: what it was told it may hold.
    Granted,
    /// VM: its size less what its balloon holds.
    Held,
    /// VM: guest memory that something backs.
    Backed,
    /// VM: what its balloon holds.
    Balloon,
    /// VM: what it was denied of its min.
    BelowMin,
    /// VM: 1 while it is as it should be, 0 when it has ended without being stopped.
    Alive,
    /// VM: what the closed form gives it of what all VMs hold.
    ClosedForm,
    /// VM: how far what it holds is from the closed form, in percent of that.
    ClosedFormError,
    /// VM: its true active memory, as its workload was told.
    Truth,
    /// VM: the estimate of that,
    Estimate,
    /// the lower end of its interval,
    EstimateLow,
    /// and the upper.
    EstimateHigh,
    /// VM: the slow average.
    Slow,
    /// VM: the fast average.
    Fast,
    /// VM: the fast average with the current period as it stands.
    Current,
    /// VM: how far the estimate is from the truth, in points of its backed memory.
    EstimateError,
    /// VM: 100 if the interval covers the truth, else 0.
    Covered,
    /// Guest: touches of a toucher so far.
    Touches,
    /// Guest: pages checked so far.
    Checks,
    /// Guest: operations of file clients so far.
    Operations,
    /// Guest: blocks found in its cache so far.
    Hits,
    /// Guest: blocks that had to be read so far.
    Misses,
    /// Guest: wrong pages and blocks that it found, and what its disk refused.
    Errors,
}

impl Series {
    /// What it counts.
    #[must_use]
    pub const fn unit(self) -> Unit {
        match self {
            Self::Overcommit
            | Self::SharedPercent
            | Self::ZeroPercent
            | Self::ReclaimedPercent
            | Self::ClosedFormError
            | Self::EstimateError
            | Self::Covered => Unit::Percent,
            Self::MemoryState => Unit::State,
            Self::StateSumViolations
            | Self::Alive
            | Self::Touches
            | Self::Checks
            | Self::Operations
            | Self::Hits
            | Self::Misses
            | Self::Errors => Unit::Count,
            _ => Unit::Bytes,
        }
    }

    /// Whether only the guest knows it.
    #[must_use]
    pub(crate) const fn is_guests(self) -> bool {
        matches!(
            self,
            Self::Touches
                | Self::Checks
                | Self::Operations
                | Self::Hits
                | Self::Misses
                | Self::Errors
        )
    }

    /// As it is written in scenarios.
    #[must_use]
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => String::new(),
        }
    }

    /// As a legend shows it.
    #[must_use]
    pub(crate) fn label(self) -> String {
        self.name().replace('_', " ")
    }
}
