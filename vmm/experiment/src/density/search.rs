//! Looks for the largest number of guests that holds, with few and noisy answers.
//!
//! A short run is a hint, a long one the word: where both were made of a number, the long one counts. The search goes up
//! or down from where it was told to begin, by steps that double, halves what is between, and then confirms: the number
//! itself and the one above it are run long. If the one above holds after all, or the number does not, it goes on from
//! there; so one wrong short answer costs time and not the result. It ends after so many runs in any case.

use serde::Serialize;
use std::collections::BTreeMap;

/// Runs for one side at most.
const MOST_QUESTIONS: usize = 14;

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Long enough to see much.
    Short,
    /// Long enough to be the result.
    Long,
}

/// A run that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// Of so many guests.
    pub count: u32,
    /// So long.
    pub length: Length,
}

/// What is known of the numbers above a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// One more was run long and does not hold.
    Seen,
    /// No more were to be tried.
    Most,
    /// The search ended before it was known.
    Unknown,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Score {
    /// The largest number that holds; 0 if none does.
    pub count: u32,
    /// Whether a long run says so.
    pub is_confirmed: bool,
    /// What is known of more.
    pub bound: Bound,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another run.
    Ask(Question),
    /// Nothing.
    Done(Score),
}

#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    short: Option<bool>,
    long: Option<bool>,
}

impl Answers {
    fn holds(self) -> Option<bool> {
        self.long.or(self.short)
    }
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search {
    first: u32,
    most: u32,
    answers: BTreeMap<u32, Answers>,
    asked: usize,
}

impl Search {
    /// One that begins with `first` guests and tries `most` at most.
    #[must_use]
    pub fn new(first: u32, most: u32) -> Self {
        Self {
            first: first.clamp(1, most.max(1)),
            most: most.max(1),
            answers: BTreeMap::new(),
            asked: 0,
        }
    }

    /// So many guests held in such a run, or not.
    pub fn note(&mut self, question: Question, holds: bool) {
        let answers = self.answers.entry(question.count).or_default();
        match question.length {
            Length::Short => answers.short = Some(holds),
            Length::Long => answers.long = Some(holds),
        }
        self.asked += 1;
    }

    /// What is to be done now.
    #[must_use]
    pub fn next(&self) -> Next {
        match self.wanted() {
            Ok(question) if self.asked < MOST_QUESTIONS => Next::Ask(question),
            Ok(_) => Next::Done(self.best_so_far()),
            Err(score) => Next::Done(score),
        }
    }

    fn wanted(&self) -> Result<Question, Score> {
        let short = |count| {
            Ok(Question {
                count,
                length: Length::Short,
            })
        };
        let long = |count| {
            Ok(Question {
                count,
                length: Length::Long,
            })
        };
        let low = self.counts(true).last();
        let high = self.counts(false).find(|&count| Some(count) > low);
        match (low, high) {
            (None, None) => short(self.first),
            (None, Some(1)) => Err(Score {
                count: 0,
                is_confirmed: self.answers[&1].long.is_some(),
                bound: Bound::Seen,
            }),
            (None, Some(high)) => short(high.saturating_sub(self.step(false)).max(1)),
            (Some(low), None) if low < self.most => {
                short(low.saturating_add(self.step(true)).min(self.most))
            }
            (Some(low), Some(high)) if high - low > 1 => short(low.midpoint(high)),
            (Some(low), _) if self.answers[&low].long.is_none() => long(low),
            (Some(_), Some(high)) if self.answers[&high].long.is_none() => long(high),
            (Some(count), high) => Err(Score {
                count,
                is_confirmed: true,
                bound: high.map_or(Bound::Most, |_| Bound::Seen),
            }),
        }
    }

    /// The numbers that hold, or those that do not, ascending.
    fn counts(&self, holds: bool) -> impl DoubleEndedIterator<Item = u32> {
        let known = self.answers.iter();
        known
            .filter(move |(_, answers)| answers.holds() == Some(holds))
            .map(|(&count, _)| count)
    }

    /// How far to go on in a direction in which nothing else is known: twice as far as between the last two.
    fn step(&self, holds: bool) -> u32 {
        let last_two: Vec<u32> = match holds {
            true => self.counts(true).rev().take(2).collect(),
            false => self.counts(false).take(2).collect(),
        };
        match last_two[..] {
            [last, before] => 2 * last.abs_diff(before),
            _ => 1,
        }
    }

    fn best_so_far(&self) -> Score {
        let confirmed = self
            .answers
            .iter()
            .rev()
            .find(|(_, answers)| answers.long == Some(true))
            .map(|(&count, _)| count);
        let count = confirmed.or_else(|| self.counts(true).next_back());
        Score {
            count: count.unwrap_or(0),
            is_confirmed: confirmed.is_some(),
            bound: Bound::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Asks until it is done; the score, and every question.
    fn run(mut search: Search, answer: impl Fn(Question) -> bool) -> (Score, Vec<Question>) {
        let mut asked = Vec::new();
        loop {
            match search.next() {
                Next::Done(score) => return (score, asked),
                Next::Ask(question) => {
                    asked.push(question);
                    search.note(question, answer(question));
                }
            }
        }
    }

    fn long(count: u32) -> Question {
        Question {
            count,
            length: Length::Long,
        }
    }

    proptest! {
        #[test]
        fn with_plain_answers_it_finds_the_number_and_confirms_both_sides_of_it(
            truth in 0_u32..40, first in 1_u32..40,
        ) {
            let (score, asked) = run(Search::new(first, 64), |question| question.count <= truth);
            prop_assert_eq!(score.count, truth);
            prop_assert_eq!(score.bound, Bound::Seen);
            if truth > 0 {
                prop_assert!(score.is_confirmed);
                prop_assert!(asked.contains(&long(truth)));
                prop_assert!(asked.contains(&long(truth + 1)));
            }
        }

        #[test]
        fn whatever_the_answers_it_ends_and_never_names_what_a_long_run_refuted(
            bits: u64, longs: u64, first in 1_u32..64,
        ) {
            let answer = |question: Question| match question.length {
                Length::Short => bits >> (question.count % 64) & 1 == 1,
                Length::Long => longs >> (question.count % 64) & 1 == 1,
            };
            let (score, asked) = run(Search::new(first, 60), answer);
            prop_assert!(asked.len() <= MOST_QUESTIONS);
            prop_assert!(asked.iter().all(|question| (1..=60).contains(&question.count)));
            if score.is_confirmed && score.count > 0 {
                prop_assert!(asked.contains(&long(score.count)) && answer(long(score.count)));
            }
            for (index, question) in asked.iter().enumerate() {
                prop_assert!(!asked[..index].contains(question), "asked twice: {question:?}");
            }
        }
    }

    #[test]
    fn a_short_run_that_failed_by_accident_costs_no_guest() {
        let answer = |question: Question| match question {
            Question {
                count: 10,
                length: Length::Short,
            } => false,
            Question { count, .. } => count <= 12,
        };
        let (score, _) = run(Search::new(9, 64), answer);
        assert_eq!((score.count, score.bound), (12, Bound::Seen));
    }

    #[test]
    fn a_short_run_that_held_by_accident_gains_none() {
        let answer = |question: Question| match question.length {
            Length::Short => question.count <= 12,
            Length::Long => question.count <= 10,
        };
        let (score, _) = run(Search::new(9, 64), answer);
        assert_eq!((score.count, score.is_confirmed), (10, true));
    }

    #[test]
    fn a_hole_below_a_number_that_holds_is_not_looked_for() {
        let (score, asked) = run(Search::new(8, 64), |question| {
            question.count <= 12 && question.count != 10
        });
        assert!(score.count == 12 || score.count == 9, "{asked:?}");
        assert!(score.is_confirmed);
    }

    #[test]
    fn what_a_long_run_refutes_is_left_by_small_steps() {
        let answer = |question: Question| match question.length {
            Length::Short => question.count <= 9,
            Length::Long => question.count <= 7,
        };
        let (score, asked) = run(Search::new(16, 64), answer);
        assert_eq!((score.count, score.is_confirmed), (7, true), "{asked:?}");
    }

    #[test]
    fn no_more_than_the_most_are_tried() {
        let (score, asked) = run(Search::new(3, 7), |_| true);
        assert_eq!((score.count, score.bound), (7, Bound::Most));
        assert!(asked.len() <= 6, "{asked:?}");
    }

    #[test]
    fn a_good_guess_is_cheap() {
        let (_, asked) = run(Search::new(20, 64), |question| question.count <= 20);
        assert!(asked.len() <= 4, "{asked:?}");
    }
}
