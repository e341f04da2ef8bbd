//! What a simulation says of the rules that decided, in a few figures that mean the same under all rules.
//!
//! A guest is *busy* while it works on at least a quarter of its size. It *wakes* when it begins to work on more than before;
//! its start is no wake. It is *innocent* from a minute after its start, or after it began to work on less, until it
//! wakes: what it then has to wait for is none of its own doing.

use super::guest::{FULL, Guest};
use super::host_swap::Flows;
use super::scenario::VmModel;
use page::PageCount;
use serde::{Deserialize, Serialize};

/// For so long a guest that works on less is busy with that itself.
const SETTLING_S: u32 = 60;
/// The part of what it needs that a guest which wakes must have in memory for its wake to be answered.
const ANSWERED_PERCENT: u64 = 90;

/// What came of it, from [`measured_from_s`](super::Scenario::measured_from_s) on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How fast busy guests worked on average, in thousandths of full speed. None if none was busy.
    pub busy_throughput_permille: Option<u64>,
    /// The same of innocent guests that had something to do.
    pub innocent_throughput_permille: Option<u64>,
    /// How long each wake took until the guest had 90 % of what it then needed in memory, in seconds, in order of time.
    /// None for one whose guest did something else, ended, or was still waiting at the end.
    pub reactions_s: Vec<Option<u32>>,
    /// Pages of innocent guests that the host swapped.
    pub innocent_swapped: PageCount,
    /// Pages that innocent guests had to wait for, from the host's swap or their own disk.
    pub innocent_waited_for: PageCount,
    /// Most pages in the host's swap at any moment.
    pub most_swapped: PageCount,
    /// What of the host's memory was in use on average.
    pub used: PageCount,
}

impl Outcome {
    /// Wakes, and of them those that were answered.
    #[must_use]
    pub fn wakes(&self) -> (usize, usize) {
        let answered = self.reactions_s.iter().flatten().count();
        (self.reactions_s.len(), answered)
    }

    /// The middle one of all reactions, if that was one.
    #[must_use]
    pub fn median_reaction_s(&self) -> Option<u32> {
        let mut sorted = self.reactions_s.clone();
        // What never came is later than all that did.
        sorted.sort_by_key(|reaction| reaction.unwrap_or(u32::MAX));
        sorted.get(sorted.len() / 2).copied().flatten()
    }

    /// The slowest of all reactions, if all came.
    #[must_use]
    pub fn slowest_reaction_s(&self) -> Option<u32> {
        let all: Option<Vec<u32>> = self.reactions_s.iter().copied().collect();
        all?.into_iter().max()
    }
}

/// An average in the making.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    sum: u64,
    count: u64,
}

impl Average {
    fn add(&mut self, value: u64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(self) -> Option<u64> {
        self.sum.checked_div(self.count)
    }
}

/// Adds up what happens, second by second. What guests do is followed from their start on, also while nothing counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    counts: bool,
    busy: Average,
    innocent: Average,
    used: Average,
    outcome: Outcome,
}

/// What a guest's load has done, and how its wakes are answered.
#[derive(Clone, Debug, Default)]
pub(super) struct LoadWatch {
    /// Which of its phases it is in, from 1; 0 before the first. None until it was seen.
    phase: Option<usize>,
    since_s: u32,
    has_woken: bool,
    /// The wake that waits for its answer.
    wake: Option<Wake>,
    before: Flows,
}

#[derive(Clone, Copy, Debug)]
struct Wake {
    /// Where its reaction is to be noted.
    index: usize,
    at_s: u32,
}

impl Tally {
    /// A second of the host begins, which counts or does not.
    pub(super) fn host(&mut self, counts: bool, used: PageCount, swapped: PageCount) {
        self.counts = counts;
        if !counts {
            return;
        }
        self.used.add(used.0);
        self.outcome.most_swapped = self.outcome.most_swapped.max(swapped);
    }

    /// A second of a guest that has run for so long.
    pub(super) fn guest(&mut self, watch: &mut LoadWatch, vm: &VmModel, age_s: u32, guest: &Guest) {
        let phase = vm.phases.partition_point(|phase| phase.at_s <= age_s);
        if watch.phase != Some(phase) {
            watch.change(vm, phase, age_s);
            let is_wake = watch.has_woken;
            watch.wake = (is_wake && self.counts).then(|| self.wake(age_s));
        }
        if let Some(wake) = watch.wake
            && guest.here().0 * 100 >= guest.wanted().0 * ANSWERED_PERCENT
        {
            self.outcome.reactions_s[wake.index] = Some(age_s - wake.at_s);
            watch.wake = None;
        }
        self.speed(watch, age_s, guest);
    }

    fn wake(&mut self, at_s: u32) -> Wake {
        self.outcome.reactions_s.push(None);
        let index = self.outcome.reactions_s.len() - 1;
        Wake { index, at_s }
    }

    fn speed(&mut self, watch: &mut LoadWatch, age_s: u32, guest: &Guest) {
        let (before, now) = (watch.before, guest.swapped.flows);
        watch.before = now;
        if !self.counts {
            return;
        }
        let throughput = guest.throughput().min(FULL);
        if guest.is_busy() {
            self.busy.add(throughput);
        }
        if !watch.is_innocent(age_s) {
            return;
        }
        if guest.wanted() > PageCount::ZERO {
            self.innocent.add(throughput);
        }
        let waited_for = now.back - before.back + now.refaulted - before.refaulted;
        self.outcome.innocent_waited_for += PageCount(waited_for);
        self.outcome.innocent_swapped += PageCount(now.out - before.out);
    }

    pub(super) fn outcome(self) -> Outcome {
        Outcome {
            busy_throughput_permille: self.busy.value(),
            innocent_throughput_permille: self.innocent.value(),
            used: PageCount(self.used.value().unwrap_or(0)),
            ..self.outcome
        }
    }
}

impl LoadWatch {
    fn change(&mut self, vm: &VmModel, phase: usize, age_s: u32) {
        let working_set = |phase: usize| {
            let phase = phase.checked_sub(1).and_then(|index| vm.phases.get(index));
            phase.map_or(0, |phase| phase.working_set_mib)
        };
        let before = self.phase.map(working_set);
        self.has_woken = before.is_some_and(|before| working_set(phase) > before);
        self.phase = Some(phase);
        self.since_s = age_s;
    }

    fn is_innocent(&self, age_s: u32) -> bool {
        !self.has_woken && age_s - self.since_s >= SETTLING_S
    }
}
