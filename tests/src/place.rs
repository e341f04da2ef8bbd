//! A private place for a host, and the proof that nothing was left behind in it.

use crate::process::{self, Signal};
use crate::program::{Done, program, run_to_end};
use crate::wait::patience;
use crate::{Value, number};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// All that is started in a place, and what that starts, has this variable with the place's name.
const PLACE_VARIABLE: &str = "BALLONET_TEST_PLACE";
const POLL: Duration = Duration::from_millis(20);

/// A folder with a socket in it, at which a host may serve.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
}

impl Place {
    /// A new one; no host serves there.
    ///
    /// # Panics
    /// If the machine has no room for it.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("ballonet-test-")
            .tempdir()
            .expect("a temporary folder can be made");
        let place = Self { folder };
        fs::create_dir(place.temporary_folder()).expect("a folder can be made");
        place
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where its host serves.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path().join("host.sock")
    }

    /// What its host keeps: it goes with a host that ends in order.
    #[must_use]
    pub fn host_folder(&self) -> PathBuf {
        self.path().join("host.sock.d")
    }

    /// Where what outlives its host is kept: made when there is something.
    #[must_use]
    pub fn state_folder(&self) -> PathBuf {
        self.path().join("state")
    }

    /// Where commands put what is temporary; looked at in the end.
    #[must_use]
    pub fn temporary_folder(&self) -> PathBuf {
        self.path().join("tmp")
    }

    /// A command of the program in this place.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(words);
        self.adapt(&mut command);
        command
    }

    /// Makes a command one of this place.
    pub fn adapt(&self, command: &mut Command) {
        command
            .env("BALLONET_SOCKET", self.socket())
            .env("TMPDIR", self.temporary_folder())
            .env("BALLONET_STATE", self.state_folder())
            .env(PLACE_VARIABLE, self.path())
            .env_remove("RUST_LOG");
    }

    /// Runs a command to its end.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> Done {
        run_to_end(&mut self.command(words))
    }

    /// Runs a command that must succeed; what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn ok(&self, words: &[&str]) -> String {
        self.run(words).expect_success()
    }

    /// Runs a command with `--json`; what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn json(&self, words: &[&str]) -> Value {
        let printed = self.ok(&[words, &["--json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// Runs a command that must fail with that status and a message with all of `words`.
    ///
    /// # Panics
    /// If it does not.
    pub fn fails(&self, command: &[&str], status: i32, words: &[&str]) {
        self.run(command).expect_failure(status, words);
    }

    /// One VM.
    #[must_use]
    pub fn vm(&self, name: &str) -> Value {
        self.json(&["stats", name])
    }

    /// The host and all VMs.
    #[must_use]
    pub fn overview(&self) -> Value {
        self.json(&["stats"])
    }

    /// A VM's process.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn pid(&self, name: &str) -> u32 {
        u32::try_from(number(&self.vm(name), "/pid")).expect("processes have small numbers")
    }

    /// The processes that were started here, or by those, and live.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        process::with_variable(PLACE_VARIABLE, &self.path().to_string_lossy())
    }

    /// Kills every process of this place, and clears away what those had no time to: for tests
    /// whose host was killed.
    pub fn clear(&self) {
        self.kill_all();
        // They may not have been there.
        drop(fs::remove_file(self.socket()));
        drop(fs::remove_dir_all(self.host_folder()));
    }

    fn kill_all(&self) {
        for pid in self.processes() {
            if process::is_alive(pid) {
                process::signal(pid, Signal::KILL);
            }
        }
    }

    /// What is left here; a log may be, and what outlives hosts.
    fn left_behind(&self) -> Vec<String> {
        let files = |folder: &Path| -> Vec<String> {
            let entries = fs::read_dir(folder).expect("the folder is there");
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.collect()
        };
        let processes = self.processes();
        let mut left: Vec<String> = processes.iter().map(|&pid| describe(pid)).collect();
        let logs = ["tmp", "host.log", "state"];
        left.extend(
            files(self.path())
                .into_iter()
                .filter(|name| !logs.contains(&name.as_str())),
        );
        left.extend(files(&self.temporary_folder()));
        left
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

fn describe(pid: u32) -> String {
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("process {pid} ({})", words.replace('\0', " ").trim())
}

impl Drop for Place {
    fn drop(&mut self) {
        let begin = Instant::now();
        let mut left = self.left_behind();
        // A test that has failed already has left things in the middle.
        while !left.is_empty() && !std::thread::panicking() && begin.elapsed() < patience() {
            sleep(POLL);
            left = self.left_behind();
        }
        self.kill_all();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path().join("host.log")).unwrap_or_default();
            eprintln!("left behind: {left:?}\nthe host's log:\n{log}");
        } else {
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}
