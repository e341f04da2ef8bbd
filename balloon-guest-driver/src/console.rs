//! The console: lines typed by people or sent by programs, and what they ask for.

use crate::workload::Order;

/// The longest line; more than any command needs.
const LINE_MAX: usize = 256;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;
const CONTROL_U: u8 = 0x15;

/// A line being typed.
#[derive(Debug)]
pub struct LineEditor {
    line: [u8; LINE_MAX],
    length: usize,
    complete: bool,
    after_return: bool,
}

/// What a typed byte did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Typed {
    /// Nothing to show.
    Nothing,
    /// It was added, and should be shown.
    Echo(u8),
    /// So many were taken back, and should vanish.
    Erase(usize),
    /// The line is complete: see [`LineEditor::line`].
    Complete,
}

impl LineEditor {
    /// An empty line.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            line: [0; LINE_MAX],
            length: 0,
            complete: false,
            after_return: false,
        }
    }

    /// Takes the next byte. CR, LF or both end a line; bytes beyond the longest line and those
    /// that are no printable ASCII are dropped.
    pub fn push(&mut self, byte: u8) -> Typed {
        if core::mem::take(&mut self.complete) {
            self.length = 0;
        }
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        match byte {
            b'\n' if after_return => Typed::Nothing,
            b'\r' | b'\n' => {
                self.complete = true;
                Typed::Complete
            }
            BACKSPACE | DELETE => self.erase(1),
            CONTROL_U => self.erase(LINE_MAX),
            b' '..=b'~' if self.length < LINE_MAX => {
                self.line[self.length] = byte;
                self.length += 1;
                Typed::Echo(byte)
            }
            _ => Typed::Nothing,
        }
    }

    fn erase(&mut self, count: usize) -> Typed {
        let count = count.min(self.length);
        self.length -= count;
        if count == 0 {
            Typed::Nothing
        } else {
            Typed::Erase(count)
        }
    }

    /// What is shown of a line that is not complete.
    #[must_use]
    pub fn incomplete(&self) -> &str {
        if self.complete { "" } else { self.line() }
    }

    /// The line so far, or the complete one until more is typed.
    #[must_use]
    pub fn line(&self) -> &str {
        // Only printable ASCII was let in.
        core::str::from_utf8(&self.line[..self.length]).unwrap_or("")
    }
}

impl Default for LineEditor {
    fn default() -> Self {
        Self::new()
    }
}

/// What `help` says.
pub const HELP: &str = "\
help             this
workload SPEC    run idle, toucher, clone, verify, breaker, dbench or tile, as in verify:size=max,rate=0
  toucher        size=64M|max active=max write=50 dist=uniform|zipf theta=0.99 rate=0
  clone          size=max zero=25 common=35 rewrite=1 seed=1 shuffle=0|1
  verify         size=max rate=20000 write=50 common=0
  breaker        size=64M|max seed=1 loop=0|1
  dbench         size=max clients=40 files=256M|max write=20 dist=uniform|zipf theta=0.99 rate=0
                 seed=1 seek_us=1000 depth=1; writes over what is on the disk
  tile           size=64M low=48M active=32M common=25 period_s=30 rate=100 write=30 theta=0.7 seed=1
                 files=24M ops=0 clients=4 seek_us=1000; with ops it needs a disk, which it writes over
break            breaker: write to every page once, and time it
restore          breaker: make every page as it was
stop             run nothing
report           one line of figures: report {JSON}
off              power off
";

/// A command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command<'a> {
    /// An empty line.
    Nothing,
    /// `help`
    Help,
    /// `workload SPEC`
    Workload(&'a str),
    /// `break` or `restore`
    Order(Order),
    /// `stop`
    Stop,
    /// `report`
    Report,
    /// `off`
    Off,
    /// No command.
    Unknown(&'a str),
}

impl<'a> Command<'a> {
    /// Reads a line.
    #[must_use]
    pub fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (name, rest.trim()) {
            ("", _) => Self::Nothing,
            ("help", "") => Self::Help,
            ("workload", spec) => Self::Workload(spec),
            ("break", "") => Self::Order(Order::Break),
            ("restore", "") => Self::Order(Order::Restore),
            ("stop", "") => Self::Stop,
            ("report", "") => Self::Report,
            ("off", "") => Self::Off,
            _ => Self::Unknown(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let mut editor = LineEditor::new();
        let mut lines = Vec::new();
        for &byte in bytes {
            if editor.push(byte) == Typed::Complete {
                lines.push(editor.line().to_string());
            }
        }
        lines
    }

    #[test]
    fn a_line_ends_with_cr_or_lf_or_both() {
        assert_eq!(lines(b"a\rb\nc\r\nd\n\n"), ["a", "b", "c", "d", ""]);
    }

    #[test]
    fn a_line_is_incomplete_until_it_ends() {
        let mut editor = LineEditor::new();
        for (byte, shown) in [
            (b'o', "o"),
            (b'f', "of"),
            (b'\r', ""),
            (b'\n', ""),
            (b'x', "x"),
        ] {
            editor.push(byte);
            assert_eq!(editor.incomplete(), shown);
        }
    }

    #[test]
    fn backspace_takes_back_what_there_is() {
        assert_eq!(lines(b"\x08ax\x7fb\x08\x08\x08rep\r"), ["rep"]);
        assert_eq!(lines(b"junk\x15off\r"), ["off"]);
    }

    #[test]
    fn commands_are_told_from_other_lines() {
        assert_eq!(
            Command::parse(" workload  idle "),
            Command::Workload("idle")
        );
        assert_eq!(Command::parse("off"), Command::Off);
        assert_eq!(Command::parse("break"), Command::Order(Order::Break));
        assert_eq!(Command::parse("restore "), Command::Order(Order::Restore));
        assert_eq!(Command::parse("off now"), Command::Unknown("off now"));
        assert_eq!(Command::parse(""), Command::Nothing);
    }

    proptest! {
        #[test]
        fn any_bytes_make_bounded_printable_lines(bytes: Vec<u8>) {
            for line in lines(&bytes) {
                prop_assert!(line.len() <= LINE_MAX && line.bytes().all(|b| (b' '..=b'~').contains(&b)));
                prop_assert_ne!(Command::parse(&line), Command::Unknown(""));
            }
        }
    }
}
