//! The balloon's queues and registers under a guest that does anything. From the folder `vmm`:
//! `cargo +nightly fuzz run balloon fuzz/corpus/balloon fuzz/seeds/balloon`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ballonet::internals::fuzz_balloon(bytes));
