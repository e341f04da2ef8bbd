//! Overcommitment over one, five and fifteen minutes, as load averages are made: what was long ago weighs
//! less, and nothing has to be remembered.

/// Seconds over which each average goes.
const SPANS_S: [f64; 3] = [60.0, 300.0, 900.0];

/// Averages over three spans.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Averages {
    values: [f64; 3],
    /// When the last value came, in seconds from the host's start.
    seen_s: Option<f64>,
}

impl Averages {
    /// Takes in what is now.
    pub(super) fn add(&mut self, now_s: f64, value: f64) {
        // The first value is all that is known; an average from zero would be none.
        let elapsed_s = self
            .seen_s
            .map_or(f64::INFINITY, |seen_s| (now_s - seen_s).max(0.0));
        for (average, span_s) in self.values.iter_mut().zip(SPANS_S) {
            let kept = (-elapsed_s / span_s).exp();
            *average = *average * kept + value * (1.0 - kept);
        }
        self.seen_s = Some(now_s);
    }

    /// Over 1, 5 and 15 minutes.
    pub(super) fn values(&self) -> [f64; 3] {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_the_average() {
        let mut averages = Averages::default();
        averages.add(5.0, 0.5);
        assert_eq!(averages.values(), [0.5; 3]);
    }

    #[test]
    fn a_change_shows_in_the_short_average_first_and_in_all_at_last() {
        let mut averages = Averages::default();
        averages.add(0.0, 0.0);
        for second in 1..=60 {
            averages.add(f64::from(second), 1.0);
        }
        let [one, five, fifteen] = averages.values();
        assert!((one - 0.632).abs() < 0.001, "{one}");
        assert!(one > five && five > fifteen && fifteen > 0.0);
        averages.add(1e6, 1.0);
        assert!(averages.values().iter().all(|value| *value > 0.999));
    }
}
