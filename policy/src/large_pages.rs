//! Which large pages are made, and whether they are broken for what sharing would save of them.
//!
//! A large page serves its guest well and the host badly: it holds 512 pages whatever the guest needs of them,
//! and nothing of it can be shared. So while there is memory for all that VMs may want, all that they may touch is
//! made large, and nothing is broken. Once somebody gets less than it may have, memory is worth more: only what is
//! there anyway is made large, and what sharing saves is given to those who lack it. In the shorter memory
//! states nothing is made at all.
//!
//! ESX breaks large pages in state clear (ESX.md, "Large pages"). There a state falls where memory
//! runs out; here targets keep it high by taking from VMs, so what they take counts too. **Cold ones are broken
//! first, and others only as long as VMs lack more than sharing saves**: what a guest does not use costs it nothing.

use crate::{MemoryState, Plan, Snapshot, VmSettings};
use page::{PageCount, total};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which large pages VMs make of their memory.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LargePages {
    /// None.
    #[default]
    Off,
    /// Those of which all pages are there: that takes no memory.
    Full,
    /// Also those of which some are there, as long as the guest may touch the others.
    Fill,
}

/// Which large pages are broken to share what is equal in them.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BrokenBlocks {
    /// None.
    None,
    /// Those that the guest is not known to use: the last sample in which one was watched found it untouched, or none has
    /// yet.
    Cold,
    /// Those first, and then the others.
    ColdFirst,
    /// All, in any order.
    #[default]
    All,
}

impl Snapshot {
    /// What VMs may have by their settings and could not have at once. What sharing saves does not count: it is saved
    /// because pages are not large, and guests may break it at any moment.
    #[must_use]
    pub fn lacking(&self) -> PageCount {
        let wanted = total(self.vms.iter().map(|vm| vm.settings.effective_max()));
        wanted.saturating_sub(self.memory_with(PageCount::ZERO))
    }

    pub(crate) fn large_pages(&self) -> LargePages {
        match self.state {
            _ if self.small_pages_only => LargePages::Off,
            MemoryState::High if self.lacking() == PageCount::ZERO => LargePages::Fill,
            MemoryState::High | MemoryState::Clear => LargePages::Full,
            MemoryState::Soft | MemoryState::Hard | MemoryState::Low => LargePages::Off,
        }
    }

    pub(crate) fn broken_blocks(&self) -> BrokenBlocks {
        let lacking = self.lacking();
        match (self.large_pages(), self.state) {
            (LargePages::Fill, _) => BrokenBlocks::None,
            (LargePages::Full, MemoryState::High) if self.saved >= lacking => BrokenBlocks::Cold,
            (LargePages::Full, _) => BrokenBlocks::ColdFirst,
            (LargePages::Off, _) => BrokenBlocks::All,
        }
    }
}

impl Plan {
    /// Which a VM with these settings makes.
    #[must_use]
    pub fn large_pages_of(&self, settings: &VmSettings) -> LargePages {
        match settings.large_pages {
            true => self.large_pages,
            false => LargePages::Off,
        }
    }

    /// Which large pages of a VM with these settings are broken.
    #[must_use]
    pub fn broken_blocks_of(&self, settings: &VmSettings) -> BrokenBlocks {
        match settings.large_pages {
            true => self.broken_blocks,
            false => BrokenBlocks::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Stage, VmSnapshot, generate, plan};

    fn snapshot(budget: u64, sizes: &[u64]) -> Snapshot {
        let vm = |(id, &size): (u32, &u64)| VmSnapshot {
            stage: Stage::Running,
            ..generate::vm_of_size(id, size)
        };
        Snapshot {
            budget: PageCount(budget),
            vms: (0..).zip(sizes).map(vm).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn all_that_may_be_touched_is_large_while_there_is_enough_for_all() {
        assert_eq!(
            plan(&snapshot(300, &[100, 200])).large_pages,
            LargePages::Fill
        );
        let short = snapshot(299, &[100, 200]);
        assert_eq!(short.lacking(), PageCount(1));
        assert_eq!(plan(&short).large_pages, LargePages::Full);
        let mut shared = short.clone();
        shared.saved = PageCount(100);
        assert_eq!(plan(&shared).large_pages, LargePages::Full);
        let mut limited = short;
        limited.vms[0].settings.max = PageCount(99);
        assert_eq!(
            plan(&limited).large_pages,
            LargePages::Fill,
            "it may not have more"
        );
    }

    #[test]
    fn who_wants_none_gets_none() {
        let mut snapshot = snapshot(300, &[100, 200]);
        snapshot.vms[0].settings.large_pages = false;
        let by_vm = |snapshot: &Snapshot| {
            let plan = plan(snapshot);
            let of = |vm: &VmSnapshot| plan.large_pages_of(&vm.settings);
            snapshot.vms.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(by_vm(&snapshot), [LargePages::Off, LargePages::Fill]);
        snapshot.small_pages_only = true;
        assert_eq!(by_vm(&snapshot), [LargePages::Off; 2]);
    }

    #[test]
    fn what_is_to_stay_free_or_is_needed_for_vms_themselves_is_not_there_for_all() {
        let mut kept = snapshot(300, &[100, 200]);
        kept.keep_free = PageCount(1);
        assert_eq!(kept.large_pages(), LargePages::Full);
        kept.keep_free = PageCount::ZERO;
        kept.vms[1].overhead = PageCount(1);
        assert_eq!(kept.large_pages(), LargePages::Full);
    }

    #[test]
    fn the_shorter_memory_is_the_fewer_are_made() {
        let by_state = MemoryState::ALL.map(|state| {
            let snapshot = Snapshot {
                state,
                ..snapshot(300, &[100])
            };
            snapshot.large_pages()
        });
        use LargePages::{Fill, Full, Off};
        assert_eq!(by_state, [Fill, Full, Off, Off, Off]);
    }

    #[test]
    fn what_is_used_stays_large_as_long_as_sharing_saves_what_vms_lack() {
        let mut snapshot = snapshot(300, &[100, 200]);
        let broken = |snapshot: &Snapshot| {
            let plan = plan(snapshot);
            let of = |vm: &VmSnapshot| plan.broken_blocks_of(&vm.settings);
            snapshot.vms.iter().map(of).collect::<Vec<_>>()
        };
        use BrokenBlocks::{All, Cold, ColdFirst, None};
        assert_eq!(broken(&snapshot), [None, None], "nobody lacks anything");
        snapshot.budget = PageCount(280);
        assert_eq!(broken(&snapshot), [ColdFirst, ColdFirst]);
        snapshot.saved = PageCount(19);
        assert_eq!(broken(&snapshot), [ColdFirst, ColdFirst]);
        snapshot.saved = PageCount(20);
        assert_eq!(broken(&snapshot), [Cold, Cold]);
        snapshot.state = MemoryState::Clear;
        assert_eq!(broken(&snapshot), [ColdFirst, ColdFirst], "it is short now");
        snapshot.state = MemoryState::Soft;
        assert_eq!(broken(&snapshot), [All, All]);
        snapshot.state = MemoryState::High;
        snapshot.vms[0].settings.large_pages = false;
        assert_eq!(broken(&snapshot), [All, Cold]);
    }
}
