//! Commands in the outer machine of `tests/nested/run`, where the kernel's own `kvm_amd` runs guests.
//!
//! That machine is emulated in software and ten times slower than the one around it; its tests want
//! every processor for themselves. The script sets the time limits, for it can end them all.

use crate::Place;
use crate::program::Done;
use crate::wait::SLOWNESS_VARIABLE;
use std::path::Path;
use std::process::{Command, Stdio};

/// How many times slower it is than the machine around it.
const SLOWNESS: &str = "10";

/// The script's exit status if the machine stood still.
const STOOD_STILL: i32 = 123;

/// A command in the outer machine, which may run for so many seconds.
#[must_use]
pub fn inside(place: &Place, seconds: u32, words: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("nested/run");
    let mut command = Command::new(script);
    command
        .args(["-t", &seconds.to_string(), "--"])
        .args(words)
        .env(SLOWNESS_VARIABLE, SLOWNESS)
        .stdin(Stdio::null());
    place.adapt(&mut command);
    command
}

/// Runs it to its end.
#[must_use]
pub fn run_inside(place: &Place, seconds: u32, words: &[&str]) -> Done {
    wait_for_end(&mut inside(place, seconds, words))
}

/// However long it takes: the script has its limit. A machine that stood still, with all that ran in it, says nothing of what
/// ran: it is started once more, and the second time counts.
fn wait_for_end(command: &mut Command) -> Done {
    let mut output = command.output().expect("the script can be run");
    if output.status.code() == Some(STOOD_STILL) {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        output = command.output().expect("the script can be run");
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done {
        command: format!("{command:?}"),
        status: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// Runs one test of the calling test program in the outer machine, which may be one that is ignored
/// elsewhere. Prints what it printed.
///
/// # Panics
/// If the test fails there, or is not there.
pub fn test_inside(seconds: u32, name: &str) {
    test_inside_with(seconds, name, &[]);
}

/// Like [`test_inside`], with more environment variables.
///
/// # Panics
/// If the test fails there, or is not there.
pub fn test_inside_with(seconds: u32, name: &str, variables: &[(&str, &str)]) {
    let place = Place::new();
    let program = std::env::current_exe().expect("a test knows its program");
    let program = program.to_str().expect("its path is text");
    let words = [program, "--exact", name, "--include-ignored", "--nocapture"];
    let mut command = inside(&place, seconds, &words);
    command.envs(variables.iter().copied());
    let printed = wait_for_end(&mut command).expect_success();
    println!("{printed}");
    assert!(printed.contains("1 passed"), "no such test: {name}");
}
