//! What happened, as the host remembers it: the newest few, so that memory is bounded whatever
//! guests and clients do.

use api::EventView;
use protocol::VmName;
use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

const KEPT: usize = 256;

/// The newest events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Events {
    newest: VecDeque<EventView>,
    /// Events that ever happened.
    count: u64,
}

impl Events {
    /// Remembers an event and logs it.
    pub(super) fn add(&mut self, vm: Option<&VmName>, what: impl Into<String>) {
        let what = one_line(what.into());
        match vm {
            Some(vm) => tracing::info!(%vm, "{what}"),
            None => tracing::info!("{what}"),
        }
        self.remember(vm, what);
    }

    /// The same with one that somebody should look into.
    pub(super) fn warn(&mut self, vm: &VmName, what: impl Into<String>) {
        let what = one_line(what.into());
        tracing::warn!(%vm, "{what}");
        self.remember(Some(vm), what);
    }

    /// The same where it is of no VM.
    pub(super) fn warn_of_all(&mut self, what: impl Into<String>) {
        let what = one_line(what.into());
        tracing::warn!("{what}");
        self.remember(None, what);
    }

    fn remember(&mut self, vm: Option<&VmName>, what: String) {
        self.count += 1;
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(EventView {
            time_ms: now_ms(),
            vm: vm.cloned(),
            what,
        });
    }

    pub(super) fn list(&self) -> Vec<EventView> {
        self.newest.iter().cloned().collect()
    }

    /// Those that `seen` does not count yet, as far as they are remembered; it counts them then.
    pub(super) fn since(&self, seen: &mut u64) -> Vec<EventView> {
        let unseen = self.count.saturating_sub(*seen);
        *seen = self.count;
        let unseen = usize::try_from(unseen).unwrap_or(usize::MAX);
        let skip = self.newest.len().saturating_sub(unseen);
        self.newest.iter().skip(skip).cloned().collect()
    }
}

/// A text in one line, that speaks to no terminal: names of files are in it, which can be anything, and a line that they made would
/// look like the host's own.
fn one_line(what: String) -> String {
    match what.chars().all(is_plain) {
        true => what,
        false => crate::escaped(&what, is_plain),
    }
}

/// Neither a control character nor one that turns the direction of a text or hides in it (Unicode's format characters).
fn is_plain(c: char) -> bool {
    let formats = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !formats
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_makes_lines_of_its_own_or_turns_a_text_around() {
        let mut events = Events::default();
        events.add(None, "/run/a\nhost: b\u{1b}[2J\u{202e}c ü");
        assert_eq!(
            events.list()[0].what,
            "/run/a\\nhost: b\\u{1b}[2J\\u{202e}c ü"
        );
    }

    #[test]
    fn whoever_follows_sees_each_event_once_and_the_newest_if_it_was_long_away() {
        let (mut events, mut seen) = (Events::default(), 0);
        events.add(None, "one");
        assert_eq!(events.since(&mut seen).len(), 1);
        assert!(events.since(&mut seen).is_empty());
        for number in 0..2 * KEPT {
            events.add(None, number.to_string());
        }
        let unseen = events.since(&mut seen);
        assert_eq!(unseen.len(), KEPT);
        assert_eq!(unseen[KEPT - 1].what, (2 * KEPT - 1).to_string());
        assert!(events.since(&mut seen).is_empty());
    }
}
