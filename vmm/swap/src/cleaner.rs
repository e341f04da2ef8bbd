//! Which segments are cleaned: what it brings against what it costs.
//!
//! Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File System", ACM Transactions on Computer
//! Systems 10(1), 1992, sections 3.4 and 3.5. A segment of utilisation `u` is read whole (1), what is live is written (u),
//! and `1 - u` is won, for longer the older it is: what has not died for long will not soon.

/// Which segment is cleaned first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleaningPolicy {
    /// That with the fewest needed bytes. For comparison.
    Greedy,
    /// That with the most benefit for its cost: `(1 - u) * age / (1 + u)`.
    CostBenefit,
}

impl CleaningPolicy {
    /// The higher, the sooner it is cleaned. `utilisation` from 0 to 1; `age` of the segment's youngest record, in pages that
    /// were sealed since.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "ages are compared, and nothing else"
    )]
    pub fn worth(self, utilisation: f64, age: u64) -> f64 {
        let won = 1.0 - utilisation;
        match self {
            Self::Greedy => won,
            // Of age 0 nothing would be worth anything.
            Self::CostBenefit => won * (age as f64 + 1.0) / (1.0 + utilisation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn emptier_and_older_segments_come_first(
            u in 0.0..1.0, emptier in 0.0..1.0, age in 0u64..1 << 40, older in 1u64..1 << 40
        ) {
            let u_less = u * emptier;
            for policy in [CleaningPolicy::Greedy, CleaningPolicy::CostBenefit] {
                prop_assert!(policy.worth(u_less, age) >= policy.worth(u, age));
                prop_assert!(policy.worth(u, age + older) >= policy.worth(u, age));
            }
        }
    }

    #[test]
    fn a_cold_segment_is_cleaned_while_it_is_fuller_than_a_hot_one() {
        let policy = CleaningPolicy::CostBenefit;
        // Where the paper found them cleaned: at 75 % and 15 %.
        assert!(policy.worth(0.75, 1000) > policy.worth(0.15, 100));
        assert!(CleaningPolicy::Greedy.worth(0.75, 1000) < CleaningPolicy::Greedy.worth(0.15, 100));
    }
}
