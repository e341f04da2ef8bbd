//! Whether a VM process answers. One that does not may be stopped by a signal, hang, or get no processor; what it
//! holds stays counted as before.

use super::Vm;
use std::time::{Duration, Instant};

/// A question that is not answered so long is told of: many times what a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was told of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silence {
    /// When it did not answer for the first time of those that follow.
    since: Option<Instant>,
    is_told: bool,
}

impl Silence {
    /// What there is to tell.
    fn look(&mut self, answers: bool, now: Instant) -> Option<String> {
        if answers {
            let before = std::mem::take(self);
            let since = before.since.filter(|_| before.is_told)?;
            let seconds = now.saturating_duration_since(since).as_secs();
            return Some(format!("answers again, after {seconds} s"));
        }
        let since = *self.since.get_or_insert(now);
        let is_news = !self.is_told && now.saturating_duration_since(since) >= PATIENCE;
        self.is_told |= is_news;
        is_news.then(|| {
            let seconds = PATIENCE.as_secs();
            format!("has not answered for {seconds} s; its last figures stand. See with `ps` whether its process was stopped (state T) or gets no processor")
        })
    }
}

impl Vm {
    /// What there is to tell about its answers.
    pub(in crate::host) fn watch_silence(&mut self) -> Option<String> {
        self.running()?;
        let answers = self.responding();
        self.seen.silence.look(answers, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_once_when_it_lasts_and_once_when_it_ends() {
        let (mut silence, begin) = (Silence::default(), Instant::now());
        let answers = |second| !(5..=7).contains(&second) && !(100..150).contains(&second);
        let told: Vec<u64> = (0..200)
            .filter(|&second| {
                let now = begin + Duration::from_secs(second);
                silence.look(answers(second), now).is_some()
            })
            .collect();
        assert_eq!(told, [110, 150]);
    }
}
