//! The program under test and its commands.

use crate::process::cpu_ticks;
use crate::wait::patience;
use std::env;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);
/// Names another program to test.
const PROGRAM_VARIABLE: &str = "BALLONET";

/// Where the program is: `$BALLONET`, or what `cargo build --release` makes.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn program() -> PathBuf {
    let path = env::var_os(PROGRAM_VARIABLE).map_or_else(built_program, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no {}: run `cargo build --release` first",
        path.display()
    );
    path
}

fn built_program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root.join(target).join("release/ballonet")
}

/// A command that has ended.
#[derive(Clone, Debug)]
pub struct Done {
    /// What was run.
    pub command: String,
    /// Its exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// Its messages.
    pub stderr: String,
}

impl Done {
    /// What it printed.
    ///
    /// # Panics
    /// If it failed.
    #[must_use]
    pub fn expect_success(self) -> String {
        assert_eq!(
            self.status,
            Some(0),
            "`{}` failed: {}{}",
            self.command,
            self.stdout,
            self.stderr
        );
        self.stdout
    }

    /// Checks that it failed with that status and a message that has all of `words`.
    ///
    /// # Panics
    /// If not.
    pub fn expect_failure(&self, status: i32, words: &[&str]) {
        let Self {
            command, stderr, ..
        } = self;
        assert_eq!(self.status, Some(status), "`{command}` said: {stderr}");
        for word in words {
            assert!(
                stderr.contains(word),
                "`{command}` does not say '{word}': {stderr}"
            );
        }
        assert!(
            !stderr.contains("panicked"),
            "`{command}` panicked: {stderr}"
        );
    }
}

/// Runs a command to its end.
///
/// # Panics
/// If it does not end.
#[must_use]
pub fn run_to_end(command: &mut Command) -> Done {
    run_with_input(command, b"")
}

/// Runs a command to its end with something to read.
///
/// # Panics
/// If it does not end.
#[must_use]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Done {
    let words = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{words} does not start: {error}"));
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input is free not to.
        drop(stdin.write_all(input));
    }
    let (mut worked, mut moved) = (0, Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        let ticks = cpu_ticks(child.id());
        if ticks > worked {
            (worked, moved) = (ticks, Instant::now());
        }
        // Some wait for a minute by themselves.
        if moved.elapsed() > patience() * 2 {
            child.kill().expect("a child can be killed");
            panic!("`{words}` does not end");
        }
        sleep(POLL);
    };
    let text = |thread: JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().expect("reading does not panic")).into_owned()
    };
    Done {
        command: words,
        status: status.code(),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    let mut pipe = pipe.expect("it is piped");
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
}
