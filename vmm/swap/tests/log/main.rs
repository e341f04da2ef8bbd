//! The log against a slow model, a disk that fails, spoils and takes its time, and guests that do their worst.
#![allow(missing_docs, reason = "tests")]

mod brim;
mod damage;
mod model;
mod pool;
mod reads;
mod segments;
mod world;
