//! The two periods that a host's administrator may set: their defaults and their range.

use std::ops::RangeInclusive;
use std::time::Duration;

/// How long each sample of a VM's pages is watched (ESX.md: 30 s in the paper, 60 s in ESXi today).
pub const SAMPLE_PERIOD: Duration = Duration::from_secs(30);

/// How long targets hold if nothing happens and nothing else is set (ESX.md, Dynamic reallocation).
pub const REBALANCE_INTERVAL: Duration = Duration::from_secs(15);

/// What either may be set to, in seconds: up to an hour.
pub const PERIOD_RANGE_S: RangeInclusive<u32> = 1..=3600;
