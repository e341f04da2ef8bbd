//! Lines to and from a guest, through `ballonet console` with its input from a pipe.

use crate::place::Place;
use crate::wait::wait_while_progress;
use crate::{Value, number};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// All that a program has printed so far.
#[derive(Clone, Debug, Default)]
pub struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    /// Reads until the end, in a thread of its own.
    #[must_use]
    pub fn by(mut source: impl Read + Send + 'static) -> Self {
        let printed = Self::default();
        let own = printed.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                own.bytes().extend_from_slice(&buffer[..count]);
            }
        });
        printed
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It as text, from a byte on.
    #[must_use]
    pub fn text_from(&self, start: usize) -> String {
        let bytes = self.bytes();
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
    }

    /// How many bytes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bytes().len()
    }

    /// Waits for a text after the first `start` bytes.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for(&self, text: &str, start: usize) {
        self.wait_for_part(&format!("'{text}' is printed"), start, |printed| {
            printed.contains(text).then_some(())
        });
    }

    /// Waits until there is something to find in what comes after the first `start` bytes, as long as more comes.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for_part<T>(
        &self,
        what: &str,
        start: usize,
        find: impl Fn(&str) -> Option<T>,
    ) -> T {
        wait_while_progress(what, || {
            let (count, text) = (self.count(), self.text_from(start));
            find(&text).ok_or((count, text))
        })
    }
}

/// A client on a guest's console.
#[derive(Debug)]
pub struct GuestConsole {
    client: Child,
    input: ChildStdin,
    printed: Printed,
}

impl GuestConsole {
    /// Attaches to the console of a VM; only what it prints from now on is seen.
    #[must_use]
    pub fn attach(place: &Place, name: &str) -> Self {
        Self::attach_replaying(place, name, "0")
    }

    /// Attaches to the console of a VM; so much of what it printed before comes first.
    ///
    /// # Panics
    /// If the program cannot be run.
    #[must_use]
    pub fn attach_replaying(place: &Place, name: &str, size: &str) -> Self {
        let mut client = place
            .command(&["console", name, "--replay", size])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be run");
        let input = client.stdin.take().expect("it is piped");
        let output = client.stdout.take().expect("it is piped");
        Self {
            client,
            input,
            printed: Printed::by(output),
        }
    }

    /// The client's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.client.id()
    }

    /// Types a line.
    ///
    /// # Panics
    /// If the client has ended.
    pub fn type_line(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the console is open");
    }

    /// Types a line and waits for what the guest answers, up to and without its next prompt.
    pub fn ask(&mut self, line: &str) -> String {
        // The guest echoes what is typed; what comes after the echo is the answer.
        let start = self.printed.count();
        self.type_line(line);
        let echo = format!("{line}\r\n");
        let what = format!("the guest answers '{line}'");
        self.printed.wait_for_part(&what, start, |text| {
            let (_, answer) = text.split_once(&echo)?;
            let (answer, _) = answer.split_once("> ")?;
            Some(answer.to_owned())
        })
    }

    /// Waits until the guest has printed a text, before or after now.
    pub fn expect(&self, text: &str) {
        self.printed.wait_for(text, 0);
    }

    /// All that was printed.
    #[must_use]
    pub fn text(&self) -> String {
        self.printed.text_from(0)
    }

    /// The guest's figures.
    ///
    /// # Panics
    /// If the guest does not answer with its report.
    pub fn report(&mut self) -> Value {
        let answer = self.ask("report");
        parse_report(&answer).unwrap_or_else(|| panic!("no report: {answer}"))
    }

    /// Starts a workload.
    ///
    /// # Panics
    /// If the guest refuses it.
    pub fn workload(&mut self, spec: &str) {
        let answer = self.ask(&format!("workload {spec}"));
        assert!(!answer.contains("error"), "{answer}");
    }

    /// Waits until the guest has checked more pages than `count`; its report then.
    pub fn wait_for_checks(&mut self, count: u64) -> Value {
        // It fills what it is to hold before it checks any of it.
        wait_while_progress("the guest checks pages, or holds more", || {
            let report = self.report();
            let checks = number(&report, "/checks");
            let held = number(&report, "/held");
            match checks > count {
                true => Ok(report),
                false => Err((checks, held)),
            }
        })
    }

    /// Waits until the guest holds so much memory; its report then.
    pub fn wait_until_held(&mut self, bytes: u64) -> Value {
        self.wait_for_figure("/held", bytes / 4096)
    }

    /// Waits until a figure of the guest's report is as large, as long as it rises; the report then.
    pub fn wait_for_figure(&mut self, pointer: &str, least: u64) -> Value {
        wait_while_progress(&format!("{pointer} of the guest's report rises"), || {
            let report = self.report();
            match number(&report, pointer) {
                figure if figure >= least => Ok(report),
                figure => Err(figure),
            }
        })
    }
}

/// The figures in a line `report {…}`.
#[must_use]
pub fn parse_report(text: &str) -> Option<Value> {
    let json = text.lines().find_map(|line| line.strip_prefix("report "))?;
    serde_json::from_str(json).ok()
}

impl Drop for GuestConsole {
    fn drop(&mut self) {
        // It may have ended by itself, with its VM.
        drop(self.client.kill());
        drop(self.client.wait());
    }
}
