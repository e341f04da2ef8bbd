//! Counts everything again from the index, and compares.

use super::Log;
use super::segments::{Amount, State};
use crate::index::Entry;
use crate::slots::Slot;
use std::collections::{HashMap, HashSet};
use thiserror::Error;

/// Two of the log's parts say different things: an error of this crate.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("swap log: {what}: {counted} counted, {said} said")]
pub struct Disagreement {
    what: String,
    counted: String,
    said: String,
}

impl Log {
    /// Compares what each part knows with what the others do. It looks at every page that is out.
    ///
    /// # Errors
    /// The first thing that two parts do not agree on.
    pub fn audit(&self) -> Result<(), Disagreement> {
        let mut needed: HashMap<u32, Amount> = HashMap::new();
        let mut kept = needed.clone();
        let [mut filled, mut on_disk] = [0; 2];
        for (_, entry) in self.index.iter() {
            match entry {
                Entry::Filled(_) => filled += 1,
                Entry::OnDisk(_) => on_disk += 1,
                Entry::Needed(place) => needed.entry(place.segment).or_default().add(place.length),
                Entry::Kept(place) => kept.entry(place.segment).or_default().add(place.length),
            }
        }
        agree("filled pages", filled, self.filled_pages)?;
        agree("pages on disks", on_disk, self.disk_pages)?;
        let records: u64 = needed.values().map(|it| u64::from(it.records)).sum();
        agree("needed records", records, self.needed_records)?;
        for (id, segment) in self.segments.iter() {
            let of = |amounts: &mut HashMap<u32, Amount>| amounts.remove(&id).unwrap_or_default();
            agree(
                &format!("needed in segment {id}"),
                of(&mut needed),
                segment.needed,
            )?;
            agree(
                &format!("kept in segment {id}"),
                of(&mut kept),
                segment.kept,
            )?;
        }
        agree("segments that are not there", needed.len() + kept.len(), 0)?;
        self.audit_memory()?;
        self.audit_slots()
    }

    fn audit_memory(&self) -> Result<(), Disagreement> {
        let is_in_memory = |(_, it): &(_, &super::segments::Segment)| it.memory().is_some();
        let counted = self.segments.iter().filter(is_in_memory).count();
        let said = self.segments.in_memory().len();
        agree("segments in memory", counted, said)?;
        let bound = self.config.pool_segments;
        agree("segments beyond the pool", said.saturating_sub(bound), 0)?;
        let is = |matches: fn(&State) -> bool| {
            let all = self.segments.iter();
            all.filter(|(_, it)| matches(&it.state)).count()
        };
        let dropped = is(|state| matches!(state, State::Dropped));
        agree("dropped segments", dropped, self.segments.dropped())?;
        let writing = is(|state| matches!(state, State::Writing(..)));
        agree("writes", writing, self.writes)
    }

    /// Each slot is one segment's, or nobody's.
    fn audit_slots(&self) -> Result<(), Disagreement> {
        let used = self.segments.iter().filter_map(|(_, it)| match it.state {
            State::Writing(_, slot) | State::File(slot, _) => Some(slot),
            _ => None,
        });
        let all: Vec<Slot> = used.chain(self.slots.unused()).collect();
        let different: HashSet<Slot> = all.iter().copied().collect();
        agree("different slots", different.len(), all.len())?;
        agree("slots", all.len(), self.slots.total() as usize)
    }
}

fn agree<T: PartialEq + std::fmt::Debug>(
    what: &str,
    counted: T,
    said: T,
) -> Result<(), Disagreement> {
    if counted == said {
        return Ok(());
    }
    Err(Disagreement {
        what: what.to_owned(),
        counted: format!("{counted:?}"),
        said: format!("{said:?}"),
    })
}
