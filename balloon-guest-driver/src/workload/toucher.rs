//! `toucher`: a working set of a given size, touched at random, and beside it, if so wished, memory that
//! is held and left alone. Told to be a toucher of the same size, it keeps its pages: so its working set
//! can grow and shrink without any page changing hands.
//!
//! When one processor cannot do what is due, the others help: each takes grants of the touches
//! that are due until none is left or the slice is over. No frame is obtained or given up
//! meanwhile, for the slots are borrowed.

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::pace::Pace;
use super::spec::{Distribution, Size, ToucherSpec};
use super::zipf::Zipf;
use super::{Counters, Slice};
use crate::held::{Held, Slot};
use crate::page::Memory;
use crate::pool::Lead;
use crate::random::Random;

/// Touches between two looks at the clock.
const TOUCHES_A_LOOK: u64 = 64;
/// Touches that a processor takes at a time from those that are due.
const GRANT: u64 = 8 * TOUCHES_A_LOOK;
/// Each processor touches a line of its own in a page, so that pages are shared and lines are not.
const WORDS_A_LINE: usize = 8;

#[derive(Debug)]
pub(super) struct Toucher {
    spec: ToucherSpec,
    pace: Pace,
    random: Random,
    zipf: Option<Zipf>,
    /// The last slice was over before all that was due was done.
    is_behind: bool,
}

impl Toucher {
    pub(super) fn new(spec: ToucherSpec, guest: u32, now_us: u64) -> Self {
        Self {
            spec,
            pace: Pace::new(u64::from(spec.rate), now_us),
            random: Random::new(u64::from(guest)),
            zipf: None,
            is_behind: false,
        }
    }

    /// Touches what is due. Returns when to come again.
    pub(super) fn step(
        &mut self,
        held: &mut Held<'_>,
        memory: &impl Memory,
        counters: &mut Counters,
        slice: &mut Slice<'_>,
    ) -> Option<u64> {
        let due = self.pace.due(slice.now_us());
        if held.count() > 0 && due > 0 {
            let active = self.active_of(held.slots());
            self.fit_zipf(active.len());
            let touching = Touching {
                slots: active,
                memory,
                write: self.spec.write,
                zipf: self.zipf,
                due: AtomicU64::new(due),
            };
            let done = match slice.lead {
                Some(lead) if self.is_behind => {
                    touching.run_together(lead, &mut self.random, slice)
                }
                _ => touching.run(0, &mut self.random, &mut || slice.is_over()),
            };
            counters.touches += done.touches;
            counters.touches_written += done.written;
            self.pace.note_done(done.touches);
            self.is_behind = done.touches < due;
        }
        self.pace.wake_at_us(slice.now_us())
    }

    fn active_of<'s>(&self, slots: &'s [Slot]) -> &'s [Slot] {
        match self.spec.active {
            Size::Max => slots,
            Size::Pages(pages) => &slots[..slots.len().min(pages as usize)],
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "frames have 32-bit numbers"
    )]
    fn fit_zipf(&mut self, count: usize) {
        let count = count as u32;
        if let Distribution::Zipf { theta } = self.spec.distribution
            && self.zipf.is_none_or(|zipf| zipf.count() != count)
        {
            self.zipf = Some(Zipf::new(count, theta));
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Done {
    touches: u64,
    written: u64,
}

/// One slice's work, as all processors see it.
struct Touching<'a, M> {
    slots: &'a [Slot],
    memory: &'a M,
    write: u8,
    zipf: Option<Zipf>,
    /// Touches that are due and granted to nobody.
    due: AtomicU64,
}

impl<M: Memory> Touching<'_, M> {
    /// Touches, together with the others, until the slice is over or no touch is due.
    fn run_together(&self, lead: &Lead<'_>, random: &mut Random, slice: &mut Slice<'_>) -> Done {
        let seed = random.next();
        let is_over = AtomicBool::new(false);
        let (touches, written) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut own = Done::default();
        lead.run(
            &|worker| {
                let mut random = Random::new(seed ^ worker as u64);
                let done = self.run(worker, &mut random, &mut || is_over.load(Ordering::Relaxed));
                touches.fetch_add(done.touches, Ordering::Relaxed);
                written.fetch_add(done.written, Ordering::Relaxed);
            },
            || {
                own = self.run(0, random, &mut || slice.is_over());
                is_over.store(true, Ordering::Relaxed);
            },
        );
        Done {
            touches: own.touches + touches.into_inner(),
            written: own.written + written.into_inner(),
        }
    }

    /// One processor's part: grant after grant until `is_over`, looked at between few touches.
    fn run(
        &self,
        processor: usize,
        random: &mut Random,
        is_over: &mut dyn FnMut() -> bool,
    ) -> Done {
        let mut done = Done::default();
        let mut granted = 0;
        while !is_over() {
            if granted == 0 {
                granted = self.take_grant();
            }
            if granted == 0 {
                break;
            }
            let touches = granted.min(TOUCHES_A_LOOK);
            for _ in 0..touches {
                done.written += u64::from(self.touch(processor, random));
            }
            done.touches += touches;
            granted -= touches;
        }
        self.due.fetch_add(granted, Ordering::Relaxed);
        done
    }

    fn take_grant(&self) -> u64 {
        let take = |due: u64| Some(due - due.min(GRANT));
        let due = self
            .due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        due.unwrap_or(0).min(GRANT)
    }

    /// Touches one page. Returns whether it wrote.
    fn touch(&self, processor: usize, random: &mut Random) -> bool {
        let rank = self.rank(random);
        let gfn = self.slots[rank as usize].gfn;
        let word = self.memory.word(gfn, processor * WORDS_A_LINE);
        let writes = random.percent(self.write);
        if writes {
            // No other processor writes to this line, so none is lost between load and store.
            word.store(
                word.load(Ordering::Relaxed).wrapping_add(1),
                Ordering::Relaxed,
            );
        } else {
            black_box(word.load(Ordering::Relaxed));
        }
        writes
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "frames have 32-bit numbers"
    )]
    fn rank(&self, random: &mut Random) -> u32 {
        match &self.zipf {
            Some(zipf) => zipf.draw(random),
            None => random.below(self.slots.len() as u32),
        }
    }
}
