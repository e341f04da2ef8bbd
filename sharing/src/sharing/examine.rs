//! The first half of a scan: what a block's pages are, and which of their equals must be looked at
//! again before anything is decided.

use super::{Registry, Sharing};
use crate::block::{BLOCK_PAGES, Block, Page, PageSet};
use crate::content::{Content, ContentHash, Seen};
use crate::frames::{Frame, FrameKey};
use crate::index::Found;
use crate::ledger::Place;
use crate::vms::VmSlot;
use page::Gfn;

/// Entries looked at for one hash.
const CANDIDATES: usize = 8;
/// References that a frame keeps free for what is being planned.
const REFERENCE_ROOM: u32 = 2048;

/// What could be done about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chance {
    /// Nothing: it is not known, empty, shared already, or volatile.
    None,
    /// It may equal the frame below it.
    Drop(Frame, Option<ContentHash>),
    /// It is zero.
    Zero,
    /// A frame may hold the same.
    Frame(FrameKey, ContentHash),
    /// No frame does. Another page may: the one asked for as number `rehash`, or one of this block.
    Page {
        hash: ContentHash,
        rehash: Option<usize>,
    },
}

/// What was found out about a block, for [`Sharing::plan`].
#[derive(Debug)]
pub struct Examined {
    pub(super) block: Block,
    pub(super) seen: Box<[Seen; BLOCK_PAGES]>,
    pub(super) chances: Box<[Chance; BLOCK_PAGES]>,
    /// Pages that held the same as one of this block when they were seen. Hash them again: `plan` wants
    /// an answer for each.
    pub rehash: Vec<Page>,
}

impl Sharing {
    /// Takes in how a block was found. None if its VM does not take part or a request to it is pending:
    /// then what was seen may be older than what was asked.
    pub fn examine(&mut self, block: Block, seen: &[Seen; BLOCK_PAGES]) -> Option<Examined> {
        let slot = self.vms.slot(block.vm)?;
        if self.busy.contains(&block) || block.number >= self.vms.of(slot).block_count {
            return None;
        }
        self.vms.of_mut(slot).history.visit(block.number);
        self.index.warm(seen.iter().filter_map(|&seen| seen.hash()));
        let mut examined = Examined {
            block,
            seen: Box::new(*seen),
            chances: Box::new([Chance::None; BLOCK_PAGES]),
            rehash: Vec::new(),
        };
        // A copy whose content could not be read is to be looked at again too.
        let is_looked_at = |&index: &usize| {
            !matches!(
                seen[index],
                Seen::Skipped | Seen::Unchanged | Seen::Broken(None)
            )
        };
        let looked_at: PageSet = (0..BLOCK_PAGES).filter(is_looked_at).collect();
        self.note_look(slot, block.number, &looked_at);
        for (index, &seen) in seen.iter().enumerate() {
            let is_settled = self.reconcile(slot, block.number, index, seen);
            if is_settled && block.page(index).gfn < Gfn(self.vms.of(slot).size.0) {
                let chance = self.chance(slot, &mut examined, index, seen);
                examined.chances[index] = chance;
            }
        }
        Some(examined)
    }

    fn note_look(&mut self, slot: VmSlot, block: u32, looked_at: &PageSet) {
        let revisits = &mut self.vms.of_mut(slot).revisits;
        if let Some(pages) = revisits.get_mut(&block) {
            looked_at.iter().for_each(|index| pages.remove(index));
            if pages.is_empty() {
                revisits.remove(&block);
            }
        }
    }

    /// Makes the ledger agree with what was seen. False if the page has just disappointed.
    fn reconcile(&mut self, slot: VmSlot, block: u32, index: usize, seen: Seen) -> bool {
        let place = self.vms.of(slot).ledger.place(block, index);
        let vm = self.vms.of_mut(slot);
        match (place, seen) {
            (Place::Shared(_), Seen::Shared) => vm.history.still_shared(block, index),
            (Place::Shared(frame), Seen::Broken(now)) => {
                vm.history.broke(block, index, now.map(hash_of));
                self.set_place(slot, block, index, Place::Broken(frame));
                return false;
            }
            // As if it had been read when it was found broken.
            (Place::Broken(_), Seen::Broken(Some(now))) if vm.take_unread(block, index) => {
                vm.history.first_seen(block, index, hash_of(now));
                return false;
            }
            (Place::Shared(_), Seen::Private(now)) => {
                vm.history.broke(block, index, Some(hash_of(now)));
                self.set_place(slot, block, index, Place::Own);
                return false;
            }
            (Place::Zero, Seen::Private(_)) => {
                vm.history.zero_came_back(block, index);
                self.set_place(slot, block, index, Place::Own);
                return false;
            }
            (Place::Shared(_) | Place::Broken(_), Seen::Hole)
            | (Place::Broken(_), Seen::Private(_)) => {
                self.set_place(slot, block, index, Place::Own);
            }
            // The guest has given it up: the agent's word of that is on its way.
            (Place::Broken(_), Seen::Shared) => return false,
            (Place::Own | Place::Zero, Seen::Shared | Seen::Broken(_)) => {
                self.surprises += 1;
                return false;
            }
            (_, Seen::Skipped | Seen::Unchanged)
            | (Place::Own | Place::Zero, Seen::Hole)
            | (Place::Own, Seen::Private(_))
            | (Place::Broken(_), Seen::Broken(_)) => {}
        }
        true
    }

    fn chance(
        &mut self,
        slot: VmSlot,
        examined: &mut Examined,
        index: usize,
        seen: Seen,
    ) -> Chance {
        let block = examined.block.number;
        let below = self.vms.of(slot).ledger.place(block, index).frame();
        let history = &mut self.vms.of_mut(slot).history;
        match seen {
            Seen::Private(Content::Zero) | Seen::Broken(Some(Content::Zero)) => {
                match history.zero_seen(block, index) {
                    true => Chance::Zero,
                    false => Chance::None,
                }
            }
            Seen::Private(Content::Hash(hash)) | Seen::Broken(Some(Content::Hash(hash))) => {
                match history.content_seen(block, index, hash) {
                    true => self.look_up(slot, examined, index, hash, below),
                    false => Chance::None,
                }
            }
            Seen::Broken(None) if history.has_turn(block, index) => match below {
                Some(frame) if self.frames.references(frame) > 0 => Chance::Drop(frame, None),
                _ => Chance::None,
            },
            Seen::Broken(None) | Seen::Skipped | Seen::Unchanged | Seen::Hole | Seen::Shared => {
                Chance::None
            }
        }
    }

    fn look_up(
        &mut self,
        slot: VmSlot,
        examined: &mut Examined,
        index: usize,
        hash: ContentHash,
        below: Option<Frame>,
    ) -> Chance {
        let registry = Registry {
            vms: &self.vms,
            frames: &self.frames,
        };
        let domain = self.vms.of(slot).domain;
        let found: Found<CANDIDATES> = self.index.find(hash, domain, &registry);
        match self.choose_frame(slot, examined, index, &found, below) {
            Some(key) if Some(key.frame) == below => Chance::Drop(key.frame, Some(hash)),
            Some(key) => Chance::Frame(key, hash),
            None => {
                let page = examined.block.page(index);
                let partner = self.choose_hint(page, &found);
                if partner.is_none() && self.is_any_busy(page, &found) {
                    self.revisit(page);
                }
                let rehash = partner.map(|partner| {
                    examined.rehash.push(partner);
                    examined.rehash.len() - 1
                });
                Chance::Page { hash, rehash }
            }
        }
    }

    /// The frame that lies below already, or goes on where the page before stops, or else any. A page that was refused before
    /// tries another one, or none, each time: there may be two contents under one hash.
    fn choose_frame<const N: usize>(
        &self,
        slot: VmSlot,
        examined: &Examined,
        index: usize,
        found: &Found<N>,
        below: Option<Frame>,
    ) -> Option<FrameKey> {
        let has_room = |key: &FrameKey| {
            self.frames.references(key.frame) + REFERENCE_ROOM < crate::frames::MOST_REFERENCES
        };
        let mut usable = found.frames().filter(has_room);
        let history = &self.vms.of(slot).history;
        let block = examined.block.number;
        let level = history.level(block, index);
        if level > 0 {
            let choices = usable.clone().count() + usize::from(found.hints().next().is_some());
            // This turn came at the level above this one: counts the page's turns, not the visits.
            let turn = history.visits(block) >> (level + 1);
            return usable.nth(turn % choices.max(1));
        }
        let before = index.checked_sub(1).map(|before| examined.chances[before]);
        let next = match before {
            Some(Chance::Frame(key, _)) => key.frame.0.checked_add(1),
            _ => None,
        };
        let stays = usable.clone().find(|key| Some(key.frame) == below);
        let in_line = usable.clone().find(|key| Some(key.frame.0) == next);
        stays.or(in_line).or_else(|| usable.next())
    }

    /// Whether an equal may be found once a request to its block is settled.
    fn is_any_busy<const N: usize>(&self, page: Page, found: &Found<N>) -> bool {
        let mut blocks = found.hints().map(|(slot, gfn)| {
            let vm = self.vms.of(slot).id;
            let gfn = Gfn(u64::from(gfn));
            Page { vm, gfn }.block()
        });
        blocks.any(|block| block != page.block() && self.busy.contains(&block))
    }

    /// A page hinted to hold the same: the one at the same place in another VM, or else any that is not
    /// known to show a frame by now. One whose block stays as it is finds this page later, when it no longer does.
    fn choose_hint<const N: usize>(&self, page: Page, found: &Found<N>) -> Option<Page> {
        let partners = found.hints().filter_map(|(slot, gfn)| {
            let partner = Page {
                vm: self.vms.of(slot).id,
                gfn: Gfn(u64::from(gfn)),
            };
            let block = partner.block();
            let place = self
                .vms
                .of(slot)
                .ledger
                .place(block.number, partner.index());
            let is_apt = block != page.block()
                && !self.busy.contains(&block)
                && !self.kept.contains_key(&block)
                && matches!(place, Place::Own | Place::Broken(_));
            is_apt.then_some(partner)
        });
        let mut all = partners.clone();
        let twin = partners.clone().find(|partner| partner.gfn == page.gfn);
        twin.or_else(|| all.next())
    }
}

/// What history knows a page by. Zero is as good as any other.
fn hash_of(content: Content) -> ContentHash {
    match content {
        Content::Zero => ContentHash(0),
        Content::Hash(hash) => hash,
    }
}
