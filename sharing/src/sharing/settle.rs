//! What an agent answered becomes what is believed.

use super::{Pending, Sharing};
use crate::block::Block;
use crate::frames::{Frame, FrameKey};
use crate::index::Entry;
use crate::ledger::Place;
use crate::plan::{Fill, Outcome, Ticket};
use crate::vms::VmSlot;
use page::VmId;

impl Sharing {
    /// Takes in what became of a request, page by page; an empty outcome if it was never sent. False if
    /// the request is not pending (any more), which changes nothing.
    ///
    /// Every request that was sent must be settled with the agent's own answer, or by the VM's removal:
    /// a page that shows a frame which the host believes to be free would show what comes next.
    pub fn settle(&mut self, ticket: Ticket, outcome: &Outcome) -> bool {
        let Some(pending) = self.pending.remove(&ticket) else {
            return false;
        };
        let block = pending.request.block;
        self.busy.remove(&block);
        match self.vms.slot(block.vm) {
            Some(slot) => self.take_in(slot, &pending, outcome),
            None => pending
                .frames()
                .for_each(|frame| self.frames.release(frame)),
        }
        true
    }

    /// As [`Self::settle`], for an answer from this VM's agent: another VM's request stays pending. Returns
    /// the block that was settled.
    pub fn settle_of(&mut self, vm: VmId, ticket: Ticket, outcome: &Outcome) -> Option<Block> {
        let block = self.pending.get(&ticket)?.request.block;
        let is_settled = block.vm == vm && self.settle(ticket, outcome);
        is_settled.then_some(block)
    }

    /// The host found, after copying, that the page had changed: what the frame holds has another hash.
    /// Whoever is asked to map it may do so, but nobody else is sent there.
    pub fn fill_failed(&mut self, fill: &Fill) {
        let key: FrameKey = self.frames.key(fill.frame);
        self.index.remove(fill.hash, Entry::Frame(key));
    }

    fn take_in(&mut self, slot: VmSlot, pending: &Pending, outcome: &Outcome) {
        let block = pending.request.block;
        for span in &pending.request.spans {
            for (index, frame) in span.shared() {
                self.take_in_shared(slot, pending, (index, frame), outcome);
            }
            for index in span
                .copied
                .iter()
                .filter(|&index| outcome.copied.contains(index))
            {
                let frame = span.frame_at(index);
                self.set_place(slot, block.number, index, Place::Broken(frame));
            }
        }
        for &drop in &pending.drops {
            self.take_in_shared(slot, pending, drop, outcome);
        }
        for index in pending.request.zeros.iter() {
            if outcome.done.contains(index) {
                self.set_place(slot, block.number, index, Place::Zero);
            }
            self.note_difference(slot, block, index, outcome);
        }
        for index in pending
            .request
            .rehomes
            .iter()
            .filter(|&index| outcome.done.contains(index))
        {
            self.set_place(slot, block.number, index, Place::Own);
        }
    }

    /// A page that was to show a frame. Its reference stays with it or is given back.
    fn take_in_shared(
        &mut self,
        slot: VmSlot,
        pending: &Pending,
        (index, frame): (usize, Frame),
        outcome: &Outcome,
    ) {
        let block = pending.request.block;
        let hash = pending.hashes.get(&index).copied();
        if outcome.done.contains(index) {
            self.set_place(slot, block.number, index, Place::Shared(frame));
            self.vms.of_mut(slot).history.shared(block.number, index);
            if let Some(hash) = hash {
                self.remove_hint(hash, block.page(index));
            }
            return;
        }
        if outcome.copied.contains(index) {
            self.set_place(slot, block.number, index, Place::Broken(frame));
        }
        self.frames.release(frame);
        self.note_difference(slot, block, index, outcome);
        self.revisit(block.page(index));
        // It may equal another page than the one that was tried: let it be found.
        if let Some(hash) = hash {
            self.enter_hint(hash, block.page(index));
        }
    }

    fn note_difference(&mut self, slot: VmSlot, block: Block, index: usize, outcome: &Outcome) {
        if outcome.differed.contains(index) {
            let history = &mut self.vms.of_mut(slot).history;
            history.differed(block.number, index);
        }
    }
}
