//! The figures of one moment, under the names that an administrator knows from esxtop's memory panel.
//! Sizes are bytes, where esxtop shows megabytes. What a host does not know is absent, not zero.

mod host;
mod table;
mod vm;

pub use host::{HOST_FIGURES, HostFigures};
pub use table::{Figure, Reading};
pub use vm::{VM_FIGURES, VmFigures};

use super::{EventView, QueuedView};
use policy::Thresholds;
use protocol::VmName;
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

/// Free memory below which each state of the host's memory begins, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[expect(
    missing_docs,
    reason = "each is named for the state that begins below it"
)]
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
