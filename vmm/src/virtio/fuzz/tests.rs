use super::{blk, run};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use std::path::Path;

/// Random inputs of one test run: some seconds of work.
const RANDOM_INPUTS: u64 = 4000;
const LONGEST_INPUT: usize = 2048;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let read = |path: &Path| std::fs::read(path).unwrap();
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                read(&entry.path()),
            )
        })
        .collect()
}

/// Says which input it was when it panics.
struct Running<T: std::fmt::Display>(T);

impl<T: std::fmt::Display> Drop for Running<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with {}", self.0);
        }
    }
}

pub(crate) fn run_stored(target: &str, run: fn(&[u8])) {
    let seeds = seeds(target);
    assert!(seeds.len() >= 4, "stored inputs are in their folder");
    for (name, bytes) in seeds {
        let _running = Running(name);
        run(&bytes);
    }
}

pub(crate) fn run_random(run: fn(&[u8])) {
    let first: u64 = rand::random();
    for seed in (0..RANDOM_INPUTS).map(|index| first.wrapping_add(index)) {
        let _running = Running(format!("seed {seed}"));
        let mut random = SmallRng::seed_from_u64(seed);
        let mut bytes = vec![0; random.random_range(0..LONGEST_INPUT)];
        random.fill_bytes(&mut bytes);
        run(&bytes);
    }
}

/// Stored inputs with some bytes changed go deeper than random ones.
pub(crate) fn run_changed(target: &str, run: fn(&[u8])) {
    let first: u64 = rand::random();
    let stored = seeds(target);
    for seed in (0..RANDOM_INPUTS).map(|index| first.wrapping_add(index)) {
        let _running = Running(format!("seed {seed}"));
        let mut random = SmallRng::seed_from_u64(seed);
        let (_, mut bytes) = stored[random.random_range(0..stored.len())].clone();
        for _ in 0..random.random_range(1..8) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        run(&bytes);
    }
}

#[test]
fn no_stored_input_breaks_the_balloon() {
    run_stored("balloon", run);
}

#[test]
fn no_random_input_breaks_the_balloon() {
    run_random(run);
}

#[test]
fn no_changed_input_breaks_the_balloon() {
    run_changed("balloon", run);
}

#[test]
fn no_stored_input_breaks_the_disk() {
    run_stored("blk", blk::run);
}

#[test]
fn no_random_input_breaks_the_disk() {
    run_random(blk::run);
}

#[test]
fn no_changed_input_breaks_the_disk() {
    run_changed("blk", blk::run);
}
