//! How much of its memory a VM uses, estimated from a few random pages.
//!
//! Each period the mappings of some random private pages are dropped; the first touch of each faults and
//! is counted (ESX.md, Working set). Touched over sampled estimates the active part of all, without
//! asking the guest. One period is noisy, so two moving averages are kept, a slow and a fast one, and a
//! version of the fast one that takes the current, unfinished period for finished. **The largest of the
//! three is acted on**, or what is stated (below) if that is more: it rises within a period and falls over
//! many, for memory taken from a busy guest hurts it more than memory left to an idle one hurts the others. For the same reason the
//! averages begin at the whole: one period of a few pages is no ground to take memory from a VM that others, of which nothing is known
//! yet, keep.
//!
//! What is good to act on is not what is true: the largest of several noisy figures lies above the truth
//! most of the time. So what is *stated* is another figure, with the interval in which the truth lies with
//! 95 % confidence: an average over the periods that agree with each other. One that contradicts those
//! before it is where the average begins anew, and an unfinished one that does is believed before its end.
//! An average over periods is worth more pages than one period has; how many is kept with it.
//!
//! ```text
//! begin(size) ── host drops the mappings ──▶ count(touched, written)… ──▶ end() ──▶ begin(size) …
//!                                                  └── estimate at any time
//! ```

use crate::MemoryState;
use crate::fraction::{Fraction, Interval, size_for};
use page::{PageCount, total};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// What a finished period weighs in the averages, in eighths.
const FAST_EIGHTHS: u32 = 6;
const SLOW_EIGHTHS: u32 = 1;
/// Makes an average worth three samples, which lags a drift by hardly more than its interval reaches.
const STATED_EIGHTHS: u32 = 4;

/// The pages sampled in a period and what became of them so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Pages sampled and still private: one that was ballooned or shared meanwhile drops out. Where large pages are
    /// watched as a whole, as many as a sample of pages would have to have to be as exact.
    pub size: u32,
    /// Of these, how many were touched.
    pub touched: u32,
    /// Of these, how many by a write.
    pub written: u32,
}

impl Sample {
    /// How the sample stood at `time`, between two looks at it. A look comes when there is time for it;
    /// what it found would count as touched in a period that is longer than it is.
    #[must_use]
    pub fn between(earlier: (Duration, Self), later: (Duration, Self), time: Duration) -> Self {
        let ((from, before), (to, after)) = (earlier, later);
        let way = to.saturating_sub(from).as_millis();
        let gone = time.saturating_sub(from).as_millis().min(way);
        // What the first look was worth need not be what the later one is: more, or less for pages that left, of which
        // nobody touched the most.
        let resized = |count: u32| {
            let scaled = u64::from(count) * u64::from(after.size);
            let scaled = scaled.checked_div(before.size.into()).unwrap_or(0);
            scaled.max(count.into())
        };
        let at = |before: u32, after: u32| {
            let rise = u128::from(u64::from(after).saturating_sub(resized(before)));
            let part = (rise * gone + way / 2).checked_div(way).unwrap_or(rise);
            after - u32::try_from(rise - part).unwrap_or(0)
        };
        let touched = at(before.touched, after.touched);
        Self {
            size: after.size,
            touched,
            written: at(before.written, after.written).min(touched),
        }
    }

    /// The same of all pages at the end of a period in which `fresh` more came: each by being touched. A guest that boots
    /// has few pages when its first sample is drawn, and what it does with those says nothing of the others.
    #[must_use]
    pub fn with_fresh(self, sampled_from: PageCount, fresh: PageCount) -> Self {
        let (drawn, fresh) = (u128::from(sampled_from.0), u128::from(fresh.0));
        let all = drawn + fresh;
        let grown = |count: u32| {
            let sum = u128::from(count) * drawn + u128::from(self.size) * fresh;
            let count = (sum + all / 2).checked_div(all);
            count.map_or(0, |count| u32::try_from(count).unwrap_or(self.size))
        };
        Self {
            size: self.size,
            touched: grown(self.touched),
            written: grown(self.written),
        }
    }
}

/// A moving average of fractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Average {
    value: Fraction,
    /// One over the size of a single sample that would be as exact, in 2^-32.
    inverse_size: u64,
}

impl Average {
    /// Of a VM of which nothing is known yet: its idleness has to be shown, as that of a busy one.
    const ALL: Self = Self {
        value: Fraction::ONE,
        inverse_size: 0,
    };

    fn first(found: u32, size: u32) -> Self {
        Self {
            value: Fraction::of(found.into(), size.into()),
            inverse_size: inverse(size),
        }
    }

    /// Weights add in the value and squared weights in its variance.
    fn after(self, found: u32, size: u32, eighths: u32) -> Self {
        let next = Self::first(found, size);
        let (old, new) = (u64::from(8 - eighths), u64::from(eighths));
        let inverse_size = (old * old * self.inverse_size + new * new * next.inverse_size) / 64;
        Self {
            value: self.value.toward(next.value, eighths),
            inverse_size,
        }
    }

    fn interval(self) -> Interval {
        Interval::wilson(self.value, (1 << 32) / self.inverse_size.max(1))
    }
}

fn inverse(size: u32) -> u64 {
    (1 << 32) / u64::from(size.max(1))
}

/// The averages of one kind of touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Averages {
    slow: Average,
    fast: Average,
    /// Over the periods since the last that contradicted those before it.
    stated: Average,
}

impl Averages {
    fn after(earlier: Option<Self>, found: u32, size: u32) -> Self {
        let latest = Average::first(found, size);
        let (slow, fast) = match earlier {
            Some(Self { slow, fast, .. }) => (slow, fast),
            None => (Average::ALL, Average::ALL),
        };
        let agreeing = earlier
            .map(|earlier| earlier.stated)
            .filter(|stated| !latest.interval().is_apart_from(stated.interval()));
        Self {
            slow: slow.after(found, size, SLOW_EIGHTHS),
            fast: fast.after(found, size, FAST_EIGHTHS),
            stated: agreeing.map_or(latest, |stated| stated.after(found, size, STATED_EIGHTHS)),
        }
    }

    fn shrink(&mut self, from: PageCount, to: PageCount) {
        for average in [&mut self.slow, &mut self.fast, &mut self.stated] {
            average.value = Fraction::of(average.value.of_pages(from).0, to.0);
        }
    }

    fn estimate(&self, open: Option<(u32, u32)>) -> Estimate {
        let Self { slow, fast, .. } = *self;
        let open = open.filter(|&(_, size)| size > 0);
        let current = open.map_or(fast, |(found, size)| fast.after(found, size, FAST_EIGHTHS));
        let (likely, interval) = self.stated(open);
        Estimate {
            likely,
            interval,
            used: current.value.max(fast.value).max(slow.value).max(likely),
            slow: slow.value,
            fast: fast.value,
            current: current.value,
        }
    }

    /// What is likely, and where the truth lies. An unfinished period can only say that it is more: what
    /// was found in it so far is the least that it will have found.
    fn stated(&self, open: Option<(u32, u32)>) -> (Fraction, Interval) {
        let (known, interval) = (self.stated.value, self.stated.interval());
        let so_far = open.map(|(found, size)| Average::first(found, size));
        match so_far {
            Some(so_far) if so_far.interval().low > interval.high => {
                let low = so_far.interval().low;
                let high = Fraction::ONE;
                (so_far.value, Interval { low, high })
            }
            _ => (known, interval),
        }
    }
}

/// What is known of one VM's touches. The host keeps one for each VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    touched: Option<Averages>,
    written: Option<Averages>,
    open: Option<Sample>,
}

impl WorkingSet {
    /// A period begins with so many pages sampled. One that was not ended is forgotten.
    pub fn begin(&mut self, size: u32) {
        self.open = Some(Sample {
            size,
            ..Sample::default()
        });
    }

    /// How the current period stands, from its beginning. Nothing happens if none has begun.
    pub fn count(&mut self, so_far: Sample) {
        if let Some(open) = &mut self.open {
            let touched = so_far.touched.min(so_far.size);
            *open = Sample {
                size: so_far.size,
                touched,
                written: so_far.written.min(touched),
            };
        }
    }

    /// The period is over. One without pages says nothing.
    pub fn end(&mut self) {
        let Some(Sample {
            size,
            touched,
            written,
        }) = self.open.take()
        else {
            return;
        };
        if size > 0 {
            self.touched = Some(Averages::after(self.touched, touched, size));
            self.written = Some(Averages::after(self.written, written, size));
        }
    }

    /// The part of its private pages that the VM touches in a period. None until one is over.
    #[must_use]
    pub fn touched(&self) -> Option<Estimate> {
        let open = self.open.map(|open| (open.touched, open.size));
        self.touched.map(|averages| averages.estimate(open))
    }

    /// The part of its private pages that the VM writes to in a period.
    #[must_use]
    pub fn touched_by_write(&self) -> Option<Estimate> {
        let open = self.open.map(|open| (open.written, open.size));
        self.written.map(|averages| averages.estimate(open))
    }

    /// Its private pages were `from` and are fewer now. **What left them was idle**: a guest gives up what it does not use, and what goes
    /// out of its memory is what was not touched. So as many as were touched are touched still.
    pub fn shrink(&mut self, from: PageCount, to: PageCount) {
        if to < from {
            for averages in [&mut self.touched, &mut self.written].into_iter().flatten() {
                averages.shrink(from, to);
            }
        }
    }

    /// The VM's active set: the estimated part of what could be sampled and all that came since, as far as it is still there; and as
    /// many of those that are out as came back, for a VM short of memory touches what it does not have.
    #[must_use]
    pub fn active_set(&self, population: Population) -> Option<ActiveSet> {
        let Population {
            sampled_from,
            fresh,
            backed,
            wanted,
            held,
        } = population;
        let touched = self.touched()?;
        let interval = touched.interval;
        let pages = |part: Fraction| {
            let there = total([part.of_pages(sampled_from), fresh]).min(backed);
            total([there, wanted])
        };
        Some(ActiveSet {
            pages: pages(touched.used),
            likely: pages(touched.likely),
            low: pages(interval.low),
            high: pages(interval.high),
            held,
            source: Source::Touches,
        })
    }
}

/// The pages of a VM, as far as its sample can speak of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Population {
    /// Private pages when the period began: what could be sampled.
    pub sampled_from: PageCount,
    /// Pages that became private since: a page comes by being touched.
    pub fresh: PageCount,
    /// All that are there now. Those that left meanwhile are taken to be idle ones.
    pub backed: PageCount,
    /// Pages that are out of its memory and missed.
    pub wanted: PageCount,
    /// What the VM holds, touched or not.
    pub held: PageCount,
}

/// An estimated part, and how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Over the periods that agree with each other: on average, this is the truth.
    pub likely: Fraction,
    /// Where the truth lies with 95 % confidence; `likely` is in it.
    pub interval: Interval,
    /// The largest of `likely` and the three averages below, which is what the policy acts on. The averages
    /// need several periods to believe a guest that wakes; `likely` does so when it is sure.
    pub used: Fraction,
    /// Over about eight periods.
    pub slow: Fraction,
    /// Over hardly more than the last.
    pub fast: Fraction,
    /// As fast, with the current period as it stands.
    pub current: Fraction,
}

/// How many pages a VM uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActiveSet {
    /// What the policy takes it for: quick to rise and slow to fall.
    pub pages: PageCount,
    /// As estimated, neither too high nor too low.
    #[serde(default)]
    pub likely: PageCount,
    /// With 95 % confidence it is no less than this,
    pub low: PageCount,
    /// and no more than this.
    pub high: PageCount,
    /// What the VM held then.
    pub held: PageCount,
    /// Whose word it is.
    #[serde(default)]
    pub source: Source,
}

/// By what a working set is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// By touches of a sample of its pages.
    #[default]
    Touches,
    /// By its guest's own word, which nobody can check.
    GuestWord,
}

/// What sampling may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleLimits {
    /// No sample is smaller: below this an interval says next to nothing.
    pub least: u32,
    /// Faults a second that sampling may cause in a VM, all sampled pages being touched. A fault that
    /// the kernel resolves by itself is some 10 µs of a vCPU at worst, so the default costs it less than
    /// a thousandth.
    pub faults_per_s: u32,
    /// Large pages that are looked into page by page, each second of a period: each may cost 512 faults, so the
    /// default costs a vCPU half of a hundredth,
    pub blocks_per_s: u32,
    /// and as many of them at least, in however short a period: fewer are too much alike.
    pub least_blocks: u32,
}

impl SampleLimits {
    /// How many large pages may be looked into in a period.
    #[must_use]
    pub fn blocks(&self, period: Duration) -> u32 {
        let affordable = u128::from(self.blocks_per_s) * period.as_millis() / 1000;
        let affordable = u32::try_from(affordable).unwrap_or(u32::MAX);
        affordable.max(self.least_blocks)
    }
}

impl Default for SampleLimits {
    fn default() -> Self {
        Self {
            least: 32,
            faults_per_s: 32,
            blocks_per_s: 1,
            least_blocks: 8,
        }
    }
}

/// How exactly a working set must be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// To ten points either way, which is what ESX's hundred pages give.
    Rough,
    /// To five.
    Fair,
    /// To three.
    Fine,
}

impl Precision {
    /// What the next decision on a VM needs. If it is `unlimited`, it gets all that it may hold whatever
    /// it uses, and nothing depends on its working set. While memory is short, much does.
    #[must_use]
    pub fn needed(state: MemoryState, unlimited: bool) -> Self {
        match state {
            _ if unlimited => Self::Rough,
            state if state >= MemoryState::Soft => Self::Fine,
            _ => Self::Fair,
        }
    }

    fn fraction(self) -> Fraction {
        Fraction::from_percent(match self {
            Self::Rough => 10,
            Self::Fair => 5,
            Self::Fine => 3,
        })
    }
}

/// How many pages to sample in the next period: as many as the precision needs, as far as the budget of
/// faults allows. A VM that is known to be nearly idle or nearly all busy needs fewer.
#[must_use]
pub fn sample_size(
    known: Option<Estimate>,
    precision: Precision,
    period: Duration,
    limits: &SampleLimits,
) -> u32 {
    let expected = known.map_or(Interval::ALL, |estimate| estimate.interval);
    let needed = size_for(precision.fraction(), expected);
    let needed = u32::try_from(needed).unwrap_or(u32::MAX);
    let affordable = u128::from(limits.faults_per_s) * period.as_millis() / 1000;
    let affordable = u32::try_from(affordable).unwrap_or(u32::MAX);
    needed.max(limits.least).min(affordable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SAMPLE_PERIOD;
    use page::Random;
    use proptest::prelude::*;

    const SIZE: u32 = 100;

    fn successes(random: &mut Random, size: u32, permille: u64) -> u32 {
        let successes = (0..size).filter(|_| random.below(1000) < permille);
        u32::try_from(successes.count()).unwrap()
    }

    fn population(sampled_from: u64, fresh: u64) -> Population {
        Population {
            sampled_from: PageCount(sampled_from),
            fresh: PageCount(fresh),
            backed: total([PageCount(sampled_from), PageCount(fresh)]),
            held: total([PageCount(sampled_from), PageCount(fresh)]),
            ..Population::default()
        }
    }

    /// A period in which each page is touched with this chance.
    fn period(working_set: &mut WorkingSet, random: &mut Random, permille: u64) {
        period_of(working_set, random, SIZE, permille);
    }

    fn period_of(working_set: &mut WorkingSet, random: &mut Random, size: u32, permille: u64) {
        working_set.begin(size);
        let touched = successes(random, size, permille);
        working_set.count(Sample {
            size,
            touched,
            written: touched / 2,
        });
        working_set.end();
    }

    fn after(seed: u64, periods: &[u64]) -> WorkingSet {
        let (mut working_set, mut random) = (WorkingSet::default(), Random::new(seed));
        for &permille in periods {
            period(&mut working_set, &mut random, permille);
        }
        working_set
    }

    fn used(working_set: &WorkingSet) -> u64 {
        working_set.touched().unwrap().used.permille()
    }

    #[test]
    fn nothing_is_known_before_a_period_is_over() {
        let mut working_set = WorkingSet::default();
        assert_eq!(working_set.touched(), None);
        working_set.begin(SIZE);
        working_set.count(Sample {
            size: SIZE,
            touched: 90,
            written: 0,
        });
        assert_eq!(working_set.active_set(population(1000, 0)), None);
        working_set.end();
        let active = working_set.active_set(population(1000, 7)).unwrap();
        assert_eq!(active.likely, PageCount(907));
        assert_eq!(active.pages, PageCount(995), "not yet believed");
        assert!(active.low < active.likely && active.likely < active.high);
    }

    #[test]
    fn what_left_was_idle_and_what_is_missed_is_in_use() {
        let mut working_set = WorkingSet::default();
        working_set.begin(SIZE);
        working_set.count(Sample {
            size: SIZE,
            touched: 60,
            written: 0,
        });
        working_set.end();
        let left = |backed, wanted| {
            let population = Population {
                backed: PageCount(backed),
                wanted: PageCount(wanted),
                ..population(1000, 0)
            };
            working_set.active_set(population).unwrap().likely.0
        };
        assert_eq!(left(1000, 0), 600);
        assert_eq!(left(700, 0), 600);
        assert_eq!(left(500, 0), 500);
        assert_eq!(left(500, 40), 540);
        let mut fewer = working_set;
        fewer.shrink(PageCount(1000), PageCount(800));
        let pages = |fewer: &WorkingSet, from| {
            let active = fewer.active_set(population(from, 0));
            active.unwrap().likely.0
        };
        assert_eq!(pages(&fewer, 800), 600);
        fewer.shrink(PageCount(800), PageCount(1000));
        assert_eq!(pages(&fewer, 800), 600, "more is no news of these");
        fewer.shrink(PageCount(800), PageCount(0));
        assert_eq!(pages(&fewer, 0), 0);
    }

    /// From a tenth to nine tenths: before the period is over, the estimate is most of the way up.
    #[test]
    fn a_rise_is_seen_within_the_period() {
        for seed in 0..200 {
            let mut working_set = after(seed, &[100; 20]);
            let before = used(&working_set);
            working_set.begin(SIZE);
            working_set.count(Sample {
                size: SIZE,
                touched: successes(&mut Random::new(seed), SIZE, 900),
                written: 0,
            });
            assert!(before < 260, "seed {seed}: {before}");
            assert!(
                used(&working_set) > 550,
                "seed {seed}: {}",
                used(&working_set)
            );
        }
    }

    /// From nine tenths to a tenth: over half of the way is left after three periods, little after 24.
    #[test]
    fn a_fall_is_believed_slowly() {
        for seed in 0..200 {
            let mut periods = vec![900; 20];
            periods.extend([100; 3]);
            assert!(used(&after(seed, &periods)) > 500, "seed {seed}");
            periods.extend([100; 21]);
            assert!(used(&after(seed, &periods)) < 270, "seed {seed}");
        }
    }

    /// Averages alone would have it at three quarters.
    #[test]
    fn a_guest_that_surely_woke_is_believed_at_the_end_of_the_period() {
        let mut working_set = after(5, &[0; 20]);
        period(&mut working_set, &mut Random::new(5), 1000);
        assert_eq!(used(&working_set), 1000);
    }

    #[test]
    fn an_unfinished_period_cannot_lower_the_estimate() {
        let mut working_set = after(3, &[500; 9]);
        let before = used(&working_set);
        working_set.begin(SIZE);
        assert_eq!(used(&working_set), before);
    }

    #[test]
    fn writes_are_estimated_apart() {
        let working_set = after(1, &[800; 20]);
        let written = working_set.touched_by_write().unwrap().used.permille();
        assert!((330..480).contains(&written), "{written}");
    }

    /// The chance, in thousandths, that a page is touched in a period.
    type Load = fn(u64) -> u64;

    /// How an estimate compares with the truth at the ends of many periods.
    #[derive(Debug, Default)]
    struct Accuracy {
        periods: u64,
        covered: u64,
        /// In thousandths, added up.
        errors: u64,
    }

    impl Accuracy {
        /// Samples of this size from 200 VMs, each under this load for so many periods.
        fn of(load: Load, size: u32, periods: u64) -> Self {
            let mut accuracy = Self::default();
            for seed in 0..200 {
                let (mut working_set, mut random) = (WorkingSet::default(), Random::new(seed));
                for number in 0..periods {
                    period_of(&mut working_set, &mut random, size, load(number));
                    accuracy.add(&working_set.touched().unwrap(), load(number));
                }
            }
            accuracy
        }

        fn add(&mut self, estimate: &Estimate, truth: u64) {
            self.periods += 1;
            self.errors += estimate.likely.permille().abs_diff(truth);
            let is_covered = estimate.interval.contains(Fraction::of(truth, 1000));
            self.covered += u64::from(is_covered);
        }
    }

    const SIZES: [u32; 4] = [48, SIZE, 200, 480];

    /// Steady, drifting and jumping loads: the true part at the end of each period is in the interval
    /// that is reported then.
    #[test]
    fn the_interval_covers_the_truth_in_nine_of_ten_periods() {
        let loads: [(&str, Load); 8] = [
            ("idle", |_| 20),
            ("a third", |_| 300),
            ("half", |_| 500),
            ("busy", |_| 970),
            ("drifting", |period| 300 + period * 8),
            ("swinging", |period| [150, 700][(period / 10 % 2) as usize]),
            ("a bit up and down", |period| {
                [300, 420][(period / 15 % 2) as usize]
            }),
            ("in steps", |period| {
                [100, 250, 450, 800, 600][(period / 10 % 5) as usize]
            }),
        ];
        for size in [SIZE, 200] {
            for (name, load) in loads {
                let accuracy = Accuracy::of(load, size, 60);
                let Accuracy {
                    covered, periods, ..
                } = accuracy;
                assert!(
                    covered * 10 >= periods * 9,
                    "{name}, {size} pages: {accuracy:?}"
                );
            }
        }
    }

    /// And not only at the ends: a period that is still open says no more than it has found.
    #[test]
    fn a_steady_load_is_covered_and_estimated_to_five_points_at_any_size() {
        let loads: [Load; 6] = [|_| 10, |_| 150, |_| 350, |_| 500, |_| 800, |_| 990];
        for size in SIZES {
            for (index, load) in loads.into_iter().enumerate() {
                let accuracy = Accuracy::of(load, size, 40);
                let Accuracy {
                    periods,
                    covered,
                    errors,
                } = accuracy;
                assert!(
                    covered * 10 >= periods * 9,
                    "load {index}, {size} pages: {accuracy:?}"
                );
                assert!(
                    errors < periods * 50,
                    "load {index}, {size} pages: {accuracy:?}"
                );
            }
        }
    }

    /// The largest of several averages lies above the truth. What is stated does not, over many VMs.
    #[test]
    fn what_is_stated_is_right_on_average_and_what_is_acted_on_is_above() {
        let (mut likely, mut used) = (0, 0);
        for seed in 0..1000 {
            let estimate = after(seed, &[400; 12]).touched().unwrap();
            likely += estimate.likely.permille();
            used += estimate.used.permille();
        }
        assert!((390_000..410_000).contains(&likely), "{likely}");
        assert!(used > likely + 10_000, "{used}");
    }

    /// From a tenth to a half: before its end, the period says so with an interval that has the truth.
    #[test]
    fn a_rise_is_stated_within_the_period() {
        let (mut seen, mut covered) = (0, 0);
        for seed in 0..200 {
            let mut working_set = after(seed, &[100; 20]);
            working_set.begin(SIZE);
            working_set.count(Sample {
                size: SIZE,
                touched: successes(&mut Random::new(seed), SIZE, 500),
                written: 0,
            });
            let Estimate {
                likely, interval, ..
            } = working_set.touched().unwrap();
            seen += u32::from(likely.permille() > 350);
            covered += u32::from(interval.contains(Fraction::of(1, 2)));
        }
        assert!(seen == 200 && covered >= 180, "{seen} and {covered} of 200");
    }

    #[test]
    fn a_late_look_counts_only_what_was_touched_in_the_period() {
        let at = |ms, touched| {
            let time = Duration::from_millis(ms);
            let (size, written) = (100, touched / 2);
            (
                time,
                Sample {
                    size,
                    touched,
                    written,
                },
            )
        };
        let end = Duration::from_secs(6);
        let touched = |sample: Sample| (sample.touched, sample.written);
        let looked = |earlier, later| touched(Sample::between(earlier, later, end));
        assert_eq!(looked(at(5000, 40), at(7000, 60)), (50, 25));
        assert_eq!(looked(at(5000, 40), at(6000, 60)), (60, 30));
        assert_eq!(looked(at(5000, 40), at(5000, 60)), (60, 30));
        assert_eq!(
            looked(at(5000, 60), at(7000, 40)),
            (40, 20),
            "touched pages left it"
        );
        let worth = |time, size, touched| {
            let (_, sample) = at(time, touched);
            (Duration::from_millis(time), Sample { size, ..sample })
        };
        let half_of_many = Sample::between(worth(5000, 40, 10), worth(7000, 200, 150), end);
        assert_eq!(
            (half_of_many.size, half_of_many.touched),
            (200, 100),
            "worth more"
        );
        let those_left = Sample::between(worth(5000, 134, 105), worth(7000, 33, 33), end);
        assert_eq!(
            (those_left.size, those_left.touched),
            (33, 33),
            "untouched ones left"
        );
    }

    #[test]
    fn what_came_in_a_period_was_touched_in_it() {
        let sample = Sample {
            size: 50,
            touched: 20,
            written: 10,
        };
        let grown = |drawn, fresh| {
            let sample = sample.with_fresh(PageCount(drawn), PageCount(fresh));
            (sample.size, sample.touched, sample.written)
        };
        assert_eq!(grown(1000, 0), (50, 20, 10));
        assert_eq!(grown(1000, 1000), (50, 35, 30));
        assert_eq!(grown(57, 28_000), (50, 50, 50));
        assert_eq!(grown(0, 0), (50, 0, 0));
        assert_eq!(grown(u64::MAX, u64::MAX), (50, 35, 30));
    }

    #[test]
    fn a_steady_load_is_known_better_than_one_sample_could() {
        let interval = after(5, &[500; 20]).touched().unwrap().interval;
        let width = interval.high.permille() - interval.low.permille();
        assert!(width < 192, "{width}");
    }

    #[test]
    fn a_sample_is_as_large_as_the_decision_needs_and_the_budget_allows() {
        let limits = SampleLimits::default();
        let size = |state, unlimited, period| {
            sample_size(None, Precision::needed(state, unlimited), period, &limits)
        };
        assert_eq!(size(MemoryState::High, true, SAMPLE_PERIOD), 97);
        assert_eq!(size(MemoryState::High, false, SAMPLE_PERIOD), 385);
        assert_eq!(size(MemoryState::Soft, false, SAMPLE_PERIOD), 32 * 30);
        assert_eq!(size(MemoryState::High, false, Duration::from_secs(2)), 64);
        assert_eq!(size(MemoryState::High, false, Duration::ZERO), 0);
        let idle = after(0, &[10; 20]).touched();
        let known = sample_size(idle, Precision::Fair, SAMPLE_PERIOD, &limits);
        assert!((32..200).contains(&known), "{known}");
    }

    proptest! {
        #[test]
        fn what_is_acted_on_is_the_largest_of_four_and_what_is_stated_in_its_interval(
            samples in prop::collection::vec((0u32..200, 0u32..300, 0u32..300, any::<bool>()), 1..30)
        ) {
            let mut working_set = WorkingSet::default();
            for (size, touched, written, is_ended) in samples {
                working_set.begin(size);
                working_set.count(Sample { size, touched, written });
                if is_ended {
                    working_set.end();
                }
                let both = [working_set.touched(), working_set.touched_by_write()];
                for estimate in both.into_iter().flatten() {
                    let Estimate { likely, interval, used, slow, fast, current } = estimate;
                    prop_assert_eq!(used, slow.max(fast).max(current).max(likely));
                    prop_assert!(interval.contains(likely));
                }
            }
        }

        #[test]
        fn senseless_counts_do_not_panic(
            size: u32, so_far in any::<(u32, u32, u32)>(), pages: u64, fresh: u64
        ) {
            let mut working_set = WorkingSet::default();
            let (left, touched, written) = so_far;
            for _ in 0..3 {
                working_set.count(Sample { size: left, touched, written });
                working_set.begin(size);
                working_set.count(Sample { size: left, touched, written });
                working_set.end();
            }
            prop_assert_eq!(
                working_set.active_set(population(pages, fresh)).is_some(),
                left > 0
            );
        }
    }
}
