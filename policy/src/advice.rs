//! What would be done to VMs that are looked at and not changed, and what that would have come to.
//!
//! What these VMs do next says nothing of what a plan would have made of them. So their balloons are *supposed* to follow: a
//! guest that is asked to hold less gives up what it says is available, and nothing else. What it would hold then is what the
//! next plan goes by, and its figures are read as if its balloon had taken that from what is free. So the same plans are made
//! round by round as for guests that obey.
//!
//! What cannot be seen is what a guest would have read again of the files that it had to forget.

use crate::{GuestFigures, Snapshot};
use page::{PageCount, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A balloon that is supposed to do what it was never told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SupposedBalloon {
    held: PageCount,
}

impl SupposedBalloon {
    /// One that leaves its guest so much.
    #[must_use]
    pub fn new(held: PageCount) -> Self {
        Self { held }
    }

    /// What its guest would hold.
    #[must_use]
    pub fn held(self) -> PageCount {
        self.held
    }

    /// Its guest is to hold so much, and needs as much by its own word. It gives nothing up of which it has not said that
    /// it can.
    #[must_use]
    pub fn asked(self, hold: PageCount, needs: Option<PageCount>) -> Self {
        let least = needs.map_or(self.held, |needs| needs.min(self.held));
        Self {
            held: hold.max(least),
        }
    }
}

/// What is supposed of a VM that is looked at and not changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Supposed {
    /// What it uses by the kernel's count and would have given up.
    pub saved: PageCount,
    /// What its guest cannot do without, by its word.
    pub needs: Option<PageCount>,
    /// Pages that its faults have brought since it is looked at, by its word.
    pub faulted: PageCount,
}

/// What a guest cannot do without, by figures from when it held that.
#[must_use]
pub fn needs(figures: &GuestFigures) -> Option<PageCount> {
    let available = figures.available.or(figures.free)?;
    Some(figures.held.saturating_sub(available))
}

/// What plans for VMs that were looked at would have come to, over the time that they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Savings {
    /// When it was looked first and last, in milliseconds since the host's start.
    span: Option<(u64, u64)>,
    vms: BTreeMap<VmId, VmSavings>,
}

/// The same of one VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmSavings {
    saved_page_ms: u128,
    used_page_ms: u128,
    squeezed_ms: u64,
    /// How often it would have come to hold less than it needs by its guest's word.
    pub squeezes: u64,
    /// Pages that its faults brought meanwhile.
    pub faulted: PageCount,
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Last {
    saved: PageCount,
    used: PageCount,
    is_squeezed: bool,
    faulted: PageCount,
}

impl VmSavings {
    /// Page-milliseconds as MiB-seconds.
    fn mebibyte_seconds(page_ms: u128) -> u64 {
        let each = u128::from(PageCount::from_mebibytes(1).0) * 1000;
        u64::try_from(page_ms / each).unwrap_or(u64::MAX)
    }

    /// What would have been saved, times how long: in MiB-seconds.
    #[must_use]
    pub fn saved_mib_s(&self) -> u64 {
        Self::mebibyte_seconds(self.saved_page_ms)
    }

    /// What its guest used, times how long: in MiB-seconds.
    #[must_use]
    pub fn used_mib_s(&self) -> u64 {
        Self::mebibyte_seconds(self.used_page_ms)
    }

    /// How long it would have held less than it needs by its guest's word.
    #[must_use]
    pub fn squeezed_ms(&self) -> u64 {
        self.squeezed_ms
    }

    fn pass(&mut self, ms: u64) {
        let Some(last) = self.last else { return };
        let times = |pages: PageCount| u128::from(pages.0) * u128::from(ms);
        let add = |sum: &mut u128, more| *sum = sum.saturating_add(more);
        add(&mut self.saved_page_ms, times(last.saved));
        add(&mut self.used_page_ms, times(last.used));
        if last.is_squeezed {
            self.squeezed_ms = self.squeezed_ms.saturating_add(ms);
        }
    }

    fn see(&mut self, now: Last) {
        let before = self.last.replace(now);
        let was_squeezed = before.is_some_and(|last| last.is_squeezed);
        self.squeezes += u64::from(now.is_squeezed && !was_squeezed);
        // Its host began anew where that has fallen.
        let faulted = before.map_or(PageCount::ZERO, |last| {
            now.faulted.saturating_sub(last.faulted)
        });
        self.faulted = PageCount(self.faulted.0.saturating_add(faulted.0));
    }
}

impl Savings {
    /// Takes in how things stood at some time. They are taken to have stood so until the next.
    pub fn see(&mut self, at_ms: u64, snapshot: &Snapshot) {
        let (first, last) = self.span.unwrap_or((at_ms, at_ms));
        let passed = at_ms.saturating_sub(last);
        self.vms.values_mut().for_each(|vm| vm.pass(passed));
        // One that is not there any more, or not looked at, saves nothing.
        let seen = |id: &VmId| snapshot.vms.iter().any(|vm| vm.id == *id);
        let gone = self.vms.iter_mut().filter(|(id, _)| !seen(id));
        gone.for_each(|(_, vm)| vm.last = None);
        // A host that began anew counts from zero: its time goes on.
        let first = if at_ms < last {
            at_ms.saturating_sub(last - first)
        } else {
            first
        };
        self.span = Some((first, at_ms));
        for vm in &snapshot.vms {
            if let Some(supposed) = vm.evidence.supposed {
                let used = vm.backed().0.saturating_add(supposed.saved.0);
                self.vms.entry(vm.id).or_default().see(Last {
                    saved: supposed.saved,
                    used: PageCount(used),
                    is_squeezed: supposed.needs > Some(vm.held()),
                    faulted: supposed.faulted,
                });
            }
        }
    }

    /// How long, in milliseconds.
    #[must_use]
    pub fn ms(&self) -> u64 {
        self.span.map_or(0, |(first, last)| last - first)
    }

    /// Each VM that was looked at.
    pub fn vms(&self) -> impl Iterator<Item = (VmId, &VmSavings)> {
        self.vms.iter().map(|(id, vm)| (*id, vm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Stage, generate};
    use proptest::prelude::*;

    fn looked_at(held: u64, supposed: Supposed) -> Snapshot {
        let mut vm = generate::vm_of_size(1, 1000 * 256);
        vm.stage = Stage::Running;
        vm.ballooned = vm.settings.size - PageCount::from_mebibytes(held);
        vm.evidence.backed = Some(PageCount::from_mebibytes(100));
        vm.evidence.supposed = Some(supposed);
        Snapshot {
            vms: vec![vm],
            ..Snapshot::default()
        }
    }

    fn supposed(saved: u64, needs: u64, faulted: u64) -> Supposed {
        Supposed {
            saved: PageCount::from_mebibytes(saved),
            needs: Some(PageCount::from_mebibytes(needs)),
            faulted: PageCount(faulted),
        }
    }

    #[test]
    fn what_was_saved_is_counted_for_as_long_as_it_was() {
        let mut savings = Savings::default();
        savings.see(1000, &looked_at(500, supposed(200, 300, 7)));
        savings.see(3000, &looked_at(200, supposed(400, 300, 9)));
        savings.see(3500, &looked_at(200, supposed(0, 300, 9)));
        savings.see(9500, &looked_at(500, supposed(0, 300, 19)));
        let (_, vm) = savings.vms().next().unwrap();
        assert_eq!(savings.ms(), 8500);
        assert_eq!(vm.saved_mib_s(), 2 * 200 + 400 / 2);
        assert_eq!(vm.used_mib_s(), 2 * 300 + 500 / 2 + 6 * 100);
        assert_eq!((vm.squeezes, vm.squeezed_ms()), (1, 6500));
        assert_eq!(vm.faulted, PageCount(12));
    }

    #[test]
    fn a_vm_that_is_gone_saves_nothing_and_a_host_that_began_anew_loses_no_time() {
        let mut savings = Savings::default();
        savings.see(0, &looked_at(500, supposed(200, 0, 7)));
        savings.see(1000, &Snapshot::default());
        savings.see(5000, &looked_at(500, supposed(100, 0, 2)));
        savings.see(100, &looked_at(500, supposed(100, 0, 3)));
        savings.see(1100, &looked_at(500, supposed(100, 0, 3)));
        let (_, vm) = savings.vms().next().unwrap();
        assert_eq!(vm.saved_mib_s(), 200 + 100);
        assert_eq!(vm.faulted, PageCount(1));
    }

    #[test]
    fn figures_that_say_nothing_of_its_memory_say_no_need() {
        assert_eq!(needs(&GuestFigures::default()), None);
    }

    proptest! {
        /// Whoever is asked holds no more than is asked or was held, and gives up nothing that is needed and was there.
        #[test]
        fn a_guest_gives_up_what_it_can_and_no_more(
            held in 0u64..2000, asks in prop::collection::vec((0u64..2000, prop::option::of(0u64..2000)), 0..20)
        ) {
            let mut balloon = SupposedBalloon::new(PageCount(held));
            for (hold, needs) in asks {
                let (before, hold) = (balloon.held(), PageCount(hold));
                let needs = needs.map(PageCount);
                balloon = balloon.asked(hold, needs);
                let now = balloon.held();
                prop_assert!(now >= hold && now <= hold.max(before));
                prop_assert!(now >= before || Some(now) >= needs && needs.is_some());
                prop_assert_eq!(balloon.asked(hold, needs), balloon, "once is enough");
            }
        }

        #[test]
        fn senseless_snapshots_do_not_panic(
            seen in prop::collection::vec((any::<u64>(), generate::senseless_snapshot(), any::<[u64; 3]>()), 0..6)
        ) {
            let mut savings = Savings::default();
            for (at_ms, mut snapshot, [saved, needs, faulted]) in seen {
                for vm in &mut snapshot.vms {
                    vm.evidence.supposed = Some(Supposed {
                        saved: PageCount(saved),
                        needs: Some(PageCount(needs)),
                        faulted: PageCount(faulted),
                    });
                }
                savings.see(at_ms, &snapshot);
            }
            for (_, vm) in savings.vms() {
                prop_assert!(vm.saved_mib_s() <= vm.used_mib_s());
            }
        }

        /// It is looked at, and that is all: no plan is another for it.
        #[test]
        fn what_is_supposed_changes_no_plan(snapshot in generate::informed_snapshot(), saved: u64, needs: Option<u64>) {
            let mut looked_at = snapshot.clone();
            for vm in &mut looked_at.vms {
                vm.evidence.supposed = Some(Supposed {
                    saved: PageCount(saved),
                    needs: needs.map(PageCount),
                    faulted: PageCount(saved),
                });
            }
            prop_assert_eq!(crate::plan(&looked_at), crate::plan(&snapshot));
        }
    }
}
