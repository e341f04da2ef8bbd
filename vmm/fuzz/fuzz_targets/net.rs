//! A network card's queues and registers under a guest and a network that do anything. From the folder
//! `vmm`: `cargo +nightly fuzz run net fuzz/corpus/net fuzz/seeds/net`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ballonet::internals::fuzz_net(bytes));
