//! `breaker`: pages that are equal in all guests with the same seed, for the host to share, until
//! the breaker is told to break them: it writes one word into each and times each write. What
//! was shared costs the guest a fault then, and that is what is measured. Told to restore, it
//! writes the words back.
//!
//! The pages are the common ones of `clone` with the same seed. A slot's version is 0 when its
//! page has that content; broken pages are each guest's own, or they would be equal again.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use super::histogram::Histogram;
use super::spec::BreakerSpec;
use super::{Counters, Slice};
use crate::held::{Held, Slot};
use crate::page::{Memory, Page, WORDS, common_seed, fill, word_of};
use crate::random::{Permutation, mix};

/// What a breaker can be told to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// To write a word into every page held, in a pseudo-random order.
    Break,
    /// To write the words back.
    Restore,
}

/// Why an order is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OrderError {
    /// The workload is another.
    NoBreaker,
    /// It gives orders to itself.
    Loops,
    /// An order before this one has not begun.
    Busy,
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBreaker => "no breaker runs; start one with `workload breaker`",
            Self::Loops => "this breaker has loop=1 and goes on by itself",
            Self::Busy => "the breaker has not begun what it was told before; try again",
        })
    }
}

/// How breaking all pages once went. Times are of the writes alone.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BreakFigures {
    /// Pages written to.
    pub writes: u64,
    /// What half of the writes took at most.
    pub p50_ns: u64,
    /// What 99 % of them took at most.
    pub p99_ns: u64,
    /// What the slowest took.
    pub max_ns: u64,
    /// What all took together.
    pub total_us: u64,
    /// From the first to the last, console and balloon served in between.
    pub elapsed_us: u64,
}

/// What a breaker has done as it was told. Shown as a line for the console.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Done {
    /// All pages are broken.
    Broken(BreakFigures),
    /// All pages are as they were filled.
    Restored,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Broken(figures) = self else {
            return f.write_str("breaker: restored");
        };
        let BreakFigures {
            writes,
            p50_ns,
            p99_ns,
            max_ns,
            total_us,
            elapsed_us,
        } = figures;
        write!(
            f,
            "breaker: {writes} writes p50={p50_ns}ns p99={p99_ns}ns max={max_ns}ns \
             total={total_us}us elapsed={elapsed_us}us"
        )
    }
}

/// An order on its way through the pages.
#[derive(Debug)]
struct Pass {
    order: Order,
    places: Permutation,
    began_ns: u64,
}

#[derive(Debug)]
pub(super) struct Breaker {
    spec: BreakerSpec,
    guest: u32,
    pass: Option<Pass>,
    /// What was begun last.
    last: Order,
    times: Histogram,
    done: Option<Done>,
}

impl Breaker {
    pub(super) const fn new(spec: BreakerSpec, guest: u32) -> Self {
        Self {
            spec,
            guest,
            pass: None,
            last: Order::Restore,
            times: Histogram::new(),
            done: None,
        }
    }

    /// Writes what belongs at `place` among the pages held.
    pub(super) fn fill(&self, place: u32, page: &mut Page) {
        fill(page, self.seed_at(place));
    }

    pub(super) const fn is_resting(&self) -> bool {
        self.pass.is_none()
    }

    /// What to do next without being told.
    pub(super) const fn own_order(&self) -> Option<Order> {
        match self.last {
            _ if !self.spec.repeat => None,
            Order::Break => Some(Order::Restore),
            Order::Restore => Some(Order::Break),
        }
    }

    /// Begins with what it was told, for as many pages as are held.
    pub(super) fn begin(&mut self, order: Order, count: u32, slice: &mut Slice<'_>) {
        let began_ns = slice.look();
        if order == Order::Break {
            self.times.clear();
        }
        self.last = order;
        self.pass = Some(Pass {
            order,
            places: Permutation::new(count, mix(began_ns)),
            began_ns,
        });
    }

    /// What was done since it was asked last.
    pub(super) const fn take_done(&mut self) -> Option<Done> {
        self.done.take()
    }

    /// Goes on with what was begun. Returns when to come again.
    pub(super) fn step(
        &mut self,
        held: &mut Held<'_>,
        memory: &impl Memory,
        counters: &mut Counters,
        slice: &mut Slice<'_>,
    ) -> Option<u64> {
        let Some(mut pass) = self.pass.take() else {
            return Some(u64::MAX);
        };
        while let Some(place) = pass.places.next() {
            // Some may have been given up since it began.
            if let Some(slot) = held.slots().get_mut(place as usize) {
                let word = memory.word(slot.gfn, self.word_at(place));
                match pass.order {
                    Order::Break => {
                        let took_ns = self.break_page(place, slot, word, slice);
                        self.times.record(took_ns);
                        counters.breaks += 1;
                    }
                    Order::Restore => self.restore_page(place, slot, word),
                }
            }
            if slice.is_over() {
                self.pass = Some(pass);
                return None;
            }
        }
        self.finish(&pass, counters, slice);
        None
    }

    fn finish(&mut self, pass: &Pass, counters: &mut Counters, slice: &mut Slice<'_>) {
        let done = match pass.order {
            Order::Restore => Done::Restored,
            Order::Break => {
                counters.last_break = self.figures(slice.look() - pass.began_ns);
                Done::Broken(counters.last_break)
            }
        };
        // One that goes on for ever would fill the console.
        self.done = (!self.spec.repeat).then_some(done);
    }

    fn figures(&self, elapsed_ns: u64) -> BreakFigures {
        BreakFigures {
            writes: self.times.count(),
            p50_ns: self.times.percentile(50),
            p99_ns: self.times.percentile(99),
            max_ns: self.times.max(),
            total_us: self.times.total() / 1000,
            elapsed_us: elapsed_ns / 1000,
        }
    }

    /// Writes a word that is not the original one. Returns how long it took.
    fn break_page(
        &self,
        place: u32,
        slot: &mut Slot,
        word: &AtomicU64,
        slice: &mut Slice<'_>,
    ) -> u64 {
        slot.version = slot.version.wrapping_add(1).max(1);
        let own = mix(u64::from(self.guest) << 32 | u64::from(slot.version)) | 1;
        let value = self.original_at(place) ^ own;
        let began_ns = slice.look();
        compiler_fence(Ordering::SeqCst);
        word.store(value, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        slice.look().saturating_sub(began_ns)
    }

    fn restore_page(&self, place: u32, slot: &mut Slot, word: &AtomicU64) {
        if slot.version != 0 {
            slot.version = 0;
            word.store(self.original_at(place), Ordering::Relaxed);
        }
    }

    const fn seed_at(&self, place: u32) -> u64 {
        common_seed(self.spec.seed, place)
    }

    /// Which word of the page is written to.
    #[expect(clippy::cast_possible_truncation, reason = "below the words of a page")]
    const fn word_at(&self, place: u32) -> usize {
        (mix(self.seed_at(place)) % WORDS as u64) as usize
    }

    const fn original_at(&self, place: u32) -> u64 {
        word_of(self.seed_at(place), self.word_at(place))
    }
}
