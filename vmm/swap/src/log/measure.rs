//! Figures are counted from the segments when they are asked for, so they agree with each other.

use super::Log;
use super::segments::{Amount, Segment, State};
use crate::figures::{COLUMNS, Figures, Flow, SlotFigures, Tier};
use crate::reservation::payload;
use page::PAGE_SIZE;

impl Log {
    /// What it holds now. It looks at every segment and every block's table, some 10 ns each.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let [mut memory, mut file] = [Tier::default(); 2];
        for (_, segment) in self.segments.iter() {
            match segment.state {
                State::Open(_) | State::Full(_) | State::Writing(..) => {
                    self.add(&mut memory, segment)
                }
                State::File(..) => self.add(&mut file, segment),
                State::Dropped => {}
            }
        }
        Figures {
            memory,
            file,
            filled_pages: self.filled_pages,
            disk_pages: self.disk_pages,
            original_bytes: (memory.needed.records + file.needed.records) * PAGE_SIZE,
            stored_bytes: memory.needed.bytes + file.needed.bytes,
            slots: self.slot_figures(),
            index_bytes: self.index.bytes() as u64,
            totals: self.totals,
        }
    }

    fn add(&self, tier: &mut Tier, segment: &Segment) {
        tier.segments += 1;
        tier.bytes += segment.appended as u64;
        add_amount(&mut tier.needed, segment.needed);
        add_amount(&mut tier.kept, segment.kept);
        if !matches!(segment.state, State::Open(_)) {
            let tenths =
                segment.needed.bytes as usize * COLUMNS / payload(self.config.segment_bytes);
            tier.utilisation[tenths.min(COLUMNS - 1)] += 1;
        }
    }

    fn slot_figures(&self) -> SlotFigures {
        let ready = self.slots.ready();
        SlotFigures {
            total: self.slots.total().into(),
            free: ready as u64,
            waiting: (self.slots.available() - ready) as u64,
            retired: self.slots.retired() as u64,
        }
    }
}

fn add_amount(flow: &mut Flow, amount: Amount) {
    flow.records += u64::from(amount.records);
    flow.bytes += u64::from(amount.bytes);
}
