//! Figures over time, in memory that does not grow with time: the newest ten minutes by second, the
//! newest day by minute.
//!
//! What is left of a minute is what its seconds were on average, where that means something. Between two
//! degrees of shortage there is no third, and a minute in which memory was once very short was no good one:
//! of these the worst is left. What was not known in a second has no part in either.

use api::{Figure, HistoryColumn, HistoryView, Span};
use protocol::VmName;
use std::collections::VecDeque;
use std::num::NonZeroU64;

/// Seconds that are kept.
const SECONDS: usize = 600;
/// Minutes that are kept.
const MINUTES: usize = 24 * 60;
/// Seconds in a minute.
const MINUTE: u64 = 60;

/// A figure that is remembered.
#[derive(Clone, Copy, Debug)]
struct Column {
    name: &'static str,
    /// Whether of a minute the highest is left, and not the mean.
    is_degree: bool,
}

/// `N` figures over time.
#[derive(Clone, Debug)]
pub(in crate::host) struct History<const N: usize> {
    columns: [Column; N],
    seconds: Ring<N>,
    minutes: Ring<N>,
    /// The minute that is under way.
    minute: Minute<N>,
}

impl<const N: usize> History<N> {
    /// Nothing is remembered of these yet.
    pub(super) fn new<T>(figures: &[Figure<T>]) -> Self {
        Self {
            columns: std::array::from_fn(|column| Column {
                name: figures[column].history,
                is_degree: figures[column].is_degree,
            }),
            seconds: Ring::new(SECONDS),
            minutes: Ring::new(MINUTES),
            minute: Minute::new(0),
        }
    }

    /// Takes in the figures of a second, counted from the host's start. Figures of a second that was seen
    /// already, or is past, are left out.
    pub(super) fn add(&mut self, second: u64, time_ms: u64, values: [Option<u64>; N]) {
        if self.seconds.newest().is_some_and(|newest| newest >= second) {
            return;
        }
        let point = Point {
            second,
            time_ms,
            values: values.map(Value::new),
        };
        self.seconds.push(point);
        let minute = second / MINUTE;
        if minute != self.minute.minute {
            self.minutes.extend(self.minute.point(&self.columns));
            self.minute = Minute::new(minute);
        }
        self.minute.add(&point);
    }

    /// What is remembered, under the figures' names.
    pub(super) fn view(&self, vm: Option<VmName>, span: Span) -> HistoryView {
        let ring = match span {
            Span::TenMinutes => &self.seconds,
            Span::Day => &self.minutes,
        };
        let under_way = match span {
            Span::TenMinutes => None,
            Span::Day => self.minute.point(&self.columns),
        };
        let points = || ring.0.iter().copied().chain(under_way);
        let columns = self.columns.iter().enumerate();
        let columns = columns.map(|(index, column)| HistoryColumn {
            name: column.name.into(),
            values: points().map(|point| point.values[index].get()).collect(),
        });
        HistoryView {
            vm,
            span,
            time_ms: points().map(|point| point.time_ms).collect(),
            columns: columns.collect(),
        }
    }
}

/// A value, if it is known, in no more room than a number takes: there are many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value(Option<NonZeroU64>);

impl Value {
    /// Of the two largest numbers one is taken for the other.
    fn new(value: Option<u64>) -> Self {
        Self(value.and_then(|value| NonZeroU64::new(value.saturating_add(1))))
    }

    fn get(self) -> Option<u64> {
        self.0.map(|above| above.get() - 1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point<const N: usize> {
    /// Seconds from the host's start: a wall clock may be set back.
    second: u64,
    time_ms: u64,
    values: [Value; N],
}

/// The newest points, oldest first.
#[derive(Clone, Debug)]
struct Ring<const N: usize>(VecDeque<Point<N>>, usize);

impl<const N: usize> Ring<N> {
    fn new(limit: usize) -> Self {
        Self(VecDeque::new(), limit)
    }

    fn push(&mut self, point: Point<N>) {
        if self.0.len() == self.1 {
            self.0.pop_front();
        }
        self.0.push_back(point);
    }

    fn extend(&mut self, points: impl IntoIterator<Item = Point<N>>) {
        points.into_iter().for_each(|point| self.push(point));
    }

    fn newest(&self) -> Option<u64> {
        self.0.back().map(|point| point.second)
    }
}

/// The seconds of one minute.
#[derive(Clone, Debug)]
struct Minute<const N: usize> {
    minute: u64,
    time_ms: u64,
    tallies: [Tally; N],
}

/// What is known of a figure in a minute.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Seconds in which it was known.
    count: u64,
    /// 60 sizes of memory exceed no 128 bits.
    sum: u128,
    highest: u64,
}

impl<const N: usize> Minute<N> {
    fn new(minute: u64) -> Self {
        Self {
            minute,
            time_ms: 0,
            tallies: [Tally::default(); N],
        }
    }

    fn add(&mut self, point: &Point<N>) {
        self.time_ms = point.time_ms;
        for (tally, value) in self.tallies.iter_mut().zip(point.values) {
            value.get().into_iter().for_each(|value| tally.add(value));
        }
    }

    /// What is left of it, if anything was seen.
    fn point(&self, columns: &[Column; N]) -> Option<Point<N>> {
        let left = |index: usize| self.tallies[index].left(columns[index].is_degree);
        let is_seen = self.tallies.iter().any(|tally| tally.count > 0);
        is_seen.then(|| Point {
            second: self.minute * MINUTE,
            time_ms: self.time_ms,
            values: std::array::from_fn(|index| Value::new(left(index))),
        })
    }
}

impl Tally {
    fn add(&mut self, value: u64) {
        self.count += 1;
        self.sum += u128::from(value);
        self.highest = self.highest.max(value);
    }

    fn left(&self, is_degree: bool) -> Option<u64> {
        let mean = self.sum.checked_div(self.count.into())?;
        match is_degree {
            false => u64::try_from(mean).ok(),
            true => Some(self.highest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Reading;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const FIGURES: [Figure<()>; 2] = [figure("size", false), figure("state", true)];

    const fn figure(history: &'static str, is_degree: bool) -> Figure<()> {
        Figure {
            history,
            is_degree,
            ..Figure::new("", |()| Reading::Unknown)
        }
    }

    fn mean(values: &[u64]) -> u64 {
        values.iter().sum::<u64>() / values.len() as u64
    }

    fn highest(values: &[u64]) -> u64 {
        values.iter().copied().max().unwrap()
    }

    /// All that was ever added, and what should be left of it.
    fn expected(
        added: &[(u64, Option<u64>)],
        span: Span,
        of_minute: fn(&[u64]) -> u64,
    ) -> Vec<Option<u64>> {
        let mut kept: BTreeMap<u64, Option<u64>> = BTreeMap::new();
        for &(second, value) in added {
            if kept.keys().all(|&earlier| earlier < second) {
                kept.insert(second, value);
            }
        }
        let (values, limit): (Vec<Option<u64>>, usize) = match span {
            Span::TenMinutes => (kept.into_values().collect(), SECONDS),
            Span::Day => {
                let mut minutes: BTreeMap<u64, Vec<Option<u64>>> = BTreeMap::new();
                for (second, value) in kept {
                    minutes.entry(second / MINUTE).or_default().push(value);
                }
                let left = minutes.into_values().map(|values| {
                    let known: Vec<u64> = values.into_iter().flatten().collect();
                    (!known.is_empty()).then(|| of_minute(&known))
                });
                // The minute under way comes on top of those that are kept.
                (left.collect(), MINUTES + 1)
            }
        };
        let skip = values.len().saturating_sub(limit);
        values[skip..].to_vec()
    }

    fn kept(history: &History<3>, span: Span) -> [Vec<Option<u64>>; 2] {
        let view = history.view(None, span);
        [0, 1].map(|index| {
            assert_eq!(view.time_ms.len(), view.columns[index].values.len());
            view.columns[index].values.clone()
        })
    }

    proptest! {
        #[test]
        fn a_history_is_the_newest_of_all_that_was_added(
            steps in prop::collection::vec((0_u64..200, prop::option::of(0_u64..1 << 40)), 0..2000),
        ) {
            // The last is always known, as most are.
            let figures = [FIGURES[0], FIGURES[1], figure("budget", false)];
            let mut history = History::new(&figures);
            let mut added = Vec::new();
            let mut second = 0;
            for (step, value) in steps {
                second += step;
                history.add(second, second * 1000, [value, value, Some(1)]);
                added.push((second, value));
            }
            for span in [Span::TenMinutes, Span::Day] {
                let left = [mean, highest].map(|of_minute| expected(&added, span, of_minute));
                prop_assert_eq!(kept(&history, span), left);
            }
        }
    }

    #[test]
    fn two_days_take_no_more_memory_than_one() {
        let mut history = History::new(&FIGURES);
        for second in 0..2 * 24 * 3600 {
            history.add(second, 0, [Some(second); 2]);
        }
        assert_eq!(size_of::<[Value; 2]>(), size_of::<[u64; 2]>());
        assert_eq!(history.seconds.0.len(), SECONDS);
        assert_eq!(history.minutes.0.len(), MINUTES);
        assert!(history.minutes.0.capacity() <= 2 * MINUTES);
    }
}
