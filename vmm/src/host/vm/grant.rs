//! What a VM may hold by its host's word.

use super::Vm;
use super::kept_limit::KeptLimit;
use page::PageCount;
use policy::TouchLimit;
use protocol::VmConfig;
use std::collections::VecDeque;

/// Of what a VM was told and may still act on no more is remembered one by one.
const MOST_TOLD: usize = 16;

/// What a VM may hold, and what its guest may still believe that it may: until a VM has confirmed a smaller grant, its guest may act
/// on the larger one.
///
/// Grants change from round to round. A VM's answer to a question that was asked after it was told something confirms that: in that
/// round its device has the target, and by the next answer its guest has had a whole round to see it. What was told before counts no
/// longer then, whatever was told since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    /// In order; the last is the latest.
    told: VecDeque<Told>,
    /// Which of them its device had when it answered last.
    seen: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    pages: PageCount,
    /// The last question that was asked before.
    after: u64,
}

impl Grant {
    /// What a VM was told by another host, and acts on.
    pub(super) fn taken_over(pages: PageCount) -> Self {
        let mut grant = Self::default();
        grant.set(pages, 0);
        grant
    }

    /// What it was told last.
    pub(super) fn latest(&self) -> PageCount {
        self.told.back().map_or(PageCount::ZERO, |told| told.pages)
    }

    /// The most of what it was told and its guest may act on.
    pub(super) fn highest_unconfirmed(&self) -> PageCount {
        let pages = self.told.iter().map(|told| told.pages);
        pages.max().unwrap_or_default()
    }

    fn set(&mut self, pages: PageCount, asked: u64) {
        self.told.push_back(Told {
            pages,
            after: asked,
        });
        if self.told.len() > MOST_TOLD
            && let Some(oldest) = self.told.pop_front()
            && let Some(next) = self.told.front_mut()
        {
            next.pages = next.pages.max(oldest.pages);
            self.seen = self.seen.saturating_sub(1);
        }
    }

    /// The VM says what it believes it may hold, in its answer to that question.
    pub(super) fn confirm(&mut self, pages: PageCount, sequence: u64) {
        let has_heard = |told: &Told| told.after < sequence;
        let Some(heard) = self.told.iter().rposition(has_heard) else {
            return;
        };
        if self.told[heard].pages != pages {
            return;
        }
        self.told.drain(..self.seen);
        self.seen = heard - self.seen;
    }
}

impl Vm {
    /// What its process is told. Whether its guest has a driver for its balloon is not known before it runs; until
    /// the next plan nothing else keeps it to its grant.
    pub(super) fn at_boot(&mut self) -> VmConfig {
        let pages = self.grant.latest();
        let limit = TouchLimit {
            slow_above: pages,
            stop_above: pages,
        };
        self.config.touch_limit = (pages < self.config.settings.size).then_some(limit);
        let kept = self.config.touch_limit.map(|limit| limit.slow_above);
        self.seen.kept_limit = KeptLimit::at_boot(kept);
        self.config.clone()
    }

    /// The VM may hold this much from now on; it is told if it runs.
    pub(in crate::host) fn grant(&mut self, pages: PageCount) {
        if pages == self.grant.latest() {
            return;
        }
        self.grant.set(pages, self.seen.asked);
        self.config.balloon_target = self.config.settings.size - pages;
        self.life.start();
        self.tell(|backend| backend.inflate_to(self.config.balloon_target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(told: &[(u64, u64)]) -> Grant {
        let mut grant = Grant::default();
        for &(pages, asked) in told {
            grant.set(PageCount(pages), asked);
        }
        grant
    }

    #[test]
    fn a_smaller_grant_counts_once_its_guest_has_had_a_round_to_see_it() {
        let mut grant = grant(&[(100, 0), (40, 3)]);
        for (says, sequence, highest) in [
            (100, 3, 100),
            (100, 4, 100),
            (40, 4, 100),
            (40, 5, 40),
            (40, 6, 40),
        ] {
            grant.confirm(PageCount(says), sequence);
            assert_eq!(
                grant.highest_unconfirmed(),
                PageCount(highest),
                "{sequence}"
            );
        }
        grant.set(PageCount(60), 6);
        assert_eq!(grant.highest_unconfirmed(), PageCount(60));
    }

    #[test]
    fn a_grant_that_changes_in_each_round_counts_as_the_last_few_do() {
        let mut grant = grant(&[(100, 0)]);
        for round in 1..50 {
            let pages = PageCount(40 + round % 3);
            grant.set(pages, round);
            grant.confirm(pages, round + 1);
            if round > 2 {
                assert!(grant.highest_unconfirmed() <= PageCount(42), "{round}");
            }
        }
        assert_eq!(grant.latest(), PageCount(40 + 49 % 3));
    }

    #[test]
    fn of_one_that_never_answers_nothing_is_forgotten() {
        let mut grant = grant(&[(100, 0)]);
        (1..50).for_each(|round| grant.set(PageCount(round), round));
        assert_eq!(grant.highest_unconfirmed(), PageCount(100));
        assert!(grant.told.len() <= MOST_TOLD);
    }

    use proptest::prelude::*;

    proptest! {
        /// Beside one that remembers all it told, a VM that hears in order, and its guest, which has seen what its device had
        /// a round ago.
        #[test]
        fn nothing_that_its_guest_may_act_on_is_forgotten(
            rounds in prop::collection::vec((prop::collection::vec(0_u64..100, 0..4), any::<bool>()), 1..60)
        ) {
            let (mut grant, mut all) = (Grant::default(), vec![(0, 0)]);
            grant.set(PageCount(0), 0);
            let mut had = 0;
            for (asked, (told, answers)) in (1_u64..).zip(rounds) {
                // It is asked, and answers with what it had heard by then; what is told meanwhile it hears later.
                let heard = all.len() - 1;
                for pages in told {
                    grant.set(PageCount(pages), asked);
                    all.push((pages, asked));
                }
                if answers {
                    grant.confirm(PageCount(all[heard].0), asked);
                    let acts_on = all[had..].iter().map(|(pages, _)| *pages).max();
                    prop_assert!(grant.highest_unconfirmed().0 >= acts_on.unwrap_or(0));
                    prop_assert_eq!(grant.latest().0, all[all.len() - 1].0);
                    had = heard;
                }
            }
        }
    }
}
