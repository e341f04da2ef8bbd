//! A small world to share pages in: guests as arrays of numbers, a store, and an agent that does what
//! it is asked as a real one would, except when it does not feel like it.
//!
//! The world knows the truth: what each guest last wrote to each page. Whatever backs a page must read
//! as that, after every single thing that happens.

use crate::{
    Areas, BLOCK_PAGES, Block, BlockPlan, Content, ContentHash, Domain, Frame, Outcome, Page,
    PageSet, Pressure, Request, Seen, Sharing, Span, TrustGroup, VmSpec,
};
use page::{Gfn, GfnRange, PageCount, Random, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// What a page holds; zero is zero.
pub(super) type Value = u64;

/// Where a guest's page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Back {
    Hole,
    Own(Value),
    Mapped(Frame),
    /// An anonymous page over a frame's mapping.
    Over(Frame, Value),
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) domain: Domain,
    pub(super) backs: Vec<Back>,
    /// What the guest believes that its pages hold.
    pub(super) truth: Vec<Value>,
}

/// A source of chance: the same seed, the same world.
#[derive(Debug)]
pub(super) struct Chance(Random);

impl Chance {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0.next() % end
    }

    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap();
            things.swap(last, other);
        }
    }
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) sharing: Sharing,
    pub(super) guests: BTreeMap<VmId, Guest>,
    /// What the store's frames hold, and whose page it was.
    pub(super) store: BTreeMap<Frame, (Value, Domain)>,
    pub(super) chance: Chance,
    /// How often an agent refuses a page for no reason, and a guest writes while it is asked.
    pub(super) refusal_percent: u64,
    pub(super) write_percent: u64,
    /// How many bits of hash there are: few make collisions.
    pub(super) hash_bits: u32,
    pub(super) area_limit: u64,
    pub(super) pressure: Pressure,
    /// Pages that nobody wrote since they were last read. They are read again only if asked for.
    unwritten: BTreeSet<Page>,
    pub(super) pages_read: usize,
}

impl World {
    pub(super) fn new(seed: u64, frame_limit: u32) -> Self {
        Self {
            sharing: Sharing::new(frame_limit),
            guests: BTreeMap::new(),
            store: BTreeMap::new(),
            chance: Chance(Random::new(seed)),
            refusal_percent: 0,
            write_percent: 0,
            hash_bits: 64,
            area_limit: 1 << 40,
            pressure: Pressure::Plenty,
            unwritten: BTreeSet::new(),
            pages_read: 0,
        }
    }

    pub(super) fn start(&mut self, id: u32, group: Option<&str>, values: &[Value]) {
        let spec = VmSpec {
            id: VmId(id),
            group: group.map(|name| name.parse::<TrustGroup>().unwrap()),
            size: PageCount(values.len() as u64),
            areas: Areas {
                used: 0,
                limit: self.area_limit,
            },
        };
        let guest = Guest {
            domain: self.sharing.add_vm(spec).unwrap(),
            backs: values.iter().map(|&value| Back::Own(value)).collect(),
            truth: values.to_vec(),
        };
        self.guests.insert(VmId(id), guest);
    }

    pub(super) fn end(&mut self, id: VmId) {
        self.guests.remove(&id);
        self.sharing.remove_vm(id);
        self.punch();
    }

    pub(super) fn ids(&self) -> Vec<VmId> {
        self.guests.keys().copied().collect()
    }

    fn hash(&self, value: Value, domain: Domain) -> Content {
        if value == 0 {
            return Content::Zero;
        }
        let seeded = (value + (u64::from(domain.0) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (seeded ^ (seeded >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Content::Hash(ContentHash(
            (mixed ^ (mixed >> 29)) << (64 - self.hash_bits),
        ))
    }

    pub(super) fn read(&self, page: Page) -> Value {
        let guest = &self.guests[&page.vm];
        match guest.backs[at(page)] {
            Back::Hole => 0,
            Back::Own(value) | Back::Over(_, value) => value,
            Back::Mapped(frame) => self.store.get(&frame).map_or(0, |&(value, _)| value),
        }
    }

    /// The guest writes; the kernel copies on write.
    pub(super) fn write(&mut self, page: Page, value: Value) {
        self.unwritten.remove(&page);
        let guest = self.guests.get_mut(&page.vm).unwrap();
        guest.truth[at(page)] = value;
        let back = &mut guest.backs[at(page)];
        *back = match *back {
            Back::Hole | Back::Own(_) => Back::Own(value),
            Back::Mapped(frame) | Back::Over(frame, _) => Back::Over(frame, value),
        };
    }

    /// The guest gives a page up, and the agent says so.
    pub(super) fn balloon(&mut self, page: Page) {
        let guest = self.guests.get_mut(&page.vm).unwrap();
        guest.backs[at(page)] = Back::Hole;
        guest.truth[at(page)] = 0;
        let range = GfnRange {
            start: page.gfn,
            count: PageCount(1),
        };
        self.sharing.unmapped(page.vm, range);
    }

    fn seen(&mut self, page: Page, to_read: &PageSet) -> Seen {
        let guest = &self.guests[&page.vm];
        let Some(&back) = guest.backs.get(at(page)) else {
            return Seen::Skipped;
        };
        let domain = guest.domain;
        match back {
            Back::Hole => Seen::Hole,
            Back::Own(_) if self.unwritten.contains(&page) && !to_read.contains(page.index()) => {
                Seen::Unchanged
            }
            Back::Own(value) => {
                self.unwritten.insert(page);
                self.pages_read += 1;
                Seen::Private(self.hash(value, domain))
            }
            Back::Mapped(_) => Seen::Shared,
            Back::Over(_, value) => {
                let is_read = self.chance.percent(70);
                Seen::Broken(is_read.then(|| self.hash(value, domain)))
            }
        }
    }

    /// A block stays as it is, and is read. How many of its pages could be given back if it did not.
    pub(super) fn keep(&mut self, block: Block) -> usize {
        let guest = &self.guests[&block.vm];
        let read =
            (0..BLOCK_PAGES).filter_map(|index| match *guest.backs.get(at(block.page(index)))? {
                Back::Own(value) => Some((index, self.hash(value, guest.domain))),
                _ => None,
            });
        let read: Vec<(usize, Content)> = read.collect();
        self.sharing.hint_kept(block, &read);
        let mut kept = self.sharing.kept(block.vm);
        kept.find(|kept| kept.0 == block).map_or(0, |kept| kept.1)
    }

    fn is_kept(&self, block: Block) -> bool {
        self.sharing.kept(block.vm).any(|kept| kept.0 == block)
    }

    /// Examines a block and plans. The guests go on writing in between.
    pub(super) fn plan(&mut self, block: Block) -> BlockPlan {
        self.sharing.let_go(block);
        let to_read = self.sharing.to_read(block);
        let seen: [Seen; BLOCK_PAGES] =
            std::array::from_fn(|index| self.seen(block.page(index), &to_read));
        let Some(examined) = self.sharing.examine(block, &seen) else {
            return BlockPlan::default();
        };
        let answers: Vec<Option<Content>> = examined
            .rehash
            .iter()
            .map(|&page| Some(self.hash(self.read(page), self.guests[&page.vm].domain)))
            .collect();
        self.disturb(block);
        let plan = self.sharing.plan(&examined, &answers, self.pressure);
        for request in &plan.requests {
            assert!(
                !self.is_kept(request.block),
                "{:?} stays as it is",
                request.block
            );
        }
        self.punch();
        self.fill(&plan);
        plan
    }

    /// Planning lets go of frames that it did not need, so it is punched before they are filled too.
    fn punch(&mut self) {
        for range in self.sharing.take_freed() {
            for frame in (range.start.0..range.start.0 + range.count).map(Frame) {
                self.store.remove(&frame);
            }
        }
    }

    fn fill(&mut self, plan: &BlockPlan) {
        for fill in &plan.fills {
            let value = self.read(fill.page);
            let domain = self.guests[&fill.page.vm].domain;
            let before = self.store.insert(fill.frame, (value, domain));
            assert_eq!(before, None, "{:?} was in use", fill.frame);
            if self.hash(value, domain) != Content::Hash(fill.hash) {
                self.sharing.fill_failed(fill);
            }
        }
    }

    fn disturb(&mut self, block: Block) {
        for index in 0..BLOCK_PAGES {
            let page = block.page(index);
            let is_there = at(page) < self.guests[&block.vm].backs.len();
            if is_there && self.chance.percent(self.write_percent) {
                let value = self.chance.below(20);
                self.write(page, value);
            }
        }
    }

    /// Carries a request out, as an agent does it: what it protects no guest can write.
    pub(super) fn carry_out(&mut self, request: &Request) -> Outcome {
        self.disturb(request.block);
        let mut outcome = Outcome::default();
        for index in request.drops.iter() {
            self.drop_copy(request.block, index, &mut outcome);
        }
        for index in request.zeros.iter() {
            self.give_back(request.block, index, &mut outcome);
        }
        for span in &request.spans {
            self.map(request.block, span, &mut outcome);
        }
        for index in request.rehomes.iter() {
            let page = request.block.page(index);
            let value = self.read(page);
            if !self.chance.percent(self.refusal_percent) {
                self.set(page, Back::Own(value));
                outcome.done.insert(index);
            }
        }
        outcome
    }

    fn set(&mut self, page: Page, back: Back) {
        self.unwritten.remove(&page);
        self.guests.get_mut(&page.vm).unwrap().backs[at(page)] = back;
    }

    fn drop_copy(&mut self, block: Block, index: usize, outcome: &mut Outcome) {
        let page = block.page(index);
        let back = self.guests[&page.vm].backs[at(page)];
        if self.chance.percent(self.refusal_percent) {
            return;
        }
        match back {
            Back::Over(frame, value)
                if self.store.get(&frame).is_some_and(|held| held.0 == value) =>
            {
                self.set(page, Back::Mapped(frame));
                outcome.done.insert(index);
            }
            _ => outcome.differed.insert(index),
        }
    }

    fn give_back(&mut self, block: Block, index: usize, outcome: &mut Outcome) {
        let page = block.page(index);
        if self.chance.percent(self.refusal_percent) {
            return;
        }
        match self.read(page) {
            0 => {
                self.set(page, Back::Hole);
                outcome.done.insert(index);
            }
            _ => outcome.differed.insert(index),
        }
    }

    /// Maps the span whole and copies in what differs, or now and then refuses all of it or parts it.
    fn map(&mut self, block: Block, span: &Span, outcome: &mut Outcome) {
        if self.chance.percent(self.refusal_percent / 2) {
            return;
        }
        for index in span.start..span.start + span.count {
            let (page, frame) = (block.page(index), span.frame_at(index));
            let value = self.read(page);
            let is_equal = self.store.get(&frame).is_some_and(|held| held.0 == value);
            let is_refused = self.chance.percent(self.refusal_percent);
            if span.copied.contains(index) {
                self.set(page, Back::Over(frame, value));
                outcome.copied.insert(index);
            } else if is_equal && !is_refused {
                self.set(page, Back::Mapped(frame));
                outcome.done.insert(index);
            } else {
                if !is_equal {
                    outcome.differed.insert(index);
                }
                if self.chance.percent(50) {
                    self.set(page, Back::Over(frame, value));
                    outcome.copied.insert(index);
                }
            }
        }
    }

    /// Scans every block of every VM once, in any order but for those that are to be next, each request
    /// settled before the next block.
    pub(super) fn pass(&mut self) {
        let mut blocks = self.blocks();
        self.chance.shuffle(&mut blocks);
        while let Some(block) = blocks.pop() {
            self.sharing.wait_for_others(block);
            let plan = self.plan(block);
            for request in &plan.requests {
                let outcome = self.carry_out(request);
                assert!(self.sharing.settle(request.ticket, &outcome));
                self.punch();
            }
            blocks.extend(plan.next);
        }
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        for (&vm, guest) in &self.guests {
            let count = guest.backs.len().div_ceil(BLOCK_PAGES);
            blocks.extend((0..u32::try_from(count).unwrap()).map(|number| Block { vm, number }));
        }
        blocks
    }

    /// Looks at the page tables alone: which mapped pages are anonymous.
    pub(super) fn sweep(&mut self) {
        for block in self.blocks() {
            let guest = &self.guests[&block.vm];
            let is_over = |&index: &usize| {
                let back = guest.backs.get(at(block.page(index)));
                matches!(back, Some(Back::Over(..)))
            };
            let broken: PageSet = (0..BLOCK_PAGES).filter(is_over).collect();
            self.sharing.broke(block, &broken);
            self.punch();
        }
    }

    /// Gives up every frame that has fewer than two users.
    pub(super) fn give_up(&mut self) {
        for block in self.blocks() {
            if let Some(request) = self.sharing.give_up(block, &PageSet::ALL) {
                let outcome = self.carry_out(&request);
                assert!(self.sharing.settle(request.ticket, &outcome));
                self.punch();
            }
        }
    }

    /// Brings every shared page home.
    pub(super) fn unshare(&mut self) {
        for vm in self.ids() {
            let count = self.guests[&vm].backs.len().div_ceil(BLOCK_PAGES);
            for number in 0..u32::try_from(count).unwrap() {
                if let Some(request) = self.sharing.unshare(Block { vm, number }) {
                    let outcome = self.carry_out(&request);
                    assert!(self.sharing.settle(request.ticket, &outcome));
                    self.punch();
                }
            }
        }
    }

    /// Compares the world with what guests wrote, and with what the crate believes.
    pub(super) fn check(&self) {
        for (&vm, guest) in &self.guests {
            for (gfn, (&back, &truth)) in (0u64..).zip(guest.backs.iter().zip(&guest.truth)) {
                let page = Page { vm, gfn: Gfn(gfn) };
                assert_eq!(self.read(page), truth, "{page:?} {back:?}");
                let (Back::Mapped(frame) | Back::Over(frame, _)) = back else {
                    continue;
                };
                if let Some(&(_, owner)) = self.store.get(&frame) {
                    assert_eq!(owner, guest.domain, "{page:?} maps {frame:?}");
                }
                if let Back::Mapped(frame) = back {
                    assert!(
                        self.store.contains_key(&frame),
                        "{page:?} shows a freed frame"
                    );
                    assert_eq!(self.sharing.frame_of(page), Some(frame));
                }
            }
        }
        self.sharing.audit().unwrap();
        let counts = self.sharing.counts();
        assert_eq!(counts.surprises, 0);
        assert_eq!(counts.common, self.store.len() as u64, "store and counts");
    }

    /// Pages of the machine that all take.
    pub(super) fn memory(&self) -> usize {
        let backs = self.guests.values().flat_map(|guest| &guest.backs);
        let private = backs.filter(|back| matches!(back, Back::Own(_) | Back::Over(..)));
        private.count() + self.store.len()
    }

    /// What the pages would take if each content were there once for each domain.
    pub(super) fn ideal_memory(&self) -> usize {
        let all = self
            .guests
            .values()
            .flat_map(|guest| guest.truth.iter().map(|&value| (guest.domain, value)));
        let different: BTreeSet<_> = all.filter(|&(_, value)| value != 0).collect();
        different.len()
    }

    /// How much of the possible saving there is, in percent.
    pub(super) fn saved_percent(&self) -> usize {
        let pages: usize = self.guests.values().map(|guest| guest.truth.len()).sum();
        (pages - self.memory()) * 100 / (pages - self.ideal_memory()).max(1)
    }

    /// Mappings of the store: runs of neighbouring pages over neighbouring frames.
    pub(super) fn mappings(&self, vm: VmId) -> usize {
        let line = |(gfn, back): (i64, &Back)| match *back {
            Back::Hole | Back::Own(_) => None,
            Back::Mapped(frame) | Back::Over(frame, _) => Some(i64::from(frame.0) - gfn),
        };
        let lines: Vec<Option<i64>> = (0i64..).zip(&self.guests[&vm].backs).map(line).collect();
        let starts = (0..lines.len())
            .filter(|&gfn| lines[gfn].is_some() && (gfn == 0 || lines[gfn - 1] != lines[gfn]));
        starts.count()
    }
}

fn at(page: Page) -> usize {
    usize::try_from(page.gfn.0).unwrap()
}

mod tests;
