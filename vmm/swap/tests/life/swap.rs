//! As `memory/swap`: what agent, pager and keeper have in common, and the two locks. Who has both took the fence's first.

use crate::contents::{Word, contents};
use crate::event::{Event, lock};
use crate::file::SwapFile;
use crate::guest_disks::GuestDisks;
use crate::kernel::{Kernel, Protection, Registered};
use crate::left_out::{Step, held, is_left_out, pause};
use page::{Gfn, PageCount};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use swap::{CleaningPolicy, Config, Key, LEAST_POOL_SEGMENTS, Log, Refused, Sealer};

/// The least that holds a few pages that do not shrink.
const SEGMENT_BYTES: usize = 20 << 10;

pub(crate) struct Swap {
    pub(crate) kernel: Kernel,
    pub(crate) log: Mutex<Log>,
    pub(crate) sealer: Sealer,
    pub(crate) file: SwapFile,
    pub(crate) guest_disks: GuestDisks,
    /// Which pages have a frame over them, by page.
    shown: Vec<AtomicBool>,
    /// What the agent keeps others out of.
    pub(crate) fenced: Mutex<Option<Fenced>>,
    pub(crate) pager: Arc<Event>,
    pub(crate) keeper: Event,
    is_over: AtomicBool,
}

/// Who is kept out of a stretch of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptOut {
    /// Those who write to pages that are there.
    Writers,
    /// And those who touch a hole: none of it becomes a page.
    All,
}

pub(crate) struct Fenced {
    pages: Range<u64>,
    out: KeptOut,
}

impl Fenced {
    pub(crate) fn has(fenced: Option<&Self>, index: u64) -> Option<KeptOut> {
        let fenced = fenced.filter(|fenced| fenced.pages.contains(&index))?;
        Some(fenced.out)
    }
}

/// Why a page stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stays {
    /// The log will have room soon.
    ForNow,
    /// The log has none.
    ForGood,
}

impl Swap {
    /// Of a guest of so many pages, with a file of so many slots.
    pub(crate) fn new(pages: u64, file_slots: u32) -> Self {
        let config = Config {
            pages: PageCount(pages),
            segment_bytes: SEGMENT_BYTES,
            pool_segments: LEAST_POOL_SEGMENTS,
            file_slots,
            policy: CleaningPolicy::CostBenefit,
        };
        let pager = Arc::new(Event::default());
        Self {
            kernel: Kernel::new(pages, Arc::clone(&pager)),
            log: Mutex::new(Log::new(config).unwrap()),
            sealer: Sealer::new(&Key([7; 32])),
            file: SwapFile::new(config.file_bytes()),
            guest_disks: GuestDisks::default(),
            shown: (0..pages).map(|_| AtomicBool::new(false)).collect(),
            fenced: Mutex::new(None),
            pager,
            keeper: Event::default(),
            is_over: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// The guest is gone.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.pager.signal();
        self.keeper.signal();
    }

    pub(crate) fn guard(&self, pages: Range<u64>) {
        match is_left_out(Step::HolesWait) {
            true => self.guard_writers(pages),
            false => self.kernel.register(pages, Registered::All),
        }
    }

    pub(crate) fn guard_writers(&self, pages: Range<u64>) {
        self.kernel.register(pages, Registered::Writers);
    }

    /// Nothing of it may be out.
    pub(crate) fn let_go(&self, pages: Range<u64>) {
        if !is_left_out(Step::LetGoIsForgotten) {
            self.forget(pages.clone());
        }
        self.kernel.unregister(pages.clone());
        self.kernel.wake(pages);
    }

    /// Nothing of it may be out, and none of it be a hole.
    pub(crate) fn unguarded(&self, pages: Range<u64>, act: impl FnOnce()) {
        self.keep_out(&pages, KeptOut::All);
        self.let_go(pages.clone());
        act();
        self.guard(pages.clone());
        self.let_in(&mut lock(&self.fenced), pages);
    }

    fn keep_out(&self, pages: &Range<u64>, out: KeptOut) {
        let pages = pages.clone();
        *lock(&self.fenced) = Some(Fenced { pages, out });
    }

    /// Stretches of a block, in order.
    pub(crate) fn raise(&self, stretches: &[Range<u64>], out: KeptOut) {
        if !is_left_out(Step::FencedFirst) {
            self.keep_out(&hull(stretches), out);
        }
        let protection = match is_left_out(Step::WritersWait) {
            true => Protection::Lifted,
            false => Protection::Protected,
        };
        for stretch in stretches {
            let protected = self.kernel.protect(stretch.clone(), protection);
            protected.expect("all memory is guarded");
        }
        if is_left_out(Step::FencedFirst) {
            pause();
            self.keep_out(&hull(stretches), out);
        }
    }

    pub(crate) fn lower(&self, stretches: &[Range<u64>]) {
        let fenced = lock(&self.fenced);
        // Held all the time: what comes back meanwhile is protected, and is to stay so.
        let log = lock(&self.log);
        let pages = stretches.iter().cloned().flatten();
        let is_let_in = |index: u64| !log.is_kept(Gfn(index)) || is_left_out(Step::StaysProtected);
        let let_in: Vec<u64> = pages.filter(|&index| is_let_in(index)).collect();
        let both = held((fenced, log), Step::LoweredUnderFence);
        self.lift(let_in);
        let mut fenced = both.map_or_else(|| lock(&self.fenced), |(fenced, _log)| fenced);
        self.let_in(&mut fenced, hull(stretches));
    }

    fn lift(&self, pages: Vec<u64>) {
        for index in pages {
            let lifted = self.kernel.protect(index..index + 1, Protection::Lifted);
            lifted.expect("all memory is guarded");
        }
    }

    fn let_in(&self, fenced: &mut Option<Fenced>, pages: Range<u64>) {
        let out = fenced.take().map(|fenced| fenced.out);
        if out == Some(KeptOut::All) {
            self.pager.signal();
        }
        self.kernel.wake(pages);
    }

    /// A page that the memory file holds, behind the fence, is out from here on: it may be punched.
    pub(crate) fn take_out(&self, index: u64, word: Word) -> Result<(), Stays> {
        let gfn = Gfn(index);
        if lock(&self.log).keep_out(gfn) {
            return Ok(());
        }
        if let Some(page) = self.guest_disks.find(index, word) {
            lock(&self.log).leave_to_disk(gfn, page);
            return Ok(());
        }
        let sealed = self.sealer.seal(gfn, &contents(word)).unwrap();
        match lock(&self.log).append(&sealed) {
            Ok(()) => Ok(()),
            Err(Refused::Wait) => {
                self.keeper.signal();
                Err(Stays::ForNow)
            }
            Err(Refused::Full) => Err(Stays::ForGood),
        }
    }

    pub(crate) fn forget(&self, pages: impl Iterator<Item = u64>) {
        let mut log = lock(&self.log);
        pages.for_each(|index| log.forget(Gfn(index)));
    }

    pub(crate) fn out_among(&self, pages: Range<u64>) -> BTreeSet<u64> {
        let log = lock(&self.log);
        pages.filter(|&index| log.is_out(Gfn(index))).collect()
    }

    /// Whether a page has a frame over it.
    pub(crate) fn is_shown(&self, index: u64) -> bool {
        self.shown_at(index).load(Ordering::SeqCst)
    }

    pub(crate) fn set_shown(&self, index: u64, is_shown: bool) {
        self.shown_at(index).store(is_shown, Ordering::SeqCst);
    }

    fn shown_at(&self, index: u64) -> &AtomicBool {
        &self.shown[usize::try_from(index).expect("a page of the guest")]
    }
}

/// From the first of some stretches, which are in order, to the last.
fn hull(stretches: &[Range<u64>]) -> Range<u64> {
    stretches[0].start..stretches[stretches.len() - 1].end
}
