//! The card under stored, random and changed inputs.

use super::run;
use crate::virtio::fuzz::tests::{run_changed, run_random, run_stored};

#[test]
fn no_stored_input_breaks_the_card() {
    run_stored("net", run);
}

#[test]
fn no_random_input_breaks_the_card() {
    run_random(run);
}

#[test]
fn no_changed_input_breaks_the_card() {
    run_changed("net", run);
}
