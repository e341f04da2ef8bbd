//! Blocks that stay as they are, because each is one large page or is to become one. They are read for hints, and
//! nothing is asked of them: once memory is short, their equals are known.

use super::{Registry, Sharing};
use crate::block::{Block, Page};
use crate::content::{Content, ContentHash};
use crate::index::Found;
use crate::ledger::Place;
use crate::vms::VmSlot;
use page::VmId;
use std::collections::BTreeSet;

/// Entries looked at for one hash: a page's own hint, and another.
const CANDIDATES: usize = 2;

impl Sharing {
    /// A block stays as it is: no other's page is to be shared with one of it.
    pub fn keep(&mut self, block: Block) {
        if self.vms.slot(block.vm).is_some() {
            self.kept.entry(block).or_insert(0);
        }
    }

    /// A block does not stay as it is.
    pub fn let_go(&mut self, block: Block) {
        self.kept.remove(&block);
    }

    /// Takes in what the pages of a block that stays as it is were found to hold, by their places in it.
    pub fn hint_kept(&mut self, block: Block, read: &[(usize, Content)]) {
        let Some(slot) = self.vms.slot(block.vm) else {
            return;
        };
        if block.number >= self.vms.of(slot).block_count {
            return;
        }
        self.vms.of_mut(slot).history.visit(block.number);
        self.index
            .warm(read.iter().filter_map(|(_, content)| content.hash()));
        let (mut worth, mut met) = (0, BTreeSet::new());
        for &(index, content) in read {
            if self.vms.of(slot).ledger.place(block.number, index) != Place::Own {
                continue;
            }
            let history = &mut self.vms.of_mut(slot).history;
            let is_worth = match content {
                Content::Zero => history.zero_seen(block.number, index),
                Content::Hash(hash) => {
                    history.content_seen(block.number, index, hash)
                        && self.hint_page(slot, block.page(index), hash, !met.insert(hash))
                }
            };
            worth += usize::from(is_worth);
        }
        self.kept.insert(block, worth);
    }

    /// Whether a page's equal is known, which is so if it `is_met` already. Its own hint is entered.
    fn hint_page(&mut self, slot: VmSlot, page: Page, hash: ContentHash, is_met: bool) -> bool {
        let registry = Registry {
            vms: &self.vms,
            frames: &self.frames,
        };
        let domain = self.vms.of(slot).domain;
        let found: Found<CANDIDATES> = self.index.find(hash, domain, &registry);
        let is_other = |(other, gfn): (VmSlot, u32)| other != slot || u64::from(gfn) != page.gfn.0;
        let is_known = found.frames().next().is_some() || found.hints().any(is_other);
        self.enter_hint(hash, page);
        is_known || is_met
    }

    /// A VM's blocks that stay as they are, each with how many of its pages could be given back if it did not: those
    /// that were zero when they were read last, and those of which an equal was known then.
    pub fn kept(&self, vm: VmId) -> impl Iterator<Item = (Block, usize)> {
        let all = Block { vm, number: 0 }..=Block {
            vm,
            number: u32::MAX,
        };
        self.kept.range(all).map(|(&block, &worth)| (block, worth))
    }
}
