//! How fast a VM's pages go out and come back, from what it counted at two moments.

use page::PAGE_SIZE;
use protocol::SwapCounters;
use std::time::{Duration, Instant};

/// No rate is told over a shorter time: a few pages would look like many.
const LEAST_TIME: Duration = Duration::from_millis(900);

/// Bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SwapRates {
    pub(super) read: u64,
    pub(super) written: u64,
    /// Of pages, before they were compressed,
    pub(super) zipped: u64,
    /// and once they were not any more.
    pub(super) unzipped: u64,
    since: Option<(Instant, SwapCounters)>,
}

impl SwapRates {
    /// It had counted so many by now.
    pub(super) fn see(&mut self, counters: SwapCounters, now: Instant) {
        let Some((then, before)) = self.since else {
            self.since = Some((now, counters));
            return;
        };
        let time = now.saturating_duration_since(then);
        if time < LEAST_TIME {
            return;
        }
        let per_s = |of: fn(&SwapCounters) -> u64, scale: u64| {
            let count = of(&counters).saturating_sub(of(&before));
            let per_s = u128::from(count) * u128::from(scale) * 1000 / time.as_millis();
            u64::try_from(per_s).unwrap_or(u64::MAX)
        };
        *self = Self {
            read: per_s(|counters| counters.read_bytes, 1),
            written: per_s(|counters| counters.written_bytes, 1),
            zipped: per_s(|counters| counters.zipped, PAGE_SIZE),
            unzipped: per_s(|counters| counters.unzipped, PAGE_SIZE),
            since: Some((now, counters)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_came_in_a_second_and_a_process_that_counts_backwards_has_none() {
        let (mut rates, begin) = (SwapRates::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let counted = |zipped, read_bytes| SwapCounters {
            zipped,
            read_bytes,
            ..SwapCounters::default()
        };
        rates.see(counted(1000, 50), at(0));
        rates.see(counted(5000, 70), at(200));
        assert_eq!((rates.zipped, rates.read), (0, 0), "too early to say");
        rates.see(counted(1500, 8050), at(2000));
        assert_eq!((rates.zipped, rates.read), (250 * PAGE_SIZE, 4000));
        rates.see(counted(0, 8050), at(3000));
        assert_eq!((rates.zipped, rates.read), (0, 0));
    }
}
