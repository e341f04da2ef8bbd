//! Which pages may be one. Pure: no I/O, no clock, no threads.
//!
//! So far it holds the word that decides who may share with whom; the content index and the frame
//! store's layout build on it.

#![forbid(unsafe_code)]

mod trust;

pub use trust::{InvalidTrustGroup, TrustGroup};
