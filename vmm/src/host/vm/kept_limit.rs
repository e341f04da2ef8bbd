//! Within which limit a VM keeps itself, as far as it has confirmed that: only then others get what it may not touch.

use page::PageCount;

/// A VM's touch limit, told and confirmed. Its answer to a question that was asked after it was told confirms it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeptLimit {
    confirmed: Option<PageCount>,
    told: Option<PageCount>,
    /// The last question that was asked before.
    told_after: u64,
}

impl KeptLimit {
    /// One that a VM has from its first instruction on.
    pub(super) fn at_boot(limit: Option<PageCount>) -> Self {
        Self {
            confirmed: limit,
            told: limit,
            told_after: 0,
        }
    }

    /// It was told so, after the question of this number.
    pub(super) fn tell(&mut self, limit: Option<PageCount>, asked: u64) {
        self.confirmed = self.kept();
        self.told = limit;
        self.told_after = asked;
    }

    /// It has answered a question.
    pub(super) fn answered(&mut self, sequence: u64) {
        if sequence > self.told_after {
            self.confirmed = self.told;
        }
    }

    /// It says that it cannot keep within any.
    pub(super) fn is_not_kept(&mut self) {
        self.confirmed = None;
    }

    /// What it keeps within whatever it has heard. None if that may be nothing.
    pub(super) fn kept(self) -> Option<PageCount> {
        Some(self.confirmed?.max(self.told?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_once_it_is_confirmed_and_a_higher_one_at_once() {
        let pages = |count| Some(PageCount(count));
        let mut limit = KeptLimit::default();
        limit.tell(pages(100), 7);
        assert_eq!(limit.kept(), None);
        limit.answered(7);
        assert_eq!(limit.kept(), None, "it was asked before");
        limit.answered(8);
        assert_eq!(limit.kept(), pages(100));
        limit.tell(pages(40), 8);
        assert_eq!(limit.kept(), pages(100));
        limit.tell(pages(60), 9);
        assert_eq!(
            limit.kept(),
            pages(100),
            "it may not have heard of 40 either"
        );
        limit.answered(10);
        assert_eq!(limit.kept(), pages(60));
        limit.tell(pages(80), 10);
        assert_eq!(limit.kept(), pages(80));
        limit.tell(None, 11);
        assert_eq!(limit.kept(), None);
        limit.tell(pages(80), 11);
        assert_eq!(limit.kept(), None);
        let mut at_boot = KeptLimit::at_boot(pages(5));
        assert_eq!(at_boot.kept(), pages(5));
        at_boot.is_not_kept();
        assert_eq!(at_boot.kept(), None);
        at_boot.answered(1);
        assert_eq!(at_boot.kept(), pages(5), "now it can");
    }
}
