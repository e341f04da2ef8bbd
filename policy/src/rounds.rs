//! Plays many rounds of host and guests: the plan is carried out, guests follow it at their own pace,
//! word of it reaches them late, and meanwhile VMs come and go and administrators change their minds.
//!
//! What must hold at every moment is that guests that keep to their grants cannot use more than the
//! budget; and once nobody changes anything, that everyone gets what they deserve.

use crate::generate::{part, settings, settings_of};
use crate::{
    Evidence, Snapshot, Stage, VmSettings, VmSnapshot, admit, admit_budget, admit_change, plan,
};
use page::{PageCount, VmId, total};
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;

/// What can happen between two plans, besides guests following the last one.
#[derive(Clone, Debug)]
enum Event {
    Come(VmSettings, PageCount),
    Go(Index),
    Set(Index, VmSettings),
    Pin(Index, Option<PageCount>),
    Budget(PageCount),
}

/// An event, and how far along each guest gets, in parts per thousand.
type Round = (Option<Event>, Vec<u64>);

fn event() -> impl Strategy<Value = Event> {
    let pages = || (0u64..20_000).prop_map(PageCount);
    let overhead = (0u64..300).prop_map(PageCount);
    let budget = (0u64..60_000).prop_map(PageCount);
    prop_oneof![
        3 => (settings(), overhead).prop_map(|(settings, overhead)| Event::Come(settings, overhead)),
        1 => any::<Index>().prop_map(Event::Go),
        2 => (any::<Index>(), settings()).prop_map(|(index, settings)| Event::Set(index, settings)),
        2 => (any::<Index>(), prop::option::of(pages())).prop_map(|(index, pin)| Event::Pin(index, pin)),
        1 => budget.prop_map(Event::Budget),
    ]
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let progress = prop::collection::vec(prop_oneof![Just(0), Just(1), Just(1000), 0u64..=1000], 8);
    prop::collection::vec((prop::option::weighted(0.7, event()), progress), 1..60)
}

/// The host as these tests see it.
struct Host {
    snapshot: Snapshot,
    /// The last grant sent to each VM. Until the guest has heard of it, it acts on any that it was sent
    /// since, so that the snapshot must say the highest of those.
    sent: BTreeMap<VmId, PageCount>,
    next_id: u32,
}

impl Host {
    fn empty(budget: PageCount) -> Self {
        let vms = Vec::new();
        Self {
            snapshot: Snapshot {
                budget,
                vms,
                ..Snapshot::default()
            },
            sent: BTreeMap::new(),
            next_id: 0,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Come(settings, overhead) => self.come(settings, overhead),
            Event::Go(index) => self.go(index),
            Event::Set(index, settings) => self.set(index, settings),
            Event::Pin(index, pin) => self.pin(index, pin),
            Event::Budget(budget) => self.set_budget(budget),
        }
    }

    fn come(&mut self, settings: VmSettings, overhead: PageCount) {
        if admit(&self.snapshot, &settings, overhead).is_err() {
            return;
        }
        self.snapshot.vms.push(VmSnapshot {
            id: VmId(self.next_id),
            overhead,
            ballooned: settings.size,
            granted: PageCount::ZERO,
            told: None,
            pinned: None,
            stage: Stage::Waiting,
            settings,
            evidence: Evidence::default(),
        });
        self.next_id += 1;
    }

    fn go(&mut self, index: Index) {
        let vms = &mut self.snapshot.vms;
        if !vms.is_empty() {
            vms.remove(index.index(vms.len()));
        }
    }

    /// A size cannot change, so the new settings are cut to the VM's.
    fn set(&mut self, index: Index, new: VmSettings) {
        let Some(vm) = self.any_vm(index) else { return };
        let size = vm.settings.size;
        let (min, max) = (new.min.min(size), new.max.min(size));
        let settings = VmSettings {
            size,
            min,
            max,
            ..new
        };
        let id = vm.id;
        if admit_change(&self.snapshot, id, &settings).is_ok() {
            self.vm(id).settings = settings;
        }
    }

    fn pin(&mut self, index: Index, pin: Option<PageCount>) {
        let Some(vm) = self.any_vm(index) else { return };
        let id = vm.id;
        self.vm(id).pinned = pin;
    }

    /// Not below what VMs may touch now: that case has its own test.
    fn set_budget(&mut self, budget: PageCount) {
        let in_use = self.may_be_used();
        if admit_budget(&self.snapshot, budget).is_ok() && in_use <= budget {
            self.snapshot.budget = budget;
        }
    }

    fn any_vm(&self, index: Index) -> Option<&VmSnapshot> {
        let vms = &self.snapshot.vms;
        (!vms.is_empty()).then(|| index.get(vms))
    }

    fn vm(&mut self, id: VmId) -> &mut VmSnapshot {
        let vms = &mut self.snapshot.vms;
        vms.iter_mut().find(|vm| vm.id == id).unwrap()
    }

    /// Carries out one plan.
    fn act(&mut self) {
        let plan = plan(&self.snapshot);
        for (vm, step) in self.snapshot.vms.iter_mut().zip(plan.steps) {
            self.sent.insert(vm.id, step.grant);
            vm.granted = vm.granted.max(step.grant);
            if vm.stage == Stage::Waiting && step.grant > PageCount::ZERO {
                vm.stage = Stage::Running;
                vm.ballooned = vm.settings.size - step.grant;
            }
        }
    }

    /// Each guest goes a part of the way to its grant: one with an odd part as if no word had reached
    /// it yet, to the highest grant it may know of.
    fn follow(&mut self, progress: &[u64]) {
        for (vm, parts) in self.snapshot.vms.iter_mut().zip(progress.iter().cycle()) {
            if vm.stage == Stage::Waiting {
                continue;
            }
            if parts.is_multiple_of(2) {
                vm.granted = self.sent[&vm.id];
            }
            let wanted = vm.settings.size - vm.granted;
            vm.ballooned = toward(vm.ballooned, wanted, *parts);
        }
    }

    fn of_running(&self, count: impl Fn(&VmSnapshot) -> PageCount) -> PageCount {
        let is_running = |vm: &&VmSnapshot| vm.stage == Stage::Running;
        let running = self.snapshot.vms.iter().filter(is_running);
        total(running.map(|vm| vm.overhead + count(vm)))
    }

    fn in_use(&self) -> PageCount {
        self.of_running(|vm| vm.settings.size - vm.ballooned)
    }

    fn may_be_used(&self) -> PageCount {
        self.of_running(|vm| vm.granted.max(vm.settings.size - vm.ballooned))
    }
}

/// From `now` toward `wanted` by parts per thousand of the way, at least a page if any.
fn toward(now: PageCount, wanted: PageCount, parts: u64) -> PageCount {
    let way = PageCount(now.0.abs_diff(wanted.0));
    let step = part(way, parts).max(PageCount(parts.min(way.0).min(1)));
    if now < wanted { now + step } else { now - step }
}

/// Lets guests follow until all is quiet, which takes few rounds as each goes half of its way.
fn settle(host: &mut Host) {
    for _ in 0..200 {
        host.act();
        host.follow(&[500]);
    }
}

proptest! {
    #[test]
    fn guests_that_keep_to_their_grants_never_use_more_than_the_budget(
        budget in 0u64..60_000, rounds in rounds()
    ) {
        let mut host = Host::empty(PageCount(budget));
        for (event, progress) in rounds {
            event.into_iter().for_each(|event| host.happen(event));
            host.act();
            prop_assert!(host.may_be_used() <= host.snapshot.budget);
            host.follow(&progress);
            prop_assert!(host.in_use() <= host.snapshot.budget);
        }
    }

    #[test]
    fn everyone_gets_what_they_deserve_once_nothing_changes(
        budget in 0u64..60_000, rounds in rounds()
    ) {
        let mut host = Host::empty(PageCount(budget));
        for (event, progress) in rounds {
            event.into_iter().for_each(|event| host.happen(event));
            host.act();
            host.follow(&progress);
        }
        settle(&mut host);
        for (vm, target) in host.snapshot.vms.iter().zip(crate::targets(&host.snapshot)) {
            prop_assert_eq!(vm.granted, target.pages);
            prop_assert_eq!(vm.held(), target.pages);
        }
    }

    /// A budget that falls below what is in use cannot be kept at once, but no plan makes it worse.
    #[test]
    fn what_is_used_beyond_a_lowered_budget_only_falls(
        budget in 0u64..60_000, lowered in 0u64..60_000, before in rounds(), after in rounds()
    ) {
        let mut host = Host::empty(PageCount(budget));
        for (event, progress) in before {
            event.into_iter().for_each(|event| host.happen(event));
            host.act();
            host.follow(&progress);
        }
        host.snapshot.budget = PageCount(lowered);
        for (_, progress) in after {
            let used_before = host.may_be_used();
            host.act();
            host.follow(&progress);
            prop_assert!(host.may_be_used() <= used_before.max(host.snapshot.budget));
        }
    }

    /// A guest that never gives anything up keeps others waiting, and harms nobody otherwise.
    #[test]
    fn a_guest_that_ignores_its_balloon_does_not_break_the_budget(
        budget in 20_000u64..60_000, sizes in prop::collection::vec(settings_of(PageCount(12_000)), 1..6), rounds in rounds()
    ) {
        let mut host = Host::empty(PageCount(budget));
        sizes.into_iter().for_each(|settings| host.come(settings, PageCount(100)));
        settle(&mut host);
        for (event, mut progress) in rounds {
            event.into_iter().for_each(|event| host.happen(event));
            host.act();
            progress[0] = 0;
            host.follow(&progress);
            prop_assert!(host.may_be_used() <= host.snapshot.budget);
        }
    }
}
