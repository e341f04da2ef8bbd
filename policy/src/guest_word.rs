//! A working set by its guest's own word, for VMs whose touches nobody can watch.
//!
//! What a guest cannot do without, by its figures, is all that is not available. That is too little for one whose memory is
//! full of copies of files that it uses: it takes them for available. But what it brings back in it has touched, so **its
//! faults raise the estimate**: all that came lately is used, whatever else is said. As with samples, it is quick to rise
//! and slow to fall.

use crate::guest::GuestFigures;
use crate::working_set::{ActiveSet, Source};
use page::{PageCount, total};

/// What is left of faults, and of what an estimate is above its figures, with the next figures: seven of eight.
const FADING_EIGHTHS: u64 = 7;

/// What a guest's figures have shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestWord {
    pages: PageCount,
    likely: PageCount,
    most: PageCount,
    faulted: PageCount,
    is_known: bool,
}

fn faded(pages: PageCount) -> PageCount {
    PageCount(pages.0 / 8 * FADING_EIGHTHS)
}

impl GuestWord {
    /// Takes in new figures, and how many pages its faults brought since those before. Figures that say nothing of its
    /// memory change nothing.
    pub fn observe(&mut self, figures: &GuestFigures, faulted: PageCount) {
        let Some(available) = figures.available.or(figures.free) else {
            return;
        };
        let held = figures.held;
        let in_use = held.saturating_sub(figures.free.unwrap_or(PageCount::ZERO));
        let needed = held.saturating_sub(available);
        self.faulted = total([faded(self.faulted), faulted]);
        self.likely = total([needed, self.faulted]).min(in_use.max(needed));
        self.most = in_use.max(self.likely);
        self.pages = match self.likely >= self.pages {
            true => self.likely,
            false => self.likely + faded(self.pages - self.likely),
        };
        self.is_known = true;
    }

    /// What it uses, of what it holds. None before its first figures.
    #[must_use]
    pub fn active_set(&self, held: PageCount) -> Option<ActiveSet> {
        self.is_known.then_some(ActiveSet {
            pages: self.pages,
            likely: self.likely,
            low: PageCount::ZERO,
            high: self.most,
            held,
            source: Source::GuestWord,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(free: u64, available: u64) -> GuestFigures {
        GuestFigures {
            held: PageCount(1000),
            free: Some(PageCount(free)),
            available: Some(PageCount(available)),
            ..GuestFigures::default()
        }
    }

    #[test]
    fn it_rises_at_once_falls_slowly_and_never_below_what_faults_brought() {
        let mut word = GuestWord::default();
        assert_eq!(word.active_set(PageCount(1000)), None);
        word.observe(&GuestFigures::default(), PageCount(9));
        assert_eq!(word.active_set(PageCount(1000)), None, "nothing was said");
        let mut pages = |free, available, faulted| {
            word.observe(&figures(free, available), PageCount(faulted));
            word.active_set(PageCount(1000)).unwrap().pages.0
        };
        assert_eq!(pages(0, 200, 0), 800);
        let falls = pages(900, 900, 0);
        assert!((700..800).contains(&falls), "{falls}");
        for _ in 0..60 {
            pages(900, 900, 0);
        }
        assert!(pages(900, 900, 0) < 120);
        assert_eq!(pages(100, 900, 500), 600, "its files are used");
        assert_eq!(pages(100, 900, 5000), 900, "no more than is not free");
    }

    #[test]
    fn senseless_figures_make_no_more_than_is_held() {
        let mut word = GuestWord::default();
        word.observe(&figures(u64::MAX, u64::MAX), PageCount(u64::MAX));
        assert_eq!(
            word.active_set(PageCount(1000)).unwrap().pages,
            PageCount(0)
        );
    }
}
