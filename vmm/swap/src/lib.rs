//! The log
#![forbid(unsafe_code)]
mod index;
mod record;
mod seal;
pub use record::*;
pub use seal::*;
