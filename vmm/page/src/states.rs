//! The states that a VM's pages can be in, and how many pages are in which.

use crate::PageCount;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Makes the states, and an amount of each, from one table: what uses machine memory comes first.
macro_rules! page_states {
    ($($field:ident, $state:ident, $uses_memory:literal, $help:literal;)+) => {
        /// What a page of a VM's memory is. Each page is in exactly one state.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PageState {
            $(#[doc = $help] $state,)+
        }

        impl PageState {
            /// All states, those first whose pages use machine memory.
            pub const ALL: [Self; [$(Self::$state),+].len()] = [$(Self::$state),+];

            /// Its name in every table, figure and metric.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$state => stringify!($field),)+
                }
            }

            /// What it is, in a sentence.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$state => $help,)+
                }
            }

            /// Whether machine memory backs its pages.
            #[must_use]
            pub const fn uses_memory(self) -> bool {
                match self {
                    $(Self::$state => $uses_memory,)+
                }
            }
        }

        /// An amount of each state: of a VM's pages they add up to its size.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        pub struct PageStates<T = PageCount> {
            $(#[doc = $help] pub $field: T,)+
        }

        impl<T: Copy> PageStates<T> {
            /// How much is in a state.
            #[must_use]
            pub fn of(&self, state: PageState) -> T {
                match state {
                    $(PageState::$state => self.$field,)+
                }
            }

            /// The same states in another unit.
            #[must_use]
            pub fn map<U>(self, mut unit: impl FnMut(T) -> U) -> PageStates<U> {
                PageStates {
                    $($field: unit(self.$field),)+
                }
            }
        }
    };
}

page_states! {
    private, Private, true, "In the VM's own memory file.";
    broken, Broken, true, "Once shared, written since: an anonymous page each.";
    shared, Shared, true, "Mapped from the shared-page store.";
    compressed, Compressed, true, "Content is in the compressed pool.";
    swapped, Swapped, false, "Content is in the swap store.";
    ballooned, Ballooned, false, "Given up by the guest to its balloon: nothing backs it.";
    empty, Empty, false, "Never touched, reported free, or found zero: nothing backs it.";
}

impl<T: Copy> PageStates<T> {
    /// Every state with its amount, in the order of [`PageState::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (PageState, T)> + '_ {
        PageState::ALL
            .into_iter()
            .map(|state| (state, self.of(state)))
    }
}

impl PageStates {
    /// The sum of all states: the VM's size.
    #[must_use]
    pub fn total(&self) -> PageCount {
        self.iter().map(|(_, pages)| pages).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_counts_once() {
        let mut number = 0;
        let states = PageStates::<PageCount>::default().map(|_| {
            number += 1;
            PageCount(1 << number)
        });
        assert_eq!(states.total(), PageCount((2 << PageState::ALL.len()) - 2));
        let json = serde_json::to_value(states).unwrap();
        for (state, pages) in states.iter() {
            assert_eq!(json[state.name()], pages.0, "{}", state.help());
        }
        let bytes = states.map(PageCount::bytes);
        assert_eq!(bytes.of(PageState::Empty), states.empty.bytes());
        let (used, unused): (Vec<_>, Vec<_>) = PageState::ALL
            .into_iter()
            .partition(|state| state.uses_memory());
        assert_eq!([used, unused].concat(), PageState::ALL);
    }
}
