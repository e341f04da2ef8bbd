//! In which order a VM's blocks are scanned: each once a pass, in an order drawn anew for every pass.
//!
//! A random order cannot fall in step with a guest's own sweep through its memory, and what a scan cut
//! short has seen is a fair sample. It must cost no memory, so it is computed: a permutation of the
//! next power of two by rounds of odd multiplication and shifting, walked past numbers that are none of
//! the VM's blocks. Less than half of them are.

use page::mix;

/// A VM's place in its current pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockOrder {
    block_count: u32,
    seed: u64,
    pass: u64,
    step: u64,
}

impl BlockOrder {
    pub(crate) fn new(block_count: u32, seed: u64) -> Self {
        Self {
            block_count,
            seed,
            pass: 0,
            step: 0,
        }
    }

    /// Passes completed.
    pub(crate) fn passes(&self) -> u64 {
        self.pass
    }

    /// The next block. None only for a VM without any.
    pub(crate) fn next(&mut self) -> Option<u32> {
        if self.block_count == 0 {
            return None;
        }
        let bits = u64::from(self.block_count)
            .next_power_of_two()
            .trailing_zeros();
        loop {
            if self.step >> bits != 0 {
                self.step = 0;
                self.pass += 1;
            }
            let block = scramble(self.step, bits, mix(self.seed ^ mix(self.pass)));
            self.step += 1;
            if block < u64::from(self.block_count) {
                return u32::try_from(block).ok();
            }
        }
    }
}

/// A permutation of the numbers of `bits` bits: each round is one.
fn scramble(number: u64, bits: u32, key: u64) -> u64 {
    let mask = (1u64 << bits) - 1;
    let shift = bits.div_ceil(2);
    (0..4).fold(number, |number, round| {
        let key = mix(key ^ round);
        let added = number.wrapping_add(key) & mask;
        let multiplied = added.wrapping_mul(key >> 16 | 1) & mask;
        multiplied ^ (multiplied >> shift)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_block_comes_once_a_pass(block_count in 1u32..2000, seed: u64) {
            let mut order = BlockOrder::new(block_count, seed);
            for pass in 0..3 {
                let mut blocks = Vec::new();
                for _ in 0..block_count {
                    blocks.push(order.next().unwrap());
                    prop_assert_eq!(order.passes(), pass);
                }
                blocks.sort_unstable();
                prop_assert_eq!(blocks, (0..block_count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn passes_differ_and_neighbours_seldom_follow_each_other() {
        let mut order = BlockOrder::new(1024, 7);
        let mut pass = || -> Vec<u32> { (0..1024).map(|_| order.next().unwrap()).collect() };
        let (first, second) = (pass(), pass());
        let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
        assert!(same < 32, "{same} at the same step");
        let next = first
            .windows(2)
            .filter(|pair| pair[0] + 1 == pair[1])
            .count();
        assert!(next < 64, "{next} in sequence");
    }
}
