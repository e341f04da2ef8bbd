//! `toucher`: a working set of a given size, touched at random.

use super::pace::Pace;
use super::page::Memory;
use super::spec::{Distribution, ToucherSpec};
use super::zipf::Zipf;
use super::{Counters, Held, Slice};
use crate::random::Random;

/// Touches between two looks at the clock.
const TOUCHES_A_LOOK: u64 = 64;

#[derive(Debug)]
pub(super) struct Toucher {
    spec: ToucherSpec,
    pace: Pace,
    random: Random,
    zipf: Option<Zipf>,
}

impl Toucher {
    pub(super) fn new(spec: ToucherSpec, guest: u32, now_us: u64) -> Self {
        Self {
            spec,
            pace: Pace::new(u64::from(spec.rate), now_us),
            random: Random::new(u64::from(guest)),
            zipf: None,
        }
    }

    /// Touches what is due. Returns when to come again.
    pub(super) fn step(
        &mut self,
        held: &mut Held<'_>,
        memory: &mut impl Memory,
        counters: &mut Counters,
        slice: &mut Slice<'_>,
    ) -> Option<u64> {
        let count = held.count();
        let mut due = self.pace.due(slice.now_us());
        self.fit_zipf(count);
        while due > 0 && count > 0 && !slice.is_over() {
            let touches = due.min(TOUCHES_A_LOOK);
            for _ in 0..touches {
                let rank = self.rank(count);
                let page = memory.page(held.slots()[rank as usize].gfn);
                if self.random.percent(self.spec.write) {
                    page[0] = page[0].wrapping_add(1);
                    counters.touches_written += 1;
                } else {
                    core::hint::black_box(page[0]);
                }
            }
            due -= touches;
            counters.touches += touches;
            self.pace.note_done(touches);
        }
        self.pace.wake_at_us(slice.now_us())
    }

    fn rank(&mut self, count: u32) -> u32 {
        match &self.zipf {
            Some(zipf) => zipf.draw(&mut self.random),
            None => self.random.below(count),
        }
    }

    fn fit_zipf(&mut self, count: u32) {
        if let Distribution::Zipf { theta } = self.spec.distribution
            && self.zipf.is_none_or(|zipf| zipf.count() != count)
            && count > 0
        {
            self.zipf = Some(Zipf::new(count, theta));
        }
    }
}
