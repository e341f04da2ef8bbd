//! How long things took, counted in few buckets: what was counted between two reports is their difference, so that a
//! report that was lost loses nothing.

/// Two buckets for each doubling.
const BUCKETS: usize = 32;
/// The first holds all that took less than this.
const LEAST_US: u64 = 16;

/// Things counted by how long they took, since boot.
///
/// The upper bounds of the buckets are 16, 24, 32, 48, 64, 96 microseconds and so on; the last has no bound.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Latencies([u64; BUCKETS]);

impl Latencies {
    /// Nothing was counted yet.
    pub const NONE: Self = Self([0; BUCKETS]);

    /// Something took so long.
    pub(super) const fn note(&mut self, ns: u64) {
        self.0[bucket_of(ns / 1000)] += 1;
    }

    /// How many there are in each bucket, up to the last that has any.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        let used = self.0.iter().rposition(|&count| count > 0);
        &self.0[..used.map_or(0, |last| last + 1)]
    }
}

const fn bucket_of(us: u64) -> usize {
    if us < LEAST_US {
        return 0;
    }
    let doublings = (us / LEAST_US).ilog2();
    let upper_half = us >> doublings >= LEAST_US + LEAST_US / 2;
    let bucket = 1 + 2 * doublings as usize + upper_half as usize;
    if bucket < BUCKETS {
        bucket
    } else {
        BUCKETS - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_as_they_are_told() {
        for (us, bucket) in [
            (0, 0),
            (15, 0),
            (16, 1),
            (23, 1),
            (24, 2),
            (31, 2),
            (32, 3),
            (48, 4),
            (64, 5),
            (1_000, 12),
            (u64::MAX, BUCKETS - 1),
        ] {
            assert_eq!(bucket_of(us), bucket, "{us} us");
        }
        let mut latencies = Latencies::NONE;
        assert!(latencies.buckets().is_empty());
        latencies.note(25_000);
        latencies.note(1_000);
        assert_eq!(latencies.buckets(), [1, 0, 1]);
    }
}
