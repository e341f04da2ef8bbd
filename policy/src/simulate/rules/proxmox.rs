//! Proxmox VE's automatic memory allocation.
//!
//! **While less than 80 % of the host's memory is in use, what is left to that is added to the guests on top of their
//! minimum, by their shares, up to their maximum; while more is in use, guests release memory.** No statistics of guests
//! take part in that, as far as it is documented: an idle guest's share is as large as a busy one's.
//!
//! Source: the administration guide, "Memory" of "Qemu/KVM Virtual Machines" (pve.proxmox.com/pve-docs,
//! `qm_memory`), with the worked example that the tests repeat, and "RAM Usage Target for Ballooning" of "Proxmox Node
//! Management" for `ballooning-target`; `qm.conf` for the default of the shares.
//!
//! Assumed, as the guide is silent: that memory is released by the same measure by which it is given, so that what
//! guests have beyond their minimum goes to all by their shares; how often that happens; and how much a guest's memory
//! changes at once. The last two are settings here, so that anybody can see what they are worth.

use super::{GuestView, View};
use crate::SharesSpec;
use crate::divide::{Claim, divide};
use crate::tax::Taxed;
use page::{PageCount, total};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// Default of the shares in `qm.conf`, for a VM of any size.
const NORMAL_SHARES: NonZeroU64 = NonZeroU64::new(1000).expect("above zero");
/// What `low` and `high` are in the same measure: Proxmox knows numbers only.
const LOW_SHARES: NonZeroU64 = NonZeroU64::new(500).expect("above zero");
const HIGH_SHARES: NonZeroU64 = NonZeroU64::new(2000).expect("above zero");

/// What can be set, and what had to be assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxmoxSettings {
    /// The part of the host's memory that is to be in use: 80 %, `ballooning-target` of the node.
    pub target_percent: u64,
    /// Seconds from one decision to the next: assumed 10.
    pub every_s: u32,
    /// By how much a guest's memory changes at one decision: assumed 100 MiB.
    pub most_change_mib: u64,
}

impl Default for ProxmoxSettings {
    fn default() -> Self {
        Self {
            target_percent: 80,
            every_s: 10,
            most_change_mib: 100,
        }
    }
}

/// What each guest is to hold.
pub(super) fn targets(settings: &ProxmoxSettings, view: &View) -> Vec<PageCount> {
    let pool = pool(settings, view);
    let claims: Vec<Claim> = view.guests.iter().map(claim).collect();
    let parts = divide(pool, &claims);
    let most_change = PageCount::from_mebibytes(settings.most_change_mib);
    let guests = view.guests.iter().zip(parts);
    guests
        .map(|(guest, part)| step(guest, total([guest.min, part]), most_change))
        .collect()
}

/// What all guests together should have beyond their minimums: what they were told, and what is left to the target, or
/// less what is used beyond it. As it is by what they were told and not by what they hold, a guest that does not follow
/// is made up for by the others.
fn pool(settings: &ProxmoxSettings, view: &View) -> PageCount {
    let wanted = u128::from(view.total.0) * u128::from(settings.target_percent.min(100)) / 100;
    let wanted = PageCount(u64::try_from(wanted).unwrap_or(u64::MAX));
    let used = view.total.saturating_sub(view.free);
    let beyond = |guest: &GuestView| guest.told.saturating_sub(guest.min);
    total([total(view.guests.iter().map(beyond)), wanted]).saturating_sub(used)
}

fn claim(guest: &GuestView) -> Claim {
    Claim {
        id: guest.id,
        weight: weight(guest.shares),
        min: PageCount::ZERO,
        max: guest.max.saturating_sub(guest.min),
        taxed: Taxed::NOTHING,
    }
}

fn weight(shares: SharesSpec) -> NonZeroU64 {
    match shares {
        SharesSpec::Low => LOW_SHARES,
        SharesSpec::Normal => NORMAL_SHARES,
        SharesSpec::High => HIGH_SHARES,
        SharesSpec::Count(count) => count.into(),
    }
}

/// As near to the target as it may come at once.
fn step(guest: &GuestView, target: PageCount, most_change: PageCount) -> PageCount {
    let least = guest.told.saturating_sub(most_change);
    let most = total([guest.told, most_change]);
    target.clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::super::generate;
    use super::*;
    use page::VmId;
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    const AT_ONCE: u64 = 1 << 30;

    fn at_once() -> ProxmoxSettings {
        ProxmoxSettings {
            most_change_mib: AT_ONCE,
            ..ProxmoxSettings::default()
        }
    }

    fn guest(id: u32, held_mib: u64, shares: u32) -> GuestView {
        GuestView {
            id: VmId(id),
            min: PageCount::from_mebibytes(1024),
            max: PageCount::from_mebibytes(16 * 1024),
            shares: SharesSpec::Count(NonZeroU32::new(shares).unwrap()),
            held: PageCount::from_mebibytes(held_mib),
            told: PageCount::from_mebibytes(held_mib),
            unused: None,
        }
    }

    fn view(used_mib: u64, guests: Vec<GuestView>) -> View {
        let total = PageCount::from_mebibytes(32 * 1024);
        View {
            total,
            free: total - PageCount::from_mebibytes(used_mib),
            guests,
        }
    }

    /// The guide: 32 GB, 80 % of it to be used, 16 GB in use; of the rest a database with 3000 shares gets half and each of
    /// three servers with 1000 a sixth, on top of their minimums. (It rounds 9.6 GB down to 9.)
    #[test]
    fn the_guides_own_example_comes_out() {
        let guests = (0..4).map(|id| guest(id, 1024, if id == 0 { 3000 } else { 1000 }));
        let targets = targets(&at_once(), &view(16 * 1024, guests.collect()));
        let gained = |target: &PageCount| (target.bytes() >> 20) - 1024;
        let gained: Vec<u64> = targets.iter().map(gained).collect();
        let spare = 32 * 1024 * 80 / 100 - 16 * 1024;
        assert_eq!(gained, [spare / 2, spare / 6, spare / 6, spare / 6]);
    }

    #[test]
    fn above_the_target_guests_release_memory_whether_they_use_it_or_not() {
        let targets = targets(
            &at_once(),
            &view(30 * 1024, vec![guest(0, 9216, 1000), guest(1, 9216, 1000)]),
        );
        let over = 30 * 1024 - 32 * 1024 * 80 / 100;
        let each =
            PageCount::from_mebibytes(9216) - PageCount(PageCount::from_mebibytes(over).0 / 2);
        assert!(
            targets
                .iter()
                .all(|target| target.0.abs_diff(each.0) <= 256),
            "{targets:?}"
        );
    }

    #[test]
    fn no_guest_changes_by_more_than_a_step() {
        let guests = vec![guest(0, 2048, 1000), guest(1, 16 * 1024, 1000)];
        let settings = ProxmoxSettings::default();
        let targets = targets(&settings, &view(31 * 1024, guests));
        assert_eq!(targets[0], PageCount::from_mebibytes(2148));
        assert_eq!(targets[1], PageCount::from_mebibytes(16 * 1024 - 100));
    }

    /// One that was told to hold its minimum and holds all it ever had is not counted as if it could give that.
    #[test]
    fn others_make_up_for_a_guest_that_does_not_follow() {
        let deaf = GuestView {
            held: PageCount::from_mebibytes(16 * 1024),
            ..guest(0, 1024, 1000)
        };
        let full = view(
            30 * 1024,
            vec![deaf, guest(1, 2048, 1000), guest(2, 2048, 1000)],
        );
        let told = targets(&at_once(), &full);
        assert!(told.iter().all(|told| *told == deaf.min), "{told:?}");
    }

    proptest! {
        /// Each guest within its minimum and maximum, or on its way there by whole steps, and together no more than what
        /// they had and what was left to the target.
        #[test]
        fn no_view_makes_it_break_its_rules(view in generate::view(), target_percent in 0u64..=100) {
            let settings = ProxmoxSettings { target_percent, ..at_once() };
            let told = targets(&settings, &view);
            for (guest, told) in view.guests.iter().zip(&told) {
                prop_assert!(guest.min <= *told && *told <= guest.max);
            }
            let beyond = |guest: &GuestView, told: PageCount| told.saturating_sub(guest.min).0;
            let had: u64 = view.guests.iter().map(|guest| beyond(guest, guest.told)).sum();
            let has: u64 = view.guests.iter().zip(&told).map(|(guest, &told)| beyond(guest, told)).sum();
            let wanted = view.total.0 * target_percent / 100;
            let used = view.total.0 - view.free.0;
            prop_assert!(has <= (had + wanted).saturating_sub(used));
            let slow = targets(&ProxmoxSettings { most_change_mib: 1, ..settings }, &view);
            for (guest, (slow, told)) in view.guests.iter().zip(slow.iter().zip(&told)) {
                prop_assert!(slow.0.abs_diff(guest.told.0) <= 256);
                let distance = |from: &PageCount| from.0.abs_diff(told.0);
                prop_assert!(distance(slow) <= distance(&guest.told));
            }
        }
    }
}
