//! What cannot be put under the host now: tried again with growing pauses, and told of once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Aside {
    next: Instant,
    pause: Duration,
    /// Why, without figures.
    told: String,
}

/// Those that were set aside, by what they are known by.
#[derive(Debug)]
pub(super) struct Asides<K>(BTreeMap<K, Aside>);

impl<K> Default for Asides<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Asides<K> {
    /// Whether it is to be tried.
    pub(super) fn is_due(&self, key: &K, now: Instant) -> bool {
        self.0.get(key).is_none_or(|aside| aside.next <= now)
    }

    /// It was tried in vain, for that reason. Whether that is news: other figures in it are none.
    pub(super) fn put(&mut self, key: K, why: &str, now: Instant) -> bool {
        let why: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
        let before = self.0.get(&key);
        let is_news = before.is_none_or(|aside| aside.told != why);
        let pause = match before {
            Some(aside) if !is_news => (2 * aside.pause).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        let aside = Aside {
            next: now + pause,
            pause,
            told: why,
        };
        self.0.insert(key, aside);
        is_news
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// Forgets all but these.
    pub(super) fn keep(&mut self, is_kept: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| is_kept(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_told_once_and_tried_less_and_less() {
        let (mut asides, begin) = (Asides::default(), Instant::now());
        assert!(asides.is_due(&"a", begin));
        assert!(asides.put("a", "no", begin));
        let mut now = begin;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let tried = now;
            while !asides.is_due(&"a", now) {
                now += Duration::from_secs(1);
            }
            waits.push((now - tried).as_secs());
            assert!(!asides.put("a", "no", now));
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(asides.put("a", "for another reason", now));
        assert!(asides.put("b", "7 of 10 are free", now));
        assert!(!asides.put("b", "8 of 10 are free", now));
        assert!(asides.is_due(&"a", now + FIRST_PAUSE));
        asides.keep(|key| *key != "a");
        assert!(asides.is_due(&"a", now));
    }
}
