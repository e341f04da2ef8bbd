//! A guest as a model: what it touches, what it holds, what its sample shows, and how fast it gets on.
//!
//! It touches every page of its working set equally often. What it has touched once is backed until its
//! balloon takes it; the balloon takes what was never touched first, then what is not used, then the
//! working set. Where the working set does not fit, the guest works on as much as fits and fetches the
//! rest from its disk, again and again: its throughput falls with the part of touches that miss.

use super::scenario::{Driver, Phase};
use crate::{ActiveSet, GuestFigures, Population, Sample, TouchLimit, VmSettings, WorkingSet};
use page::{PageCount, Random};

/// What a guest's kernel takes, touched at the start and hardly again.
const KERNEL: PageCount = PageCount::from_mebibytes(16);
/// What a balloon can take in a second.
const BALLOON_PER_S: PageCount = PageCount::from_mebibytes(512);
/// How much longer a touch takes that misses.
const MISS_COST: u64 = 50;
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
    phase: Phase,
    pub(super) ballooned: PageCount,
    /// What it was last told that it may hold.
    pub(super) told: PageCount,
    /// What it has touched and not given up since.
    pub(super) backed: PageCount,
    pub(super) working_set: WorkingSet,
    /// What it may have touched.
    pub(super) touch_limit: Option<TouchLimit>,
    sample: OpenSample,
    random: Random,
}

impl Guest {
    pub(super) fn start(settings: VmSettings, driver: Driver, grant: PageCount, seed: u64) -> Self {
        Self {
            ballooned: settings.size.saturating_sub(grant),
            told: grant,
            backed: KERNEL.min(grant),
            settings,
            driver,
            phase: Phase {
                at_s: 0,
                working_set_mib: 0,
                touched_percent_per_s: 0,
                write_percent: 0,
            },
            working_set: WorkingSet::default(),
            touch_limit: None,
            sample: OpenSample::default(),
            random: Random::new(seed),
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

    /// A second passes. A guest that stands still at its limit gives nothing up either.
    pub(super) fn live(&mut self, phase: Phase) {
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
        self.touch();
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
        let sampled_from = self.sample.sampled_from.min(self.backed);
        self.working_set.active_set(Population {
            sampled_from,
            fresh: self.backed - sampled_from,
            held: self.held(),
        })
    }

    /// What its driver reports, honestly.
    pub(super) fn figures(&self) -> GuestFigures {
        let held = self.held();
        let in_use = KERNEL + self.resident();
        GuestFigures {
            held,
            most_held: held,
            free: Some(held.saturating_sub(self.backed)),
            available: Some(held.saturating_sub(in_use)),
            caches: Some(self.backed.saturating_sub(in_use)),
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
        FULL * wanted / (resident + (wanted - resident) * MISS_COST)
    }
}
