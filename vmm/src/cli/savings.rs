//! What plans for QEMUs that were looked at would have come to, as it is printed.

use policy::{Savings, VmSavings};
use serde::Serialize;

/// Of all together.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SavingsView {
    /// How long they were looked at.
    pub(super) seconds: u64,
    /// What would have been saved, times how long, in MiB-seconds.
    pub(super) saved_mib_s: u64,
    /// What was used, likewise.
    pub(super) used_mib_s: u64,
    /// How often a guest would have come to hold less than it needs by its own word.
    pub(super) squeezes: u64,
    /// Faults of the guests meanwhile, by their own word.
    pub(super) faults: u64,
}

/// Of one.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct VmSavingsView {
    pub(super) saved_mib_s: u64,
    pub(super) used_mib_s: u64,
    pub(super) squeezes: u64,
    /// How long it would have held less than it needs.
    pub(super) squeezed_s: u64,
    pub(super) faults: u64,
}

impl SavingsView {
    pub(super) fn of(savings: &Savings) -> Self {
        let sum = |of: fn(&VmSavings) -> u64| savings.vms().map(|(_, vm)| of(vm)).sum();
        Self {
            seconds: savings.ms() / 1000,
            saved_mib_s: sum(VmSavings::saved_mib_s),
            used_mib_s: sum(VmSavings::used_mib_s),
            squeezes: sum(|vm| vm.squeezes),
            faults: sum(|vm| vm.faulted.0),
        }
    }
}

impl VmSavingsView {
    pub(super) fn of(vm: &VmSavings) -> Self {
        Self {
            saved_mib_s: vm.saved_mib_s(),
            used_mib_s: vm.used_mib_s(),
            squeezes: vm.squeezes,
            squeezed_s: vm.squeezed_ms() / 1000,
            faults: vm.faulted.0,
        }
    }
}

/// MiB-seconds as GiB-hours.
pub(super) fn gib_h(mib_s: u64) -> String {
    let thousandths = mib_s.saturating_mul(1000) / (1024 * 3600);
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gibibyte_for_an_hour_and_a_half() {
        assert_eq!(gib_h(1024 * 5400), "1.500");
        assert_eq!(gib_h(7), "0.000");
    }
}
