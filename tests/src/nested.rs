//! The outer machine of `tests/nested/run`, where the kernel's own `kvm_amd` works.
//!
//! It is emulated in software and ten times slower than the machine around it, and its tests want
//! every processor for themselves. The script sets the time limits, for it can end them all.

use crate::place::Place;
use crate::program::Done;
use crate::wait::SLOWNESS_VARIABLE;
use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

/// How many times more patience what is inside is to have.
const SLOWNESS: &str = "3";
/// Says that this is inside.
const INSIDE_VARIABLE: &str = "BALLONET_TEST_INSIDE";

/// Whether this is the outer machine.
#[must_use]
pub fn is_inside() -> bool {
    env::var_os(INSIDE_VARIABLE).is_some()
}

/// A command in the outer machine, which may run so long, its start included.
#[must_use]
pub fn inside(place: &Place, limit_seconds: u64, words: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("nested/run");
    let mut command = Command::new(script);
    command
        .args(["-t", &limit_seconds.to_string(), "--"])
        .args(words)
        .env(INSIDE_VARIABLE, "1")
        .env(SLOWNESS_VARIABLE, SLOWNESS)
        .stdin(Stdio::null());
    place.adapt(&mut command);
    command
}

/// Runs a command there to its end.
#[must_use]
pub fn run_inside(place: &Place, limit_seconds: u64, words: &[&str]) -> Done {
    wait(&mut inside(place, limit_seconds, words))
}

/// Runs what [`inside`] made to its end, however long it takes: the script has its limit.
///
/// # Panics
/// If the script cannot be run.
#[must_use]
pub fn wait(command: &mut Command) -> Done {
    let output = command.output().expect("the script can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done {
        command: format!("{command:?}"),
        status: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}
