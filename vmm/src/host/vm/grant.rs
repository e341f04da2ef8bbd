//! What a VM may hold by its host's word.

use super::Vm;
use super::kept_limit::KeptLimit;
use page::PageCount;
use policy::TouchLimit;
use protocol::VmConfig;

/// Rounds in which a VM must have confirmed a smaller grant before the host counts on it: in the
/// first its device has the target, in the second its guest has had a whole round to see it.
const CONFIRMING_ROUNDS: u8 = 2;

/// A smaller grant counts only when the VM has confirmed it: until then its guest may act on the larger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) latest: PageCount,
    pub(super) highest_unconfirmed: PageCount,
    confirmed_rounds: u8,
}

impl Grant {
    /// What a VM was told by another host, and acts on.
    pub(super) fn taken_over(pages: PageCount) -> Self {
        Self {
            latest: pages,
            highest_unconfirmed: pages,
            confirmed_rounds: 0,
        }
    }

    fn set(&mut self, pages: PageCount) {
        self.latest = pages;
        self.highest_unconfirmed = self.highest_unconfirmed.max(pages);
        self.confirmed_rounds = 0;
    }

    /// The VM says what it believes it may hold.
    pub(super) fn confirm(&mut self, pages: PageCount) {
        if pages != self.latest {
            self.confirmed_rounds = 0;
            return;
        }
        self.confirmed_rounds = CONFIRMING_ROUNDS.min(self.confirmed_rounds + 1);
        if self.confirmed_rounds == CONFIRMING_ROUNDS {
            self.highest_unconfirmed = self.latest;
        }
    }
}

impl Vm {
    /// What its process is told. Whether its guest has a driver for its balloon is not known before it runs; until
    /// the next plan nothing else keeps it to its grant.
    pub(super) fn at_boot(&mut self) -> VmConfig {
        let pages = self.grant.latest;
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
        if pages == self.grant.latest {
            return;
        }
        self.grant.set(pages);
        self.config.balloon_target = self.config.settings.size - pages;
        self.life.start();
        self.tell(|backend| backend.inflate_to(self.config.balloon_target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_grant_counts_only_after_it_was_confirmed_twice() {
        let mut grant = Grant::default();
        grant.set(PageCount(100));
        grant.set(PageCount(40));
        grant.confirm(PageCount(100));
        assert_eq!(grant.highest_unconfirmed, PageCount(100));
        grant.confirm(PageCount(40));
        assert_eq!(grant.highest_unconfirmed, PageCount(100));
        grant.confirm(PageCount(40));
        assert_eq!(grant.highest_unconfirmed, PageCount(40));
        grant.set(PageCount(60));
        assert_eq!(grant.highest_unconfirmed, PageCount(60));
    }
}
