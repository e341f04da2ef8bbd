//! How many pages of a VM are in which state.

use crate::PageCount;
use serde::{Deserialize, Serialize};

/// A VM's pages by state. Each page is in exactly one, so the counts add up to the VM's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageStates {
    /// Never touched, reported free, or found zero: nothing backs them.
    pub empty: PageCount,
    /// A page of the VM's own memory file each.
    pub private: PageCount,
    /// Mapped from the shared-page store.
    pub shared: PageCount,
    /// Once shared, written since: an anonymous page each.
    pub broken: PageCount,
    /// Given up by the guest to its balloon: nothing backs them.
    pub ballooned: PageCount,
    /// Content is in the compressed pool.
    pub compressed: PageCount,
    /// Content is in the swap store.
    pub swapped: PageCount,
}

impl PageStates {
    /// The sum of all states: the VM's size.
    #[must_use]
    pub fn total(&self) -> PageCount {
        self.empty
            + self.private
            + self.shared
            + self.broken
            + self.ballooned
            + self.compressed
            + self.swapped
    }
}
