//! The state machine of the paper, for one thing that threads share.

use crate::race::Visit;
use crate::rules::{Protections, Unseen, candidates};
use std::panic::Location;

/// What is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is looked at.
    Read,
    /// It is changed.
    Write,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nobody has come yet since it is new, or goes to whoever comes first.
    #[default]
    Virgin,
    /// One thread alone has come: it needs nothing.
    Exclusive(u32),
    /// Several have looked, and nobody has changed it since the second came: it needs nothing, but what they had is kept.
    Shared,
    /// Somebody changes it.
    Modified,
}

/// A thing that threads share: what all had in common who came.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    phase: Phase,
    candidates: Protections,
    last: Option<&'static Location<'static>>,
}

impl Default for Cell {
    fn default() -> Self {
        Self {
            phase: Phase::Virgin,
            candidates: Protections::all(),
            last: None,
        }
    }
}

impl Cell {
    /// What all had who came since it went over to others last.
    #[must_use]
    pub fn candidates(&self) -> Protections {
        self.candidates
    }

    /// Where the one before was.
    #[must_use]
    pub fn last(&self) -> Option<&'static Location<'static>> {
        self.last
    }

    /// Somebody comes who has `held`. Whether nothing is left that keeps them apart.
    #[must_use]
    pub fn is_race(&mut self, visit: Visit, held: Protections, access: Access) -> bool {
        let is_write = access == Access::Write;
        self.phase = match (self.phase, is_write) {
            (Phase::Virgin, _) => Phase::Exclusive(visit.thread),
            (Phase::Exclusive(thread), _) if thread == visit.thread => self.phase,
            (Phase::Exclusive(_) | Phase::Shared, false) => Phase::Shared,
            (Phase::Exclusive(_) | Phase::Shared, true) | (Phase::Modified, _) => Phase::Modified,
        };
        if matches!(self.phase, Phase::Shared | Phase::Modified) {
            self.candidates &= held;
        }
        self.phase == Phase::Modified && self.candidates.is_empty()
    }

    /// The last who came was there.
    pub(crate) fn came(&mut self, place: &'static Location<'static>) {
        self.last = Some(place);
    }

    /// From here on it is one thread's, until another comes.
    pub(crate) fn goes_to(&mut self, visit: Visit) {
        *self = Self {
            phase: Phase::Exclusive(visit.thread),
            candidates: Protections::all(),
            last: Some(visit.place),
        };
    }

    /// From here on these may come at any moment.
    pub(crate) fn is_open_to(&mut self, unseen: Unseen, place: &'static Location<'static>) {
        *self = Self {
            phase: Phase::Modified,
            candidates: candidates(unseen),
            last: Some(place),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    struct Came {
        thread: u32,
        held: Protections,
        access: Access,
    }

    fn came() -> impl Strategy<Value = Came> {
        // Few of each, so that all orders come up. The lowest bits are named.
        let bits = prop_oneof![3 => any::<u8>(), 2 => Just(1), 2 => Just(3)];
        (0u32..3, bits, any::<bool>()).prop_map(|(thread, bits, is_write)| Came {
            thread,
            held: Protections::from_bits_truncate(bits),
            access: if is_write {
                Access::Write
            } else {
                Access::Read
            },
        })
    }

    /// All that is said in the paper, looked at anew each time: who was first needs nothing while he is alone. From the second
    /// thread on all must have one thing in common, once it is changed.
    fn is_race_in(all: &[Came]) -> bool {
        let Some(second) = all.iter().position(|came| came.thread != all[0].thread) else {
            return false;
        };
        let since = &all[second..];
        let is_changed = since.iter().any(|came| came.access == Access::Write);
        let in_common = |one: u8| since.iter().all(|came| came.held.bits() & one != 0);
        let is_kept_apart = (0..8).any(|bit| in_common(1 << bit));
        is_changed && !is_kept_apart
    }

    proptest! {
        #[test]
        fn a_race_is_told_exactly_where_nothing_is_common_to_all_who_came(
            all in prop::collection::vec(came(), 0..9)
        ) {
            let mut cell = Cell::default();
            for end in 1..=all.len() {
                let Came { thread, held, access } = all[end - 1];
                let visit = Visit { thread, has: held, place: Location::caller() };
                prop_assert_eq!(cell.is_race(visit, held, access), is_race_in(&all[..end]));
            }
        }

        /// Those who come unseen count as one who changed it and had what the rule says.
        #[test]
        fn what_is_open_to_others_is_as_if_they_had_come(
            all in prop::collection::vec(came(), 0..9)
        ) {
            let mut cell = Cell::default();
            cell.is_open_to(Unseen::Guest, Location::caller());
            let held = candidates(Unseen::Guest);
            let guest = |thread| Came { thread, held, access: Access::Write };
            let mut model = vec![guest(u32::MAX), guest(u32::MAX - 1)];
            for &came in &all {
                model.push(came);
                let visit = Visit { thread: came.thread, has: came.held, place: Location::caller() };
                prop_assert_eq!(cell.is_race(visit, came.held, came.access), is_race_in(&model));
            }
        }
    }
}
