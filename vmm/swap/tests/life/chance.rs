//! What is left to chance, by the seed of the schedule.

use shuttle::rand::{Rng, thread_rng};

pub(crate) fn is_so(times: u32, of: u32) -> bool {
    thread_rng().gen_ratio(times, of)
}

pub(crate) fn below(end: u64) -> u64 {
    thread_rng().gen_range(0..end)
}

pub(crate) fn place_in(length: usize) -> usize {
    thread_rng().gen_range(0..length)
}

pub(crate) fn choose<T: Copy>(of: &[T]) -> T {
    of[place_in(of.len())]
}

/// This one, and about half of the others.
pub(crate) fn some_of<T: Copy>(one: T, others: &[T]) -> Vec<T> {
    let others = others.iter().copied().filter(|_| is_so(1, 2));
    std::iter::once(one).chain(others).collect()
}

pub(crate) fn shuffled<T>(mut all: Vec<T>) -> Vec<T> {
    for left in (1..all.len()).rev() {
        all.swap(left, place_in(left + 1));
    }
    all
}
