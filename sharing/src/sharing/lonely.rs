//! Frames that fewer than two pages use save nothing. When the last page that shows one is written to, it
//! would even cost a page until that is noticed; so they are given up.
//!
//! One that was never shared may be waited for: its page's equal is looked at within a pass. One that its
//! other users have left is lonely at once.

use super::Sharing;
use crate::block::{Block, PageSet};
use crate::ledger::Place;
use crate::plan::Request;

impl Sharing {
    /// The guest was found to have written to these pages; what they hold since was not looked at. The
    /// frames below lose them as users. Not while a request is pending: then what was found may be older
    /// than what was asked.
    pub fn broke(&mut self, block: Block, pages: &PageSet) {
        let Some(slot) = self.vms.slot(block.vm) else {
            return;
        };
        if self.busy.contains(&block) {
            return;
        }
        for index in pages.iter() {
            let place = self.vms.of(slot).ledger.place(block.number, index);
            if let Place::Shared(frame) = place {
                let vm = self.vms.of_mut(slot);
                vm.history.broke(block.number, index, None);
                vm.unread.entry(block.number).or_default().insert(index);
                self.set_place(slot, block.number, index, Place::Broken(frame));
            }
        }
    }

    /// A block is visited: the second time that a page is found alone with its frame, that is lonely.
    pub fn wait_for_others(&mut self, block: Block) {
        let Some(slot) = self.vms.slot(block.vm) else {
            return;
        };
        let ledger = &self.vms.of(slot).ledger;
        for index in ledger.mapped(block.number).iter() {
            if let Place::Shared(frame) = ledger.place(block.number, index) {
                self.frames.wait(frame);
            }
        }
    }

    /// The pages of a block that show a frame which nobody else uses or will use.
    #[must_use]
    pub fn lonely(&self, block: Block) -> PageSet {
        let Some(slot) = self.vms.slot(block.vm) else {
            return PageSet::EMPTY;
        };
        let ledger = &self.vms.of(slot).ledger;
        let is_lonely = |&index: &usize| match ledger.place(block.number, index) {
            Place::Shared(frame) => self.frames.is_lonely(frame),
            _ => false,
        };
        let mapped = ledger.mapped(block.number);
        mapped.iter().filter(is_lonely).collect()
    }

    /// Asks for those of `pages` that are lonely still to be brought back into the VM's memory file. None
    /// if there is none, another request is pending, or areas are short: what lies in the middle of a
    /// mapping splits it.
    pub fn give_up(&mut self, block: Block, pages: &PageSet) -> Option<Request> {
        let slot = self.vms.slot(block.vm)?;
        let has_areas = self.vms.of(slot).areas().price_ns() == Some(0);
        let lonely = self.lonely(block);
        let pages = lonely.without(&lonely.without(pages));
        (has_areas && !pages.is_empty())
            .then(|| self.bring_home(block, pages))
            .flatten()
    }
}
