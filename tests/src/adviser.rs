//! A running `ballonet advise`.

use crate::process::{self, Signal};
use crate::{Place, Value};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

/// An adviser that tells what it would do, line by line.
#[derive(Debug)]
pub struct Adviser {
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Adviser {
    /// Starts one with these words besides.
    ///
    /// # Panics
    /// If the program cannot be run.
    #[must_use]
    pub fn start(place: &Place, words: &[&str]) -> Self {
        let words = [&["advise", "--json", "--interval", "0.2"], words].concat();
        let mut command = place.command(&words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("the program can be run");
        let lines = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { process, lines }
    }

    /// What it says next.
    ///
    /// # Panics
    /// If it has ended, or that is no JSON.
    pub fn next_line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("it can be read");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: '{line}'"))
    }

    /// Ends it by that signal, which it cannot do as it should; what it says of that.
    ///
    /// # Panics
    /// If it does not fail.
    #[must_use]
    pub fn fail_by(self, signal: Signal) -> String {
        process::signal(self.process.id(), signal);
        let lines = self.lines.lines();
        lines.map_while(Result::ok).for_each(drop);
        let output = self.process.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Ends it by that signal; what it said last.
    ///
    /// # Panics
    /// If it ends otherwise than it should.
    pub fn end_by(mut self, signal: Signal) -> Option<Value> {
        process::signal(self.process.id(), signal);
        let lines = self.lines.lines();
        let last = lines.map_while(Result::ok).last();
        let status = self.process.wait().expect("a child can be waited for");
        assert_eq!(status.success(), signal != Signal::KILL, "{status}");
        last.map(|line| serde_json::from_str(&line).expect("it is JSON"))
    }
}
