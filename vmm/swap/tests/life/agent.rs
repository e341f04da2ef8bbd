//! As `memory/agent`: takes pages out (`out`), shares them (`share`), makes blocks large (`large`) and punches what the guest
//! gives up (`balloon`). What it does, and with which pages, is left to chance.

use crate::chance::{below, choose, is_so, place_in, shuffled, some_of};
use crate::contents::Word;
use crate::guest::{Ask, Inbox, PAGES};
use crate::left_out::{Step, is_left_out, pause};
use crate::swap::{KeptOut, Stays, Swap};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

const BLOCK_PAGES: u64 = 3;
/// What it does of its own accord.
const STEPS: usize = 8;

/// Where a page is, as far as the agent has brought it about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Own,
    Ballooned,
    /// The store's frames are named by what they hold.
    Shared(Word),
}

/// What the host asks, by page.
#[derive(Default)]
struct Request {
    drops: BTreeSet<u64>,
    zeros: BTreeSet<u64>,
    spans: Vec<(u64, Word)>,
    rehomes: BTreeSet<u64>,
}

/// What it may do. Of few things in one schedule more comes together than of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    TakeOut,
    Share,
    MakeLarge,
    LetAllGo,
}

pub(crate) struct Agent {
    swap: Arc<Swap>,
    places: Vec<Place>,
    deeds: Vec<Deed>,
    /// What the host asked and was not done yet.
    asked: Vec<Request>,
    /// Which block it looks at most.
    most: u64,
}

impl Agent {
    pub(crate) fn new(swap: Arc<Swap>) -> Self {
        let places = (0..PAGES).map(|_| Place::Own).collect();
        Self {
            swap,
            places,
            asked: Vec::new(),
            most: block_by_chance(),
            deeds: some_of(
                Deed::TakeOut,
                &[Deed::Share, Deed::MakeLarge, Deed::LetAllGo],
            ),
        }
    }

    pub(crate) fn run(mut self, inbox: &Inbox) {
        let mut steps = STEPS;
        while let Some(asked) = inbox.next(steps == 0) {
            match asked {
                Some(Ask::Inflate(index)) => self.inflate(index),
                Some(Ask::Deflate(index)) => self.deflate(index),
                Some(Ask::ReportFree(index)) => self.give_back(index),
                None => {
                    steps -= 1;
                    self.step();
                    continue;
                }
            }
            inbox.answer();
        }
    }

    fn step(&mut self) {
        let number = match is_so(1, 4) {
            true => block_by_chance(),
            false => self.most,
        };
        match choose(&self.deeds) {
            Deed::Share => self.share(number),
            Deed::MakeLarge => self.make_large(number),
            Deed::LetAllGo => self.let_all_go(),
            Deed::TakeOut => self.take_out_of(number),
        }
        // Its rest is over.
        self.swap.keeper.signal();
    }

    fn place(&self, index: u64) -> Place {
        self.places[usize::try_from(index).unwrap()]
    }

    fn set_place(&mut self, index: u64, place: Place) {
        self.places[usize::try_from(index).unwrap()] = place;
    }

    // As `out`.

    fn take_out_of(&mut self, number: u64) {
        let pages = pages_of(number);
        let own = self.own(&pages);
        let some = |pages: &[u64]| pages.iter().copied().filter(|_| is_so(1, 2)).collect();
        // Mappings were dropped.
        let (chosen, mapped): (Vec<u64>, Vec<u64>) = (some(&own), some(&own));
        if !chosen.is_empty() {
            self.take_out_behind_fence(&pages, chosen, &mapped, is_so(1, 3));
        }
    }

    pub(crate) fn take_out_behind_fence(
        &mut self,
        pages: &Range<u64>,
        chosen: Vec<u64>,
        mapped: &[u64],
        is_whole: bool,
    ) {
        let (out, stretches) = match is_whole {
            true => (KeptOut::All, vec![pages.clone()]),
            false => (KeptOut::Writers, stretches(&chosen, mapped)),
        };
        self.swap.raise(&stretches, out);
        // What came meanwhile goes too, or it would be punched with the rest.
        let indexes = match is_whole {
            true => self.own(pages),
            false => chosen,
        };
        let mut gone = Vec::new();
        let mut stays = None;
        for index in indexes {
            match self.take_one_out(index) {
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
                .for_each(|index| self.swap.forget(index..index + 1));
        }
        match is_whole && !gone.is_empty() {
            true => self.swap.kernel.punch(pages.clone()),
            false => (gone.iter()).for_each(|&index| self.swap.kernel.punch(index..index + 1)),
        }
        self.swap.lower(&stretches);
    }

    fn take_one_out(&self, index: u64) -> Result<(), Stays> {
        (self.swap).take_out(index, self.swap.kernel.read_file(index))
    }

    /// The pages of a block that the memory file holds and that are the guest's own.
    fn own(&self, pages: &Range<u64>) -> Vec<u64> {
        let is_own =
            |&index: &u64| self.swap.kernel.is_held(index) && self.place(index) == Place::Own;
        pages.clone().filter(is_own).collect()
    }

    /// If nothing is out, and guards it all again.
    fn let_all_go(&self) {
        if self.swap.out_among(0..PAGES).is_empty() {
            self.swap.let_go(0..PAGES);
            self.guard(0..PAGES);
        }
    }

    // As `large`.

    /// In the place of a block stands any stretch of which all is there.
    fn make_large(&self, number: u64) {
        let of_block = shuffled(self.own(&pages_of(number)));
        let Some(&first) = of_block.first() else {
            return;
        };
        let pages = first..(first + below(BLOCK_PAGES) + 1).min(PAGES);
        let is_used_whole = self.own(&pages).len() as u64 == pages.end - pages.start
            && self.swap.out_among(pages.clone()).is_empty();
        if is_used_whole {
            self.swap.unguarded(pages, || ());
        }
    }

    // As `balloon`.

    fn inflate(&mut self, index: u64) {
        self.give_back(index);
        self.set_place(index, Place::Ballooned);
    }

    fn deflate(&mut self, index: u64) {
        if self.place(index) == Place::Ballooned {
            self.set_place(index, Place::Own);
        }
    }

    fn give_back(&mut self, index: u64) {
        if matches!(self.place(index), Place::Shared(_)) {
            self.map_home(index);
            self.swap.guard(index..index + 1);
        }
        if is_left_out(Step::ForgottenFirst) {
            self.swap.kernel.punch(index..index + 1);
            pause();
        }
        if !is_left_out(Step::GivenUpIsForgotten) {
            self.swap.forget(index..index + 1);
        }
        if !is_left_out(Step::ForgottenFirst) {
            self.swap.kernel.punch(index..index + 1);
        }
    }

    // As `share`.

    /// The host asks something, and of what it asked something is done: it may be out of date by then.
    fn share(&mut self, number: u64) {
        self.asked.push(self.request(number));
        let request = self.asked.swap_remove(place_in(self.asked.len()));
        self.carry_out(&request);
    }

    /// What the host may ask of a block: it reads the memory file as it is now, and knows what is mapped from the store.
    fn request(&self, number: u64) -> Request {
        let mut request = Request::default();
        for index in pages_of(number) {
            let seen = self.swap.kernel.read_file(index);
            match (self.place(index), below(4)) {
                (_, 0) => {}
                (Place::Shared(_), 1) => drop(request.drops.insert(index)),
                (Place::Shared(_), _) => drop(request.rehomes.insert(index)),
                (_, 1) => drop(request.zeros.insert(index)),
                (_, _) => request.spans.push((index, seen)),
            }
        }
        request
    }

    /// Does what is asked with one block, as far as it can be done.
    fn carry_out(&mut self, request: &Request) {
        let named = named(request);
        let (Some(&first), Some(&last)) = (named.first(), named.last()) else {
            return;
        };
        let pages = first..last + 1;
        // A page that is out must not come while it is looked at.
        self.swap.raise(std::slice::from_ref(&pages), KeptOut::All);
        let out = match is_left_out(Step::OutIsNotCompared) {
            true => BTreeSet::new(),
            false => self.swap.out_among(pages.clone()),
        };
        let held = pages
            .clone()
            .filter(|&index| self.swap.kernel.is_held(index));
        let mut step = Sharing {
            held: held.collect(),
            agent: self,
            out,
            hidden: BTreeSet::new(),
        };
        step.drop_all(&request.drops);
        step.give_back_zeros(&request.zeros);
        (request.spans.iter()).for_each(|&(index, frame)| step.map_span(index, frame));
        step.rehome_all(&request.rehomes);
        step.punch_hidden();
        let out = step.out;
        let changed = named.difference(&out).copied();
        if !is_left_out(Step::MovedIsForgotten) {
            self.swap.forget(changed);
        }
        self.guard(pages.clone());
        self.swap.lower(std::slice::from_ref(&pages));
    }

    /// Guards what was mapped anew.
    fn guard(&self, pages: Range<u64>) {
        for index in pages {
            match self.place(index) {
                Place::Shared(_) => self.swap.guard_writers(index..index + 1),
                Place::Own | Place::Ballooned => self.swap.guard(index..index + 1),
            }
        }
    }

    /// Maps the memory file over a page, whatever it holds there.
    fn map_home(&mut self, index: u64) {
        self.swap.kernel.map_home(index);
        self.set_place(index, Place::Own);
        self.swap.set_shown(index, false);
    }
}

/// One request being carried out.
struct Sharing<'a> {
    agent: &'a mut Agent,
    /// Pages that the memory file holds.
    held: BTreeSet<u64>,
    /// Pages that are out. They look like holes and hold something all the same, so nothing is done with them.
    out: BTreeSet<u64>,
    /// Pages of the memory file that are behind a mapping of the store now.
    hidden: BTreeSet<u64>,
}

impl Sharing<'_> {
    /// What a page holds, while nobody can write to it; none if it is out.
    fn read(&self, index: u64) -> Option<Word> {
        if self.out.contains(&index) {
            return None;
        }
        match self.is_hole(index) {
            true => Some(0),
            false => Some(self.agent.swap.kernel.look(index)),
        }
    }

    fn is_hole(&self, index: u64) -> bool {
        !self.held.contains(&index) && !matches!(self.agent.place(index), Place::Shared(_))
    }

    /// Copies that equal the frame below them again.
    fn drop_all(&mut self, drops: &BTreeSet<u64>) {
        for &index in drops {
            if let Place::Shared(frame) = self.agent.place(index)
                && self.read(index) == Some(frame)
            {
                self.agent.swap.kernel.drop_copy(index);
            }
        }
    }

    fn give_back_zeros(&mut self, zeros: &BTreeSet<u64>) {
        for &index in zeros {
            if self.read(index) != Some(0) {
                continue;
            }
            self.agent.swap.kernel.punch(index..index + 1);
            self.held.remove(&index);
            if matches!(self.agent.place(index), Place::Shared(_)) {
                self.agent.map_home(index);
            }
        }
    }

    /// Maps a frame if its page is equal.
    fn map_span(&mut self, index: u64, frame: Word) {
        if self.read(index) != Some(frame) {
            return;
        }
        self.agent.swap.kernel.map_store(index, frame);
        self.agent.set_place(index, Place::Shared(frame));
        self.agent.swap.set_shown(index, true);
        self.hidden.insert(index);
    }

    /// Brings pages back into the memory file.
    fn rehome_all(&mut self, rehomes: &BTreeSet<u64>) {
        for &index in rehomes {
            if matches!(self.agent.place(index), Place::Shared(_)) {
                self.copy_home(index);
                self.agent.map_home(index);
                self.hidden.remove(&index);
            }
        }
    }

    /// Puts what a page shows into the memory file.
    fn copy_home(&mut self, index: u64) {
        match self.read(index) {
            Some(0) | None => {
                self.agent.swap.kernel.punch(index..index + 1);
                self.held.remove(&index);
            }
            Some(word) => {
                self.agent.swap.kernel.write_file(index, word);
                self.held.insert(index);
            }
        }
    }

    /// Frees what is behind the new mappings.
    fn punch_hidden(&mut self) {
        for &index in &self.hidden {
            self.agent.swap.kernel.punch(index..index + 1);
        }
    }
}

/// All pages that a request is about.
fn named(request: &Request) -> BTreeSet<u64> {
    let spans = request.spans.iter().map(|&(index, _)| index);
    let others = [&request.drops, &request.zeros, &request.rehomes];
    spans.chain(others.into_iter().flatten().copied()).collect()
}

fn pages_of(number: u64) -> Range<u64> {
    number * BLOCK_PAGES..(number + 1) * BLOCK_PAGES
}

/// The chosen pages of a block in as few stretches as there can be without a page that is mapped and not chosen.
fn stretches(chosen: &[u64], mapped: &[u64]) -> Vec<Range<u64>> {
    let mut stretches: Vec<Range<u64>> = Vec::new();
    for &index in chosen {
        match stretches.last_mut() {
            Some(last) if !(last.end..index).any(|between| mapped.contains(&between)) => {
                last.end = index + 1;
            }
            _ => stretches.push(index..index + 1),
        }
    }
    stretches
}

fn block_by_chance() -> u64 {
    below(PAGES / BLOCK_PAGES)
}
