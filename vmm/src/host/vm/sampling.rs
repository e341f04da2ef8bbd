//! What a host knows of one VM's working set: one sample after the other, and what they said.
//!
//! A period is over when the scanner has watched the sample for as long, not when the host's clock says so:
//! the scanner has the last place among all that want a core, and a look that came too early would take
//! a page for untouched that is touched every few seconds. A look that comes late finds more than the
//! period had, so how the sample stood at its end is reckoned from that look and the one before.
//!
//! A guest that is stopped touches nothing. What it left alone meanwhile is not idle, so a period in which it
//! was stopped can only show that it uses more.
//!
//! Pages mapped from the store are not sampled (see `memory::agent::sample`). They are taken to be touched
//! as much as the private ones: to call them idle would tax a VM for what it shares.

use crate::host::sharing::{SampleOrder, SampleReport};
use api::WorkingSetView;
use page::{PageCount, PageStates};
use policy::{
    ActiveSet, Fraction, GuestFigures, MemoryState, Population, Precision, Sample, SampleLimits,
    WorkingSet, sample_size,
};
use std::time::{Duration, Instant};

/// How often a sample is looked at, so that a rise is seen long before its end,
const LOOKS: u32 = 8;
/// and of a VM that gets all that it may hold, of which a rise changes nothing.
const FEW_LOOKS: u32 = 2;
/// A sample that nobody has begun to watch for so long is asked for anew.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);

/// The sampling of one VM.
#[derive(Debug, Default)]
pub(in crate::host) struct Sampling {
    working_set: WorkingSet,
    /// The sample that was asked for last, and when.
    number: u64,
    asked: Option<Instant>,
    /// For how long that was to be watched.
    period: Duration,
    /// Whether its pages are watched.
    is_open: bool,
    /// Whether the VM was stopped since it was asked for.
    was_stopped: bool,
    /// What it or, until it is open, the one before was drawn from.
    sampled_from: PageCount,
    /// Pages that came back into its memory, by the count when the sample was opened,
    came_back_before: u64,
    /// since then,
    came_back: PageCount,
    /// and in the last period.
    came_back_last: PageCount,
    /// Its pages, as they were last seen.
    size: u32,
    /// The last look before its end.
    looked: (Duration, Sample),
}

/// What the next sample depends on.
#[derive(Clone, Copy, Debug)]
pub(in crate::host) struct Conditions {
    pub(in crate::host) period: Duration,
    pub(in crate::host) state: MemoryState,
    /// Whether the VM gets all that it may hold.
    pub(in crate::host) unlimited: bool,
    /// Whether the VM was stopped for some of the time since the last look.
    pub(in crate::host) stopped: bool,
    /// How many pages came back into its memory because they were touched, since its process started.
    pub(in crate::host) came_back: u64,
}

impl Sampling {
    /// Takes in how the sample stands. A sample to ask for now, if one is due.
    pub(in crate::host) fn update(
        &mut self,
        report: Option<SampleReport>,
        states: &PageStates,
        conditions: Conditions,
    ) -> Option<SampleOrder> {
        if self.asked.is_some() && self.period != conditions.period {
            // The scanner looks as often as the old period wants.
            return Some(self.next(conditions));
        }
        self.was_stopped |= conditions.stopped;
        let since = conditions.came_back.checked_sub(self.came_back_before);
        self.came_back = PageCount(since.unwrap_or(0));
        let current = report.filter(|report| report.number == self.number);
        let watched = current.and_then(|report| report.watched);
        if let (Some(report), Some(watched)) = (current, watched) {
            self.count(report, states, conditions);
            if watched < conditions.period {
                self.looked = (watched, report.sample);
                return None;
            }
            let look = (watched, report.sample);
            let at_end = Sample::between(self.looked, look, conditions.period);
            match self.was_stopped {
                true => self.working_set.count(at_end),
                false => self.end(at_end, states),
            }
        } else if self
            .asked
            .is_some_and(|asked| asked.elapsed() < BEGIN_PATIENCE)
        {
            return None;
        }
        Some(self.next(conditions))
    }

    fn count(&mut self, report: SampleReport, states: &PageStates, conditions: Conditions) {
        if !self.is_open {
            self.is_open = true;
            // By the scanner's count of private pages: a guest that boots has many more a moment later.
            self.draw_from(report.population + states.shared + states.broken);
            self.came_back_before = conditions.came_back;
            self.came_back = PageCount::ZERO;
            self.working_set.begin(report.sample.size);
            self.looked = (Duration::ZERO, Sample::default());
        }
        self.size = report.sample.size;
        self.working_set.count(report.sample);
    }

    /// From here on it speaks of all that there is.
    fn end(&mut self, at_end: Sample, states: &PageStates) {
        let Population {
            sampled_from,
            fresh,
            ..
        } = self.population(states, PageCount::ZERO);
        self.working_set
            .count(at_end.with_fresh(sampled_from, fresh));
        self.working_set.end();
        self.came_back_last = self.came_back;
        self.draw_from(backed(states));
    }

    fn draw_from(&mut self, pages: PageCount) {
        self.working_set.shrink(self.sampled_from, pages);
        self.sampled_from = pages;
    }

    fn next(&mut self, conditions: Conditions) -> SampleOrder {
        let Conditions {
            period,
            state,
            unlimited,
            ..
        } = conditions;
        let precision = Precision::needed(state, unlimited);
        let (known, limits) = (self.working_set.touched(), SampleLimits::default());
        self.number += 1;
        self.asked = Some(Instant::now());
        self.period = period;
        self.was_stopped = false;
        self.is_open = false;
        SampleOrder {
            number: self.number,
            size: sample_size(known, precision, period, &limits),
            blocks: limits.blocks(period),
            period,
            looks: if unlimited { FEW_LOOKS } else { LOOKS },
        }
    }

    fn population(&self, states: &PageStates, held: PageCount) -> Population {
        let backed = backed(states);
        let came_back = self.came_back.max(self.came_back_last);
        Population {
            sampled_from: self.sampled_from,
            fresh: backed.saturating_sub(self.sampled_from),
            backed,
            wanted: came_back.min(states.compressed + states.swapped),
            held,
        }
    }

    /// What the VM uses, of what it holds.
    pub(super) fn active_set(&self, states: &PageStates, held: PageCount) -> Option<ActiveSet> {
        self.working_set.active_set(self.population(states, held))
    }

    pub(super) fn view(
        &self,
        states: &PageStates,
        held: PageCount,
        guest: GuestFigures,
    ) -> Option<WorkingSetView> {
        let touched = self.working_set.touched()?;
        let written = self.working_set.touched_by_write()?;
        let population = self.population(states, held);
        let active = self.working_set.active_set(population)?;
        Some(WorkingSetView {
            estimate_bytes: active.likely.bytes(),
            believed_bytes: active.pages.bytes(),
            low_bytes: active.low.bytes(),
            high_bytes: active.high.bytes(),
            written_bytes: (written.likely.of_pages(population.sampled_from) + population.fresh)
                .min(population.backed)
                .bytes(),
            samples: self.size,
            witness: guest.witness(Some(&active)),
            actv_percent: percent(touched.current),
            actvs_percent: percent(touched.slow),
            actvf_percent: percent(touched.fast),
        })
    }
}

/// Guest pages that something backs.
fn backed(states: &PageStates) -> PageCount {
    states.private + states.shared + states.broken
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred thousandths")]
fn percent(part: Fraction) -> f64 {
    part.of_pages(PageCount(1000)).0 as f64 / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);
    const CONDITIONS: Conditions = Conditions {
        period: PERIOD,
        state: MemoryState::High,
        unlimited: true,
        stopped: false,
        came_back: 0,
    };

    fn states(private: u64) -> PageStates {
        PageStates {
            private: PageCount(private),
            ..PageStates::default()
        }
    }

    fn report(number: u64, watched: Option<u64>, touched: u32) -> Option<SampleReport> {
        Some(SampleReport {
            number,
            population: PageCount(1000),
            watched: watched.map(Duration::from_secs),
            sample: Sample {
                size: 90,
                touched,
                written: 0,
            },
        })
    }

    #[test]
    fn a_period_ends_when_the_sample_was_watched_for_as_long() {
        let mut sampling = Sampling::default();
        let asked = sampling.update(None, &states(1000), CONDITIONS);
        let first = SampleOrder {
            number: 1,
            size: 97,
            blocks: 30,
            period: PERIOD,
            looks: FEW_LOOKS,
        };
        assert_eq!(asked, Some(first), "at once");
        let rounds = [(None, 0), (Some(0), 0), (Some(29), 30)];
        for (watched, touched) in rounds {
            let next = sampling.update(report(1, watched, touched), &states(1000), CONDITIONS);
            assert_eq!(next, None, "watched for {watched:?}");
        }
        assert_eq!(sampling.active_set(&states(1000), PageCount(2000)), None);
        let next = sampling.update(report(1, Some(30), 45), &states(1000), CONDITIONS);
        assert_eq!(next.map(|order| order.number), Some(2));
        let active = sampling.active_set(&states(1000), PageCount(2000));
        assert_eq!(active.map(|active| active.likely), Some(PageCount(500)));
    }

    #[test]
    fn another_period_begins_at_once_and_with_a_new_sample() {
        let mut sampling = Sampling::default();
        let (hour, states) = (Duration::from_secs(3600), states(1000));
        let long = Conditions {
            period: hour,
            ..CONDITIONS
        };
        let first = sampling.update(None, &states, long).unwrap();
        assert_eq!((first.number, first.period), (1, hour));
        assert_eq!(sampling.update(report(1, Some(9), 5), &states, long), None);
        let next = sampling
            .update(report(1, Some(9), 5), &states, CONDITIONS)
            .unwrap();
        assert_eq!((next.number, next.period), (2, PERIOD));
        let waits = sampling.update(report(1, Some(40), 5), &states, CONDITIONS);
        assert_eq!(waits, None, "the old one says nothing any more");
        sampling.update(report(2, Some(30), 45), &states, CONDITIONS);
        let active = sampling.active_set(&states, PageCount(2000));
        assert_eq!(active.map(|active| active.likely), Some(PageCount(500)));
    }

    #[test]
    fn a_vm_that_was_stopped_is_not_taken_for_idle() {
        let (mut sampling, states) = (Sampling::default(), states(1000));
        let stopped = Conditions {
            stopped: true,
            ..CONDITIONS
        };
        let active = |sampling: &Sampling| {
            let active = sampling.active_set(&states, PageCount(2000));
            active.map(|active| active.likely.0)
        };
        sampling.update(None, &states, CONDITIONS);
        sampling.update(report(1, Some(30), 45), &states, CONDITIONS);
        sampling.update(report(2, Some(5), 0), &states, stopped);
        let next = sampling.update(report(2, Some(30), 0), &states, CONDITIONS);
        assert_eq!(next.map(|order| order.number), Some(3));
        assert_eq!(active(&sampling), Some(500));
        sampling.update(report(3, Some(30), 90), &states, stopped);
        assert_eq!(active(&sampling), Some(1000), "it can use more");
        sampling.update(report(4, Some(30), 0), &states, CONDITIONS);
        assert!(active(&sampling) < Some(500), "it went on, and was idle");
    }

    #[test]
    fn the_last_periods_report_does_not_count_for_the_next() {
        let mut sampling = Sampling::default();
        sampling.update(None, &states(1000), CONDITIONS);
        sampling.update(report(1, Some(30), 45), &states(1000), CONDITIONS);
        let next = sampling.update(report(1, Some(32), 90), &states(1000), CONDITIONS);
        assert_eq!(next, None, "the second is asked for and not begun");
        let active = sampling.active_set(&states(1000), PageCount(2000));
        assert_eq!(active.map(|active| active.likely), Some(PageCount(500)));
    }

    /// A sample of a guest that boots says nothing of what it has touched by the time of the first report.
    #[test]
    fn a_sample_speaks_of_the_pages_that_it_was_drawn_from() {
        let mut sampling = Sampling::default();
        sampling.update(None, &states(0), CONDITIONS);
        sampling.update(report(1, Some(30), 45), &states(9000), CONDITIONS);
        let active = sampling.active_set(&states(9000), PageCount(9500));
        assert_eq!(active.map(|active| active.likely), Some(PageCount(8500)));
    }

    /// What little there was at its boot is no reason to call idle what came afterwards.
    #[test]
    fn the_next_sample_does_not_make_idle_what_came_in_the_last() {
        let mut sampling = Sampling::default();
        let few = |number, watched, touched| {
            let report = report(number, watched, touched)?;
            Some(SampleReport {
                population: PageCount(57),
                ..report
            })
        };
        sampling.update(None, &states(57), CONDITIONS);
        sampling.update(few(1, Some(30), 69), &states(29_000), CONDITIONS);
        let all = SampleReport {
            population: PageCount(29_000),
            ..report(2, Some(0), 0).unwrap()
        };
        sampling.update(Some(all), &states(29_000), CONDITIONS);
        let active = sampling.active_set(&states(29_000), PageCount(30_000));
        assert!(
            active.is_some_and(|active| active.likely > PageCount(28_000)),
            "{active:?}"
        );
    }

    /// Half of what a look two seconds later found anew lies behind the period's end.
    #[test]
    fn a_late_look_does_not_lengthen_the_period() {
        let mut sampling = Sampling::default();
        sampling.update(None, &states(1000), CONDITIONS);
        sampling.update(report(1, Some(29), 40), &states(1000), CONDITIONS);
        sampling.update(report(1, Some(31), 50), &states(1000), CONDITIONS);
        let active = sampling.active_set(&states(1000), PageCount(2000));
        assert_eq!(active.map(|active| active.likely), Some(PageCount(500)));
    }

    #[test]
    fn what_was_given_up_since_the_beginning_is_not_in_use() {
        let mut sampling = Sampling::default();
        sampling.update(None, &states(1000), CONDITIONS);
        sampling.update(report(1, Some(30), 90), &states(1000), CONDITIONS);
        let active = sampling.active_set(&states(400), PageCount(2000));
        assert_eq!(active.map(|active| active.likely), Some(PageCount(400)));
    }

    /// Its balloon takes what it does not touch: half of what is there is not half of what was there.
    #[test]
    fn giving_up_what_is_idle_makes_nothing_else_idle() {
        let mut sampling = Sampling::default();
        let pages = |sampling: &Sampling, left| {
            let active = sampling.active_set(&states(left), PageCount(2000));
            active.map(|active| active.likely.0)
        };
        sampling.update(None, &states(1000), CONDITIONS);
        sampling.update(report(1, Some(30), 45), &states(1000), CONDITIONS);
        assert_eq!(pages(&sampling, 800), Some(500));
        let fewer = SampleReport {
            population: PageCount(600),
            ..report(2, Some(0), 0).unwrap()
        };
        sampling.update(Some(fewer), &states(600), CONDITIONS);
        assert_eq!(pages(&sampling, 600), Some(500), "nor in the next period");
    }

    #[test]
    fn as_many_as_came_back_are_missed_of_those_that_are_out() {
        let mut sampling = Sampling::default();
        let after = |came_back| Conditions {
            came_back,
            ..CONDITIONS
        };
        let active = |sampling: &Sampling, compressed| {
            let states = PageStates {
                compressed: PageCount(compressed),
                ..states(1000)
            };
            let active = sampling.active_set(&states, PageCount(2000));
            active.map(|active| active.likely.0)
        };
        sampling.update(None, &states(1000), after(70));
        sampling.update(report(1, Some(0), 0), &states(1000), after(70));
        sampling.update(report(1, Some(30), 45), &states(1000), after(100));
        assert_eq!(active(&sampling, 0), Some(500));
        assert_eq!(active(&sampling, 200), Some(530));
        assert_eq!(active(&sampling, 20), Some(520));
        sampling.update(report(2, Some(0), 0), &states(1000), after(100));
        assert_eq!(active(&sampling, 200), Some(530), "until the next is over");
        sampling.update(report(2, Some(9), 45), &states(1000), after(150));
        assert_eq!(active(&sampling, 200), Some(550), "or has more");
        sampling.update(report(2, Some(30), 45), &states(1000), after(150));
        sampling.update(report(3, Some(0), 0), &states(1000), after(150));
        sampling.update(report(3, Some(30), 45), &states(1000), after(150));
        assert_eq!(active(&sampling, 200), Some(500), "nothing came");
    }

    #[test]
    fn what_came_since_the_beginning_is_in_use() {
        let mut sampling = Sampling::default();
        sampling.update(None, &states(1000), CONDITIONS);
        sampling.update(report(1, Some(30), 45), &states(1000), CONDITIONS);
        let active = sampling.active_set(&states(1300), PageCount(2000));
        assert_eq!(active.map(|active| active.likely), Some(PageCount(800)));
    }
}
