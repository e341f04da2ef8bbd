//! What happened, as the host remembers it: the newest few, so that memory is bounded whatever
//! guests and clients do.

use crate::api::EventView;
use crate::name::VmName;
use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

const KEPT: usize = 256;

/// The newest events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<EventView>);

impl Events {
    /// Remembers an event and logs it.
    pub(super) fn add(&mut self, vm: Option<&VmName>, what: impl Into<String>) {
        let what = what.into();
        match vm {
            Some(vm) => tracing::info!(%vm, "{what}"),
            None => tracing::info!("{what}"),
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(EventView {
            time_ms: now_ms(),
            vm: vm.cloned(),
            what,
        });
    }

    pub(super) fn list(&self) -> Vec<EventView> {
        self.0.iter().cloned().collect()
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
