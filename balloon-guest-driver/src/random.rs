//! Pseudo-random numbers: fast, small, and the same for the same seed.

/// The odd constant of splitmix64: the golden ratio in 64 bits.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finishing function of splitmix64: a bijection that spreads every bit over all.
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose sequence depends on nothing but the seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next 64 random bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `limit`, by multiplication (Lemire), whose bias at these sizes is
    /// far below what any run could see. 0 for a limit of 0.
    pub const fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * limit as u64) >> 32) as u32
    }

    /// True in `percent` of 100 cases.
    pub const fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < percent as u32
    }

    /// A number in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
    pub const fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The numbers below a count, each once, in a pseudo-random order that needs no table.
#[derive(Clone, Debug)]
pub struct Permutation {
    count: u32,
    bits: u32,
    /// Below two to the power of `bits`: how far it is.
    next: u64,
    offset: u64,
    factors: [u64; 2],
}

impl Permutation {
    /// An order that follows from the seed.
    #[must_use]
    pub const fn new(count: u32, seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            count,
            bits: (count as u64).next_power_of_two().trailing_zeros(),
            next: 0,
            offset: random.next(),
            factors: [random.next() | 1, random.next() | 1],
        }
    }

    /// A bijection of the numbers of so many bits: adding, multiplying by an odd number and folding
    /// high bits into low ones can each be undone.
    fn scatter(&self, number: u64) -> u64 {
        let mask = (1 << self.bits) - 1;
        self.factors
            .iter()
            .fold(number.wrapping_add(self.offset) & mask, |number, factor| {
                let number = number.wrapping_mul(*factor) & mask;
                number ^ (number >> (self.bits / 2 + 1))
            })
    }
}

impl Iterator for Permutation {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.next < 1 << self.bits {
            let number = self.scatter(self.next);
            self.next += 1;
            // More than every other one is below the count.
            if let Ok(number) = u32::try_from(number)
                && number < self.count
            {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_permutation_has_every_number_once(count in 0_u32..5000, seed: u64) {
            let mut numbers: Vec<u32> = Permutation::new(count, seed).collect();
            numbers.sort_unstable();
            prop_assert!(numbers.into_iter().eq(0..count));
        }
    }

    #[test]
    fn neighbours_do_not_follow_each_other_at_one_distance() {
        let numbers: Vec<u32> = Permutation::new(16_384, 1).collect();
        let mut distances: Vec<_> = numbers
            .windows(2)
            .map(|pair| pair[1].wrapping_sub(pair[0]))
            .collect();
        distances.sort_unstable();
        let most = distances.chunk_by(|a, b| a == b).map(<[u32]>::len).max();
        assert!(most < Some(16_384 / 20), "{most:?} at one distance");
    }
}
