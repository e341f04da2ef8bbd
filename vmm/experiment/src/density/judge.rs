//! Whether every guest of a run is as fast as alone.

use super::record::{GuestRecord, Probe, TileReport};
use super::scenario::Density;
use serde::Serialize;
use std::fmt;

/// Upper bounds of a guest's buckets begin here, in microseconds.
const LEAST_US: f64 = 16.0;

/// What may be used beyond the budget for a moment, in percent of it: a limit that follows what zram takes follows after.
const TOLERANCE_PERCENT: u64 = 1;

/// How fast a guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Speed {
    /// Transactions a second.
    pub transactions: f64,
    /// Operations on files a second.
    pub operations: f64,
    /// All but one of a hundred transactions took no longer, in microseconds.
    pub transaction_p99_us: f64,
    /// All but one of a hundred operations did.
    pub operation_p99_us: f64,
}

impl Speed {
    /// Between two reports of a guest, by its own clock.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    pub fn between(first: &TileReport, last: &TileReport) -> Option<Self> {
        let ms = last.uptime_ms.checked_sub(first.uptime_ms)?;
        if ms == 0 {
            return None;
        }
        let rate = |first: u64, last: u64| last.saturating_sub(first) as f64 * 1000.0 / ms as f64;
        Some(Self {
            transactions: rate(first.transactions, last.transactions),
            operations: rate(first.operations, last.operations),
            transaction_p99_us: p99_us(&first.transaction_time, &last.transaction_time),
            operation_p99_us: p99_us(&first.operation_time, &last.operation_time),
        })
    }

    /// What was done in percent of another, the lesser of both kinds of work.
    #[must_use]
    pub fn percent_of(&self, solo: &Self) -> f64 {
        let percent = |ours: f64, solo: f64| match solo > 0.0 {
            true => 100.0 * ours / solo,
            false => 100.0,
        };
        percent(self.transactions, solo.transactions).min(percent(self.operations, solo.operations))
    }

    /// The longer of both.
    #[must_use]
    pub const fn p99_us(&self) -> f64 {
        self.transaction_p99_us.max(self.operation_p99_us)
    }
}

/// The upper bound of the bucket in which the 99th of a hundred lies; 0 of nothing.
fn p99_us(first: &[u64], last: &[u64]) -> f64 {
    let count = |index: usize| {
        let before = first.get(index).copied().unwrap_or(0);
        last[index].saturating_sub(before)
    };
    let total: u64 = (0..last.len()).map(count).sum();
    if total == 0 {
        return 0.0;
    }
    let rank = (total * 99).div_ceil(100);
    let mut below = 0;
    let bucket = (0..last.len()).find(|&index| {
        below += count(index);
        below >= rank
    });
    bucket.map_or(0.0, upper_bound_us)
}

/// 16, 24, 32, 48, 64 and so on.
fn upper_bound_us(bucket: usize) -> f64 {
    let doublings = i32::try_from(bucket / 2).unwrap_or(i32::MAX);
    let half = if bucket % 2 == 1 { 1.5 } else { 1.0 };
    LEAST_US * 2_f64.powi(doublings) * half
}

/// Why so many guests do not hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Miss {
    /// No more could be started.
    Refused(String),
    /// The kernel ended so many processes for want of memory.
    OutOfMemory(u64),
    /// So many guests ended.
    Ended(usize),
    /// So many guests did not answer.
    Silent(usize),
    /// Something was not as it was written.
    Wrong(u64),
    /// More memory was used than there is, by so many bytes.
    OverBudget(u64),
    /// So many guests did less; the slowest did so much of what it does alone.
    Slow {
        /// How many.
        guests: usize,
        /// In percent.
        least_percent: f64,
    },
    /// So many guests took longer; the slowest's 99th of a hundred.
    Late {
        /// How many.
        guests: usize,
        /// In milliseconds.
        p99_ms: f64,
    },
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "no more can be started: {why}"),
            Self::OutOfMemory(count) => write!(f, "OOM: the kernel ended {count}"),
            Self::Ended(count) => write!(f, "{count} ended"),
            Self::Silent(count) => write!(f, "{count} did not answer"),
            Self::Wrong(count) => write!(f, "{count} WRONG BYTES"),
            Self::OverBudget(bytes) => write!(f, "{} MiB over the budget", bytes.div_ceil(1 << 20)),
            Self::Slow {
                guests,
                least_percent,
            } => write!(f, "{guests} slow, the slowest at {least_percent:.1} %"),
            Self::Late { guests, p99_ms } => {
                write!(f, "{guests} late, the latest's p99 {p99_ms:.1} ms")
            }
        }
    }
}

/// Why a run does not hold; nothing if it does.
#[must_use]
pub fn judge(density: &Density, solo: &Speed, probe: &Probe) -> Vec<Miss> {
    let mut misses = Vec::new();
    misses.extend(probe.refused.clone().map(Miss::Refused));
    if probe.oom_kills > 0 {
        misses.push(Miss::OutOfMemory(probe.oom_kills));
    }
    let ended = probe.guests.iter().filter(|guest| guest.has_ended).count();
    if ended > 0 {
        misses.push(Miss::Ended(ended));
    }
    let reports = probe.guests.iter().filter_map(|guest| guest.last.as_ref());
    let wrong: u64 = reports.map(TileReport::wrong).sum();
    if wrong > 0 {
        misses.push(Miss::Wrong(wrong));
    }
    let budget = density.budget_bytes();
    // While it was measured: a start asks for more than there is on every side.
    let used = probe.measured().map(|sample| sample.used_bytes).max();
    let over = used.unwrap_or(0).saturating_sub(budget);
    if over > budget * TOLERANCE_PERCENT / 100 {
        misses.push(Miss::OverBudget(over));
    }
    // What ended early was not measured.
    if misses.is_empty() || probe.measured_s > 0.0 {
        misses.extend(of_speeds(density, solo, &probe.guests));
    }
    misses
}

fn of_speeds(density: &Density, solo: &Speed, guests: &[GuestRecord]) -> Vec<Miss> {
    let alive = guests.iter().filter(|guest| !guest.has_ended);
    let speeds: Vec<Option<Speed>> = alive.map(GuestRecord::speed).collect();
    let mut misses = Vec::new();
    let silent = speeds.iter().filter(|speed| speed.is_none()).count();
    if silent > 0 {
        misses.push(Miss::Silent(silent));
    }
    let percents = speeds.iter().flatten().map(|speed| speed.percent_of(solo));
    let slow: Vec<f64> = percents
        .filter(|&percent| percent < density.keep_percent)
        .collect();
    if let Some(least_percent) = slow.iter().copied().reduce(f64::min) {
        misses.push(Miss::Slow {
            guests: slow.len(),
            least_percent,
        });
    }
    let allowed_us = solo.p99_us() + 1000.0 * density.p99_extra_ms;
    let late: Vec<f64> = speeds
        .iter()
        .flatten()
        .map(Speed::p99_us)
        .filter(|&p99_us| p99_us > allowed_us)
        .collect();
    if let Some(latest_us) = late.iter().copied().reduce(f64::max) {
        misses.push(Miss::Late {
            guests: late.len(),
            p99_ms: latest_us / 1000.0,
        });
    }
    misses
}

impl GuestRecord {
    /// How fast it was, if it said so.
    #[must_use]
    pub fn speed(&self) -> Option<Speed> {
        Speed::between(self.first.as_ref()?, self.last.as_ref()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::tests::density;
    use super::super::search::{Length, Question};
    use super::*;

    fn report(seconds: u64, transactions: u64, slow: u64) -> TileReport {
        TileReport {
            uptime_ms: seconds * 1000,
            transactions,
            operations: transactions / 10,
            transaction_time: vec![transactions - slow, 0, 0, slow],
            operation_time: vec![transactions / 10],
            ..TileReport::default()
        }
    }

    fn guest(transactions: u64) -> GuestRecord {
        GuestRecord {
            first: Some(report(10, 1000, 500)),
            last: Some(report(20, 1000 + transactions, 500)),
            has_ended: false,
        }
    }

    fn probe(guests: Vec<GuestRecord>) -> Probe {
        let question = Question {
            count: 2,
            length: Length::Long,
        };
        Probe {
            guests,
            ..Probe::new(question, 0.0)
        }
    }

    const SOLO: Speed = Speed {
        transactions: 100.0,
        operations: 10.0,
        transaction_p99_us: 16.0,
        operation_p99_us: 16.0,
    };

    #[test]
    fn every_guest_counts_and_not_their_mean() {
        let density = density();
        assert_eq!(judge(&density, &SOLO, &probe(vec![guest(1000); 2])), []);
        let one_slow = probe(vec![guest(1200), guest(900)]);
        assert_eq!(
            judge(&density, &SOLO, &one_slow),
            [Miss::Slow {
                guests: 1,
                least_percent: 90.0
            }]
        );
    }

    #[test]
    fn what_was_slow_before_it_was_measured_is_not_counted() {
        let speed = guest(1000).speed().unwrap();
        assert_eq!((speed.transactions, speed.operations), (100.0, 10.0));
        assert_eq!(speed.transaction_p99_us, 16.0);
        let late = Speed::between(&report(10, 1000, 0), &report(20, 2000, 20)).unwrap();
        assert_eq!(late.transaction_p99_us, 48.0);
    }

    #[test]
    fn all_that_must_not_be_is_named() {
        let mut bad = probe(vec![guest(1000), guest(1000), GuestRecord::default()]);
        bad.oom_kills = 1;
        bad.guests[0].has_ended = true;
        if let Some(last) = &mut bad.guests[1].last {
            last.leaks = 3;
        }
        bad.refused = Some("full".into());
        let misses = judge(&density(), &SOLO, &bad);
        assert_eq!(
            misses,
            [
                Miss::Refused("full".into()),
                Miss::OutOfMemory(1),
                Miss::Ended(1),
                Miss::Wrong(3),
            ]
        );
        bad.measured_s = 10.0;
        assert_eq!(
            judge(&density(), &SOLO, &bad).last(),
            Some(&Miss::Silent(1))
        );
    }

    #[test]
    fn buckets_have_the_bounds_that_the_guest_tells() {
        let bounds: Vec<f64> = (0..7).map(upper_bound_us).collect();
        assert_eq!(bounds, [16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0]);
    }
}
