//! What clients send, as bodies and as words. From the folder `vmm`:
//! `cargo +nightly fuzz run api fuzz/corpus/api fuzz/seeds/api`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ballonet::internals::fuzz_api(bytes));
