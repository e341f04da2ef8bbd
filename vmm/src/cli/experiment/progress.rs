//! How far an experiment is: a bar on a terminal, a line for each run elsewhere.

use crate::cli::tell;
use experiment::plan::Run;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// Shown on standard error, so that results can be piped.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    run_s: u32,
    runs: usize,
}

impl Progress {
    /// Of so many runs, each so long.
    pub(super) fn new(title: &str, runs: usize, run_s: u32) -> Self {
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| bar(title, runs, run_s));
        if bar.is_none() {
            tell(&format!("{title}: {runs} runs of {run_s} s\n"));
        }
        Self { bar, run_s, runs }
    }

    /// A run begins.
    pub(super) fn begin(&self, index: usize, run: &Run) {
        let words = format!("run {} of {}  {}", index + 1, self.runs, run.combination);
        match &self.bar {
            Some(bar) => bar.set_message(words.trim_end().to_owned()),
            None => tell(&format!("{}\n", words.trim_end())),
        }
    }

    /// So many seconds of it have passed.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds of a run, which is an hour at most"
    )]
    pub(super) fn tick(&self, index: usize, passed_s: f64) {
        if let Some(bar) = &self.bar {
            let before = index as u64 * u64::from(self.run_s);
            bar.set_position(before + passed_s as u64);
        }
    }

    /// All is done, or broken off.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(title: &str, runs: usize, run_s: u32) -> ProgressBar {
    let length = runs as u64 * u64::from(run_s);
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix}  {bar:30} {elapsed} of {len} s  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(title.to_owned());
    bar
}
