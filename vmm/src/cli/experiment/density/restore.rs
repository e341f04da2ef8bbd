//! Settings of the machine that are changed for a while, and put back whatever happens: when their
//! guard is dropped, when a thread panics, when somebody presses Ctrl-C.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What was there before, the latest change last.
static CHANGED: Mutex<Vec<(PathBuf, String)>> = Mutex::new(Vec::new());

/// A changed setting. It is as it was when this is dropped.
#[derive(Debug)]
pub(crate) struct Changed(PathBuf);

impl Changed {
    pub(crate) fn set(path: impl AsRef<Path>, value: &str) -> Result<Self> {
        let path = path.as_ref();
        let before = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        CHANGED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((path.into(), before));
        let changed = Self(path.into());
        fs::write(path, value).with_context(|| path.display().to_string())?;
        Ok(changed)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        let mut changed = CHANGED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = changed.iter().rposition(|(path, _)| *path == self.0) {
            let (path, before) = changed.remove(place);
            put_back(&path, &before);
        }
    }
}

fn put_back(path: &Path, before: &str) {
    // A list of choices has the chosen one in brackets.
    let chosen = before
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    let value = chosen.map_or(before.trim(), |(chosen, _)| chosen);
    if let Err(error) = fs::write(path, value) {
        eprintln!("{} is not {value} again: {error}", path.display());
    }
}

/// Puts all back that is still changed.
pub(crate) fn put_all_back() {
    let mut changed = CHANGED.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((path, before)) = changed.pop() {
        put_back(&path, &before);
    }
}

/// From now on a panic puts all back first.
pub(crate) fn on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        put_all_back();
    }));
}
