//! What each VM should hold by the closed form of the idle tax: written down apart from the policy and in
//! another way, so that what guests really hold can be compared with it.
//!
//! A page that a VM does not use costs it k = 1/(1 − τ) times one that it does. At a price λ a VM with
//! shares S and A active pages holds S/λ as long as that is no more than A, else A + (S/λ − A)/k, within
//! its min and max (ESX.md, Allocation). λ is where the sum is what there is to hold.

/// A VM's claim. Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Claim {
    /// S.
    pub(crate) shares: f64,
    /// A.
    pub(crate) active: f64,
    /// τ, below 1.
    pub(crate) tax: f64,
    /// What it holds at least.
    pub(crate) min: f64,
    /// What it holds at most.
    pub(crate) max: f64,
}

/// Halvings of the interval in which the price is sought: more than a double has digits.
const HALVINGS: u32 = 200;

impl Claim {
    /// What it holds when a byte for each share costs 1/`wealth`.
    fn at(&self, wealth: f64) -> f64 {
        let earned = self.shares * wealth;
        let idle = (earned - self.active).max(0.0);
        (earned - idle + idle * (1.0 - self.tax)).clamp(self.min, self.max)
    }
}

/// What each holds of `total`.
#[must_use]
pub(crate) fn divide(total: f64, claims: &[Claim]) -> Vec<f64> {
    let sum = |wealth: f64| claims.iter().map(|claim| claim.at(wealth)).sum::<f64>();
    let enough = |claim: &Claim| claim.max / (claim.shares * (1.0 - claim.tax));
    let mut high = claims.iter().map(enough).fold(0.0, f64::max);
    let mut low = 0.0;
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if sum(middle) > total {
            high = middle;
        } else {
            low = middle;
        }
    }
    claims.iter().map(|claim| claim.at(low)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(active: f64, tax: f64) -> Claim {
        Claim {
            shares: 1.0,
            active,
            tax,
            min: 0.0,
            max: 256.0,
        }
    }

    #[test]
    fn the_papers_two_vms_move_apart_with_the_tax() {
        let at = |tax| divide(360.0, &[claim(0.0, tax), claim(256.0, tax)]);
        let near = |found: Vec<f64>, wanted: [f64; 2]| {
            assert!((found[0] - wanted[0]).abs() < 1e-6, "{found:?}");
            assert!((found[1] - wanted[1]).abs() < 1e-6, "{found:?}");
        };
        near(at(0.0), [180.0, 180.0]);
        near(at(0.5), [120.0, 240.0]);
        // 288 would be its part, of which it can hold 256; the rest is the idle one's.
        near(at(0.75), [104.0, 256.0]);
    }

    proptest! {
        #[test]
        fn all_is_held_that_can_be(
            total in 1.0..4000.0,
            vms in proptest::collection::vec(
                (1.0..100.0, 0.0..500.0, 0.0..0.99, 0.0..200.0, 0.0..500.0), 1..6,
            ),
        ) {
            let claims: Vec<Claim> = vms
                .into_iter()
                .map(|(shares, active, tax, min, more)| Claim {
                    shares, active, tax, min, max: min + more,
                })
                .collect();
            let held: f64 = divide(total, &claims).iter().sum();
            let least: f64 = claims.iter().map(|claim| claim.min).sum();
            let most: f64 = claims.iter().map(|claim| claim.max).sum();
            let wanted = total.clamp(least, most);
            prop_assert!((held - wanted).abs() < 1e-3, "{held} of {wanted}");
        }
    }
}
