//! Watches which of a VM's sampled pages its guest touches.
//!
//! ```text
//!   begin_sample ──▶ agent drops the mappings ──▶ sampled: armed ──▶ watch_sample … now and then
//! ```
//!
//! Large pages are watched as a whole, and a few of them looked into page by page (see `blocks`).
//!
//! What was seen of a page stays seen: the scanner arms pages again, and a look after that would not find
//! the write before it. So a block's sampled pages are looked at before the scanner goes over it. A page
//! that ceased to be private, or whose block the agent was asked about, leaves the sample: what is seen
//! there may be the agent's doing (see `memory::agent::sample`).
//!
//! Arming a page hides from the scanner that it had been written before. Such pages are owed to it: it
//! reads them at its next visit, written or not.

mod blocks;
mod draw;
mod looked_into;

use super::ScannedVm;
use crate::memory::MemoryError;
use crate::memory::pagemap::Touch;
use blocks::BlockSample;
use draw::{Candidates, Drawn, Interest};
pub(super) use looked_into::LookedInto;
use page::PageCount;
use policy::Sample;
use protocol::page_sharing::ToAgent;
use sharing::{BLOCK_PAGES, PageSet};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

const BLOCK: u64 = BLOCK_PAGES as u64;

/// How a sample stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleReport {
    /// Which sample of the VM, as the host numbered it.
    pub number: u64,
    /// Private pages when it was drawn.
    pub population: PageCount,
    /// Since when it is watched, up to the last look. None before its pages were dropped.
    pub watched: Option<Duration>,
    /// Its pages and what became of them.
    pub sample: Sample,
}

/// What is to be sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    /// Tells one sample of a VM from the other in reports.
    pub number: u64,
    /// Pages at most.
    pub size: u32,
    /// Large pages that may be looked into page by page.
    pub blocks: u32,
    /// How long they are to be watched.
    pub period: Duration,
    /// How often they are looked at meanwhile. Each look is a call for each page, and what it finds before the
    /// end only tells sooner that a VM uses more.
    pub looks: u32,
}

/// One sample of a VM.
#[derive(Debug)]
pub(super) struct TouchSample {
    number: u64,
    /// As the agent was asked, for its answer speaks of places in these lists.
    asked: Drawn,
    /// The pages that are watched.
    pages: BTreeMap<u64, Option<Touch>>,
    /// The large pages that are watched as a whole, and whether anything in them was touched.
    blocks: BTreeMap<u32, bool>,
    /// What is known of the insides of large pages from periods before.
    known: BTreeMap<u32, Sample>,
    counts: Sample,
    since: Option<Instant>,
    watched: Option<Duration>,
    /// How long it is to be watched.
    period: Duration,
    /// The time between two looks.
    pause: Duration,
}

impl TouchSample {
    fn new(order: SampleOrder, drawn: Drawn, known: BTreeMap<u32, Sample>) -> Self {
        Self {
            number: order.number,
            pages: drawn
                .pages
                .iter()
                .map(|&page| (page.into(), None))
                .collect(),
            blocks: drawn.blocks.iter().map(|&block| (block, false)).collect(),
            known,
            counts: Sample::default(),
            asked: drawn,
            since: None,
            watched: None,
            period: order.period,
            pause: order.period / order.looks.max(1),
        }
    }

    /// For how long it has been watched, if it is time to look.
    fn is_due(&self) -> Option<Duration> {
        let (gone, watched) = (self.since?.elapsed(), self.watched?);
        let next = watched + self.pause;
        let is_last = watched < self.period && gone >= self.period;
        (gone >= next || is_last).then_some(gone)
    }

    /// The agent has dropped these; the others are not private, or not large, any more.
    fn keep(&mut self, dropped: &PageSet, blocks: &PageSet) {
        let asked = (0..).zip(&self.asked.blocks);
        let lost = asked.filter(|&(place, _)| !blocks.contains(place));
        let lost: BTreeSet<u32> = lost.map(|(_, &block)| block).collect();
        self.blocks.retain(|block, _| !lost.contains(block));
        for (place, &page) in self.asked.pages.iter().enumerate() {
            // A page of a block that was not dropped says nothing about those that were.
            if !dropped.contains(place) || lost.contains(&block_of(page.into())) {
                self.pages.remove(&page.into());
            }
        }
        self.since = Some(Instant::now());
        self.watched = Some(Duration::ZERO);
        self.count();
    }

    /// Whether a page is in a large page that is watched.
    fn is_in_block(&self, page: u64) -> bool {
        self.blocks.contains_key(&block_of(page))
    }

    /// Whether anything of a block was touched, if it is watched as a whole.
    pub(super) fn block_touched(&self, number: u32) -> Option<bool> {
        self.blocks.get(&number).copied()
    }

    /// A look found this. A later look cannot take it back. Whether it is news.
    fn see(&mut self, page: u64, touch: Option<Touch>) -> bool {
        let Some(seen) = self.pages.get_mut(&page).filter(|seen| **seen < touch) else {
            return false;
        };
        *seen = touch;
        true
    }

    /// Those of a range of which a look can tell more than is known.
    fn to_look_at(&self, pages: Range<u64>) -> Vec<u64> {
        let open = |(_, touch): &(&u64, &Option<Touch>)| **touch < Some(Touch::Written);
        let pages = self.pages.range(pages).filter(open);
        pages.map(|(&page, _)| page).collect()
    }

    /// Those of a range of which a look can tell more than is known.
    fn blocks_to_look_at(&self, numbers: Range<u32>) -> Vec<u32> {
        let open = self
            .blocks
            .range(numbers)
            .filter(|(_, is_touched)| !**is_touched);
        open.map(|(&number, _)| number).collect()
    }

    fn leave(&mut self, is_leaving: impl Fn(u64) -> bool) {
        self.pages.retain(|&page, _| !is_leaving(page));
        self.count();
    }

    fn leave_block(&mut self, number: u32) {
        self.blocks.remove(&number);
        self.leave(|page| block_of(page) == number);
    }

    fn count(&mut self) {
        let mut seen = BlockSample {
            small: PageCount(self.asked.small),
            large: PageCount(self.asked.large),
            blocks: u32::try_from(self.asked.large / BLOCK).unwrap_or(u32::MAX),
            watched: length(self.blocks.len()),
            ..BlockSample::default()
        };
        for (&page, &touch) in &self.pages {
            if !self.is_in_block(page) {
                see_one(&mut seen.small_pages, touch);
            }
        }
        let looked_into = self.looked_into();
        let is_touched = |number: &&u32| self.is_touched(**number, &looked_into);
        let touched: Vec<u32> = self.blocks.keys().filter(is_touched).copied().collect();
        seen.touched = length(touched.len());
        let within = |number| looked_into.get(number).or_else(|| self.known.get(number));
        seen.looked_into = touched.iter().filter_map(within).copied().collect();
        self.counts = seen.as_pages();
    }

    /// What was seen in the large pages that are looked into.
    fn looked_into(&self) -> BTreeMap<u32, Sample> {
        let mut looked_into: BTreeMap<u32, Sample> = BTreeMap::new();
        for (&page, &touch) in &self.pages {
            if self.is_in_block(page) {
                see_one(looked_into.entry(block_of(page)).or_default(), touch);
            }
        }
        looked_into
    }

    /// A block is touched where one of its pages is, whatever a look at the whole found.
    fn is_touched(&self, number: u32, looked_into: &BTreeMap<u32, Sample>) -> bool {
        let within = looked_into.get(&number).map_or(0, |sample| sample.touched);
        self.block_touched(number) == Some(true) || within > 0
    }

    /// What it found in those large pages that were touched.
    fn learned(&self) -> Vec<(u32, Sample)> {
        let all = self.looked_into();
        let touched = all
            .iter()
            .filter(|&(&number, _)| self.is_touched(number, &all));
        touched.map(|(&number, &sample)| (number, sample)).collect()
    }

    fn in_range(&self, pages: Range<u64>) -> Vec<u64> {
        self.pages.range(pages).map(|(&page, _)| page).collect()
    }

    fn report(&self) -> SampleReport {
        SampleReport {
            number: self.number,
            population: PageCount(self.asked.small + self.asked.large),
            watched: self.watched,
            sample: self.counts,
        }
    }
}

/// One more page, and what became of it.
fn see_one(sample: &mut Sample, touch: Option<Touch>) {
    sample.size += 1;
    sample.touched += u32::from(touch >= Some(Touch::Read));
    sample.written += u32::from(touch >= Some(Touch::Written));
}

/// Whether there is anything to learn from looking into a large page, of which these are used.
fn interest(used: &BTreeSet<u32>, looked_into: &LookedInto, number: u32) -> Interest {
    match used.contains(&number) {
        false => Interest::Idle,
        true if looked_into.is_known(number) => Interest::Known,
        true => Interest::Unknown,
    }
}

fn block_of(page: u64) -> u32 {
    u32::try_from(page / BLOCK).unwrap_or(u32::MAX)
}

fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl ScannedVm {
    /// Draws up to `size` of the private pages, and large pages, and asks the agent to drop their mappings, to be watched
    /// for a period. A sample that was being watched is given up. `mapped` says over which pages of a block the
    /// store is mapped.
    pub(in crate::host::sharing) fn begin_sample(
        &mut self,
        order: SampleOrder,
        mapped: impl Fn(u32) -> PageSet,
    ) {
        let number = order.number;
        let seed = number.wrapping_mul(0x1_0001) ^ u64::from(self.pid) << 32;
        let mut candidates = Candidates::new(order.size, seed);
        for block in 0..self.blocks() {
            let (pages, mapped) = (self.pages(block), mapped(block));
            let is_whole = mapped.is_empty() && pages.end - pages.start == BLOCK;
            if is_whole && (self.is_large(block) || self.is_still_unmapped(block)) {
                candidates.offer_block(block, interest(&self.used, &self.looked_into, block));
                continue;
            }
            let own = |page: u64| !mapped.contains(super::index(&pages, page));
            let found = self.residency.for_each(pages.clone(), |page| {
                if own(page) {
                    candidates.offer_page(page);
                }
            });
            if let Err(error) = found {
                tracing::debug!("pages of process {} are not sampled: {error}", self.pid);
            }
        }
        let drawn = candidates.draw(order.blocks);
        self.looked_into.begin();
        let sample = TouchSample::new(order, drawn, self.looked_into.samples());
        self.unsent.push_back(ToAgent::Sample {
            number,
            pages: sample.asked.pages.clone(),
            blocks: sample.asked.blocks.clone(),
        });
        self.sample = Some(sample);
        self.send_unsent();
    }

    /// Whether a block's mapping was dropped for the sample so far, and nobody has touched it since.
    fn is_still_unmapped(&self, number: u32) -> bool {
        let sample = self.sample.as_ref();
        sample.and_then(|sample| sample.block_touched(number)) == Some(false)
            && self.is_present(number).is_ok_and(|is_present| !is_present)
    }

    /// Whether anything of a block is mapped.
    fn is_present(&self, number: u32) -> Result<bool, MemoryError> {
        self.pagemap
            .is_any_present(self.addresses(&self.pages(number)))
    }

    /// The agent has dropped mappings.
    pub(in crate::host::sharing) fn sampled(
        &mut self,
        number: u64,
        dropped: &PageSet,
        blocks: &PageSet,
    ) {
        let Some(sample) = self.sample.as_mut() else {
            return;
        };
        // An agent that answers twice, or an old question, is not listened to.
        if sample.number != number || sample.since.is_some() {
            return;
        }
        sample.keep(dropped, blocks);
        for page in sample.in_range(0..u64::MAX) {
            let armed = self
                .pagemap
                .arm_written(self.addresses(&(page..page + 1)), |_| {
                    self.owed.insert(page);
                });
            if let Err(error) = armed {
                tracing::debug!("page {page} of process {} is not armed: {error}", self.pid);
            }
        }
    }

    /// Looks at all sampled pages, if it is time.
    pub(in crate::host::sharing) fn watch_sample_in_time(&mut self) {
        let due = self.sample.as_ref().and_then(TouchSample::is_due);
        if let Some(gone) = due {
            self.watch_sample(gone);
        }
    }

    /// Looks at all sampled pages, which were watched for so long.
    fn watch_sample(&mut self, gone: Duration) {
        self.watch(0..u64::MAX);
        let Some(mut sample) = self.sample.take() else {
            return;
        };
        sample.watched = Some(gone);
        // What the guest gave up has left, and that need not be known before the end.
        if gone >= sample.period {
            sample.leave(|page| !self.is_held(page));
            for (&number, &is_touched) in &sample.blocks {
                match is_touched {
                    true => self.used.insert(number),
                    false => self.used.remove(&number),
                };
            }
            for (number, within) in sample.learned() {
                self.looked_into.learn(number, within);
            }
        }
        self.sample = Some(sample);
    }

    /// Looks at those of a block, because it is about to be armed.
    pub(in crate::host::sharing) fn watch_block(&mut self, number: u32) {
        self.watch(self.pages(number));
    }

    fn watch(&mut self, pages: Range<u64>) {
        let Some(mut sample) = self.sample.take_if(|sample| sample.since.is_some()) else {
            return;
        };
        let numbers = block_of(pages.start)..block_of(pages.end.saturating_add(BLOCK - 1));
        let mut is_news = false;
        for number in sample.blocks_to_look_at(numbers) {
            match self.is_present(number) {
                Ok(true) => {
                    sample.blocks.insert(number, true);
                    is_news = true;
                }
                Ok(false) => {}
                Err(error) => tracing::debug!("block {number} is not seen: {error}"),
            }
        }
        for page in sample.to_look_at(pages) {
            match self.pagemap.touch(self.address(page)) {
                Ok(touch) => is_news |= sample.see(page, touch),
                Err(error) => tracing::debug!("page {page} is not seen: {error}"),
            }
        }
        if is_news {
            sample.count();
        }
        self.sample = Some(sample);
    }

    fn is_held(&self, page: u64) -> bool {
        let mut is_held = false;
        let looked = self.residency.for_each(page..page + 1, |_| is_held = true);
        looked.is_ok() && is_held
    }

    /// The agent is asked to do something about a block.
    pub(super) fn leave_block(&mut self, number: u32) {
        if let Some(sample) = self.sample.as_mut() {
            sample.leave_block(number);
        }
    }

    /// The pages of a block that sampling has hidden from the scanner. It has them now.
    pub(super) fn take_owed(&mut self, pages: &Range<u64>) -> PageSet {
        let owed: Vec<u64> = self.owed.range(pages.clone()).copied().collect();
        self.owed.retain(|page| !pages.contains(page));
        let places = owed.into_iter().map(|page| super::index(pages, page));
        places.filter(|&place| place < BLOCK_PAGES).collect()
    }

    /// How its sample stands.
    pub(in crate::host::sharing) fn sample_report(&self) -> Option<SampleReport> {
        self.sample.as_ref().map(TouchSample::report)
    }
}

#[cfg(test)]
mod tests;
