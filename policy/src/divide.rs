//! Divides memory by weight within bounds, exactly, to the page.
//!
//! Think of vessels of different width (weight) that stand in the same water: a VM holds
//! `weight · level` pages, but never less than its min nor more than its max. What all hold together
//! rises with the level along a line that bends only where some VM leaves its min or reaches its max,
//! so walking the bends in order finds the line's piece on which the memory is used up, and with it
//! the level as an exact fraction.
//!
//! The level is pages per share, the reciprocal of ESX's price λ: this is the equilibrium of
//! min-funding revocation without idle tax, P = S/λ clamped (ESX.md, Allocation).
//!
//! Pages are whole, so each VM gets its fraction rounded down, and the pages left over go one each to
//! those that lost most by that. Nobody is then a whole page away from its exact part, and more weight
//! never means fewer pages.

use crate::snapshot::total;
use page::{PageCount, VmId};
use std::cmp::{Ordering, Reverse};
use std::num::NonZeroU64;

/// What one VM may get, and its weight in getting it. No number exceeds 2^48, so products fit 128 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// Settles who gets a page first among equals, whatever the order of the claims.
    pub(crate) id: VmId,
    pub(crate) weight: NonZeroU64,
    pub(crate) min: PageCount,
    pub(crate) max: PageCount,
}

/// Gives each claim its part, in the claims' order. The parts add up to `memory`, except where that
/// is less than all mins (each gets its min) or more than all maxes (each gets its max).
pub(crate) fn divide(memory: PageCount, claims: &[Claim]) -> Vec<PageCount> {
    if memory <= total(claims.iter().map(|claim| claim.min)) {
        return claims.iter().map(|claim| claim.min).collect();
    }
    if memory >= total(claims.iter().map(|claim| claim.max)) {
        return claims.iter().map(|claim| claim.max).collect();
    }
    let level = find_level(memory, claims);
    let parts = claims.iter().map(|claim| level.part(claim)).collect();
    hand_out_rest(memory, claims, parts)
}

/// Pages per unit of weight: `pages / weight`.
#[derive(Clone, Copy, Debug)]
struct Level {
    pages: u128,
    weight: u128,
}

/// A claim's exact part: `whole` pages and `rest / level.weight` of one.
#[derive(Clone, Copy, Debug)]
struct Part {
    whole: PageCount,
    rest: u128,
}

impl Level {
    fn part(self, claim: &Claim) -> Part {
        let exact = u128::from(claim.weight.get()) * self.pages;
        let whole = u64::try_from(exact / self.weight).map_or(claim.max, PageCount);
        let clamped = whole.clamp(claim.min, claim.max);
        let is_bound = whole < claim.min || whole >= claim.max;
        Part {
            whole: clamped,
            rest: if is_bound { 0 } else { exact % self.weight },
        }
    }
}

/// Where a claim starts or ceases to take its part of more memory.
#[derive(Clone, Copy, Debug)]
struct Bend {
    kind: BendKind,
    pages: u128,
    weight: u128,
}

/// Leaving comes first where both happen at one level, so that no weight ceases before it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BendKind {
    LeavesMin,
    ReachesMax,
}

impl Bend {
    fn new(kind: BendKind, pages: PageCount, weight: NonZeroU64) -> Self {
        Self {
            kind,
            pages: pages.0.into(),
            weight: weight.get().into(),
        }
    }

    /// By level, compared as fractions.
    fn order(&self, other: &Self) -> Ordering {
        (self.pages * other.weight)
            .cmp(&(other.pages * self.weight))
            .then(self.kind.cmp(&other.kind))
    }
}

fn bends(claims: &[Claim]) -> Vec<Bend> {
    let leaving = |claim: &Claim| Bend::new(BendKind::LeavesMin, claim.min, claim.weight);
    let reaching = |claim: &Claim| Bend::new(BendKind::ReachesMax, claim.max, claim.weight);
    let mut bends: Vec<Bend> = claims
        .iter()
        .flat_map(|claim| [leaving(claim), reaching(claim)])
        .collect();
    bends.sort_unstable_by(Bend::order);
    bends
}

/// One straight piece of "what all hold together at a level": `fixed + weight · level` pages.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Pages of those at their min or max.
    fixed: u128,
    /// Weight of those between.
    weight: u128,
}

impl Piece {
    fn lasts_beyond(self, memory: u128, bend: &Bend) -> bool {
        self.fixed * bend.weight + self.weight * bend.pages >= memory * bend.weight
    }

    fn after(self, bend: &Bend) -> Self {
        match bend.kind {
            BendKind::LeavesMin => Self {
                fixed: self.fixed - bend.pages,
                weight: self.weight + bend.weight,
            },
            BendKind::ReachesMax => Self {
                fixed: self.fixed + bend.pages,
                weight: self.weight - bend.weight,
            },
        }
    }
}

/// The level at which the claims hold exactly `memory`, which must lie strictly between the sum of
/// mins and the sum of maxes.
///
/// The first bend leaves all at their min, so the walk passes it; the last has all at their max, so
/// the walk ends before it, on a piece that rises and whose weight is therefore not zero.
fn find_level(memory: PageCount, claims: &[Claim]) -> Level {
    let memory = u128::from(memory.0);
    let mut piece = Piece {
        fixed: claims.iter().map(|claim| u128::from(claim.min.0)).sum(),
        weight: 0,
    };
    for bend in bends(claims) {
        if piece.lasts_beyond(memory, &bend) {
            break;
        }
        piece = piece.after(&bend);
    }
    Level {
        pages: memory - piece.fixed,
        weight: piece.weight,
    }
}

/// The exact parts add up to `memory`, so fewer whole pages are left over than parts have a rest.
fn hand_out_rest(memory: PageCount, claims: &[Claim], mut parts: Vec<Part>) -> Vec<PageCount> {
    let left = memory.saturating_sub(total(parts.iter().map(|part| part.whole)));
    let mut by_rest: Vec<usize> = (0..parts.len()).collect();
    by_rest.sort_by_key(|&index| (Reverse(parts[index].rest), claims[index].id));
    for (index, _) in by_rest.into_iter().zip(0..left.0) {
        parts[index].whole += PageCount(1);
    }
    parts.into_iter().map(|part| part.whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim((weight, min, range): (u64, u64, u64)) -> Claim {
        Claim {
            id: VmId(0),
            weight: NonZeroU64::new(weight).unwrap(),
            min: PageCount(min),
            max: PageCount(min + range),
        }
    }

    prop_compose! {
        fn claims()(
            numbers in prop::collection::vec((1u64..60, 0u64..40, 0u64..80), 0..8)
        ) -> Vec<Claim> {
            (0..).map(VmId).zip(numbers).map(|(id, numbers)| Claim { id, ..claim(numbers) }).collect()
        }
    }

    fn pages_per_weight(part: PageCount, claim: &Claim) -> (u64, u64) {
        (part.0, claim.weight.get())
    }

    fn is_less((left, left_weight): (u64, u64), (right, right_weight): (u64, u64)) -> bool {
        left * right_weight < right * left_weight
    }

    /// The slow obvious way: a page at a time to whoever has the fewest per weight.
    fn page_by_page(memory: PageCount, claims: &[Claim]) -> Vec<PageCount> {
        let mut parts: Vec<PageCount> = claims.iter().map(|claim| claim.min).collect();
        while total(parts.iter().copied()) < memory {
            let poorest = (0..claims.len())
                .filter(|&index| parts[index] < claims[index].max)
                .reduce(|best, index| {
                    let ratio = |index: usize| pages_per_weight(parts[index], &claims[index]);
                    if is_less(ratio(index), ratio(best)) {
                        index
                    } else {
                        best
                    }
                });
            let Some(poorest) = poorest else { break };
            parts[poorest] += PageCount(1);
        }
        parts
    }

    #[test]
    fn equal_weights_divide_equally_and_the_odd_page_goes_to_the_first_admitted() {
        let numbers = (10, 0, 100);
        let claims = [2, 1, 0].map(|id| Claim {
            id: VmId(id),
            ..claim(numbers)
        });
        assert_eq!(divide(PageCount(100), &claims), [33, 33, 34].map(PageCount));
    }

    #[test]
    fn what_a_max_leaves_goes_to_the_others_by_weight() {
        let claims = [(10, 0, 10), (10, 0, 100), (20, 0, 100)].map(claim);
        assert_eq!(divide(PageCount(100), &claims), [10, 30, 60].map(PageCount));
    }

    #[test]
    fn what_a_min_needs_comes_from_the_others_by_weight() {
        let claims = [(1, 70, 30), (10, 0, 100), (20, 0, 100)].map(claim);
        assert_eq!(divide(PageCount(100), &claims), [70, 10, 20].map(PageCount));
    }

    #[test]
    fn a_thousand_vms_of_the_largest_size_do_not_overflow() {
        let largest = Claim {
            weight: NonZeroU64::new(20 << 40).unwrap(),
            ..claim((1, 0, 1 << 40))
        };
        let parts = divide(PageCount(999 << 40), &vec![largest; 1000]);
        assert_eq!(total(parts), PageCount(999 << 40));
    }

    proptest! {
        #[test]
        fn parts_add_up_and_keep_their_bounds(memory in 0u64..600, claims in claims()) {
            let memory = PageCount(memory);
            let parts = divide(memory, &claims);
            let least = total(claims.iter().map(|claim| claim.min));
            let most = total(claims.iter().map(|claim| claim.max));
            prop_assert_eq!(total(parts.iter().copied()), memory.clamp(least, most));
            for (part, claim) in parts.iter().zip(&claims) {
                prop_assert!(claim.min <= *part && *part <= claim.max);
            }
        }

        /// Whoever could be taken from has, less one page, not more per weight than whoever could be
        /// given to has with one page more.
        #[test]
        fn prices_are_equal_to_within_a_page(memory in 0u64..600, claims in claims()) {
            let parts = divide(PageCount(memory), &claims);
            for (rich, rich_claim) in parts.iter().zip(&claims).filter(|(part, claim)| **part > claim.min) {
                for (poor, poor_claim) in parts.iter().zip(&claims).filter(|(part, claim)| **part < claim.max) {
                    prop_assert!(is_less(
                        pages_per_weight(*rich - PageCount(1), rich_claim),
                        pages_per_weight(*poor + PageCount(1), poor_claim),
                    ));
                }
            }
        }

        /// The model rounds all of them up and takes the difference from the last, so that a wide one
        /// may be off by as many pages as there are VMs.
        #[test]
        fn parts_are_those_of_dividing_page_by_page(memory in 0u64..600, claims in claims()) {
            let parts = divide(PageCount(memory), &claims);
            for (part, model) in parts.iter().zip(page_by_page(PageCount(memory), &claims)) {
                prop_assert!(part.0.abs_diff(model.0) <= claims.len() as u64, "{} against {}", part.0, model.0);
            }
        }

        #[test]
        fn more_weight_never_means_fewer_pages(
            memory in 0u64..600, claims in claims(), which: prop::sample::Index, more in 1u64..100
        ) {
            prop_assume!(!claims.is_empty());
            let which = which.index(claims.len());
            let mut heavier = claims.clone();
            heavier[which].weight = heavier[which].weight.saturating_add(more);
            prop_assert!(
                divide(PageCount(memory), &heavier)[which] >= divide(PageCount(memory), &claims)[which]
            );
        }

        #[test]
        fn the_order_of_claims_does_not_matter(memory in 0u64..600, claims in claims()) {
            let mut reversed: Vec<Claim> = claims.clone();
            reversed.reverse();
            let mut parts = divide(PageCount(memory), &reversed);
            parts.reverse();
            prop_assert_eq!(parts, divide(PageCount(memory), &claims));
        }
    }
}
