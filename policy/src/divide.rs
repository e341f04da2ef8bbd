//! Divides memory by weight within bounds and with a tax on what is idle, exactly, to the page.
//!
//! Think of vessels of different width (weight) that stand in the same water: a VM holds
//! `weight · level` pages, but never less than its min nor more than its max. Above its active set a
//! vessel narrows to the part that the idle tax leaves it, so the same rise of the water brings it less.
//! What all hold together rises with the level along a line that bends only where some VM leaves its
//! min, passes its active set or reaches its max. So walking the bends in order finds the line's piece
//! on which the memory is used up, and with it the level as an exact fraction.
//!
//! The level is active pages per share, the reciprocal of ESX's price λ: this is the equilibrium of
//! min-funding revocation, P = S/λ up to the active set A and A + (S/λ − A)/k above, clamped (ESX.md,
//! Allocation).
//!
//! Pages are whole, so each VM gets its fraction rounded down, and the pages left over go one each to
//! those that lost most by that. Nobody is then a whole page away from its exact part, and neither more
//! weight nor more activity ever means fewer pages.

use crate::tax::{PERMILLE, Taxed};
use page::{PageCount, VmId, total};
use std::cmp::{Ordering, Reverse};
use std::num::NonZeroU64;

/// What one VM may get, and its weight in getting it. No count of pages exceeds 2^40 and no weight
/// 2^48, so that with fewer than 2^20 claims all products fit 128 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// Settles who gets a page first among equals, whatever the order of the claims.
    pub(crate) id: VmId,
    pub(crate) weight: NonZeroU64,
    pub(crate) min: PageCount,
    pub(crate) max: PageCount,
    pub(crate) taxed: Taxed,
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

/// Where a claim stands as the level rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    AtMin,
    Active,
    Idle,
    AtMax,
}

/// What is held at a level: `fixed + slope · level` thousandths of a page.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    fixed: u128,
    slope: u128,
}

impl Claim {
    fn line(&self, segment: Segment) -> Line {
        let thousandths = |pages: PageCount, each: u64| u128::from(pages.0) * u128::from(each);
        let rise = |each: u64| u128::from(self.weight.get()) * u128::from(each);
        let kept = self.taxed.rate.kept_permille();
        let (fixed, slope) = match segment {
            Segment::AtMin => (thousandths(self.min, PERMILLE), 0),
            Segment::Active => (0, rise(PERMILLE)),
            Segment::Idle => (thousandths(self.taxed.active, PERMILLE - kept), rise(kept)),
            Segment::AtMax => (thousandths(self.max, PERMILLE), 0),
        };
        Line { fixed, slope }
    }

    /// The segments between min and max, in order, each with the number of pages at which it ends.
    fn segments(&self) -> impl Iterator<Item = (Segment, PageCount)> {
        let active = self.taxed.active.clamp(self.min, self.max);
        [(Segment::Active, active), (Segment::Idle, self.max)]
            .into_iter()
            .scan(self.min, |start, (segment, end)| {
                let is_empty = *start == end;
                *start = end;
                Some((!is_empty).then_some((segment, end)))
            })
            .flatten()
    }
}

/// Active pages per unit of weight: `pages / weight`, each a thousand times.
#[derive(Clone, Copy, Debug)]
struct Level {
    pages: u128,
    weight: u128,
}

/// A claim's exact part: `whole` pages and `rest / (1000 · level.weight)` of one.
#[derive(Clone, Copy, Debug)]
struct Part {
    whole: PageCount,
    rest: u128,
}

impl Level {
    fn part(self, claim: &Claim) -> Part {
        let line = claim.line(self.unbound_segment(claim));
        let exact = line.fixed * self.weight + line.slope * self.pages;
        let page = self.weight * u128::from(PERMILLE);
        let whole = u64::try_from(exact / page).map_or(claim.max, PageCount);
        let clamped = whole.clamp(claim.min, claim.max);
        let is_bound = whole < claim.min || whole >= claim.max;
        Part {
            whole: clamped,
            rest: if is_bound { 0 } else { exact % page },
        }
    }

    /// Where the claim stands at this level, its min and max left aside.
    fn unbound_segment(self, claim: &Claim) -> Segment {
        let earned = u128::from(claim.weight.get()) * self.pages;
        if earned <= u128::from(claim.taxed.active.0) * self.weight {
            Segment::Active
        } else {
            Segment::Idle
        }
    }
}

/// Where a claim goes from one segment to the next: at the level `pages / weight`.
#[derive(Clone, Copy, Debug)]
struct Bend {
    claim: usize,
    from: Segment,
    to: Segment,
    pages: u64,
    weight: u64,
}

impl Bend {
    /// By level, compared as fractions.
    fn order(&self, other: &Self) -> Ordering {
        (u128::from(self.pages) * u128::from(other.weight))
            .cmp(&(u128::from(other.pages) * u128::from(self.weight)))
    }
}

/// The bends of one claim, at rising levels; none if its min is its max.
fn bends_of(index: usize, claim: &Claim) -> impl Iterator<Item = Bend> {
    let weight = claim.weight.get() * claim.taxed.rate.kept_permille();
    let bend = move |from, to, at| Bend {
        claim: index,
        from,
        to,
        pages: claim.taxed.cost(at),
        weight,
    };
    let (mut start, mut from) = (claim.min, Segment::AtMin);
    let rising = claim.segments().map(move |(segment, end)| {
        let bend = bend(from, segment, start);
        (start, from) = (end, segment);
        bend
    });
    let last = claim.segments().last();
    let reaching = last.map(move |(segment, end)| bend(segment, Segment::AtMax, end));
    rising.chain(reaching)
}

fn bends(claims: &[Claim]) -> Vec<Bend> {
    let mut bends: Vec<Bend> = claims
        .iter()
        .enumerate()
        .flat_map(|(index, claim)| bends_of(index, claim))
        .collect();
    bends.sort_unstable_by(Bend::order);
    bends
}

impl Line {
    fn lasts_beyond(self, thousandths: u128, bend: &Bend) -> bool {
        let (pages, weight) = (u128::from(bend.pages), u128::from(bend.weight));
        self.fixed * weight + self.slope * pages >= thousandths * weight
    }

    /// With one claim on another line than before.
    fn after(self, bend: &Bend, claim: &Claim) -> Self {
        let (from, to) = (claim.line(bend.from), claim.line(bend.to));
        Self {
            fixed: self.fixed + to.fixed - from.fixed,
            slope: self.slope + to.slope - from.slope,
        }
    }
}

/// The level at which the claims hold exactly `memory`, which must lie strictly between the sum of
/// mins and the sum of maxes.
///
/// Up to the first bend all are at their min, so the walk passes it; from the last on all are at their
/// max, so the walk ends before it, on a piece that rises and whose slope is therefore not zero.
fn find_level(memory: PageCount, claims: &[Claim]) -> Level {
    let thousandths = u128::from(memory.0) * u128::from(PERMILLE);
    let mut all = Line {
        fixed: claims
            .iter()
            .map(|claim| claim.line(Segment::AtMin).fixed)
            .sum(),
        slope: 0,
    };
    for bend in bends(claims) {
        if all.lasts_beyond(thousandths, &bend) {
            break;
        }
        all = all.after(&bend, &claims[bend.claim]);
    }
    Level {
        pages: thousandths - all.fixed,
        weight: all.slope,
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
    use crate::tax::TaxRate;
    use proptest::prelude::*;

    const THREE_QUARTERS: u16 = 750;

    fn claim((weight, min, range): (u64, u64, u64)) -> Claim {
        Claim {
            id: VmId(0),
            weight: NonZeroU64::new(weight).unwrap(),
            min: PageCount(min),
            max: PageCount(min + range),
            taxed: Taxed::NOTHING,
        }
    }

    fn taxed(claim: Claim, active: u64, permille: u16) -> Claim {
        let rate = TaxRate::from_permille(permille).unwrap();
        let active = PageCount(active);
        let taxed = Taxed { active, rate };
        Claim { taxed, ..claim }
    }

    prop_compose! {
        /// Each with its own rate, often none, often the default.
        fn claims()(
            numbers in prop::collection::vec((1u64..60, 0u64..40, 0u64..80, 0u64..120, rate()), 0..8)
        ) -> Vec<Claim> {
            (0..)
                .map(VmId)
                .zip(numbers)
                .map(|(id, (weight, min, range, active, rate))| Claim {
                    id,
                    ..taxed(claim((weight, min, range)), active, rate)
                })
                .collect()
        }
    }

    fn rate() -> impl Strategy<Value = u16> {
        prop_oneof![Just(0), Just(THREE_QUARTERS), 0u16..1000]
    }

    /// What so many pages cost the claim per share, the reciprocal of ESX's price
    /// ρ = S / (P · (f + k · (1 − f))), where f is the active part of its P pages.
    fn cost_per_share(pages: PageCount, claim: &Claim) -> (u128, u128) {
        let kept = u128::from(claim.taxed.rate.kept_permille());
        let active = u128::from(pages.min(claim.taxed.active).0);
        let idle = u128::from(pages.0) - active;
        let cost_times_kept = active * kept + idle * 1000;
        (cost_times_kept, kept * u128::from(claim.weight.get()))
    }

    fn is_less((left, left_weight): (u128, u128), (right, right_weight): (u128, u128)) -> bool {
        left * right_weight < right * left_weight
    }

    /// The slow obvious way, min-funding revocation: all have all they may, then a page at a time is
    /// taken from whoever pays the lowest price per page.
    fn page_by_page(memory: PageCount, claims: &[Claim]) -> Vec<PageCount> {
        let mut parts: Vec<PageCount> = claims.iter().map(|claim| claim.max).collect();
        while total(parts.iter().copied()) > memory {
            let price_is_lower = |index: usize, best: usize| {
                let cost = |index: usize| cost_per_share(parts[index], &claims[index]);
                is_less(cost(best), cost(index))
            };
            let victim = (0..claims.len())
                .filter(|&index| parts[index] > claims[index].min)
                .reduce(|best, index| {
                    if price_is_lower(index, best) {
                        index
                    } else {
                        best
                    }
                });
            let Some(victim) = victim else { break };
            parts[victim] = parts[victim] - PageCount(1);
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

    /// At 75 % an idle page costs what four active ones cost.
    #[test]
    fn an_idle_vm_keeps_a_quarter_of_what_its_shares_earn() {
        let all = claim((1, 0, 1000));
        let claims = [
            taxed(all, 1000, THREE_QUARTERS),
            taxed(all, 0, THREE_QUARTERS),
        ];
        assert_eq!(divide(PageCount(500), &claims), [400, 100].map(PageCount));
    }

    #[test]
    fn an_active_set_is_kept_before_anything_idle_is() {
        let all = claim((1, 0, 1000));
        let claims = [
            taxed(all, 300, THREE_QUARTERS),
            taxed(all, 200, THREE_QUARTERS),
        ];
        assert_eq!(divide(PageCount(500), &claims), [280, 220].map(PageCount));
    }

    #[test]
    fn a_rate_near_everything_leaves_an_idle_vm_next_to_nothing() {
        let all = claim((1, 0, 1000));
        let claims = [taxed(all, 1000, 999), taxed(all, 0, 999)];
        assert_eq!(divide(PageCount(500), &claims), [500, 0].map(PageCount));
        assert_eq!(divide(PageCount(1500), &claims), [1000, 500].map(PageCount));
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

    #[test]
    fn a_hundred_thousand_taxed_vms_of_the_largest_size_do_not_overflow() {
        let largest = Claim {
            weight: NonZeroU64::new(1 << 48).unwrap(),
            ..claim((1, 0, 1 << 40))
        };
        let claims: Vec<Claim> = (0u64..100_000)
            .map(|index| taxed(largest, index << 20, 999 - (index % 3) as u16))
            .collect();
        let memory = PageCount(60_000 << 40);
        assert_eq!(total(divide(memory, &claims)), memory);
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

        /// Whoever could be taken from would, with one page less, not pay less for its pages than whoever
        /// could be given to with one page more.
        #[test]
        fn prices_are_equal_to_within_a_page(memory in 0u64..600, claims in claims()) {
            let parts = divide(PageCount(memory), &claims);
            for (rich, rich_claim) in parts.iter().zip(&claims).filter(|(part, claim)| **part > claim.min) {
                for (poor, poor_claim) in parts.iter().zip(&claims).filter(|(part, claim)| **part < claim.max) {
                    prop_assert!(is_less(
                        cost_per_share(*rich - PageCount(1), rich_claim),
                        cost_per_share(*poor + PageCount(1), poor_claim),
                    ));
                }
            }
        }

        /// The model rounds all of them down and gives the difference to the last, so that a wide one
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
        fn more_activity_never_means_fewer_pages(
            memory in 0u64..600, claims in claims(), which: prop::sample::Index, more in 1u64..100
        ) {
            prop_assume!(!claims.is_empty());
            let which = which.index(claims.len());
            let mut busier = claims.clone();
            busier[which].taxed.active += PageCount(more);
            prop_assert!(
                divide(PageCount(memory), &busier)[which] >= divide(PageCount(memory), &claims)[which]
            );
        }

        /// An active set that exceeds what it gets has no price to lower.
        #[test]
        fn activity_beyond_what_a_vm_gets_changes_nothing(
            memory in 0u64..600, claims in claims(), which: prop::sample::Index, more in 1u64..100
        ) {
            prop_assume!(!claims.is_empty());
            let which = which.index(claims.len());
            let parts = divide(PageCount(memory), &claims);
            prop_assume!(claims[which].taxed.active > parts[which]);
            let mut boastful = claims;
            boastful[which].taxed.active += PageCount(more);
            prop_assert_eq!(divide(PageCount(memory), &boastful), parts);
        }

        #[test]
        fn a_higher_rate_takes_from_the_idle_only(
            memory in 0u64..600, claims in claims(), which: prop::sample::Index, higher in 1u16..1000
        ) {
            prop_assume!(!claims.is_empty());
            let which = which.index(claims.len());
            prop_assume!(higher > claims[which].taxed.rate.permille());
            let parts = divide(PageCount(memory), &claims);
            let mut dearer = claims.clone();
            dearer[which].taxed.rate = TaxRate::from_permille(higher).unwrap();
            let after = divide(PageCount(memory), &dearer);
            prop_assert!(after[which] <= parts[which]);
            if claims[which].taxed.active > parts[which] {
                prop_assert_eq!(after, parts);
            }
        }

        #[test]
        fn without_a_tax_activity_changes_nothing(memory in 0u64..600, claims in claims()) {
            let untaxed = |taxed: Taxed| {
                let of = |&claim: &Claim| Claim { taxed, ..claim };
                divide(PageCount(memory), &claims.iter().map(of).collect::<Vec<_>>())
            };
            let rate = TaxRate::NONE;
            let busy = Taxed { active: PageCount(60), rate };
            prop_assert_eq!(untaxed(busy), untaxed(Taxed::NOTHING));
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
