//! The second half of a scan: from what could be done to what is asked.
//!
//! Pages whose equal is another page are *promoted*: they get a frame, the host fills it, and both are
//! asked to map it. From there on a promoted page is like one that found its frame in the index.

use super::examine::{Chance, Examined};
use super::{Pending, Sharing};
use crate::block::{BLOCK_PAGES, Block, Page, PageSet};
use crate::content::{Content, ContentHash, Seen};
use crate::cost::{FILL_NS, Pressure, map_ns, worth_ns};
use crate::frames::Frame;
use crate::index::Entry;
use crate::ledger::Place;
use crate::plan::layout::{Lines, lay_out};
use crate::plan::spans::{Want, Wants, spans};
use crate::plan::{BlockPlan, Fill, Request, Ticket};
use crate::vms::VmSlot;
use std::collections::{BTreeMap, BTreeSet};

/// Giving one page back: the dearest way, alone and beside a running thread.
const PUNCH_NS: u64 = 14_000;
/// A block of which only parts are known cannot close gaps, and what a request costs besides its pages
/// falls on few. If it would be mapped in runs shorter than this on average, it is better mapped when it
/// is scanned itself and finds all its frames at once. Until then nothing is saved and nothing lost.
const PARTNER_RUN_MEAN_MIN: usize = 4;
/// Pages of a block that may wait for its turn, each for a frame that nobody else uses. With more, the
/// block is looked at out of turn.
const MOST_WAITING: usize = 32;

/// Pages of one content that no frame holds.
#[derive(Debug)]
struct Group {
    hash: ContentHash,
    /// Those of the scanned block, in order; never none.
    members: Vec<usize>,
    /// One of another block that was hashed again and still holds the same.
    partner: Option<Page>,
}

impl Group {
    fn holders(&self) -> u64 {
        self.members.len() as u64 + u64::from(self.partner.is_some())
    }

    /// What one holder's sharing brings: all but one page is saved, and the frame must be filled.
    fn part_ns(&self, worth_ns: u64) -> u64 {
        let holders = self.holders();
        (worth_ns * (holders - 1)).saturating_sub(FILL_NS) / holders
    }
}

/// What the pages of a request hold.
type Hashes = BTreeMap<usize, ContentHash>;

impl Sharing {
    /// Decides what to do about an examined block. `answers` are what the pages of
    /// [`Examined::rehash`] hold now, none where that cannot be told.
    ///
    /// # Panics
    /// If there are not as many answers as questions.
    pub fn plan(
        &mut self,
        examined: &Examined,
        answers: &[Option<Content>],
        pressure: Pressure,
    ) -> BlockPlan {
        assert_eq!(
            answers.len(),
            examined.rehash.len(),
            "an answer for each question"
        );
        let Some(slot) = self.vms.slot(examined.block.vm) else {
            return BlockPlan::default();
        };
        if self.busy.contains(&examined.block) {
            return BlockPlan::default();
        }
        let promoted = self.groups(examined, answers);
        let frames = self.promote(slot, examined, &promoted);
        let mut requests = Vec::new();
        requests.extend(self.own_request(slot, examined, &promoted, &frames, pressure));
        requests.extend(self.partner_requests(&promoted, &frames, pressure));
        let fills = self.end_promotion(examined.block, &promoted, &frames);
        let next = self.waiting_blocks(&promoted);
        BlockPlan {
            fills,
            requests,
            next,
        }
    }

    /// The contents that have a second holder, in the order of their first pages. Pages that are alone
    /// with theirs, as most are, are hinted.
    fn groups(&mut self, examined: &Examined, answers: &[Option<Content>]) -> Vec<Group> {
        let pages = examined.chances.iter().enumerate();
        let mut pages: Vec<(ContentHash, usize, Option<usize>)> = pages
            .filter_map(|(index, chance)| match *chance {
                Chance::Page { hash, rehash } => Some((hash, index, rehash)),
                _ => None,
            })
            .collect();
        pages.sort_unstable();
        let mut groups = Vec::new();
        for equal in pages.chunk_by(|one, other| one.0 == other.0) {
            let hash = equal[0].0;
            let mut partner = None;
            for &(_, index, asked) in equal {
                let Some(asked) = asked else { continue };
                let found = self.check_partner(hash, examined.rehash[asked], answers[asked]);
                if found.is_none() {
                    // There may be others.
                    self.revisit(examined.block.page(index));
                }
                partner = partner.or(found);
            }
            match (equal, partner) {
                (&[(_, index, _)], None) => self.enter_hint(hash, examined.block.page(index)),
                _ => groups.push(Group {
                    hash,
                    members: equal.iter().map(|&(_, index, _)| index).collect(),
                    partner,
                }),
            }
        }
        groups.sort_unstable_by_key(|group| group.members[0]);
        groups
    }

    /// The partner, if it still holds the same. A hint that proved wrong is removed.
    fn check_partner(
        &mut self,
        hash: ContentHash,
        partner: Page,
        answer: Option<Content>,
    ) -> Option<Page> {
        if answer == Some(Content::Hash(hash)) {
            return Some(partner).filter(|partner| !self.busy.contains(&partner.block()));
        }
        self.remove_hint(hash, partner);
        None
    }

    fn hint_members(&mut self, block: Block, group: &Group) {
        for &index in &group.members {
            self.enter_hint(group.hash, block.page(index));
        }
    }

    /// Gives each promoted group a frame, held by one reference, if the store has room, and enters it.
    fn promote(
        &mut self,
        slot: VmSlot,
        examined: &Examined,
        promoted: &[Group],
    ) -> Vec<Option<Frame>> {
        let mut lines: Lines = std::array::from_fn(|index| self.line(slot, examined, index));
        let new: PageSet = promoted.iter().map(|group| group.members[0]).collect();
        let domain = self.vms.of(slot).domain;
        lay_out(&new, &mut lines, &mut self.frames, domain);
        let frames: Vec<Option<Frame>> = promoted
            .iter()
            .map(|group| lines[group.members[0]])
            .collect();
        for (group, frame) in promoted.iter().zip(&frames) {
            if let Some(frame) = *frame {
                let key = self.frames.key(frame);
                self.enter(group.hash, Entry::Frame(key));
            }
        }
        frames
    }

    /// The frame that a page has or could have without a new one.
    fn line(&self, slot: VmSlot, examined: &Examined, index: usize) -> Option<Frame> {
        match examined.chances[index] {
            Chance::Frame(key, _) => Some(key.frame),
            Chance::Page { .. } => None,
            Chance::None | Chance::Drop(..) | Chance::Zero => {
                let ledger = &self.vms.of(slot).ledger;
                ledger.place(examined.block.number, index).frame()
            }
        }
    }

    fn own_request(
        &mut self,
        slot: VmSlot,
        examined: &Examined,
        promoted: &[Group],
        frames: &[Option<Frame>],
        pressure: Pressure,
    ) -> Option<Request> {
        let mut hashes = Hashes::new();
        let mut wants: Wants = std::array::from_fn(|index| self.want(slot, examined, index));
        for (index, chance) in examined.chances.iter().enumerate() {
            match *chance {
                Chance::Frame(key, _) if !self.frames.is_live(key) => {
                    self.revisit(examined.block.page(index));
                }
                Chance::Frame(key, hash) => {
                    let worth = self.worth(slot, examined.block, index, pressure);
                    wants[index] = Want::Show(key.frame, worth);
                    hashes.insert(index, hash);
                }
                Chance::Drop(_, Some(hash)) => {
                    hashes.insert(index, hash);
                }
                _ => {}
            }
        }
        for (group, frame) in promoted.iter().zip(frames) {
            for &index in &group.members {
                let Some(frame) = *frame else { continue };
                let worth = self.worth(slot, examined.block, index, pressure);
                wants[index] = Want::Show(frame, group.part_ns(worth));
                hashes.insert(index, group.hash);
            }
        }
        let areas = self.vms.of(slot).areas();
        let mut request = self.empty_request(examined.block);
        (request.drops, request.zeros) = self.cheap_steps(slot, examined, pressure);
        for index in request.drops.iter().chain(request.zeros.iter()) {
            wants[index] = Want::Unknown;
        }
        request.spans = spans(&wants, areas, worth_ns(pressure, 0));
        request.rehomes = self.rehomes(slot, examined, &request);
        self.ask(request, hashes)
    }

    /// Asks for every mapped page of a block to be brought back into the VM's memory file. None if there
    /// is none or another request is pending.
    pub fn unshare(&mut self, block: Block) -> Option<Request> {
        let mapped = self.mapped(block);
        self.bring_home(block, mapped)
    }

    /// Asks for mapped pages of a block to be brought back, unless another request is pending.
    pub(super) fn bring_home(&mut self, block: Block, pages: PageSet) -> Option<Request> {
        if self.busy.contains(&block) {
            return None;
        }
        let mut request = self.empty_request(block);
        request.rehomes = pages;
        self.ask(request, Hashes::new())
    }

    fn want(&self, slot: VmSlot, examined: &Examined, index: usize) -> Want {
        let place = self.vms.of(slot).ledger.place(examined.block.number, index);
        match (examined.seen[index], place) {
            (Seen::Shared, Place::Shared(frame)) => Want::Has(frame),
            (Seen::Private(_), Place::Own | Place::Zero) => Want::Own,
            (Seen::Unchanged, Place::Own | Place::Broken(_)) => Want::Own,
            (Seen::Unchanged, Place::Shared(frame)) => Want::Has(frame),
            (Seen::Broken(_), Place::Broken(_)) => Want::Own,
            _ => Want::Unknown,
        }
    }

    fn worth(&self, slot: VmSlot, block: Block, index: usize, pressure: Pressure) -> u64 {
        worth_ns(
            pressure,
            self.vms.of(slot).history.level(block.number, index),
        )
    }

    /// The pages to drop and those to give back.
    fn cheap_steps(
        &self,
        slot: VmSlot,
        examined: &Examined,
        pressure: Pressure,
    ) -> (PageSet, PageSet) {
        let (mut drops, mut zeros) = (PageSet::EMPTY, PageSet::EMPTY);
        let areas = self.vms.of(slot).areas();
        for (index, chance) in examined.chances.iter().enumerate() {
            let worth = self.worth(slot, examined.block, index, pressure);
            let is_broken = matches!(examined.seen[index], Seen::Broken(_));
            match *chance {
                Chance::Drop(frame, _) if worth > 0 && self.frames.references(frame) > 0 => {
                    drops.insert(index);
                }
                // The memory file comes back over a part of the mapping.
                Chance::Zero if is_broken => {
                    let cost = map_ns(1, 2, areas);
                    if cost.is_some_and(|cost| cost < worth) {
                        zeros.insert(index);
                    }
                }
                Chance::Zero if worth > PUNCH_NS => zeros.insert(index),
                _ => {}
            }
        }
        (drops, zeros)
    }

    /// Runs of broken pages, with nothing else planned for them, that end where the mapping ends.
    fn rehomes(&self, slot: VmSlot, examined: &Examined, request: &Request) -> PageSet {
        let is_mapped = |index: Option<usize>| {
            let index = index.filter(|&index| index < BLOCK_PAGES);
            let ledger = &self.vms.of(slot).ledger;
            index.is_some_and(|index| ledger.place(examined.block.number, index).frame().is_some())
        };
        let in_span = |index: usize| {
            let mut spans = request.spans.iter();
            spans.any(|span| (span.start..span.start + span.count).contains(&index))
        };
        let ledger = &self.vms.of(slot).ledger;
        let is_broken = |index: &usize| match examined.seen[*index] {
            Seen::Broken(_) => true,
            Seen::Unchanged => {
                matches!(
                    ledger.place(examined.block.number, *index),
                    Place::Broken(_)
                )
            }
            _ => false,
        };
        let broken: PageSet = (0..BLOCK_PAGES)
            .filter(is_broken)
            .filter(|&index| is_mapped(Some(index)) && !in_span(index))
            .filter(|&index| !request.drops.contains(index) && !request.zeros.contains(index))
            .collect();
        let is_edge = |&(start, count): &(usize, usize)| {
            !is_mapped(start.checked_sub(1)) || !is_mapped(Some(start + count))
        };
        let runs = broken.runs().into_iter().filter(is_edge);
        runs.flat_map(|(start, count)| start..start + count)
            .collect()
    }

    /// Asks the partners' blocks, each once.
    fn partner_requests(
        &mut self,
        promoted: &[Group],
        frames: &[Option<Frame>],
        pressure: Pressure,
    ) -> Vec<Request> {
        let mut shows: BTreeMap<Block, Vec<(usize, Frame, &Group)>> = BTreeMap::new();
        for (group, frame) in promoted.iter().zip(frames) {
            if let (Some(partner), Some(frame)) = (group.partner, *frame) {
                let block = shows.entry(partner.block()).or_default();
                block.push((partner.index(), frame, group));
            }
        }
        shows
            .into_iter()
            .filter_map(|(block, shows)| self.partner_request(block, &shows, pressure))
            .collect()
    }

    /// Partners that are not asked now find the frame, if it is kept, when they are read the next time.
    fn partner_request(
        &mut self,
        block: Block,
        shows: &[(usize, Frame, &Group)],
        pressure: Pressure,
    ) -> Option<Request> {
        let slot = self.vms.slot(block.vm)?;
        let mut hashes = Hashes::new();
        let mut wants = [Want::Unknown; BLOCK_PAGES];
        for (index, want) in wants.iter_mut().enumerate() {
            if let Place::Shared(frame) = self.vms.of(slot).ledger.place(block.number, index) {
                *want = Want::Has(frame);
            }
        }
        for &(index, frame, group) in shows {
            let worth = self.worth(slot, block, index, pressure);
            wants[index] = Want::Show(frame, group.part_ns(worth));
            hashes.insert(index, group.hash);
        }
        let spans = spans(&wants, self.vms.of(slot).areas(), worth_ns(pressure, 0));
        if shows.len() < spans.len() * PARTNER_RUN_MEAN_MIN {
            return None;
        }
        let mut request = self.empty_request(block);
        request.spans = spans;
        self.ask(request, hashes)
    }

    /// The partners' blocks that were not asked and of which much waits.
    fn waiting_blocks(&self, promoted: &[Group]) -> Vec<Block> {
        let partners = promoted.iter().filter_map(|group| group.partner);
        let blocks: BTreeSet<Block> = partners.map(Page::block).collect();
        let waiting = |block: &Block| {
            let slot = self.vms.slot(block.vm)?;
            self.vms.of(slot).revisits.get(&block.number)
        };
        let is_next = |block: &Block| {
            !self.busy.contains(block)
                && waiting(block).is_some_and(|pages| pages.count() > MOST_WAITING)
        };
        blocks.into_iter().filter(is_next).collect()
    }

    fn empty_request(&mut self, block: Block) -> Request {
        let ticket = Ticket(self.ticket_count);
        self.ticket_count += 1;
        Request {
            ticket,
            block,
            drops: PageSet::EMPTY,
            zeros: PageSet::EMPTY,
            spans: Vec::new(),
            rehomes: PageSet::EMPTY,
        }
    }

    /// From here on the request is pending: its frames are referred to, its block is busy.
    fn ask(&mut self, request: Request, hashes: Hashes) -> Option<Request> {
        if request.is_empty() {
            return None;
        }
        let pending = Pending {
            drops: self.drop_frames(&request),
            request: request.clone(),
            hashes,
        };
        for frame in pending.frames() {
            let has_room = self.frames.add_reference(frame);
            assert!(has_room, "{frame:?} was chosen with room for references");
        }
        if let Some(slot) = self.vms.slot(request.block.vm) {
            let pages: usize = request.spans.iter().map(|span| span.count).sum();
            self.vms.of_mut(slot).asked += pages as u64;
        }
        self.busy.insert(request.block);
        self.pending.insert(request.ticket, pending);
        Some(request)
    }

    /// The frames below the pages to drop.
    fn drop_frames(&self, request: &Request) -> Vec<(usize, Frame)> {
        let Some(slot) = self.vms.slot(request.block.vm) else {
            return Vec::new();
        };
        let ledger = &self.vms.of(slot).ledger;
        let below = |index| ledger.place(request.block.number, index).frame();
        let drops = request.drops.iter();
        drops
            .filter_map(|index| Some((index, below(index)?)))
            .collect()
    }

    /// Lets go of the promoted frames. Those that nobody was asked to map are free again, and their
    /// pages are hinted as before; the others are to be filled.
    fn end_promotion(
        &mut self,
        block: Block,
        promoted: &[Group],
        frames: &[Option<Frame>],
    ) -> Vec<Fill> {
        let mut fills = Vec::new();
        for (group, frame) in promoted.iter().zip(frames) {
            if let Some(frame) = *frame {
                self.frames.release(frame);
                self.frames.expect_company(frame);
            }
            match frame.filter(|&frame| self.frames.references(frame) > 0) {
                Some(frame) => {
                    self.remove_hints(block, group);
                    if let Some(partner) = group.partner {
                        self.revisit(partner);
                    }
                    fills.push(Fill {
                        page: block.page(group.members[0]),
                        frame,
                        hash: group.hash,
                    });
                }
                None => self.hint_members(block, group),
            }
        }
        fills
    }

    fn remove_hints(&mut self, block: Block, group: &Group) {
        let members = group.members.iter().map(|&index| block.page(index));
        let holders: Vec<Page> = members.chain(group.partner).collect();
        for page in holders {
            self.remove_hint(group.hash, page);
        }
    }
}
