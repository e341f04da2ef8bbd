//! A guest as a model: what it touches, what it holds, what its sample shows, and how fast it gets on.
//!
//! It touches every page of its working set equally often. What it has touched once is backed until its
//! balloon takes it; the balloon takes what was never touched first, then what is not used, then the
//! working set. Where the working set does not fit, the guest works on as much as fits and fetches the
//! rest from its disk, again and again: its throughput falls with the part of touches that miss. A page that
//! the host has swapped is missed once, and is there then ([`host_swap`](super::host_swap)).

use super::host_swap::{FAULT_US, FaultSpeed, Parts, Swapped};
use super::scenario::{Driver, Leaves, Phase, VmModel};
use crate::{ActiveSet, GuestFigures, Population, Sample, TouchLimit, VmSettings, WorkingSet};
use page::{PageCount, Random};

/// What a guest's kernel takes, touched at the start and hardly again.
pub(super) const KERNEL: PageCount = PageCount::from_mebibytes(16);
/// What a balloon can take in a second.
const BALLOON_PER_S: PageCount = PageCount::from_mebibytes(512);
/// How much longer a touch takes that misses.
pub(super) const MISS_COST: u64 = 50;
/// Full throughput.
pub(super) const FULL: u64 = 1000;

/// The sample of the current period.
#[derive(Clone, Debug, Default)]
struct OpenSample {
    /// Where the pages lie that were not touched yet: below the size of the working set, in it.
    untouched: Vec<u64>,
    touched: u32,
    written: u32,
    /// Pages that there were to sample from.
    sampled_from: PageCount,
}

/// A running guest.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    settings: VmSettings,
    driver: Driver,
    leaves: Leaves,
    phase: Phase,
    pub(super) ballooned: PageCount,
    /// What it was last told that it may hold.
    pub(super) told: PageCount,
    /// What it has touched and not given up since.
    pub(super) backed: PageCount,
    /// What of that the host has swapped.
    pub(super) swapped: Swapped,
    /// What it waited for from there in this second.
    faults: u64,
    fault_speed: FaultSpeed,
    pub(super) working_set: WorkingSet,
    /// What it may have touched.
    pub(super) touch_limit: Option<TouchLimit>,
    sample: OpenSample,
    random: Random,
}

/// How a guest begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// What it has not given up before it runs.
    pub(super) held: PageCount,
    /// What it is told that it may hold.
    pub(super) told: PageCount,
    /// How fast the host's swap is.
    pub(super) fault_speed: FaultSpeed,
    pub(super) seed: u64,
}

impl Guest {
    pub(super) fn start(settings: VmSettings, model: &VmModel, start: Start) -> Self {
        Self {
            ballooned: settings.size.saturating_sub(start.held),
            told: start.told,
            backed: KERNEL.min(start.held),
            swapped: Swapped::default(),
            faults: 0,
            fault_speed: start.fault_speed,
            settings,
            driver: model.driver,
            leaves: model.leaves,
            phase: Phase {
                at_s: 0,
                working_set_mib: 0,
                touched_percent_per_s: 0,
                write_percent: 0,
            },
            working_set: WorkingSet::default(),
            touch_limit: None,
            sample: OpenSample::default(),
            random: Random::new(start.seed),
        }
    }

    pub(super) fn held(&self) -> PageCount {
        self.settings.size.saturating_sub(self.ballooned)
    }

    /// What it would use if it could.
    pub(super) fn wanted(&self) -> PageCount {
        let wanted = PageCount::from_mebibytes(self.phase.working_set_mib);
        wanted.min(self.settings.size.saturating_sub(KERNEL))
    }

    /// What of that fits.
    fn resident(&self) -> PageCount {
        self.wanted().min(self.held().saturating_sub(KERNEL))
    }

    /// Whether it works on much of its size: a quarter at least.
    pub(super) fn is_busy(&self) -> bool {
        self.wanted().0 * 4 >= self.settings.size.0
    }

    /// What of what it works on is in memory.
    pub(super) fn here(&self) -> PageCount {
        PageCount(self.parts().working).saturating_sub(PageCount(self.swapped.parts.working))
    }

    pub(super) fn in_memory(&self) -> PageCount {
        PageCount(self.parts_in_memory().total())
    }

    pub(super) fn parts_in_memory(&self) -> Parts {
        let (all, out) = (self.parts(), self.swapped.parts);
        Parts {
            working: all.working - out.working,
            other: all.other - out.other,
        }
    }

    fn parts(&self) -> Parts {
        let working = self.resident().min(self.backed.saturating_sub(KERNEL));
        Parts {
            working: working.0,
            other: self.backed.0 - working.0,
        }
    }

    /// A second passes. A guest that stands still at its limit gives nothing up either.
    pub(super) fn live(&mut self, phase: Phase) {
        let before = self.parts();
        self.phase = phase;
        let stop_above = self
            .touch_limit
            .map_or(PageCount(u64::MAX), |limit| limit.stop_above);
        if self.backed < stop_above {
            self.follow();
        }
        let in_use = KERNEL + self.resident();
        let grown = in_use.min(stop_above);
        self.backed = self.backed.max(grown).min(self.held());
        self.swapped.carry(before, self.parts());
        self.miss();
        self.touch();
    }

    /// It touches what is not in memory. What the host has swapped comes back, each page once; what the guest itself has
    /// no room for is missed again and again. Its time is divided between them by what there is of each, and how long it
    /// takes.
    fn miss(&mut self) {
        self.faults = 0;
        if self.is_blocked() {
            return;
        }
        let speed = self.fault_speed;
        let swapped = self.swapped.parts.working;
        let lacking = self.wanted().saturating_sub(self.resident()).0;
        let here = self.resident().0 - swapped;
        let (swapped_time, lacking_time) = (swapped * speed.cost, lacking * MISS_COST);
        let all_time = here + swapped_time + lacking_time;
        let of_second = |time: u64, per_s: u64| {
            let faults = u128::from(per_s) * u128::from(time) / u128::from(all_time.max(1));
            u64::try_from(faults).unwrap_or(u64::MAX)
        };
        let percent = self.phase.touched_percent_per_s.min(100);
        let touched = (swapped * percent).div_ceil(100);
        self.faults = of_second(swapped_time, speed.per_s).min(touched);
        self.swapped.bring_back(self.faults);
        let own_disk = FaultSpeed::of(FAULT_US);
        let refaulted = of_second(lacking_time, own_disk.per_s);
        self.swapped.flows.refaulted += refaulted * percent / 100;
    }

    /// Whether it is stopped for touching more than it may.
    pub(super) fn is_blocked(&self) -> bool {
        self.touch_limit
            .is_some_and(|limit| self.backed > limit.slow_above)
    }

    fn follow(&mut self) {
        let wanted = self.settings.size.saturating_sub(self.told);
        let step = match self.driver {
            Driver::Willing => BALLOON_PER_S,
            Driver::Absent => PageCount::ZERO,
        };
        self.ballooned = wanted.min(self.ballooned + step);
    }

    fn touch(&mut self) {
        let (resident, backed) = (self.resident().0, self.backed.0);
        let touched_permille = self.phase.touched_percent_per_s.min(100) * 10;
        let written_permille = self.phase.write_percent.min(100) * 10;
        let Self { sample, random, .. } = self;
        sample.untouched.retain(|&page| {
            let is_touched = page < resident && random.below(FULL) < touched_permille;
            if is_touched {
                sample.touched += 1;
                sample.written += u32::from(random.below(FULL) < written_permille);
            }
            !is_touched && page < backed
        });
    }

    /// The host looks at the sample; when its period is over, it takes another.
    pub(super) fn observe(&mut self, is_over: bool, size: u32) {
        let left = u32::try_from(self.sample.untouched.len()).unwrap_or(u32::MAX);
        let OpenSample {
            touched, written, ..
        } = self.sample;
        self.working_set.count(Sample {
            size: touched.saturating_add(left),
            touched,
            written,
        });
        if is_over {
            self.working_set.end();
            self.begin_sample(size);
        }
    }

    fn begin_sample(&mut self, size: u32) {
        self.working_set
            .shrink(self.sample.sampled_from, self.backed);
        let from = self.backed.0;
        let size = u32::try_from(from).unwrap_or(u32::MAX).min(size);
        self.sample = OpenSample {
            untouched: (0..size).map(|_| self.random.below(from)).collect(),
            sampled_from: self.backed,
            ..OpenSample::default()
        };
        self.working_set.begin(size);
    }

    pub(super) fn active(&self) -> Option<ActiveSet> {
        let sampled_from = self.sample.sampled_from;
        self.working_set.active_set(Population {
            sampled_from,
            fresh: self.backed.saturating_sub(sampled_from),
            backed: self.backed,
            wanted: PageCount::ZERO,
            held: self.held(),
        })
    }

    /// What its driver reports, honestly.
    pub(super) fn figures(&self) -> GuestFigures {
        let held = self.held();
        let in_use = KERNEL + self.resident();
        let left_behind = self.backed.saturating_sub(in_use);
        let (free, caches) = match self.leaves {
            Leaves::Cache => (held.saturating_sub(self.backed), left_behind),
            Leaves::Free => (held.saturating_sub(in_use), PageCount::ZERO),
        };
        GuestFigures {
            held,
            most_held: held,
            free: Some(free),
            available: Some(held.saturating_sub(in_use)),
            caches: Some(caches),
            stalls: None,
        }
    }

    /// How fast it works, in thousandths of what it could with enough memory.
    pub(super) fn throughput(&self) -> u64 {
        let (wanted, resident) = (self.wanted().0, self.resident().0);
        if self.is_blocked() {
            return 0;
        }
        if wanted == 0 {
            return FULL;
        }
        let by_its_memory = FULL * wanted / (resident + (wanted - resident) * MISS_COST);
        let (left, whole) = self.fault_speed.left(self.faults);
        by_its_memory * left / whole
    }
}
