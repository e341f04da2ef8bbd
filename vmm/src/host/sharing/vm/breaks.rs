//! Which shared pages a guest has written to, without looking at what they hold.
//!
//! A pass takes minutes, and in that time a frame that nobody shows any more would cost a page. The page
//! tables tell which mapped pages are anonymous at 15 ns a page: they are asked again soon after the
//! process's anonymous memory has changed.

use super::ScannedVm;
use crate::host::kernel::anonymous_pages;
use crate::memory::MemoryError;
use page::PageCount;
use sharing::PageSet;
use std::time::{Duration, Instant};

/// How often at most.
const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// A sweep is followed by a pause of so many times what it took: half a percent of a core at most.
const PAUSE_FACTOR: u32 = 200;
/// How long a page is left alone with its frame before that is given up, and at most twice as long.
pub(super) const LONELY_PATIENCE: Duration = Duration::from_secs(15);

/// What the last sweep of a VM found.
#[derive(Debug)]
pub(super) struct Sweeps {
    ended: Instant,
    took: Duration,
    /// Anonymous pages of the process by the host's word: now, and when it was swept last.
    anonymous: PageCount,
    swept_at: PageCount,
    /// Anonymous pages of the process that were no guest's.
    pub(super) own: Option<PageCount>,
}

impl Sweeps {
    pub(super) fn new() -> Self {
        Self {
            ended: Instant::now(),
            took: Duration::ZERO,
            anonymous: PageCount::ZERO,
            swept_at: PageCount::ZERO,
            own: None,
        }
    }

    fn is_due(&self, heard: Instant) -> bool {
        let pause = SWEEP_EVERY.max(self.took * PAUSE_FACTOR);
        let has_changed = self.anonymous != self.swept_at || heard > self.ended;
        has_changed && self.ended.elapsed() >= pause
    }
}

impl ScannedVm {
    /// What the kernel counted in the last round.
    pub(super) fn set_anonymous(&mut self, pages: PageCount) {
        self.sweeps.anonymous = pages;
    }

    pub(in crate::host::sharing) fn is_sweep_due(&self) -> bool {
        !self.is_gone && self.sweeps.is_due(self.heard)
    }

    /// To be called before a sweep: the process's anonymous pages. What a guest breaks meanwhile is then
    /// taken for more than it is, not for less.
    pub(in crate::host::sharing) fn begin_sweep(&self) -> (Instant, Option<PageCount>) {
        (Instant::now(), anonymous_pages(self.pid))
    }

    /// A sweep has found so many broken pages among all that are mapped; none where nothing is.
    pub(in crate::host::sharing) fn end_sweep(
        &mut self,
        (begin, anonymous): (Instant, Option<PageCount>),
        broken: Option<PageCount>,
    ) {
        let sweeps = &mut self.sweeps;
        (sweeps.ended, sweeps.took) = (Instant::now(), begin.elapsed());
        sweeps.swept_at = sweeps.anonymous;
        sweeps.own = anonymous
            .zip(broken)
            .map(|(anonymous, broken)| anonymous.saturating_sub(broken));
    }

    /// Anonymous pages of the process that were no guest's, when that was last looked at.
    pub(in crate::host::sharing) fn own_anonymous(&self) -> Option<PageCount> {
        self.sweeps.own
    }

    /// Those of a block's mapped pages that the guest has written to.
    pub(in crate::host::sharing) fn broken(
        &self,
        number: u32,
        mapped: &PageSet,
    ) -> Result<PageSet, MemoryError> {
        let pages = self.pages(number);
        let all = self.addresses(&pages);
        let mut anonymous = PageSet::EMPTY;
        self.pagemap
            .anonymous(all.clone(), |run| super::insert(&mut anonymous, &all, run))?;
        Ok(mapped.without(&mapped.without(&anonymous)))
    }

    /// Whether lonely pages are to be looked for again.
    pub(in crate::host::sharing) fn is_lonely_look_due(&mut self) -> bool {
        let is_due = self.lonely_looked.elapsed() >= LONELY_PATIENCE;
        if is_due {
            self.lonely_looked = Instant::now();
        }
        is_due
    }

    /// Pages of a block that are lonely now. Those that were when it was looked before are given up.
    pub(in crate::host::sharing) fn note_lonely(&mut self, number: u32, lonely: PageSet) {
        let before = match lonely.is_empty() {
            true => self.lonely.remove(&number),
            false => self.lonely.insert(number, lonely),
        };
        let before = before.unwrap_or(PageSet::EMPTY);
        let both = lonely.without(&lonely.without(&before));
        if !both.is_empty() {
            self.to_give_up.insert(number, both);
        }
    }

    /// The next block of which frames are to be given up.
    pub(in crate::host::sharing) fn next_to_give_up(&mut self) -> Option<(u32, PageSet)> {
        self.to_give_up.pop_first()
    }
}
