//! A bound on bytes a second. A packet may go while it does not wait for those before it, whatever its
//! length.

use page::TokenBucket;
use std::time::Duration;

/// The burst is what flows in this part of a second,
const BURST_PART: u64 = 10;
/// and at least the longest packet.
const LEAST_BURST: u64 = 64 << 10;

/// A bound or none.
#[derive(Clone, Debug)]
pub(super) struct Pace(Option<TokenBucket>);

impl Pace {
    pub(super) fn new(bytes_per_s: Option<u64>) -> Self {
        let bucket =
            |rate: u64| TokenBucket::full(rate.max(1), (rate / BURST_PART).max(LEAST_BURST));
        Self(bytes_per_s.map(bucket))
    }

    /// How long the next packet must wait; none if it may go now.
    pub(super) fn wait(&mut self, now: Duration) -> Option<Duration> {
        let ready_at = self.0.as_mut()?.ready_at(now);
        (ready_at > now).then(|| ready_at - now)
    }

    /// A packet goes.
    pub(super) fn take(&mut self, bytes: usize, now: Duration) {
        if let Some(bucket) = &mut self.0 {
            bucket.spend(bytes as u64, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A second in steps of a microsecond, each packet as soon as it may go; when it went.
    fn greedy(rate: u64, lengths: &[usize]) -> Vec<(u64, usize)> {
        let mut bucket = Pace::new(Some(rate));
        let mut now = Duration::ZERO;
        let mut went = Vec::new();
        for &length in lengths {
            if let Some(wait) = bucket.wait(now) {
                now += wait;
                assert_eq!(bucket.wait(now), None, "whoever has waited may go");
            }
            bucket.take(length, now);
            went.push((u64::try_from(now.as_nanos()).unwrap(), length));
        }
        went
    }

    proptest! {
        /// Every window, looked at one by one.
        #[test]
        fn over_any_time_no_more_goes_than_rate_burst_and_one_packet(
            rate in 1000u64..100_000_000,
            lengths in prop::collection::vec(14usize..65_550, 1..120),
        ) {
            let went = greedy(rate, &lengths);
            let burst = u128::from((rate / BURST_PART).max(LEAST_BURST));
            for first in 0..went.len() {
                let mut sum = 0u128;
                for last in first..went.len() {
                    sum += went[last].1 as u128;
                    let window = u128::from(went[last].0 - went[first].0);
                    let allowed = burst + 65_550 + window * u128::from(rate) / 1_000_000_000 + 1;
                    prop_assert!(sum <= allowed, "{sum} in {window} ns, {allowed} allowed");
                }
            }
        }

        /// Who always has something to send loses nothing of the rate.
        #[test]
        fn a_greedy_sender_gets_the_whole_rate(
            rate in 100_000u64..100_000_000,
            lengths in prop::collection::vec(14usize..65_550, 1..120),
        ) {
            let went = greedy(rate, &lengths);
            let (end, last) = *went.last().unwrap();
            let sent: u128 = went.iter().map(|&(_, length)| length as u128).sum();
            let flowed = u128::from(end) * u128::from(rate) / 1_000_000_000;
            prop_assert!(sent - last as u128 + 1 + u128::from(rate) / 1_000_000_000 >= flowed);
        }

        /// A model that fills in single steps, at times in any order.
        #[test]
        fn a_bucket_is_as_full_as_one_that_is_filled_every_millisecond(
            rate in 1000u64..1_000_000,
            acts in prop::collection::vec((0u64..300, 0usize..70_000), 1..50),
        ) {
            let mut bucket = Pace::new(Some(rate));
            let most = i128::from((rate / BURST_PART).max(LEAST_BURST)) * 1000;
            let (mut level, mut now_ms) = (most, 0);
            for (later_ms, bytes) in acts {
                for _ in 0..later_ms {
                    level = (level + i128::from(rate)).min(most);
                }
                now_ms += later_ms;
                let wait = bucket.wait(Duration::from_millis(now_ms));
                prop_assert_eq!(wait.is_none(), level >= 0);
                if wait.is_none() {
                    bucket.take(bytes, Duration::from_millis(now_ms));
                    level -= bytes as i128 * 1000;
                }
            }
        }
    }

    #[test]
    fn time_that_goes_back_or_stands_still_gives_nothing() {
        let mut bucket = Pace::new(Some(1000));
        bucket.take(1 << 20, Duration::ZERO);
        let wait = bucket.wait(Duration::from_secs(5));
        assert!(wait.is_some());
        assert_eq!(bucket.wait(Duration::from_secs(1)), wait);
        assert_eq!(bucket.wait(Duration::from_secs(5)), wait);
        assert_eq!(
            bucket.wait(Duration::MAX),
            None,
            "and all of it at once is no trouble"
        );
    }
}
