//! When targets change: at once for what matters, else every [`REBALANCE_INTERVAL`], or whatever interval is set.
//!
//! Samples are noisy. Were each new figure to move every VM's target, memory would wander between VMs for
//! nothing, at the price of ballooning it. So the active sets that decide are held between rebalances.
//! What administrators say, and what else a snapshot holds, acts at once as ever.

use crate::{ActiveSet, MemoryState, REBALANCE_INTERVAL, Snapshot, VmSnapshot};
use page::{PageCount, VmId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A sample that changes by less than this part of the VM's size is no jump, however sure it is.
const JUMP_DIVISOR: u64 = 32;

/// Why targets change now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Memory became shorter or longer.
    State {
        /// What it was at the last rebalance.
        from: MemoryState,
        /// What it is now.
        to: MemoryState,
    },
    /// A VM came.
    Admission(VmId),
    /// A VM went.
    Departure(VmId),
    /// A VM's active set is surely not what it was at the last rebalance.
    Sample(VmId),
    /// The time was up.
    Interval,
}

/// What was known at the last rebalance. The host keeps it; the first one is due at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebalance {
    /// How long targets hold if nothing happens.
    pub interval: Duration,
    /// When it was, on the host's clock.
    at: Option<Duration>,
    state: MemoryState,
    active: BTreeMap<VmId, Option<ActiveSet>>,
}

impl Default for Rebalance {
    fn default() -> Self {
        Self::every(REBALANCE_INTERVAL)
    }
}

impl Rebalance {
    /// With targets that hold for so long if nothing happens.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            at: None,
            state: MemoryState::default(),
            active: BTreeMap::new(),
        }
    }

    /// Why targets should change now, if they should.
    #[must_use]
    pub fn due(&self, snapshot: &Snapshot, now: Duration) -> Option<Reason> {
        let (from, to) = (self.state, snapshot.state);
        if from != to {
            return Some(Reason::State { from, to });
        }
        self.membership(snapshot)
            .or_else(|| self.jump(snapshot))
            .or_else(|| self.is_over(now).then_some(Reason::Interval))
    }

    /// Takes note of new active sets if targets should change now, and puts those that decide into the
    /// snapshot. Comes last before the plan.
    pub fn update(&mut self, snapshot: &mut Snapshot, now: Duration) -> Option<Reason> {
        let reason = self.due(snapshot, now);
        if reason.is_some() {
            self.take(snapshot, now);
        }
        for vm in &mut snapshot.vms {
            vm.evidence.active = self.active.get(&vm.id).copied().flatten();
        }
        reason
    }

    fn take(&mut self, snapshot: &Snapshot, now: Duration) {
        let active = |vm: &VmSnapshot| (vm.id, vm.evidence.active);
        self.at = Some(now);
        self.state = snapshot.state;
        self.active = snapshot.vms.iter().map(active).collect();
    }

    fn membership(&self, snapshot: &Snapshot) -> Option<Reason> {
        let mut vms = snapshot.vms.iter().map(|vm| vm.id);
        if let Some(new) = vms.find(|id| !self.active.contains_key(id)) {
            return Some(Reason::Admission(new));
        }
        let there: BTreeSet<VmId> = snapshot.vms.iter().map(|vm| vm.id).collect();
        let gone = self.active.keys().find(|id| !there.contains(id));
        gone.map(|&id| Reason::Departure(id))
    }

    fn jump(&self, snapshot: &Snapshot) -> Option<Reason> {
        let jumped = |vm: &&VmSnapshot| {
            let before = self.active.get(&vm.id).copied().flatten();
            has_jumped(before, vm.evidence.active, vm.settings.effective_size())
        };
        let vm = snapshot.vms.iter().find(jumped)?;
        Some(Reason::Sample(vm.id))
    }

    /// A clock that went back is one that cannot be waited for.
    fn is_over(&self, now: Duration) -> bool {
        self.at
            .and_then(|at| now.checked_sub(at))
            .is_none_or(|passed| passed >= self.interval)
    }
}

/// Whether the intervals have nothing in common, and the figures are well apart.
fn has_jumped(before: Option<ActiveSet>, now: Option<ActiveSet>, size: PageCount) -> bool {
    let (Some(before), Some(now)) = (before, now) else {
        return before.is_some() != now.is_some();
    };
    let is_apart = now.low > before.high || now.high < before.low;
    let change = now.likely.0.abs_diff(before.likely.0);
    let much = size.0 / JUMP_DIVISOR;
    (is_apart && change > much) || has_risen_on(&before, &now, much)
}

/// Whether it is surely more than was likely then, and more is acted on. A sample that is not over says
/// nothing of how much more it may be, so nothing after it lies apart from it.
fn has_risen_on(before: &ActiveSet, now: &ActiveSet, much: u64) -> bool {
    now.low > before.likely && now.pages.0 > before.pages.0 + much
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;

    const START: Duration = Duration::from_secs(100);

    fn active(pages: u64) -> Option<ActiveSet> {
        Some(ActiveSet {
            pages: PageCount(pages),
            likely: PageCount(pages),
            low: PageCount(pages.saturating_sub(50)),
            high: PageCount(pages + 50),
            held: PageCount(1000),
            ..ActiveSet::default()
        })
    }

    fn snapshot() -> Snapshot {
        let mut vms = vec![generate::vm_of_size(0, 1000), generate::vm_of_size(1, 1000)];
        vms[0].evidence.active = active(500);
        Snapshot {
            budget: PageCount(1500),
            vms,
            ..Snapshot::default()
        }
    }

    fn settled() -> (Rebalance, Snapshot) {
        let (mut rebalance, mut snapshot) = (Rebalance::default(), snapshot());
        let reason = rebalance.update(&mut snapshot, START);
        assert_eq!(reason, Some(Reason::Admission(VmId(0))));
        (rebalance, snapshot)
    }

    #[test]
    fn targets_hold_for_a_quarter_of_a_minute() {
        let (rebalance, snapshot) = settled();
        let due = |ms| rebalance.due(&snapshot, START + Duration::from_millis(ms));
        assert_eq!(due(0), None);
        assert_eq!(due(14_999), None);
        assert_eq!(due(15_000), Some(Reason::Interval));
    }

    #[test]
    fn another_interval_is_another_hold() {
        let (mut rebalance, snapshot) = settled();
        rebalance.interval = Duration::from_secs(2);
        let due = |ms| rebalance.due(&snapshot, START + Duration::from_millis(ms));
        assert_eq!(due(1999), None);
        assert_eq!(due(2000), Some(Reason::Interval));
    }

    #[test]
    fn a_new_figure_waits_for_the_next_rebalance() {
        let (mut rebalance, mut snapshot) = settled();
        snapshot.vms[0].evidence.active = active(540);
        assert_eq!(rebalance.update(&mut snapshot, START), None);
        assert_eq!(snapshot.vms[0].evidence.active, active(500));
        snapshot.vms[0].evidence.active = active(540);
        rebalance.update(&mut snapshot, START + REBALANCE_INTERVAL);
        assert_eq!(snapshot.vms[0].evidence.active, active(540));
    }

    #[test]
    fn what_matters_does_not_wait() {
        let (rebalance, snapshot) = settled();
        let due = |change: fn(&mut Snapshot)| {
            let mut changed = snapshot.clone();
            change(&mut changed);
            rebalance.due(&changed, START)
        };
        let (from, to) = (MemoryState::High, MemoryState::Soft);
        assert_eq!(
            due(|snapshot| snapshot.state = MemoryState::Soft),
            Some(Reason::State { from, to })
        );
        let admitted = due(|snapshot| snapshot.vms.push(generate::vm_of_size(7, 10)));
        assert_eq!(admitted, Some(Reason::Admission(VmId(7))));
        let gone = due(|snapshot| snapshot.vms.truncate(1));
        assert_eq!(gone, Some(Reason::Departure(VmId(1))));
        let jumped = due(|snapshot| snapshot.vms[0].evidence.active = active(700));
        assert_eq!(jumped, Some(Reason::Sample(VmId(0))));
        let first_known = due(|snapshot| snapshot.vms[1].evidence.active = active(1));
        assert_eq!(first_known, Some(Reason::Sample(VmId(1))));
    }

    /// Of a guest that woke, the first that is known is how much it touched in half a period.
    #[test]
    fn the_end_of_a_sample_that_contradicted_is_not_waited_for() {
        let (mut rebalance, mut snapshot) = settled();
        let half = ActiveSet {
            high: PageCount(1000),
            ..active(700).unwrap()
        };
        snapshot.vms[0].evidence.active = Some(half);
        let reason = rebalance.update(&mut snapshot, START);
        assert_eq!(reason, Some(Reason::Sample(VmId(0))));
        snapshot.vms[0].evidence.active = active(740);
        assert_eq!(rebalance.due(&snapshot, START), None, "not surely more");
        snapshot.vms[0].evidence.active = active(950);
        let reason = rebalance.due(&snapshot, START);
        assert_eq!(reason, Some(Reason::Sample(VmId(0))));
    }

    #[test]
    fn a_clock_that_goes_back_does_not_stop_rebalancing() {
        let (rebalance, snapshot) = settled();
        assert_eq!(
            rebalance.due(&snapshot, Duration::ZERO),
            Some(Reason::Interval)
        );
    }
}
