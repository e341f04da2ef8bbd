//! A disk's queue and registers under a guest that does anything. From the folder `vmm`:
//! `cargo +nightly fuzz run blk fuzz/corpus/blk fuzz/seeds/blk`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ballonet::internals::fuzz_blk(bytes));
