//! What was seen in a run: points over time, and what happened between them.

use super::series::Series;
use protocol::VmName;
use std::collections::BTreeMap;
use std::fmt;

/// Whose figures they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The host's.
    Host,
    /// A VM's.
    Vm(VmName),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Vm(name) => f.write_str(name.as_str()),
        }
    }
}

/// A value at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Seconds since the run began.
    pub time_s: f64,
    /// In the series' unit.
    pub value: f64,
}

/// Something that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Seconds since the run began.
    pub time_s: f64,
    /// To whom.
    pub subject: Subject,
    /// What, in words.
    pub what: String,
}

/// All that was seen in a run.
#[derive(Clone, Debug, Default)]
pub struct Record {
    lines: BTreeMap<(Subject, Series), Vec<Point>>,
    /// What was done, in order.
    pub marks: Vec<Mark>,
}

impl Record {
    /// Takes in a value.
    pub fn add(&mut self, subject: Subject, series: Series, point: Point) {
        self.lines.entry((subject, series)).or_default().push(point);
    }

    /// The points of a series, in order.
    #[must_use]
    pub(crate) fn points(&self, subject: &Subject, series: Series) -> &[Point] {
        let key = (subject.clone(), series);
        self.lines.get(&key).map_or(&[], Vec::as_slice)
    }

    /// All series.
    pub fn lines(&self) -> impl Iterator<Item = (&Subject, Series, &[Point])> {
        let lines = self.lines.iter();
        lines.map(|((subject, series), points)| (subject, *series, points.as_slice()))
    }

    /// Who is meant: the host by nothing, every VM by `*`, and by a name that VM and those that are
    /// numbered after it.
    #[must_use]
    pub(crate) fn subjects(&self, vm: Option<&str>) -> Vec<Subject> {
        let Some(wanted) = vm else {
            return vec![Subject::Host];
        };
        let mut subjects: Vec<&Subject> = self
            .lines
            .keys()
            .map(|(subject, _)| subject)
            .filter(
                |subject| matches!(subject, Subject::Vm(name) if is_meant(name.as_str(), wanted)),
            )
            .collect();
        subjects.dedup();
        let mut subjects: Vec<Subject> = subjects.into_iter().cloned().collect();
        subjects.sort_by_key(number_of);
        subjects
    }
}

/// Whether a name is the one that is wanted, or a copy of it.
pub(super) fn is_meant(name: &str, wanted: &str) -> bool {
    let number = name
        .strip_prefix(wanted)
        .and_then(|rest| rest.strip_prefix('-'));
    wanted == "*" || name == wanted || number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// So that `vm-10` comes after `vm-9`.
fn number_of(subject: &Subject) -> (String, u32) {
    let name = subject.to_string();
    let numbered = name
        .rsplit_once('-')
        .and_then(|(group, number)| Some((group.to_owned(), number.parse().ok()?)));
    numbered.unwrap_or((name, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str) -> Subject {
        Subject::Vm(name.parse().unwrap())
    }

    #[test]
    fn a_name_means_the_vm_and_its_copies_in_their_order() {
        let mut record = Record::default();
        let point = Point {
            time_s: 0.0,
            value: 0.0,
        };
        for name in ["a-10", "a-9", "ab-1", "b"] {
            record.add(subject(name), Series::Held, point);
        }
        record.add(Subject::Host, Series::Used, point);
        assert_eq!(
            record.subjects(Some("a")),
            [subject("a-9"), subject("a-10")]
        );
        assert_eq!(record.subjects(Some("a-9")), [subject("a-9")]);
        assert_eq!(record.subjects(Some("*")).len(), 4);
        assert_eq!(record.subjects(None), [Subject::Host]);
    }
}
