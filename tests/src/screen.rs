//! A terminal that shows what a person sees: tmux carries out the escape sequences.

use crate::place::Place;
use crate::program::{program, run_to_end};
use crate::wait::wait_for;
use std::process::Command;
use tempfile::TempDir;

/// A terminal with a command of the program. It is closed when this is dropped.
#[derive(Debug)]
pub struct Screen {
    folder: TempDir,
}

impl Screen {
    /// Runs a command in a terminal of that size.
    ///
    /// # Panics
    /// If tmux is missing: tests/run installs it.
    #[must_use]
    pub fn run(place: &Place, words: &[&str], columns: u16, rows: u16) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let screen = Self { folder };
        let mut command = screen.tmux(&["new-session", "-d"]);
        command.args(["-x", &columns.to_string(), "-y", &rows.to_string()]);
        command.arg(program()).arg("--socket").arg(place.socket());
        let _started = run_to_end(command.args(words)).expect_success();
        screen
    }

    /// What it shows now, a text for each row; nothing if the command has ended.
    #[must_use]
    pub fn rows(&self) -> Vec<String> {
        let shown = run_to_end(&mut self.tmux(&["capture-pane", "-p"]));
        shown.stdout.lines().map(str::to_owned).collect()
    }

    /// Waits until some row has all of the words.
    pub fn wait_for(&self, words: &[&str]) -> String {
        let is_it = |row: &String| words.iter().all(|word| row.contains(word));
        wait_for(&format!("a row with {words:?}"), || {
            self.rows().into_iter().find(is_it)
        })
    }

    /// Types keys by tmux's names, such as `q`, `Right`, `C-c`.
    pub fn press(&self, keys: &[&str]) {
        let _pressed = run_to_end(self.tmux(&["send-keys"]).args(keys)).expect_success();
    }

    /// Makes it another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut command = self.tmux(&["resize-window"]);
        command.args(["-x", &columns.to_string(), "-y", &rows.to_string()]);
        let _resized = run_to_end(&mut command).expect_success();
    }

    /// Waits until the command has ended.
    pub fn wait_for_end(&self) {
        wait_for("the command on the screen ends", || {
            let sessions = run_to_end(&mut self.tmux(&["list-sessions"]));
            (sessions.status != Some(0)).then_some(())
        });
    }

    fn tmux(&self, words: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.folder.path().join("socket"));
        command.args(["-f", "/dev/null"]).args(words);
        command.env_remove("TMUX").env("TERM", "xterm-256color");
        command
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(run_to_end(&mut self.tmux(&["kill-server"])));
    }
}
