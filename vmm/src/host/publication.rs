//! What clients see: one look at everything, published whole.
//!
//! A round publishes what it found, and so does whoever changes something between two rounds. Whoever asks
//! in the meantime gets the last publication, so that what carries the same number is the same wherever it
//! is read: in the API, in /metrics, in the stream and in the commands. It is written as JSON at most once,
//! however many follow.

use crate::host::HostError;
use api::{Figures, Overview, VmView};
use axum::body::Bytes;
use std::sync::{Arc, OnceLock};

/// What was seen at one moment.
#[derive(Debug, Default)]
pub(super) struct Publication {
    pub(super) overview: Overview,
    pub(super) figures: Figures,
    figures_json: OnceLock<Bytes>,
}

impl Publication {
    pub(super) fn new(overview: Overview, figures: Figures) -> Arc<Self> {
        Arc::new(Self {
            overview,
            figures,
            figures_json: OnceLock::new(),
        })
    }

    /// The figures as JSON. Clones are the same bytes.
    pub(super) fn figures_json(&self) -> Bytes {
        let json = self.figures_json.get_or_init(|| {
            let json = serde_json::to_vec(&self.figures);
            json.expect("figures have only text keys").into()
        });
        json.clone()
    }

    /// One VM.
    pub(super) fn vm(&self, name: &str) -> Result<VmView, HostError> {
        let mut vms = self.overview.vms.iter();
        let vm = vms.find(|vm| vm.name.as_str() == name);
        vm.cloned().ok_or_else(|| HostError::unknown_vm(name))
    }
}
