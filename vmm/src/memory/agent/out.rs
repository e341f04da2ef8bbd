//! Takes pages out when the VM holds more than it may: those that its guest has not used for longest, as far as that is known.
//!
//! A hand goes round over the blocks. What it finds in the memory file and not mapped was not touched since the hand dropped its
//! mapping a round ago, and goes out. The mappings of the rest are dropped, so that a touch maps a page again: its second
//! chance. (Corbató's clock; a mapping is the bit of use, for the kernel's is not to be had from here.) A page that nobody
//! touches costs nothing; one that is touched costs a fault that the kernel answers itself.
//!
//! Pages go out behind the fence, a block at a time and few at once, so that whoever writes to one of its neighbours waits
//! for half a millisecond at most. Frames of the store and what guests wrote over them stay, and sharing goes on: what it maps
//! counts as held until it is half of what may be.
//!
//! **What the host samples it finds as it left it**: the hand does not drop those mappings again.
//!
//! **Of a large page all goes out, or nothing.** What is punched out of a part of one the kernel may keep, zeroed, when
//! somebody refers to it at that moment, and then a touch would find zeros in the place of a page that is out. A block may be one
//! until all of it was punched once; what comes back while memory is guarded is small.

use super::Agent;
use super::balloon::place_in_block;
use crate::memory::mapping::{Addresses, drop_mappings};
use crate::memory::pages::{Place, runs};
use crate::memory::swap::{KeptOut, Stays, Swap};
use page::{PAGE_BYTES, PAGE_SIZE, PageCount};
use sharing::{BLOCK_PAGES, PageSet};
use std::collections::BTreeSet;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BLOCK: u64 = BLOCK_PAGES as u64;
/// Pages that are free beyond what is asked for when pages go out, so that one that comes back finds room: 256 KiB.
const AHEAD: i64 = 64;
/// Pages that go out behind one fence.
const AT_ONCE: usize = 64;
/// How long in one go.
const LONGEST_STEP: Duration = Duration::from_millis(2);
/// How long is waited when a whole round brought nothing, or the log takes nothing.
const PAUSE: Duration = Duration::from_millis(10);
/// How often is looked while there is a limit: the guest also makes pages that it was given up before.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the agent knows of pages that are out.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) swap: Arc<Swap>,
    /// By block: a large page may be in it.
    may_be_large: Vec<bool>,
    /// The block that is looked at next.
    hand: u64,
    /// Blocks looked at since a page went out.
    in_vain: u64,
    /// Pages whose touches are counted.
    pub(super) sampled: BTreeSet<u64>,
    due: Option<Instant>,
}

impl Out {
    pub(super) fn new(swap: Arc<Swap>, size: PageCount) -> Self {
        let blocks = usize::try_from(size.0.div_ceil(BLOCK)).expect("as many as can be indexed");
        Self {
            swap,
            may_be_large: vec![true; blocks],
            hand: 0,
            in_vain: 0,
            sampled: BTreeSet::new(),
            due: None,
        }
    }

    /// How long until it is to be looked again, if ever.
    pub(super) fn time_left(&self) -> Option<Duration> {
        self.due
            .map(|due| due.saturating_duration_since(Instant::now()))
    }
}

impl Agent {
    /// From the answer on the VM holds no more than this, as soon as what is above has left.
    pub(super) fn limit_held(&mut self, most: Option<PageCount>) {
        let Some(out) = &self.out else { return };
        out.swap.set_hold(most);
        if most.is_some() && !self.is_guarded() {
            self.guard_all();
        }
        if let Some(out) = &mut self.out {
            out.due = Some(Instant::now());
        }
    }

    /// Nothing of it is large from here on, or watched by the tracker.
    fn guard_all(&mut self) {
        let all = 0..self.ram.layout().size().0;
        self.take_all_advice_back();
        let Some(out) = &self.out else { return };
        let (sharer, addresses) = (&self.sharer, self.ram.addresses(all.clone()));
        let guarded = self
            .fence
            .guard_all(&addresses, &out.swap, |fence| sharer.guard(all, fence));
        if let Err(error) = guarded {
            tracing::warn!("no page can be taken out: {error}");
        }
    }

    fn let_all_go(&mut self) {
        let all = 0..self.ram.layout().size().0;
        let Some(out) = &mut self.out else { return };
        match self.fence.let_all_go(&self.ram.addresses(all)) {
            Ok(()) => out.may_be_large.fill(true),
            Err(error) => tracing::warn!("memory stays guarded: {error}"),
        }
        let order = self.large.order;
        self.order_large_pages(order);
    }

    /// Whether pages may be out.
    pub(super) fn is_guarded(&self) -> bool {
        self.fence.is_guarded()
    }

    /// Pages that are out, and those of them in the file.
    pub(super) fn pages_out(&self) -> (PageCount, PageCount) {
        let out = self.out.as_ref();
        out.map_or_else(Default::default, |out| (out.swap.out(), out.swap.in_file()))
    }

    /// The guest gives these up.
    pub(super) fn forget_out(&self, pages: Range<u64>) {
        if let Some(out) = self.out.as_ref().filter(|_| self.is_guarded()) {
            out.swap.forget(pages);
        }
    }

    /// Takes pages out, if it is time.
    pub(super) fn tend_out(&mut self) {
        let is_guarded = self.is_guarded();
        let Some(out) = &mut self.out else { return };
        out.swap.set_shared(self.sharer.pages.shared());
        if !is_guarded {
            out.due = None;
            return;
        }
        if !out.swap.is_limited() {
            let is_all_back = out.swap.out() == PageCount::ZERO;
            out.due = Some(Instant::now() + LOOK_EVERY);
            if is_all_back {
                self.let_all_go();
            }
            return;
        }
        let pause = match out.swap.room() {
            Ok(room) if room >= AHEAD => LOOK_EVERY,
            Ok(room) => self.take_out(AHEAD.saturating_sub(room).unsigned_abs()),
            Err(error) => {
                tracing::debug!("not known how much is held: {error}");
                PAUSE
            }
        };
        if let Some(out) = &mut self.out {
            out.due = Some(Instant::now() + pause);
        }
    }

    /// Takes out so many, or as many as there is time for. How long it can wait then.
    fn take_out(&mut self, wanted: u64) -> Duration {
        let begin = Instant::now();
        let blocks = self.ram.layout().size().0.div_ceil(BLOCK);
        let mut left = wanted;
        while left > 0 && begin.elapsed() < LONGEST_STEP {
            let Some(out) = &mut self.out else { break };
            let number = out.hand;
            out.hand = (number + 1) % blocks;
            out.in_vain += 1;
            // Once to drop the mappings, once to see what stayed away, once more for what moved meanwhile.
            if out.in_vain > 3 * blocks {
                out.in_vain = 0;
                return PAUSE;
            }
            match self.take_out_of(number, left) {
                Ok(0) => {}
                Ok(count) => {
                    left = left.saturating_sub(count);
                    if let Some(out) = &mut self.out {
                        out.in_vain = 0;
                    }
                }
                Err(_) => return PAUSE,
            }
        }
        Duration::ZERO
    }

    /// Takes what its guest did not use out of a block, and drops the mappings of the rest.
    fn take_out_of(&mut self, number: u64, wanted: u64) -> Result<u64, Stays> {
        let pages = number * BLOCK..((number + 1) * BLOCK).min(self.ram.layout().size().0);
        let Some(own) = self.own(&pages).filter(|own| !own.is_empty()) else {
            return Ok(0);
        };
        let place = |index: u64| usize::try_from(index - pages.start).expect("below 512");
        let mut mapped = PageSet::EMPTY;
        let addresses = self.ram.addresses(pages.clone());
        let is_known = self.fence.present(&addresses, |run| {
            let first = (run.start - addresses.start) / PAGE_SIZE;
            let end = (run.end - addresses.start) / PAGE_SIZE;
            (first..end).for_each(|at| mapped.insert(place(pages.start + at)));
        });
        if is_known.is_err() {
            return Ok(0);
        }
        let most = usize::try_from(wanted).unwrap_or(usize::MAX).min(AT_ONCE);
        let unused: PageSet = match self.may_be_large(number) {
            true if mapped.is_empty() || self.is_urgent() => own,
            true => PageSet::EMPTY,
            false => own.without(&mapped).iter().take(most).collect(),
        };
        let gone = match unused.is_empty() {
            true => Ok(0),
            false => self.take_out_behind_fence(&pages, &unused),
        };
        let used = own.without(&unused);
        let is_watched = |at: usize| self.is_sampled(pages.start + at as u64);
        let used = used
            .iter()
            .filter(|&at| mapped.contains(at) && !is_watched(at));
        let stretches: Vec<Addresses> = runs(used.map(|at| pages.start + at as u64))
            .into_iter()
            .map(|run| self.ram.addresses(run))
            .collect();
        drop_mappings(&stretches);
        gone
    }

    /// The pages of a block that the memory file holds and that are the guest's own; none if the kernel does not tell.
    fn own(&self, pages: &Range<u64>) -> Option<PageSet> {
        let held = self.sharer.held(pages.clone()).ok()?;
        let own = pages
            .clone()
            .zip(held)
            .filter(|&(index, is_held)| is_held && self.sharer.pages.place(index) == Place::Own);
        Some(own.map(|(index, _)| place_in_block(index)).collect())
    }

    /// Whether the host looks if it is mapped again: dropped once more, it would find it untouched.
    fn is_sampled(&self, index: u64) -> bool {
        let out = self.out.as_ref();
        out.is_some_and(|out| out.sampled.contains(&index))
    }

    fn may_be_large(&self, number: u64) -> bool {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let out = self.out.as_ref();
        out.is_some_and(|out| out.may_be_large.get(number) == Some(&true))
    }

    /// Whether the hand has gone round twice and found nothing: what is used goes out, too.
    fn is_urgent(&self) -> bool {
        let blocks = self.ram.layout().size().0.div_ceil(BLOCK);
        let out = self.out.as_ref();
        out.is_some_and(|out| out.in_vain > 2 * blocks)
    }

    fn take_out_behind_fence(
        &mut self,
        pages: &Range<u64>,
        unused: &PageSet,
    ) -> Result<u64, Stays> {
        let number = usize::try_from(pages.start / BLOCK).expect("as many as can be indexed");
        let is_whole = self.may_be_large(pages.start / BLOCK);
        let Some(out) = &self.out else { return Ok(0) };
        let swap = Arc::clone(&out.swap);
        let indexes: Vec<u64> = unused.iter().map(|at| pages.start + at as u64).collect();
        let hull = match is_whole {
            true => pages.clone(),
            false => indexes[0]..indexes[indexes.len() - 1] + 1,
        };
        let addresses = self.ram.addresses(hull.clone());
        let out = match is_whole {
            true => KeptOut::All,
            false => KeptOut::Writers,
        };
        if self.sharer.raise(&hull, &self.fence, out).is_err() {
            return Ok(0);
        }
        // What came meanwhile goes too, or it would be punched with the rest.
        let indexes = match (is_whole, self.own(pages)) {
            (false, _) => indexes,
            (true, Some(own)) => own.iter().map(|at| pages.start + at as u64).collect(),
            (true, None) => Vec::new(),
        };
        let mut gone = Vec::new();
        let mut stays = None;
        for &index in &indexes {
            match self.take_one_out(&swap, index) {
                Ok(()) => gone.push(index),
                Err(why) => {
                    stays = Some(why);
                    break;
                }
            }
        }
        if is_whole && stays.is_some() {
            // Nothing was punched, so all of it is there.
            gone.drain(..)
                .for_each(|index| swap.forget(index..index + 1));
        }
        let punched = match is_whole && !gone.is_empty() {
            true => vec![pages.clone()],
            false => runs(gone.iter().copied()),
        };
        for run in punched {
            if let Err(error) = self.sharer.punch(run) {
                // What is there still, its guest finds there, and it goes out anew.
                tracing::debug!("not punched: {error}");
            } else if is_whole && let Some(out) = &mut self.out {
                out.may_be_large[number] = false;
            }
        }
        self.fence.lower(&addresses);
        swap.went_out(gone.len() as u64, u64::from(stays.is_some()));
        match (gone.len() as u64, stays) {
            (0, Some(why)) => Err(why),
            (count, _) => Ok(count),
        }
    }

    /// What the memory file holds is read from there: through the mapping this thread would wait for itself.
    fn take_one_out(&self, swap: &Swap, index: u64) -> Result<(), Stays> {
        let mut content = [0; PAGE_BYTES];
        match self
            .ram
            .file()
            .read_exact_at(&mut content, index * PAGE_SIZE)
        {
            Ok(()) => swap.take_out(index, &content),
            Err(error) => {
                tracing::debug!("not read: {error}");
                Err(Stays::ForNow)
            }
        }
    }
}
