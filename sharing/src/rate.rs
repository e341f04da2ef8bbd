//! How fast to scan: pages a second for each VM and for the host, and a share of a core.
//!
//! Each limit is a token bucket. Work may overdraw it, for a block is scanned whole; then it is waited for.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How fast to scan. ESXi goes over a VM once an hour, at up to 1024 pages a second (ESX.md, "Page
/// sharing"). A scan that reads only what was written since the last is cheap enough for a pass every
/// five minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateSettings {
    /// Every page of a VM is to be seen once in this time, as far as the limits allow.
    pub pass_s: u64,
    /// The most pages a second of one VM.
    pub vm_pages_per_s: u64,
    /// The most pages a second in all.
    pub host_pages_per_s: u64,
    /// The most time on a core, in thousandths.
    pub core_share_permille: u64,
    /// How many times faster while memory is short. The share of a core stays.
    pub short_factor: u64,
}

impl Default for RateSettings {
    fn default() -> Self {
        Self {
            pass_s: 300,
            vm_pages_per_s: 4096,
            host_pages_per_s: 16_384,
            core_share_permille: 250,
            short_factor: 8,
        }
    }
}

impl RateSettings {
    /// Pages a second for a VM of this size.
    pub(crate) fn vm_rate(&self, pages: u64) -> u64 {
        let steady = pages.div_ceil(self.pass_s.max(1));
        steady.min(self.vm_pages_per_s).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_pass_in_five_minutes_and_at_most_4096_pages_a_second() {
        let settings = RateSettings::default();
        assert_eq!(settings.vm_rate(300 * 100), 100);
        assert_eq!(settings.vm_rate(1 << 30), 4096);
    }
}
