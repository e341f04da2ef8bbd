//! Takes pages out when the VM holds more than it may: those that its guest has not used for longest, as far as that is known.
//!
//! Which those are, [`clock`] decides.
//!
//! Pages go out behind the fence, few of one block at once, so that whoever writes to one of them waits for half a millisecond at
//! most; what its guest uses between them stays outside, for to protect it would cost its guest a fault. Frames of the store and
//! what guests wrote over them stay, and sharing goes on: what it maps counts as held until it is half of what may be.
//!
//! **What the host samples it finds as it left it**: those mappings are not dropped again.
//!
//! **Of a large page all goes out, or nothing.** What is punched out of a part of one the kernel may keep, zeroed, when
//! somebody refers to it at that moment, and then a touch would find zeros in the place of a page that is out. A block may be one
//! until all of it was punched once; what comes back while memory is guarded is small, until all of a block is there: then
//! `large` makes it one, or the kernel by itself (khugepaged), which asks nobody. So nothing comes to a block while some of it goes
//! out, and it is looked first whether anything of it is missing.

mod clock;

use super::Agent;
use super::balloon::place_in_block;
use crate::memory::doors::{Deed, told};
use crate::memory::left_out::{Step, is_left_out};
use crate::memory::mapping::{Addresses, drop_mappings};
use crate::memory::pages::{Place, runs};
use crate::memory::store::{is_zero, read_all};
use crate::memory::swap::{AHEAD, KeptOut, Stays, Swap};
use clock::Clock;
use page::{PAGE_BYTES, PAGE_SIZE, PageCount};
use sharing::{BLOCK_PAGES, PageSet};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BLOCK: u64 = BLOCK_PAGES as u64;
/// How long in one go.
const LONGEST_STEP: Duration = Duration::from_millis(2);
/// How long is waited when a whole round brought nothing, or the log takes nothing: each time in vain the double, for to seal
/// pages takes a processor's time,
const PAUSE: Duration = Duration::from_millis(10);
/// up to this, and at once where it will have no room by itself.
const LONG_PAUSE: Duration = Duration::from_millis(500);
/// How often is looked while there is a limit: the guest also makes pages that it was given up before.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How soon it is tried again to guard memory, where the kernel refused.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long after a page went out it is worth knowing what is used,
const WORTH_LOOKING: Duration = Duration::from_secs(5);
/// and how often mappings are dropped meanwhile.
const DROP_EVERY: Duration = Duration::from_millis(20);

/// What the agent knows of pages that are out.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) swap: Arc<Swap>,
    clock: Clock,
    /// How long to wait when the log takes nothing,
    pause: Duration,
    /// and until when, whoever wakes the agent meanwhile.
    in_vain_until: Option<Instant>,
    /// When a page went out last, and when mappings were dropped.
    took: Option<Instant>,
    dropped: Option<Instant>,
    /// Pages whose touches are counted.
    pub(super) sampled: BTreeSet<u64>,
    due: Option<Instant>,
}

impl Out {
    pub(super) fn new(swap: Arc<Swap>, size: PageCount) -> Self {
        let blocks = usize::try_from(size.0.div_ceil(BLOCK)).expect("as many as can be indexed");
        Self {
            swap,
            clock: Clock::new(blocks),
            pause: PAUSE,
            in_vain_until: None,
            took: None,
            dropped: None,
            sampled: BTreeSet::new(),
            due: None,
        }
    }

    /// The log has taken nothing once more.
    fn pause_in_vain(&mut self, why: Stays) -> Duration {
        let pause = match why {
            Stays::ForNow => {
                let next = (self.pause * 2).min(LONG_PAUSE);
                std::mem::replace(&mut self.pause, next)
            }
            Stays::ForGood => LONG_PAUSE,
        };
        self.in_vain_until = Some(Instant::now() + pause);
        pause
    }

    /// For how long it would be in vain to take anything out, as far as is known.
    fn time_in_vain(&mut self) -> Option<Duration> {
        if self.swap.has_made_room() {
            self.in_vain_until = None;
        }
        let left = self
            .in_vain_until?
            .saturating_duration_since(Instant::now());
        (left > Duration::ZERO).then_some(left)
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
        self.tell_whether_it_is_kept();
        if let Some(out) = &mut self.out {
            out.due = Some(Instant::now());
        }
    }

    /// None of it is watched by the tracker from here on, and no touch makes more than a page.
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

    /// Before whoever asked for a limit hears an answer.
    fn tell_whether_it_is_kept(&self) {
        if let Some(out) = &self.out {
            let is_kept = self.is_guarded() || !out.swap.is_limited();
            out.swap.set_keeps_limit(is_kept);
        }
    }

    /// The kernel may have made a block large.
    pub(super) fn may_be_large_again(&mut self, number: u64) {
        if let Some(out) = &mut self.out {
            out.clock.may_be_large_again(number);
        }
    }

    fn let_all_go(&mut self) {
        let all = 0..self.ram.layout().size().0;
        let Some(out) = &mut self.out else { return };
        match self.fence.let_all_go(&self.ram.addresses(all)) {
            Ok(()) => out.clock.forget(),
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

    /// Takes pages out, if it is time.
    pub(super) fn tend_out(&mut self) {
        let is_guarded = self.is_guarded();
        let Some(out) = &mut self.out else { return };
        out.swap.set_shared(self.sharer.pages.shared());
        if !is_guarded {
            out.due = None;
            if out.swap.is_limited() {
                out.due = Some(Instant::now() + TRY_AGAIN);
                self.guard_all();
                self.tell_whether_it_is_kept();
            }
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
        let in_vain = out.time_in_vain();
        let pause = match out.swap.room_soon() {
            // Many at once cost less than few again and again.
            Ok(room) if room >= AHEAD / 2 => LOOK_EVERY,
            Ok(_) if let Some(left) = in_vain => left,
            Ok(room) => self.take_out(AHEAD.saturating_sub(room).unsigned_abs()),
            Err(error) => {
                tracing::debug!("not known how much is held: {error}");
                PAUSE
            }
        };
        self.drop_mappings_in_time();
        if let Some(out) = &mut self.out {
            out.due = Some(Instant::now() + pause);
        }
    }

    /// Takes out so many, or as many as there is time for. How long it can wait then.
    fn take_out(&mut self, wanted: u64) -> Duration {
        let begin = Instant::now();
        let mut left = wanted;
        while left > 0 && begin.elapsed() < LONGEST_STEP {
            let Some(out) = &mut self.out else { break };
            let Some(number) = out.clock.next_to_take() else {
                return PAUSE;
            };
            match self.take_out_of(number, left) {
                Ok(0) => {}
                Ok(count) => {
                    left = left.saturating_sub(count);
                    if let Some(out) = &mut self.out {
                        out.clock.took(count);
                        out.took = Some(begin);
                        out.pause = PAUSE;
                    }
                }
                Err(why) => {
                    let out = self.out.as_mut();
                    return out.map_or(PAUSE, |out| out.pause_in_vain(why));
                }
            }
        }
        Duration::ZERO
    }

    /// Takes what its guest does not use out of a block, or what is drawn.
    fn take_out_of(&mut self, number: u64, wanted: u64) -> Result<u64, Stays> {
        let pages = self.pages_of(number);
        let Some((own, mapped)) = self.own_and_mapped(&pages) else {
            return Ok(0);
        };
        let Some(out) = &mut self.out else {
            return Ok(0);
        };
        let chosen = out
            .clock
            .choose(number, &own, &mapped, wanted, Instant::now());
        match chosen.is_empty() {
            true => Ok(0),
            false => self.take_out_behind_fence(&pages, &chosen, &mapped),
        }
    }

    /// Drops mappings to see what is used, while pages go out, as many as may be dropped.
    fn drop_mappings_in_time(&mut self) {
        let begin = Instant::now();
        let within = |time: Option<Instant>, least| time.is_some_and(|then| begin - then < least);
        let Some(out) = &mut self.out else { return };
        if !within(out.took, WORTH_LOOKING) || within(out.dropped, DROP_EVERY) {
            return;
        }
        out.dropped = Some(begin);
        while begin.elapsed() < LONGEST_STEP {
            let next = self
                .out
                .as_mut()
                .and_then(|out| out.clock.next_to_drop(begin));
            let Some(number) = next else { return };
            let (faults, unmapped) = self.drop_mappings_of(number);
            if let Some(out) = &mut self.out {
                out.clock.dropped(faults, unmapped, begin);
            }
        }
    }

    /// How many faults map them again, if all are used, and how many were not mapped.
    fn drop_mappings_of(&mut self, number: u64) -> (u64, usize) {
        let pages = self.pages_of(number);
        let Some((own, mapped)) = self.own_and_mapped(&pages) else {
            return (0, 0);
        };
        let unmapped = own.without(&mapped).count();
        let is_watched = |at: usize| self.is_sampled(pages.start + at as u64);
        let used = own
            .iter()
            .filter(|&at| mapped.contains(at) && !is_watched(at));
        let used: Vec<u64> = used.map(|at| pages.start + at as u64).collect();
        let faults = match self.fence.is_large(&self.ram.addresses(pages)) {
            true => 1,
            false => used.len() as u64,
        };
        let stretches: Vec<Addresses> = runs(used.into_iter())
            .into_iter()
            .map(|run| self.ram.addresses(run))
            .collect();
        drop_mappings(&stretches);
        (faults, unmapped)
    }

    fn pages_of(&self, number: u64) -> Range<u64> {
        number * BLOCK..((number + 1) * BLOCK).min(self.ram.layout().size().0)
    }

    /// Of a block, the guest's own pages that the memory file holds, if there are any, and what is mapped. None if the kernel
    /// does not tell.
    pub(super) fn own_and_mapped(&self, pages: &Range<u64>) -> Option<(PageSet, PageSet)> {
        let own = self.own(pages).filter(|own| !own.is_empty())?;
        let mut mapped = PageSet::EMPTY;
        let addresses = self.ram.addresses(pages.clone());
        let known = self.fence.present(&addresses, |run| {
            let first = (run.start - addresses.start) / PAGE_SIZE;
            let end = (run.end - addresses.start) / PAGE_SIZE;
            (first..end).for_each(|at| mapped.insert(place_in_block(pages.start + at)));
        });
        known.ok().map(|()| (own, mapped))
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

    /// The guest's own pages of a block while nobody makes or changes one. One that the kernel is moving is no page of the memory
    /// file for a moment, as far as it tells ([`Self::own`]), so what looks like a hole is one only if it reads as one. None where
    /// some cannot be read, or are in use though their guest had given them up.
    fn all_there(&self, pages: &Range<u64>) -> Vec<u64> {
        let Some(own) = self.own(pages) else {
            return Vec::new();
        };
        let mut content = [0; PAGE_BYTES];
        let mut there = Vec::new();
        for index in pages.clone() {
            let place = self.sharer.pages.place(index);
            let is_known = place == Place::Own && own.contains(place_in_block(index));
            let mut is_hole = || {
                let read = read_all(self.ram.file(), &mut content, index * PAGE_SIZE);
                read.map(|()| is_zero(&content))
            };
            match place {
                Place::Shared(_) => {}
                Place::Own if is_known => there.push(index),
                Place::Own | Place::Ballooned => match (is_hole(), place) {
                    (Ok(true), _) => {}
                    (Ok(false), Place::Own) => there.push(index),
                    _ => return Vec::new(),
                },
            }
        }
        there
    }

    /// Whether the kernel may have made a large page of a block that was none: all of it is there.
    fn may_be_made_large(&self, pages: &Range<u64>) -> bool {
        let held = self.sharer.held(pages.clone());
        held.is_ok_and(|held| held.into_iter().all(|is_held| is_held))
            && !is_left_out(Step::WholeIsLarge)
    }

    /// Before some of a block is punched that nobody is kept out of: with these few missing all of it might come meanwhile.
    pub(super) fn note_what_may_be_large(&mut self, number: usize) {
        const FEW: usize = 64;
        let may_be = |out: &Out| out.clock.may_be_large(number as u64);
        if !self.is_guarded() || self.out.as_ref().is_none_or(may_be) {
            return;
        }
        let held = self.sharer.held(self.pages_of(number as u64));
        let missing = held.map_or(0, |held| held.iter().filter(|&&is_held| !is_held).count());
        if missing <= FEW {
            self.may_be_large_again(number as u64);
        }
    }

    /// Whether the host looks if it is mapped again: dropped once more, it would find it untouched.
    fn is_sampled(&self, index: u64) -> bool {
        let out = self.out.as_ref();
        out.is_some_and(|out| out.sampled.contains(&index))
    }

    fn take_out_behind_fence(
        &mut self,
        pages: &Range<u64>,
        chosen: &PageSet,
        mapped: &PageSet,
    ) -> Result<u64, Stays> {
        let number = pages.start / BLOCK;
        let is_whole = self
            .out
            .as_ref()
            .is_some_and(|out| out.clock.may_be_large(number));
        let Some(out) = &self.out else { return Ok(0) };
        let swap = Arc::clone(&out.swap);
        let at = |place: usize| pages.start + place as u64;
        let indexes: Vec<u64> = chosen.iter().map(at).collect();
        let block = self.ram.addresses(pages.clone());
        let stretches = match is_whole {
            true => vec![block.clone()],
            false => {
                let runs = stretches(chosen, mapped).into_iter();
                let addresses = |run: Range<usize>| self.ram.addresses(at(run.start)..at(run.end));
                runs.map(addresses).collect()
            }
        };
        let kept_out = match is_left_out(Step::BlockIsClosed) {
            true => KeptOut::Writers,
            false => KeptOut::All,
        };
        let raised = self.sharer.raise_by(pages, &self.fence, || {
            swap.raise(&block, &stretches, kept_out)
        });
        if raised.is_err() {
            return Ok(0);
        }
        if !is_whole && self.may_be_made_large(pages) {
            swap.lower(&block, &stretches);
            self.may_be_large_again(number);
            return Ok(0);
        }
        // What came meanwhile goes too, or it would be punched with the rest.
        let indexes = match is_whole {
            false => indexes,
            true => self.all_there(pages),
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
                out.clock.punched(number);
                self.block_is_out(pages);
            }
        }
        swap.lower(&block, &stretches);
        swap.went_out(gone.len() as u64, u64::from(stays.is_some()));
        match (gone.len() as u64, stays) {
            (0, Some(why)) => Err(why),
            (count, _) => Ok(count),
        }
    }

    /// What the memory file holds is read from there: through the mapping this thread would wait for itself.
    fn take_one_out(&self, swap: &Swap, index: u64) -> Result<(), Stays> {
        let mut content = [0; PAGE_BYTES];
        told(Deed::LookedAt, &self.ram.addresses(index..index + 1));
        match read_all(self.ram.file(), &mut content, index * PAGE_SIZE) {
            Ok(()) => swap.take_out(index, &content),
            Err(error) => {
                tracing::debug!("not read: {error}");
                Err(Stays::ForNow)
            }
        }
    }
}

/// The chosen pages of a block in as few stretches as there can be without a page that is mapped and not chosen: to protect what
/// is not mapped costs nothing.
fn stretches(chosen: &PageSet, mapped: &PageSet) -> Vec<Range<usize>> {
    let mut stretches: Vec<Range<usize>> = Vec::new();
    for place in chosen.iter() {
        match stretches.last_mut() {
            Some(last) if !(last.end..place).any(|between| mapped.contains(between)) => {
                last.end = place + 1;
            }
            _ => stretches.push(place..place + 1),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pages() -> impl Strategy<Value = PageSet> {
        prop::collection::vec(0..BLOCK_PAGES, 0..40).prop_map(|places| places.into_iter().collect())
    }

    proptest! {
        #[test]
        fn stretches_hold_what_is_chosen_nothing_else_that_is_mapped_and_cannot_be_joined(
            chosen in pages(), mapped in pages()
        ) {
            let stretches = stretches(&chosen, &mapped);
            let within: PageSet = stretches.iter().cloned().flatten().collect();
            prop_assert_eq!(chosen.without(&within), PageSet::EMPTY);
            let others = mapped.without(&chosen);
            prop_assert_eq!(others.without(&within), others);
            for pair in stretches.windows(2) {
                prop_assert!((pair[0].end..pair[1].start).any(|between| others.contains(between)));
            }
        }
    }
}
