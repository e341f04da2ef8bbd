//! The host's own swap: where the kernel puts pages of guests that together touch more than there is.
//!
//! Never under this crate's rules, which give nothing that is not there. Rules that do, or that are late, are not
//! punished by a crash but by this, as on a real host:
//!
//! * What is too much goes out within the second, at no cost to whoever made it too much. (A real kernel makes an
//!   allocation wait for reclaim; here the one that grows waits for nothing.)
//! * Which pages go is a model without recency, by [`SwapOrder`]: `proportional`, each page with the same chance, or
//!   `coldest`, a kernel that knows for certain which pages nobody uses. A real one lies between the two.
//! * A page that is touched comes back, and its guest's processor waits for it: [`FAULT_US`], or what is set.
//! * Swap has no end, and its device serves everybody at once.
//!
//! A guest's pages are of two kinds: those it works on, and others (its kernel, and what it has left behind). What is
//! in swap is counted for each kind, and moves with the pages when they change theirs.

use super::guest::Guest;
use page::PageCount;
use serde::{Deserialize, Serialize};

/// A touch with the work around it: what makes a miss on a guest's own disk, [`MISS_COST`](super::guest::MISS_COST)
/// times that, take 100 µs. An assumption.
const TOUCH_US: u32 = 2;

/// How long a fault takes whose page is in the host's swap: a solid-state disk's random read and the way there, as long
/// as a miss on the guest's own disk. An assumption.
pub(super) const FAULT_US: u32 = 100;

/// How fast pages come back.
#[derive(Clone, Copy, Debug)]
pub(super) struct FaultSpeed {
    /// Faults that one processor can wait for in a second.
    pub(super) per_s: u64,
    /// How much longer than one that hits a touch takes that faults.
    pub(super) cost: u64,
}

impl FaultSpeed {
    pub(super) fn of(fault_us: u32) -> Self {
        Self {
            per_s: (1_000_000 / u64::from(fault_us.max(1))).max(1),
            cost: u64::from(fault_us / TOUCH_US).max(1),
        }
    }

    /// What is left of a second after so many faults, beside the touches that they were: parts of the whole.
    pub(super) fn left(self, faults: u64) -> (u64, u64) {
        let whole = self.per_s * self.cost;
        let lost = faults * (self.cost - 1);
        (whole.saturating_sub(lost), whole)
    }
}

/// Which pages the host's kernel swaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwapOrder {
    /// Any, in proportion.
    #[default]
    Proportional,
    /// Those that no guest works on first, then any.
    Coldest,
}

/// Pages of a guest by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// What it works on.
    pub(super) working: u64,
    /// What else it holds.
    pub(super) other: u64,
}

/// What has happened to a guest's pages since it started, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flows {
    /// Put into the host's swap.
    pub(super) out: u64,
    /// Brought from there, at a touch.
    pub(super) back: u64,
    /// Given up while they were there.
    pub(super) dropped: u64,
    /// Fetched from the guest's own disk, for want of memory to keep them.
    pub(super) refaulted: u64,
}

/// A guest's pages in the host's swap.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swapped {
    pub(super) parts: Parts,
    pub(super) flows: Flows,
}

impl Parts {
    pub(super) fn total(self) -> u64 {
        self.working + self.other
    }
}

impl Swapped {
    /// The guest's pages were `before` and are `after`: some changed their kind, some came, some were given up.
    pub(super) fn carry(&mut self, before: Parts, after: Parts) {
        let mut other = before.other;
        if after.working < before.working {
            let leaving = before.working - after.working;
            let moved = portion(self.parts.working, leaving, before.working);
            self.parts.working -= moved;
            self.parts.other += moved;
            other += leaving;
        } else {
            let fresh = after.total().saturating_sub(before.total());
            let joining = (after.working - before.working).saturating_sub(fresh);
            let joining = joining.min(other);
            let moved = portion(self.parts.other, joining, other);
            self.parts.other -= moved;
            self.parts.working += moved;
            other -= joining;
        }
        let given_up = other.saturating_sub(after.other);
        let dropped = portion(self.parts.other, given_up, other);
        self.parts.other -= dropped;
        self.flows.dropped += dropped;
    }

    pub(super) fn bring_back(&mut self, pages: u64) {
        self.parts.working -= pages;
        self.flows.back += pages;
    }

    fn put_out(&mut self, pages: Parts) {
        self.parts.working += pages.working;
        self.parts.other += pages.other;
        self.flows.out += pages.total();
    }
}

/// Swaps so many pages, or all there are.
pub(super) fn swap_out(guests: &mut [&mut Guest], excess: PageCount, order: SwapOrder) {
    let there: Vec<Parts> = guests.iter().map(|guest| guest.parts_in_memory()).collect();
    let working: Vec<u64> = there.iter().map(|parts| parts.working).collect();
    let other: Vec<u64> = there.iter().map(|parts| parts.other).collect();
    let (working, other) = match order {
        SwapOrder::Proportional => {
            let both = spread(excess.0, &[working, other].concat());
            let (working, other) = both.split_at(there.len());
            (working.to_vec(), other.to_vec())
        }
        SwapOrder::Coldest => {
            let other = spread(excess.0, &other);
            let rest = excess.0 - other.iter().sum::<u64>();
            (spread(rest, &working), other)
        }
    };
    for (guest, (working, other)) in guests.iter_mut().zip(working.into_iter().zip(other)) {
        guest.swapped.put_out(Parts { working, other });
    }
}

/// `count` taken from these amounts in proportion, to the page; all of them if it is more.
fn spread(count: u64, amounts: &[u64]) -> Vec<u64> {
    let all: u64 = amounts.iter().sum();
    let count = count.min(all);
    let mut sum = 0;
    let mut taken = 0;
    let part = |&amount: &u64| {
        sum += amount;
        let until_here = portion(count, sum, all);
        let part = until_here - taken;
        taken = until_here;
        part
    };
    amounts.iter().map(part).collect()
}

/// The part of `count` that falls upon `part` of `whole`, rounded down.
fn portion(count: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let exact = u128::from(count) * u128::from(part) / u128::from(whole);
    u64::try_from(exact).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts() -> impl Strategy<Value = Parts> {
        (0u64..1000, 0u64..1000).prop_map(|(working, other)| Parts { working, other })
    }

    proptest! {
        #[test]
        fn what_is_spread_is_taken_to_the_page_and_from_nobody_who_has_it_not(
            count in 0u64..5000, amounts in prop::collection::vec(0u64..1000, 0..8)
        ) {
            let taken = spread(count, &amounts);
            let all: u64 = amounts.iter().sum();
            prop_assert_eq!(taken.iter().sum::<u64>(), count.min(all));
            prop_assert!(taken.iter().zip(&amounts).all(|(taken, amount)| taken <= amount));
        }

        /// However a guest's pages change, no more of a kind is in swap than there is, and none is lost.
        #[test]
        fn pages_in_swap_move_with_the_guests_pages(
            before in parts(), after in parts(), working in 0u64..=1000, other in 0u64..=1000
        ) {
            let mut swapped = Swapped::default();
            swapped.put_out(Parts {
                working: before.working * working / 1000,
                other: before.other * other / 1000,
            });
            swapped.carry(before, after);
            prop_assert!(swapped.parts.working <= after.working);
            prop_assert!(swapped.parts.other <= after.other);
            let Flows { out, dropped, .. } = swapped.flows;
            prop_assert_eq!(swapped.parts.total() + dropped, out);
        }
    }
}
