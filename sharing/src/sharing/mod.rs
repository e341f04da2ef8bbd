//! All that is known, and the five things that are done with it: examine, plan, settle, hear, audit.

mod audit;
mod decide;
mod examine;
mod kept;
mod lonely;
mod settle;
mod take_over;

use crate::block::{BLOCK_PAGES, Block, Page, PageSet};
use crate::content::{ContentHash, Domain};
use crate::frames::{Frame, FrameKey, FrameRange, Frames};
use crate::index::{Entry, Index, IndexStats, Owners};
use crate::ledger::{Place, VmCounts};
use crate::plan::{Request, Ticket};
use crate::vms::{CannotShare, VmSlot, VmSpec, Vms};
pub use audit::Disagreement;
pub use examine::Examined;
use page::{Gfn, GfnRange, PageCount, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// All VMs together, in ESX's words (PSHARE).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Guest pages that show a frame.
    pub shared: u64,
    /// Frames in use: the memory that those pages take.
    pub common: u64,
    /// `shared - common`. Below zero for a moment when frames are filled and nobody maps them yet.
    pub saving: i64,
    /// Guest pages found zero, with nothing behind them since.
    pub zero: u64,
    /// Anonymous pages over a frame's mapping.
    pub broken: u64,
    /// Requests not settled yet.
    pub pending: usize,
    /// Pages found in a state that nobody brought about. Not zero means that agents and host disagree.
    pub surprises: u64,
    /// The content index.
    pub index: IndexStats,
    /// Memory of all this crate's tables.
    pub table_bytes: usize,
}

/// What was asked and not answered yet. Each page of it that is to show a frame has a reference.
#[derive(Debug)]
struct Pending {
    request: Request,
    /// The frame below each page to drop, when it was asked.
    drops: Vec<(usize, Frame)>,
    /// What the pages that are to be mapped held.
    hashes: BTreeMap<usize, ContentHash>,
}

impl Pending {
    /// The frames that it has references to, one for each page that is to show one.
    fn frames(&self) -> impl Iterator<Item = Frame> {
        let spans = self.request.spans.iter();
        let shown = spans.flat_map(|span| span.shared().map(|(_, frame)| frame));
        shown.chain(self.drops.iter().map(|&(_, frame)| frame))
    }
}

/// The pages of all VMs: which are equal, which are one, and what to do next. See the crate's opening.
#[derive(Debug)]
pub struct Sharing {
    index: Index,
    vms: Vms,
    frames: Frames,
    pending: BTreeMap<Ticket, Pending>,
    /// Blocks with a request pending: nothing else is asked of them.
    busy: BTreeSet<Block>,
    /// Blocks that stay as they are, and how many pages of each could be given back.
    kept: BTreeMap<Block, usize>,
    ticket_count: u64,
    surprises: u64,
}

/// Answers the index's question of who owns what.
struct Registry<'a> {
    vms: &'a Vms,
    frames: &'a Frames,
}

impl Owners for Registry<'_> {
    fn of_vm(&self, slot: VmSlot) -> Option<Domain> {
        self.vms.get(slot).map(|vm| vm.domain)
    }

    fn of_frame(&self, key: FrameKey) -> Option<Domain> {
        let is_live = self.frames.is_live(key);
        is_live.then(|| self.frames.domain(key.frame)).flatten()
    }
}

impl Sharing {
    /// With a store of at most `frame_limit` frames, rounded down to windows of 512.
    #[must_use]
    pub fn new(frame_limit: u32) -> Self {
        Self {
            index: Index::new(0),
            vms: Vms::default(),
            // The ledger keeps a frame in 31 bits.
            frames: Frames::new(frame_limit.min(1 << 30)),
            pending: BTreeMap::new(),
            busy: BTreeSet::new(),
            kept: BTreeMap::new(),
            ticket_count: 0,
            surprises: 0,
        }
    }

    /// A VM comes. The domain goes into the seed of its pages' hashes. Lays the index out anew, about
    /// 30 ns for each page of the others.
    ///
    /// # Errors
    /// If it is there already, too large, or one too many.
    pub fn add_vm(&mut self, spec: VmSpec) -> Result<Domain, CannotShare> {
        let domain = self.vms.add(spec)?;
        self.index.resize(self.vms.pages(), |_| true);
        Ok(domain)
    }

    /// A VM is dead, and with it every mapping that it had. All that it held is dropped, its pending
    /// requests included.
    pub fn remove_vm(&mut self, id: VmId) {
        let Some(slot) = self.vms.slot(id) else {
            return;
        };
        let is_its = |pending: &Pending| pending.request.block.vm == id;
        let pending = self.pending.iter().filter(|(_, pending)| is_its(pending));
        let tickets: Vec<Ticket> = pending.map(|(&ticket, _)| ticket).collect();
        for ticket in tickets {
            self.settle(ticket, &crate::Outcome::default());
        }
        let held: Vec<(u32, usize, Place)> = self.vms.of(slot).ledger.all().collect();
        for (number, index, _) in held {
            self.set_place(slot, number, index, Place::Own);
        }
        self.kept.retain(|block, _| block.vm != id);
        self.vms.remove(slot);
        let is_other = |entry| !matches!(entry, Entry::Hint { slot: other, .. } if other == slot);
        self.index.resize(self.vms.pages(), is_other);
    }

    /// The agent took these pages away from the store on another's word: they were ballooned, swapped
    /// out or brought home.
    pub fn unmapped(&mut self, id: VmId, range: GfnRange) {
        let Some(slot) = self.vms.slot(id) else {
            return;
        };
        let end = Gfn(self.vms.of(slot).size.0).min(range.end());
        for gfn in (range.start.0..end.0).map(Gfn) {
            let page = Page { vm: id, gfn };
            let (block, index) = (page.block().number, page.index());
            let place = self.vms.of(slot).ledger.place(block, index);
            if place.frame().is_some() {
                self.set_place(slot, block, index, Place::Own);
            }
        }
    }

    /// All pages of a block are there: what was given back of them for being zero has come back.
    pub fn filled(&mut self, block: Block) {
        let Some(slot) = self.vms.slot(block.vm) else {
            return;
        };
        if self.vms.of(slot).ledger.counts().zero == 0 {
            return;
        }
        for index in 0..BLOCK_PAGES {
            if self.vms.of(slot).ledger.place(block.number, index) == Place::Zero {
                self.set_place(slot, block.number, index, Place::Own);
            }
        }
    }

    /// The frames that nobody refers to any more. Punch them out of the store before the next call of
    /// [`Self::plan`], which may give them out again.
    pub fn take_freed(&mut self) -> Vec<FrameRange> {
        self.frames.take_freed()
    }

    /// How all stands.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            common: self.frames.live(),
            pending: self.pending.len(),
            surprises: self.surprises,
            index: self.index.stats(),
            ..Counts::default()
        };
        counts.table_bytes = counts.index.bytes + self.frames.bytes();
        for (_, vm) in self.vms.all() {
            let own = vm.ledger.counts();
            counts.shared += own.shared;
            counts.zero += own.zero;
            counts.broken += own.broken;
            counts.table_bytes += vm.ledger.bytes() + vm.history.bytes();
            let sets = vm.revisits.len() + vm.unread.len();
            counts.table_bytes += sets * size_of::<(u32, PageSet)>() * 2;
        }
        counts.saving = self.saving();
        counts
    }

    /// Guest pages that show a frame less the frames that they take. Quick: it is asked for each block that is
    /// brought home.
    #[must_use]
    pub fn saving(&self) -> i64 {
        let shared: u64 = self
            .vms
            .all()
            .map(|(_, vm)| vm.ledger.counts().shared)
            .sum();
        shared.cast_signed() - self.frames.live().cast_signed()
    }

    /// How one VM stands.
    #[must_use]
    pub fn vm_counts(&self, id: VmId) -> Option<VmCounts> {
        let slot = self.vms.slot(id)?;
        Some(self.vms.of(slot).ledger.counts())
    }

    /// Pages that a VM's agent was asked to map so far: it has copied no more, whatever it says.
    #[must_use]
    pub fn asked_pages(&self, id: VmId) -> u64 {
        let slot = self.vms.slot(id);
        slot.map_or(0, |slot| self.vms.of(slot).asked)
    }

    /// Pages of a VM of which the index holds a hint (ESX: COWH).
    #[must_use]
    pub fn hints_of(&self, id: VmId) -> u64 {
        let slot = self.vms.slot(id);
        slot.map_or(0, |slot| self.index.hints_of(slot) as u64)
    }

    /// What a VM's shared pages take of the machine, in thousandths of a page: each frame is charged to
    /// those who refer to it in equal parts (ESX: CNSM). Visits all its shared pages.
    #[must_use]
    pub fn charge_millipages(&self, id: VmId) -> Option<u64> {
        // In 2^-32 pages, so that a VM of any size is charged to within a page and its thousandth.
        let part = |frame| (1u64 << 32) / u64::from(self.frames.references(frame).max(1));
        let shared = self.vms.of(self.vms.slot(id)?).ledger.shared();
        let charge: u128 = shared.map(|frame| u128::from(part(frame))).sum();
        u64::try_from((charge * 1000).div_ceil(1 << 32)).ok()
    }

    /// The pages that may be scanned: of all VMs.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        self.vms.all().map(|(_, vm)| vm.size).sum()
    }

    /// The frame, if the host believes that the page shows one.
    #[must_use]
    pub fn frame_of(&self, page: Page) -> Option<Frame> {
        let vm = self.vms.of(self.vms.slot(page.vm)?);
        match vm.ledger.place(page.block().number, page.index()) {
            Place::Shared(frame) => Some(frame),
            Place::Own | Place::Zero | Place::Broken(_) => None,
        }
    }

    /// The frame that is mapped over a page, showing or broken.
    #[must_use]
    pub fn mapped_frame(&self, page: Page) -> Option<Frame> {
        let vm = self.vms.of(self.vms.slot(page.vm)?);
        vm.ledger.place(page.block().number, page.index()).frame()
    }

    /// Whether a request to a block is pending: what is seen of it now may be older than what was asked.
    #[must_use]
    pub fn is_busy(&self, block: Block) -> bool {
        self.busy.contains(&block)
    }

    /// The pages of a block over which the store is mapped, showing or broken.
    #[must_use]
    pub fn mapped(&self, block: Block) -> PageSet {
        let slot = self.vms.slot(block.vm);
        slot.map_or(PageSet::EMPTY, |slot| {
            self.vms.of(slot).ledger.mapped(block.number)
        })
    }

    /// The pages of a block that must be read again though nobody wrote to them: those that were volatile,
    /// whose calm must be seen, and those for which a chance has come up since they were last read.
    #[must_use]
    pub fn to_read(&self, block: Block) -> PageSet {
        let Some(slot) = self.vms.slot(block.vm) else {
            return PageSet::EMPTY;
        };
        let vm = self.vms.of(slot);
        let mut pages = vm.history.volatile(block.number);
        if let Some(revisits) = vm.revisits.get(&block.number) {
            revisits.iter().for_each(|index| pages.insert(index));
        }
        pages
    }

    fn revisit(&mut self, page: Page) {
        if let Some(slot) = self.vms.slot(page.vm) {
            let revisits = &mut self.vms.of_mut(slot).revisits;
            let block = revisits.entry(page.block().number).or_default();
            block.insert(page.index());
        }
    }

    /// Changes what is over a page. A page that is to show a frame must have a reference to it already,
    /// which becomes the page's.
    fn set_place(&mut self, slot: VmSlot, block: u32, index: usize, new: Place) {
        let old = self.vms.of_mut(slot).ledger.set(block, index, new);
        // The new cover first: a window must not look empty in between.
        if let Some(frame) = new.frame() {
            self.frames.cover(frame);
        }
        if let Place::Shared(frame) = old {
            self.frames.release(frame);
        }
        if let Some(frame) = old.frame() {
            self.frames.uncover(frame);
        }
    }

    fn enter(&mut self, hash: ContentHash, entry: Entry) {
        let registry = Registry {
            vms: &self.vms,
            frames: &self.frames,
        };
        self.index.insert(hash, entry, &registry);
    }

    /// The index's entry for a page of a living VM.
    fn hint(&self, page: Page) -> Option<Entry> {
        Some(Entry::Hint {
            slot: self.vms.slot(page.vm)?,
            gfn: u32::try_from(page.gfn.0).ok()?,
        })
    }

    fn enter_hint(&mut self, hash: ContentHash, page: Page) {
        if let Some(hint) = self.hint(page) {
            self.enter(hash, hint);
        }
    }

    fn remove_hint(&mut self, hash: ContentHash, page: Page) {
        if let Some(hint) = self.hint(page) {
            self.index.remove(hash, hint);
        }
    }
}
