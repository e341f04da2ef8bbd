//! Carries out what the host's scanner asks: maps equal pages from the store, drops copies that are
//! equal again, gives zero pages back, brings pages home.
//!
//! ```text
//!   raise the fence: writers wait ──▶ compare every byte ──▶ map, drop, punch ──▶ lower it
//! ```
//!
//! A request may be old or wrong: what it says about a page's content is checked here, and what it
//! says about mappings is checked against the agent's own map. A page that is not as expected is left
//! as it is, or copied, and the answer says so.
//!
//! A page's content is read through the guest's own mapping: behind the fence nobody writes, and readers
//! never wait. Holes are not touched, for looking at one would fill it.

use super::fence::Fence;
use crate::memory::MemoryError;
use crate::memory::doors::{Deed, told};
use crate::memory::left_out::{self, is_left_out};
use crate::memory::mapping::{
    Addresses, Window, drop_copies, is_mapped, map_memory_file, map_store,
};
use crate::memory::pages::PageTable;
use crate::memory::ram::GuestRam;
use crate::memory::store::{StoreView, is_zero, read_all, write_all};
use crate::memory::swap::KeptOut;
use page::{PAGE_BYTES, PAGE_SIZE, PageCount};
use protocol::SharingCounters;
use protocol::page_sharing::BlockRequest;
use rustix::io::Errno;
use sharing::{BLOCK_PAGES, Frame, Outcome, PageSet, Span};
use std::ops::Range;

/// The store, and where each page of the guest is.
#[derive(Debug)]
pub(super) struct Sharer {
    ram: GuestRam,
    store: Option<StoreView>,
    pub(super) pages: PageTable,
    /// Pages that turned out to be in use though their guest had given them up.
    pub(super) popped: u64,
    counters: SharingCounters,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub(super) outcome: Outcome,
    /// As [`protocol::page_sharing::FromAgent::Outcome`] says.
    pub(super) unwritten: PageSet,
    /// Writers that had to wait.
    pub(super) waited: u64,
}

/// One request being carried out.
struct Step<'a> {
    sharer: &'a mut Sharer,
    fence: &'a Fence,
    first: u64,
    outcome: Outcome,
    /// Pages that the memory file holds. Behind the fence nobody but the agent takes pages away. Of what
    /// was a hole when the step began, nothing but zeros can be read.
    held: PageSet,
    /// Pages that are out. They look like holes and hold something all the same, so nothing is done with them.
    out: PageSet,
    /// Pages of the memory file that are behind a mapping of the store now.
    hidden: PageSet,
}

/// Frames read in one call to be compared: as many as stay in a core's first cache, about.
const COMPARED_AT_ONCE: usize = 16;

/// A page's content.
type Content = [u8; PAGE_BYTES];

impl Sharer {
    pub(super) fn new(ram: GuestRam) -> Self {
        let pages = ram.layout().size().0;
        Self {
            ram,
            store: None,
            pages: PageTable::new(pages),
            popped: 0,
            counters: SharingCounters::default(),
        }
    }

    pub(super) fn counters(&self) -> SharingCounters {
        SharingCounters {
            mapped: PageCount(self.pages.shared()),
            ..self.counters
        }
    }

    /// Takes the store that requests are about. Ignored if there is one already: mappings rely on it.
    pub(super) fn use_store(&mut self, store: StoreView) {
        if self.store.is_none() {
            self.store = Some(store);
        }
    }

    /// Does what is asked with one block, as far as it can be done.
    pub(super) fn carry_out(&mut self, request: &BlockRequest, fence: &Fence) -> Done {
        let first = u64::from(request.number) * BLOCK_PAGES as u64;
        let Some((named, hull)) = self.hull(request, first) else {
            self.counters.stale += PageCount(1);
            return Done::default();
        };
        let pages = first + hull.start as u64..first + hull.end as u64;
        let addresses = self.ram.addresses(pages.clone());
        let written = written(fence, &addresses, hull.start);
        // A page that is out must not come while it is looked at.
        let kept_out = match is_left_out(left_out::Step::SharedIsClosed) {
            true => KeptOut::Writers,
            false => KeptOut::All,
        };
        if self.raise(&pages, fence, kept_out).is_err() {
            self.counters.no_areas += PageCount(1);
            return Done::default();
        }
        let place = |index: u64| usize::try_from(index - first).expect("below 512");
        let out: PageSet = match is_left_out(left_out::Step::OutIsNotCompared) {
            true => PageSet::EMPTY,
            false => fence.out(pages.clone()).into_iter().map(place).collect(),
        };
        let Ok(held) = self.held(pages) else {
            let waited = fence.lower(&addresses);
            return Done {
                waited,
                ..Done::default()
            };
        };
        let held = (hull.clone().zip(held)).filter_map(|(place, held)| held.then_some(place));
        let held: PageSet = held.collect();
        let own = held
            .iter()
            .filter(|&place| self.pages.frame(first + place as u64).is_none());
        let known = own.collect::<PageSet>().without(&written);
        let mut step = Step {
            sharer: self,
            fence,
            first,
            outcome: Outcome::default(),
            held,
            out,
            hidden: PageSet::EMPTY,
        };
        step.drop_all(&request.drops);
        step.give_back_zeros(&request.zeros);
        for span in &request.spans {
            step.map_span(span);
        }
        step.rehome_all(&request.rehomes);
        step.punch_hidden();
        let (outcome, out) = (step.outcome, step.out);
        let changed = named.without(&out);
        if !is_left_out(left_out::Step::MovedIsForgotten) {
            fence.forget(changed.iter().map(|place| first + place as u64));
        }
        if let Err(error) = self.guard(first + hull.start as u64..first + hull.end as u64, fence) {
            // Nobody is kept out of it until it is, so nothing of it is shared or goes out.
            tracing::debug!("block {} is not guarded: {error}", request.number);
        }
        let waited = fence.lower(&addresses);
        // What was copied holds what it held. What shows a frame, or is a hole, is cheap to look at.
        let known = known.without(&named.without(&outcome.copied));
        let outside = PageSet::ALL.without(&hull.collect());
        let unwritten = match fence.arm(&addresses) {
            Ok(()) => outside.union(&known),
            Err(_) => outside,
        };
        Done {
            outcome,
            unwritten,
            waited,
        }
    }

    /// Raises the fence around these pages.
    ///
    /// # Errors
    /// When the process has no memory areas left to split.
    pub(super) fn raise(
        &self,
        pages: &Range<u64>,
        fence: &Fence,
        out: KeptOut,
    ) -> Result<(), MemoryError> {
        if is_left_out(left_out::Step::SharedBehindFence) {
            return Ok(());
        }
        let addresses = self.ram.addresses(pages.clone());
        self.raise_by(pages, fence, || fence.raise(&addresses, out))
    }

    /// As [`Self::raise`], by another way of keeping writers out of some of these pages.
    ///
    /// # Errors
    /// As [`Self::raise`].
    pub(super) fn raise_by(
        &self,
        pages: &Range<u64>,
        fence: &Fence,
        raise: impl Fn() -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        raise().or_else(|_| {
            // There may have been none left when something was mapped here.
            self.guard(pages.clone(), fence)?;
            raise()
        })
    }

    /// Guards what was mapped anew, where memory is guarded.
    ///
    /// # Errors
    /// When the process has no memory areas left to split.
    pub(super) fn guard(&self, pages: Range<u64>, fence: &Fence) -> Result<(), MemoryError> {
        let mut next = pages.start;
        for shared in self.pages.shared_runs(pages.clone()) {
            self.guard_home(next..shared.start, fence)?;
            next = shared.end;
            fence.guard_shared(&self.ram.addresses(shared))?;
        }
        self.guard_home(next..pages.end, fence)
    }

    fn guard_home(&self, pages: Range<u64>, fence: &Fence) -> Result<(), MemoryError> {
        match pages.is_empty() {
            true => Ok(()),
            false => fence.guard(&self.ram.addresses(pages)),
        }
    }

    /// The pages that the request is about, and all from the first to the last of them. None if some are not there, or it names one
    /// twice.
    fn hull(&self, request: &BlockRequest, first: u64) -> Option<(PageSet, Range<usize>)> {
        let named = named(request)?;
        let store = self.store.as_ref();
        let is_there = |span: &Span| store.is_some_and(|store| store.holds(span.frame, span.count));
        if !request.spans.iter().all(is_there) {
            return None;
        }
        let (start, last) = (named.iter().next()?, named.iter().last()?);
        let is_there = first + (last as u64) < self.ram.layout().size().0;
        is_there.then_some((named, start..last + 1))
    }

    /// Puts the memory file back under pages that the guest gives up. Returns the runs that had been
    /// mapped from the store. What they held is lost.
    pub(super) fn unmap(&mut self, pages: Range<u64>, fence: &Fence) -> Vec<Range<u64>> {
        let runs = self.pages.shared_runs(pages);
        runs.into_iter()
            .filter(|run| self.unmap_run(run, fence).is_ok())
            .collect()
    }

    fn unmap_run(&mut self, run: &Range<u64>, fence: &Fence) -> Result<(), Errno> {
        self.map_home(run)?;
        fence.track(&self.ram.addresses(run.clone()));
        Ok(())
    }

    /// Maps the memory file over a run, whatever it holds there.
    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn map_home(&mut self, run: &Range<u64>) -> Result<(), Errno> {
        let addresses = self.ram.addresses(run.clone());
        let mapped = map_memory_file(&addresses, self.ram.file(), run.start);
        if mapped.is_err() && is_mapped(&addresses) {
            return mapped;
        }
        // A second try, for there is a hole now; a guest cannot live with that.
        if mapped.is_err() {
            map_memory_file(&addresses, self.ram.file(), run.start)
                .expect("the kernel took guest memory away and does not give it back");
        }
        run.clone().for_each(|index| self.pages.unshare(index));
        self.counters.mappings += 1;
        Ok(())
    }

    /// Whether a page is in the memory file and mapped from there: no hole, and nothing of the store.
    pub(super) fn is_private(&self, index: u64) -> bool {
        let is_ram = index < self.ram.layout().size().0;
        let is_own =
            self.pages.frame(index).is_none() || is_left_out(left_out::Step::SharedIsNotSampled);
        is_ram && is_own && self.held(index..index + 1) == Ok(vec![true])
    }

    pub(super) fn held(&self, pages: Range<u64>) -> Result<Vec<bool>, Errno> {
        let count = pages.end - pages.start;
        let mut held = Vec::new();
        for gfns in self.ram.layout().pieces_of_file(pages.start, count) {
            let residency = self.ram.residency(gfns);
            held.extend(residency.map_err(|_unknown| Errno::FAULT)?);
        }
        Ok(held)
    }

    /// Writes a page into the memory file, under what is mapped over it.
    #[cfg_attr(feature = "lockset", track_caller)]
    fn write_home(&self, index: u64, content: &Content) -> Result<(), Errno> {
        told(Deed::WrittenHome, &self.ram.addresses(index..index + 1));
        write_all(self.ram.file(), content, index * PAGE_SIZE)
    }

    #[cfg_attr(feature = "lockset", track_caller)]
    pub(super) fn punch(&self, pages: Range<u64>) -> Result<(), Errno> {
        let count = pages.end - pages.start;
        for range in self.ram.layout().pieces_of_file(pages.start, count) {
            self.ram.punch(range)?;
        }
        Ok(())
    }

    /// Frees what the memory file holds behind mappings of the store.
    #[cfg_attr(feature = "lockset", track_caller)]
    fn punch_behind(&self, pages: Range<u64>) {
        if let Err(error) = self.punch(pages) {
            tracing::warn!("memory behind shared pages is not freed: {error}");
        }
    }
}

impl Step<'_> {
    fn index(&self, place: usize) -> u64 {
        self.first + place as u64
    }

    fn range(&self, run: (usize, usize)) -> Range<u64> {
        self.index(run.0)..self.index(run.0 + run.1)
    }

    /// What a page holds, while nobody can write to it: through the guest's own mapping, whose page
    /// tables are filled already. Reading never waits. A hole is read from the memory file, for to touch it would fill it.
    #[cfg_attr(feature = "lockset", track_caller)]
    fn read(&self, place: usize, content: &mut Content) -> Result<(), Errno> {
        if self.out.contains(place) {
            return Err(Errno::NODATA);
        }
        if self.is_hole(place) {
            // A page that the kernel is moving looks like one for a moment.
            let index = self.index(place);
            told(Deed::LookedAt, &self.sharer.ram.addresses(index..index + 1));
            return read_all(self.sharer.ram.file(), content, index * PAGE_SIZE);
        }
        let looked = self.sharer.ram.look(self.index(place), content);
        looked.map_err(|_unreadable| Errno::FAULT)
    }

    fn is_hole(&self, place: usize) -> bool {
        !self.held.contains(place) && self.sharer.pages.frame(self.index(place)).is_none()
    }

    #[cfg_attr(feature = "lockset", track_caller)]
    fn holds_zeros(&self, place: usize) -> bool {
        let mut page = [0; PAGE_BYTES];
        self.read(place, &mut page).is_ok() && is_zero(&page)
    }

    /// Whether a page holds what a frame holds.
    #[cfg_attr(feature = "lockset", track_caller)]
    fn equals(&self, place: usize, frame: Frame) -> bool {
        let (mut page, mut stored) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        let Some(store) = &self.sharer.store else {
            return false;
        };
        store.read(frame, &mut stored).is_ok()
            && self.read(place, &mut page).is_ok()
            && page == stored
    }

    /// Which places of a span hold what their frames hold, and which are holes.
    fn compare(&self, span: &Span) -> Result<(PageSet, PageSet), Errno> {
        let store = self.sharer.store.as_ref().ok_or(Errno::BADF)?;
        let (mut equal, mut holes) = (PageSet::EMPTY, PageSet::EMPTY);
        let mut frames = vec![0; COMPARED_AT_ONCE.min(span.count) * PAGE_BYTES];
        let mut page = [0; PAGE_BYTES];
        for from in (span.start..span.start + span.count).step_by(COMPARED_AT_ONCE) {
            let count = COMPARED_AT_ONCE.min(span.start + span.count - from);
            let stored = &mut frames[..count * PAGE_BYTES];
            store.read(span.frame_at(from), stored)?;
            for (place, stored) in (from..).zip(stored.chunks(PAGE_BYTES)) {
                if self.is_hole(place) {
                    holes.insert(place);
                }
                if self.out.contains(place) {
                    continue;
                }
                self.read(place, &mut page)?;
                if page[..] == *stored {
                    equal.insert(place);
                }
            }
        }
        Ok((equal, holes))
    }

    fn differs(&mut self, place: usize) {
        self.outcome.differed.insert(place);
        self.sharer.counters.differed += PageCount(1);
    }

    /// Copies that equal the frame below them again.
    fn drop_all(&mut self, drops: &PageSet) {
        let mut equal = PageSet::EMPTY;
        for place in drops.iter() {
            let index = self.index(place);
            match self.sharer.pages.frame(index) {
                None => self.sharer.counters.stale += PageCount(1),
                Some(frame) if self.equals(place, frame) => equal.insert(place),
                Some(_) => self.differs(place),
            }
        }
        for run in equal.runs() {
            let addresses = self.sharer.ram.addresses(self.range(run));
            if drop_copies(&addresses).is_ok() {
                self.note_done(run);
                self.sharer.counters.shared += PageCount(run.1 as u64);
                self.sharer.counters.dropped += PageCount(run.1 as u64);
            }
        }
    }

    fn note_done(&mut self, (start, count): (usize, usize)) {
        (start..start + count).for_each(|place| self.outcome.done.insert(place));
    }

    fn give_back_zeros(&mut self, zeros: &PageSet) {
        let mut zero = PageSet::EMPTY;
        for place in zeros.iter() {
            match self.holds_zeros(place) {
                true => zero.insert(place),
                false => self.differs(place),
            }
        }
        for run in zero.runs() {
            let range = self.range(run);
            // Punched first: what is mapped home then must read as zeros at once.
            if self.sharer.punch(range.clone()).is_err() {
                continue;
            }
            (run.0..run.0 + run.1).for_each(|place| self.held.remove(place));
            for mapped in self.sharer.pages.shared_runs(range.clone()) {
                if self.sharer.map_home(&mapped).is_err() {
                    self.sharer.counters.no_areas += PageCount(mapped.end - mapped.start);
                }
            }
            self.note_zeros(run);
        }
    }

    /// Notes those that are not mapped from the store (any more).
    fn note_zeros(&mut self, (start, count): (usize, usize)) {
        for place in start..start + count {
            if self.sharer.pages.frame(self.index(place)).is_none() {
                self.outcome.done.insert(place);
                self.sharer.counters.zeroed += PageCount(1);
            }
        }
    }

    /// Maps a span as far as its pages are equal to their frames or may be copied.
    fn map_span(&mut self, span: &Span) {
        let Ok((equal, holes)) = self.compare(span) else {
            return;
        };
        let may_copy = !span.copied.is_empty();
        let (mut shown, mut copied) = (PageSet::EMPTY, PageSet::EMPTY);
        for place in span.start..span.start + span.count {
            let is_asked = !span.copied.contains(place);
            if is_asked && equal.contains(place) {
                shown.insert(place);
                continue;
            }
            if is_asked {
                self.differs(place);
            }
            // A hole may be the balloon's: it stays one.
            if may_copy && !holes.contains(place) {
                copied.insert(place);
            }
        }
        self.map_segments(span, &shown, &copied);
    }

    /// Stretches of shown pages, with copied ones between them, one mapping each.
    fn map_segments(&mut self, span: &Span, shown: &PageSet, copied: &PageSet) {
        let both: PageSet = shown.iter().chain(copied.iter()).collect();
        for (start, count) in both.runs() {
            let mut inside = (start..start + count).filter(|&place| shown.contains(place));
            let Some(first) = inside.next() else { continue };
            let last = inside.next_back().unwrap_or(first);
            self.map_segment(span, first..last + 1, copied);
        }
    }

    fn map_segment(&mut self, span: &Span, places: Range<usize>, copied: &PageSet) {
        let copies: PageSet = places
            .clone()
            .filter(|&place| copied.contains(place))
            .collect();
        let mapped = match copies.is_empty() {
            true => self.map_in_place(span, places.clone()),
            false => self.map_window(span, places.clone(), &copies),
        };
        self.sharer.counters.mappings += 1;
        if let Err(error) = mapped {
            self.count_refusal(error, places.len());
            return;
        }
        for place in places {
            let index = self.index(place);
            let has_popped = self.sharer.pages.share(index, span.frame_at(place));
            self.sharer.popped += u64::from(has_popped);
            self.hidden.insert(place);
            if copies.contains(place) {
                self.outcome.copied.insert(place);
                self.sharer.counters.copied += PageCount(1);
            } else {
                self.outcome.done.insert(place);
                self.sharer.counters.shared += PageCount(1);
            }
        }
    }

    fn count_refusal(&mut self, error: Errno, pages: usize) {
        let counter = match error {
            Errno::NOMEM => &mut self.sharer.counters.no_areas,
            _ => &mut self.sharer.counters.no_memory,
        };
        *counter += PageCount(pages as u64);
    }

    fn map_in_place(&mut self, span: &Span, places: Range<usize>) -> Result<(), Errno> {
        let range = self.index(places.start)..self.index(places.end);
        let addresses = self.sharer.ram.addresses(range);
        let frame = span.frame_at(places.start);
        let store = self.sharer.store.as_ref().ok_or(Errno::BADF)?;
        let mapped = map_store(&addresses, store, u64::from(frame.0));
        if mapped.is_err() && !is_mapped(&addresses) {
            self.repair(places, |sharer, place, content| {
                let store = sharer.store.as_ref().ok_or(Errno::BADF)?;
                store.read(span.frame_at(place), content)
            });
        }
        mapped
    }

    fn map_window(
        &mut self,
        span: &Span,
        places: Range<usize>,
        copies: &PageSet,
    ) -> Result<(), Errno> {
        let store = self.sharer.store.as_ref().ok_or(Errno::BADF)?;
        let frame = span.frame_at(places.start);
        let window = Window::new(places.len(), store, u64::from(frame.0))?;
        let aside = window.addresses();
        self.fence.adopt(&aside).map_err(|_refused| Errno::NOMEM)?;
        let mut content = [0; PAGE_BYTES];
        for place in copies.iter() {
            self.read(place, &mut content)?;
            let address = aside.start + (place - places.start) as u64 * PAGE_SIZE;
            self.fence.copy_into(address, &content)?;
        }
        let range = self.index(places.start)..self.index(places.end);
        let addresses = self.sharer.ram.addresses(range);
        let Err((window, error)) = window.move_to(&addresses) else {
            return Ok(());
        };
        if !is_mapped(&addresses) {
            let start = places.start;
            self.repair(places, |_, place, content| {
                window.read(place - start, content);
                Ok(())
            });
        }
        Err(error)
    }

    /// A replacement failed and left a hole: the memory file takes its place, with the same content.
    fn repair(
        &mut self,
        places: Range<usize>,
        read: impl Fn(&Sharer, usize, &mut Content) -> Result<(), Errno>,
    ) {
        let mut content = [0; PAGE_BYTES];
        for place in places.clone() {
            let kept = read(self.sharer, place, &mut content)
                .and_then(|()| self.sharer.write_home(self.index(place), &content));
            kept.expect("what a guest wrote is kept when its mapping cannot be replaced");
            self.held.insert(place);
        }
        let range = self.index(places.start)..self.index(places.end);
        self.sharer
            .map_home(&range)
            .expect("the kernel took guest memory away and does not give it back");
    }

    /// Brings pages back into the memory file, a run at a time.
    fn rehome_all(&mut self, rehomes: &PageSet) {
        let mut mapped = PageSet::EMPTY;
        for place in rehomes.iter() {
            match self.sharer.pages.frame(self.index(place)) {
                Some(_) => mapped.insert(place),
                None => self.sharer.counters.stale += PageCount(1),
            }
        }
        for run in mapped.runs() {
            match self.rehome(run) {
                Ok(()) => {
                    self.note_done(run);
                    // If the request had it mapped before, the memory file shows again.
                    (run.0..run.0 + run.1).for_each(|place| self.hidden.remove(place));
                    self.sharer.counters.rehomed += PageCount(run.1 as u64);
                }
                Err(error) => self.count_refusal(error, run.1),
            }
        }
    }

    fn rehome(&mut self, (start, count): (usize, usize)) -> Result<(), Errno> {
        let range = self.range((start, count));
        let written = (start..start + count).try_for_each(|place| self.copy_home(place));
        let moved = written.and_then(|()| self.sharer.map_home(&range));
        if moved.is_err() {
            self.sharer.punch_behind(range);
        }
        moved
    }

    /// Puts what a page shows into the memory file.
    #[cfg_attr(feature = "lockset", track_caller)]
    fn copy_home(&mut self, place: usize) -> Result<(), Errno> {
        let (index, mut content) = (self.index(place), [0; PAGE_BYTES]);
        self.read(place, &mut content)?;
        if is_zero(&content) {
            // A page that was punched when it was shared is zero at home already.
            self.sharer.punch(index..index + 1)?;
            self.held.remove(place);
        } else {
            self.sharer.write_home(index, &content)?;
            self.held.insert(place);
        }
        Ok(())
    }

    /// Frees what is behind the new mappings.
    fn punch_hidden(&mut self) {
        for run in self.hidden.runs() {
            self.sharer.punch_behind(self.range(run));
        }
    }
}

/// The pages that a request is about. None if it names one for a span and for something else, too: what is mapped from the store
/// is protected by nobody before the request has been carried out.
fn named(request: &BlockRequest) -> Option<PageSet> {
    let mut spans = PageSet::EMPTY;
    for place in request
        .spans
        .iter()
        .flat_map(|span| span.start..span.start + span.count)
    {
        if spans.contains(place) {
            return None;
        }
        spans.insert(place);
    }
    let others = request.drops.union(&request.zeros).union(&request.rehomes);
    let is_once = others.without(&spans) == others || is_left_out(left_out::Step::NamedOnce);
    is_once.then(|| others.union(&spans))
}

/// The pages at these addresses that were written, the first of them at place `start` of its block.
fn written(fence: &Fence, addresses: &Addresses, start: usize) -> PageSet {
    let mut written = PageSet::EMPTY;
    let place = |address: u64| {
        let page = (address - addresses.start) / PAGE_SIZE;
        start + usize::try_from(page).unwrap_or(usize::MAX)
    };
    let asked = fence.written(addresses, |run| {
        (place(run.start)..place(run.end)).for_each(|place| written.insert(place));
    });
    match asked {
        Ok(()) => written,
        Err(_) => PageSet::ALL,
    }
}

#[cfg(test)]
mod tests;
