//! What a VM process sends to its host, at both of its sockets. From the folder `vmm`:
//! `cargo +nightly fuzz run vm fuzz/corpus/vm fuzz/seeds/vm`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ballonet::internals::fuzz_vm(bytes));
