//! What was found in large pages that were looked into, and is remembered for a few periods.
//!
//! Of a small VM only a few large pages may be looked into in one period, and what those say of the others is little:
//! a working set that grows would be believed periods later. How much of a block is touched where it is touched at all
//! changes slowly, so what earlier periods found is taken for what this one would find, and those are looked into next
//! of which nothing is known. Whether a block is touched is never remembered: that is seen of each in every period.

use policy::Sample;
use std::collections::BTreeMap;

/// For how many periods it is remembered.
const PERIODS: u32 = 3;

/// What is known of the insides of blocks, by their numbers.
#[derive(Clone, Debug, Default)]
pub(in crate::host::sharing::vm) struct LookedInto {
    blocks: BTreeMap<u32, Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    sample: Sample,
    /// Periods since then.
    age: u32,
}

impl LookedInto {
    /// A period begins.
    pub(super) fn begin(&mut self) {
        self.blocks.retain(|_, known| {
            known.age += 1;
            known.age <= PERIODS
        });
    }

    /// A period that ended found this in a block that was touched.
    pub(super) fn learn(&mut self, number: u32, sample: Sample) {
        self.blocks.insert(number, Known { sample, age: 0 });
    }

    pub(super) fn is_known(&self, number: u32) -> bool {
        self.blocks.contains_key(&number)
    }

    /// All that is known.
    pub(super) fn samples(&self) -> BTreeMap<u32, Sample> {
        let known = self.blocks.iter();
        known
            .map(|(&number, known)| (number, known.sample))
            .collect()
    }
}
