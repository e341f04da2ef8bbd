//! From the points of a run to the numbers that it comes to.

use super::record::{Point, Record, Subject};
use super::scenario::{Across, Measure, Reduce};
use super::series::Unit;
use super::statistics::{Spread, mean, median};

impl Measure {
    /// What it counts.
    #[must_use]
    pub(crate) fn unit(&self) -> Unit {
        match self.reduce {
            Reduce::Rate => Unit::PerSecond,
            Reduce::Until => Unit::Seconds,
            _ => self.series.unit(),
        }
    }

    /// What it is in a run. None where nothing was seen of it, or what it waits for did not come.
    #[must_use]
    pub(crate) fn of(&self, record: &Record) -> Option<f64> {
        let subjects = record.subjects(self.vm.as_deref());
        let values = subjects
            .iter()
            .map(|subject| self.of_subject(record, subject));
        let values = match self.reduce {
            // What one of them did not come to, not all have come to.
            Reduce::Until => values.collect::<Option<Vec<f64>>>()?,
            _ => values.flatten().collect(),
        };
        match self.across {
            _ if values.is_empty() => None,
            Across::Sum => Some(values.iter().sum()),
            Across::Mean => mean(&values),
            Across::Min => values.into_iter().reduce(f64::min),
            Across::Max => values.into_iter().reduce(f64::max),
        }
    }

    fn of_subject(&self, record: &Record, subject: &Subject) -> Option<f64> {
        let points = self.thinned(self.chosen(record, subject));
        let values: Vec<f64> = points.iter().map(|point| point.value).collect();
        match self.reduce {
            Reduce::Mean => mean(&values),
            Reduce::Median => median(&values),
            Reduce::Min => values.into_iter().reduce(f64::min),
            Reduce::Max => values.into_iter().reduce(f64::max),
            Reduce::Last => values.last().copied(),
            Reduce::Range => Spread::of(&values).map(|spread| spread.most - spread.least),
            Reduce::Rate => rate(&points),
            Reduce::Until => self.until(record, subject, &points),
        }
    }

    /// The points in its time, but for those that follow a change too closely.
    fn chosen(&self, record: &Record, subject: &Subject) -> Vec<Point> {
        let to_s = self.to_s.unwrap_or(f64::INFINITY);
        let changes = record.marks.iter().filter(|mark| mark.subject == *subject);
        let changes: Vec<f64> = changes.map(|mark| mark.time_s).collect();
        let settles = |time_s: f64| {
            let since = |change: &f64| (*change..*change + self.settle_s).contains(&time_s);
            changes.iter().any(since)
        };
        let is_chosen =
            |point: &&Point| (self.from_s..=to_s).contains(&point.time_s) && !settles(point.time_s);
        let points = record.points(subject, self.series).iter();
        points.filter(is_chosen).copied().collect()
    }

    /// One point in `every_s` seconds.
    fn thinned(&self, points: Vec<Point>) -> Vec<Point> {
        let Some(every_s) = self.every_s else {
            return points;
        };
        let mut thinned: Vec<Point> = Vec::new();
        for point in points {
            if thinned
                .last()
                .is_none_or(|last| point.time_s - last.time_s >= every_s)
            {
                thinned.push(point);
            }
        }
        thinned
    }

    /// Seconds until the series has come to the part of the other that it should reach, from what changed
    /// at `from_s` on: what is asked for at a time happens a little later.
    fn until(&self, record: &Record, subject: &Subject, points: &[Point]) -> Option<f64> {
        let (series, percent) = (self.reach?, self.reach_percent?);
        let goals = record.points(subject, series);
        let changed = record.marks.iter().find(|mark| {
            mark.subject == *subject && (self.from_s..self.from_s + 1.0).contains(&mark.time_s)
        });
        let from_s = changed.map_or(self.from_s, |mark| mark.time_s);
        let is_there = |point: &&Point| {
            let goal = goals.iter().find(|goal| goal.time_s >= point.time_s);
            goal.is_some_and(|goal| point.value >= goal.value * percent / 100.0)
        };
        let mut points = points.iter().filter(|point| point.time_s >= from_s);
        Some(points.find(is_there)?.time_s - from_s)
    }
}

/// What a counter rises in a second, from the first to the last point.
fn rate(points: &[Point]) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    let time_s = last.time_s - first.time_s;
    (time_s > 0.0).then(|| (last.value - first.value) / time_s)
}

#[cfg(test)]
mod tests {
    use super::super::record::Mark;
    use super::super::series::Series;
    use super::*;

    fn measure(text: &str) -> Measure {
        toml::from_str(&format!("name = \"m\"\nvm = \"a\"\n{text}")).unwrap()
    }

    /// Two VMs whose estimates rise from 0 by 10 and 20 a second; the truth is 100.
    fn record() -> Record {
        let mut record = Record::default();
        for second in 0..=10 {
            let time_s = f64::from(second);
            for (name, step) in [("a-1", 10.0), ("a-2", 20.0)] {
                let subject = Subject::Vm(name.parse().unwrap());
                let value = time_s * step;
                record.add(subject.clone(), Series::Estimate, Point { time_s, value });
                let value = 100.0;
                record.add(subject, Series::Truth, Point { time_s, value });
            }
        }
        record
    }

    #[test]
    fn points_become_one_number_in_every_way() {
        for (text, wanted) in [
            ("reduce = \"mean\"\nacross = \"mean\"", 75.0),
            ("reduce = \"median\"\nacross = \"sum\"", 150.0),
            ("reduce = \"min\"\nfrom_s = 2\nacross = \"min\"", 20.0),
            ("reduce = \"max\"\nto_s = 5\nacross = \"max\"", 100.0),
            ("reduce = \"last\"", 300.0),
            ("reduce = \"range\"\nacross = \"min\"", 100.0),
            ("reduce = \"rate\"", 30.0),
            ("reduce = \"mean\"\nevery_s = 10\nacross = \"mean\"", 75.0),
            ("reduce = \"mean\"\nevery_s = 6\nacross = \"max\"", 60.0),
            (
                "reduce = \"until\"\nreach = \"truth\"\nreach_percent = 80\nacross = \"max\"",
                8.0,
            ),
            (
                "reduce = \"until\"\nfrom_s = 3\nreach = \"truth\"\nreach_percent = 80\nacross = \"min\"",
                1.0,
            ),
        ] {
            let measure = measure(&format!("series = \"estimate\"\n{text}"));
            assert_eq!(measure.of(&record()), Some(wanted), "{text}");
        }
    }

    #[test]
    fn what_follows_a_change_is_left_out() {
        let mut record = record();
        record.marks.push(Mark {
            time_s: 4.5,
            subject: Subject::Vm("a-1".parse().unwrap()),
            what: "works".into(),
        });
        let measure = measure(
            "series = \"estimate\"\nreduce = \"min\"\nfrom_s = 5\nsettle_s = 2\nacross = \"min\"",
        );
        assert_eq!(measure.of(&record), Some(70.0));
    }

    #[test]
    fn what_was_not_seen_or_not_reached_is_no_number() {
        let unseen = measure("series = \"held\"\nreduce = \"mean\"");
        assert_eq!(unseen.of(&record()), None);
        let too_far = "series = \"estimate\"\nreduce = \"until\"\nreach = \"truth\"\nreach_percent = 150\nacross = \"max\"";
        assert_eq!(measure(too_far).of(&record()), None);
    }
}
