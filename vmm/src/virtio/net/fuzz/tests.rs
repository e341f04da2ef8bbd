use super::run;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use std::path::Path;

/// Random inputs of one test run: some seconds of work.
const RANDOM_INPUTS: u64 = 2000;
const LONGEST_INPUT: usize = 2048;

fn seeds() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/net");
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries
        .map(|entry| (name(&entry.path()), std::fs::read(entry.path()).unwrap()))
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

#[test]
fn no_stored_input_breaks_the_card() {
    let seeds = seeds();
    assert!(seeds.len() >= 4, "stored inputs are in their folder");
    for (name, bytes) in seeds {
        let _running = Running(name);
        run(&bytes);
    }
}

#[test]
fn no_random_input_breaks_the_card() {
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
#[test]
fn no_changed_input_breaks_the_card() {
    let first: u64 = rand::random();
    let stored = seeds();
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
