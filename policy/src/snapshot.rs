//! What the policy knows: one moment of the host, complete, so that it can be recorded and replayed.

use crate::advice::Supposed;
use crate::balloon_settings::BalloonRound;
use crate::balloon_watch::{BalloonHealth, BalloonWatch};
use crate::guest::GuestFigures;
use crate::working_set::ActiveSet;
use crate::{Capabilities, MemoryState, TaxRate, VmSettings};
use page::{PageCount, VmId, total};
use serde::{Deserialize, Serialize};

/// The host and its VMs at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Machine memory that all VMs together may use, overhead included.
    pub budget: PageCount,
    /// What page sharing saves beyond its reserve: guests may have it too.
    #[serde(default)]
    pub saved: PageCount,
    /// What page sharing saves and reserves: guests may break so much before memory comes from elsewhere.
    #[serde(default)]
    pub breakable: PageCount,
    /// What page sharing needs for itself: nobody may have it. Not taken from what was promised.
    #[serde(default)]
    pub kept: PageCount,
    /// What should stay free so that memory does not get short
    /// ([`Thresholds::keep_free`](crate::Thresholds::keep_free)). Not taken from what was promised.
    #[serde(default)]
    pub keep_free: PageCount,
    /// What the swap below all VMs holds. None while it is zero: then nothing is promised there.
    #[serde(default)]
    pub swap: PageCount,
    /// The tax on idle memory of VMs that have none of their own.
    #[serde(default)]
    pub idle_tax: TaxRate,
    /// How short memory is.
    #[serde(default)]
    pub state: MemoryState,
    /// What of the budget is not in use at this moment, by the kernel's count.
    #[serde(default)]
    pub unused: Option<PageCount>,
    /// How balloons are used. Where this is not said, they follow targets at once.
    #[serde(default)]
    pub balloon: Option<BalloonRound>,
    /// Whether an administrator wants no large pages.
    #[serde(default)]
    pub small_pages_only: bool,
    /// Every admitted VM once, in any order.
    pub vms: Vec<VmSnapshot>,
}

/// One VM at that moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSnapshot {
    /// Which VM. A lower one was admitted earlier.
    pub id: VmId,
    /// What its administrator decided.
    pub settings: VmSettings,
    /// What its process needs besides guest memory.
    pub overhead: PageCount,
    /// Pages that the guest has given up, by the device's record. A VM that has just been granted its
    /// start has given up all but that.
    pub ballooned: PageCount,
    /// What the VM was last told it may hold: its size less its balloon's target. Until the VM process
    /// has confirmed that, the highest that it was told since what it confirmed last: the guest may
    /// still be acting on it.
    pub granted: PageCount,
    /// What it was told last, confirmed or not. Where this is not said, the same as `granted`.
    #[serde(default)]
    pub told: Option<PageCount>,
    /// What an administrator fixed that this VM holds, instead of what its shares earn.
    pub pinned: Option<PageCount>,
    /// How far its life has come.
    pub stage: Stage,
    /// What was observed of it besides.
    #[serde(default)]
    pub evidence: Evidence,
}

/// What was observed of a VM's use of memory. Each may be unknown, and changes nothing then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// What it uses, by its touches. A VM of which this is not known is not taxed.
    pub active: Option<ActiveSet>,
    /// What its guest says.
    pub guest: Option<GuestFigures>,
    /// How its balloon follows.
    pub balloon: Option<BalloonWatch>,
    /// Whether its guest runs without a driver for its balloon, or is not known to have one yet.
    pub has_no_driver: bool,
    /// Its pages that something backs, by the kernel's count.
    pub backed: Option<PageCount>,
    /// Pages that it may take at any moment and has not: that its guest has not given up and not touched either, and what its process
    /// is allowed besides.
    pub untouched: PageCount,
    /// Beyond what it was slowed down by the last plan.
    pub touch_limit: Option<PageCount>,
    /// Whether that is kept by taking pages out of its memory, and not by stopping it.
    pub has_swap: bool,
    /// How much less its pages take in its compressed pool than outside of it, in percent of that. 0 if it has none.
    pub pool_saves_percent: u8,
    /// Whether its guest waits because what would have to go out finds no room there.
    pub waits_for_room: bool,
    /// What can be done to it.
    pub capabilities: Capabilities,
    /// Whether nothing but its guest's word tells what it needs, and that is old.
    pub is_stale: bool,
    /// Whether the kernel may take pages of it into its own swap.
    pub kernel_reclaim: bool,
    /// The part of the last ten seconds in which some of it waited for the host's memory, in thousandths.
    pub pressure_permille: u32,
    /// Of one that is looked at and not changed: what is supposed of it. Its counts are then what they would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supposed: Option<Supposed>,
}

/// A VM that waits for the host's memory for so much of the time, in thousandths, is under pressure. Those who give memory by this
/// measure alone keep far below (Meta's senpai: 1 and less); guests that are to be squeezed wait now and then.
const PRESSED_PERMILLE: u32 = 100;

impl Evidence {
    /// Whether it waits for memory that the host has taken already.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.pressure_permille >= PRESSED_PERMILLE
    }

    /// How its balloon does. One that was never watched has nothing to follow.
    #[must_use]
    pub fn balloon_health(&self) -> BalloonHealth {
        self.balloon
            .map_or(BalloonHealth::Settled, |watch| watch.health())
    }
}

/// How far a VM's life has come, as far as memory is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Admitted, but not granted any memory yet: its process is not started.
    Waiting,
    /// From its first grant on, even before its process has touched any memory.
    Running,
}

impl VmSnapshot {
    /// What the guest has not given up.
    #[must_use]
    pub fn held(&self) -> PageCount {
        let size = self.settings.effective_size();
        match self.stage {
            Stage::Waiting => PageCount::ZERO,
            Stage::Running => size.saturating_sub(self.ballooned),
        }
    }

    /// What the VM may touch at any moment without asking: what it has not given up, and what it was
    /// told it may take back.
    #[must_use]
    pub fn exposure(&self) -> PageCount {
        let size = self.settings.effective_size();
        match self.stage {
            Stage::Waiting => PageCount::ZERO,
            Stage::Running => {
                let may_touch = self.held().max(self.granted.min(size));
                self.kept_within()
                    .map_or(may_touch, |most| may_touch.min(most))
            }
        }
    }

    /// What a VM holds at most whose pages go out of its memory at its limit: that, or what it still has above it, or its min,
    /// which may have been raised since.
    #[must_use]
    pub fn kept_within(&self) -> Option<PageCount> {
        let limit = self
            .evidence
            .touch_limit
            .filter(|_| self.evidence.has_swap && self.evidence.capabilities.touch_limit)?;
        let least = self.settings.effective_min().max(self.backed());
        Some(limit.max(least))
    }

    /// What it has touched and still has: all that it holds, where that is not known.
    #[must_use]
    pub fn backed(&self) -> PageCount {
        self.evidence.backed.unwrap_or_else(|| self.held())
    }

    /// What is guaranteed to the VM and its process.
    #[must_use]
    pub fn promised(&self) -> PageCount {
        total([self.settings.effective_min(), self.overhead])
    }
}

impl Snapshot {
    /// What can be divided among the guests: the budget and what sharing saves, less what sharing
    /// needs, what is to stay free, and all overhead. What was promised stays there all the same.
    ///
    /// **Free memory is kept once, for whatever comes.** Guests may touch what they have left alone, or break what they share, or
    /// anything else may take memory; where the pages of all can go out of it, only the most of these is provided for:
    /// should all come at once, pages go out. What guests have left alone is free already. Where pages of some cannot go out,
    /// each is provided for, and nobody is given what others have left alone.
    #[must_use]
    pub fn memory(&self) -> PageCount {
        self.memory_with(self.saved)
    }

    /// The same if sharing saved so much.
    pub(crate) fn memory_with(&self, saved: PageCount) -> PageCount {
        let budget = self
            .budget
            .saturating_sub(total(self.vms.iter().map(|vm| vm.overhead)));
        let mins = total(self.vms.iter().map(|vm| vm.settings.effective_min()));
        let with_sharing = total([budget, saved]).saturating_sub(self.kept);
        let to_give = match self.all_can_go_out() {
            true => {
                let untouched = total(self.vms.iter().map(|vm| vm.evidence.untouched));
                let surprise = self.keep_free.max(self.breakable).max(untouched);
                total([with_sharing, self.breakable, untouched]).saturating_sub(surprise)
            }
            false => with_sharing.saturating_sub(self.keep_free),
        };
        to_give.max(budget.min(mins))
    }

    fn all_can_go_out(&self) -> bool {
        let mut running = self.vms.iter().filter(|vm| vm.stage == Stage::Running);
        running.all(|vm| vm.evidence.has_swap)
    }

    /// What no VM may touch without asking. None while VMs may touch more than there is.
    #[must_use]
    pub fn free(&self) -> PageCount {
        self.memory()
            .saturating_sub(total(self.vms.iter().map(VmSnapshot::exposure)))
    }

    /// What is guaranteed to all VMs and their processes.
    #[must_use]
    pub fn promised(&self) -> PageCount {
        total(self.vms.iter().map(VmSnapshot::promised))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;
    use proptest::prelude::*;

    fn running(ballooned: u64, granted: u64) -> VmSnapshot {
        VmSnapshot {
            ballooned: PageCount(ballooned),
            granted: PageCount(granted),
            stage: Stage::Running,
            ..generate::vm_of_size(0, 100)
        }
    }

    #[test]
    fn a_vm_is_exposed_to_what_it_holds_and_to_what_it_was_told_it_may_hold() {
        assert_eq!(running(30, 50).exposure(), PageCount(70));
        assert_eq!(running(80, 50).exposure(), PageCount(50));
    }

    #[test]
    fn a_waiting_vm_holds_nothing_but_its_overhead_is_kept_for_it() {
        let vm = VmSnapshot {
            overhead: PageCount(7),
            ..generate::vm_of_size(0, 100)
        };
        let snapshot = Snapshot {
            budget: PageCount(20),
            vms: vec![vm],
            ..Snapshot::default()
        };
        assert_eq!(snapshot.free(), PageCount(13));
    }

    #[test]
    fn what_sharing_saves_can_be_had_and_what_it_needs_cannot_but_mins_come_first() {
        let mut snapshot = Snapshot {
            budget: PageCount(200),
            saved: PageCount(50),
            kept: PageCount(10),
            vms: vec![running(0, 0)],
            ..Snapshot::default()
        };
        assert_eq!(snapshot.memory(), PageCount(240));
        snapshot.saved = PageCount(0);
        snapshot.kept = PageCount(150);
        assert_eq!(snapshot.memory(), PageCount(50));
        snapshot.vms[0].settings.min = PageCount(80);
        assert_eq!(snapshot.memory(), PageCount(80));
    }

    #[test]
    fn where_pages_can_go_out_free_memory_is_kept_once_for_whatever_comes() {
        let mut vm = running(0, 0);
        vm.evidence.has_swap = true;
        vm.evidence.untouched = PageCount(20);
        let mut snapshot = Snapshot {
            budget: PageCount(200),
            saved: PageCount(50),
            breakable: PageCount(25),
            keep_free: PageCount(30),
            vms: vec![vm],
            ..Snapshot::default()
        };
        assert_eq!(snapshot.memory(), PageCount(200 + 75 + 20 - 30));
        snapshot.vms[0].evidence.untouched = PageCount(40);
        assert_eq!(snapshot.memory(), PageCount(200 + 75), "that is free");
        snapshot.vms[0].evidence.has_swap = false;
        assert_eq!(snapshot.memory(), PageCount(200 + 50 - 30));
    }

    /// One recorded before anything but counts was known.
    #[test]
    fn an_old_recording_is_read_with_nothing_known() {
        let json = r#"{"budget": 100, "vms": [{"id": 1, "settings": {"size": 90, "min": 10, "max": 90,
            "shares": "normal"}, "overhead": 5, "ballooned": 40, "granted": 50, "pinned": null,
            "stage": "running"}]}"#;
        let snapshot: Snapshot = serde_json::from_str(json).unwrap();
        assert_eq!(snapshot.vms[0].evidence, Evidence::default());
        assert_eq!(snapshot.balloon, None);
        assert_eq!(crate::plan(&snapshot).steps[0].target, PageCount(90));
    }

    #[test]
    fn what_is_to_stay_free_is_not_given_unless_it_was_promised() {
        let mut snapshot = Snapshot {
            budget: PageCount(200),
            keep_free: PageCount(30),
            vms: vec![running(0, 0)],
            ..Snapshot::default()
        };
        assert_eq!(snapshot.memory(), PageCount(170));
        snapshot.budget = PageCount(100);
        snapshot.vms[0].settings.min = PageCount(90);
        assert_eq!(snapshot.memory(), PageCount(90));
    }

    proptest! {
        #[test]
        fn a_snapshot_can_be_recorded_and_replayed(snapshot in generate::informed_snapshot()) {
            let json = serde_json::to_string(&snapshot).unwrap();
            prop_assert_eq!(serde_json::from_str::<Snapshot>(&json).unwrap(), snapshot);
        }
    }
}
