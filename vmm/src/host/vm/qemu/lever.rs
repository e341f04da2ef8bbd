//! How a QEMU is reached: by its own monitor, or by the libvirt that has it. What is told to it and heard of it is the same.

use super::by_libvirt::ByLibvirt;
use super::by_monitor::ByMonitor;
use super::statistics::Reported;
use crate::host::libvirt::VirshError;
use crate::host::qmp::{Leave, QmpError};
use crate::host::rate_limit::RateLimit;
use crate::host::state_store::Adoption;
use thiserror::Error;

/// How often a guest is asked for its figures, in seconds: each time wakes it.
pub(super) const POLLING_INTERVAL_S: u64 = 2;

/// Whether how often QEMU asks its guest is set, that did it so often before. Where it is looked at only, what somebody else has
/// set is good enough.
pub(super) fn polls(leave: Leave, before_s: u64) -> bool {
    match leave {
        Leave::Manage => true,
        Leave::Look => false,
        Leave::LookAndPoll => before_s == 0,
    }
}

/// Why a QEMU is not reached, or does not do what it is told.
#[derive(Debug, Error)]
pub(in crate::host) enum LeverError {
    #[error("its monitor")]
    Monitor(#[from] QmpError),
    #[error("another process listens at its monitor's socket")]
    AnotherProcess,
    #[error(transparent)]
    Libvirt(#[from] VirshError),
}

impl LeverError {
    /// Whether it is known in a moment what this means: that it has ended, or why it cannot be reached.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Monitor(error) => error.is_no_device() || matches!(error, QmpError::Closed),
            Self::Libvirt(error) => matches!(error, VirshError::NotYet),
            Self::AnotherProcess => false,
        }
    }
}

/// What is seen of it at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Look {
    /// What its guest has not given up, in bytes; none if it has no balloon.
    pub(super) held_bytes: Option<u64>,
    /// Whether its balloon is another one than before, which was told nothing yet.
    pub(super) is_new_balloon: bool,
    pub(super) is_running: bool,
    pub(super) reported: Reported,
    /// Whether its guest has begun anew since the look before, as far as that shows here.
    pub(super) has_begun: bool,
    /// What is to be told of it, each time that it is the case.
    pub(super) lack: Option<&'static str>,
}

#[derive(Debug)]
pub(super) enum Lever {
    Monitor(ByMonitor),
    Libvirt(ByLibvirt),
}

impl Lever {
    /// Whether it is to be connected anew, from time to time.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Monitor(monitor) => monitor.is_lost(),
            Self::Libvirt(_) => false,
        }
    }

    pub(super) async fn connect(&mut self) -> Result<(), LeverError> {
        match self {
            Self::Monitor(monitor) => monitor.connect().await,
            Self::Libvirt(_) => Ok(()),
        }
    }

    /// It did not do what it was told: what is known of its connection may be void.
    pub(super) fn failed(&mut self, error: &LeverError) {
        if let (Self::Monitor(monitor), LeverError::Monitor(error)) = (self, error) {
            monitor.failed(error);
        }
    }

    /// How things stand. Its guest is asked for its figures from the first time on.
    pub(super) async fn look(&mut self) -> Result<Look, LeverError> {
        match self {
            Self::Monitor(monitor) => monitor.look().await.map_err(LeverError::from),
            Self::Libvirt(domain) => domain.look().await.map_err(LeverError::from),
        }
    }

    /// Its balloon is to leave its guest so much.
    pub(super) async fn leave(&mut self, bytes: u64) -> Result<(), LeverError> {
        match self {
            Self::Monitor(monitor) => monitor.leave(bytes).await.map_err(LeverError::from),
            Self::Libvirt(domain) => domain.leave(bytes).await.map_err(LeverError::from),
        }
    }

    /// Sets back what was set.
    pub(super) async fn restore(&mut self, adoption: &Adoption) -> Result<(), LeverError> {
        match self {
            Self::Monitor(monitor) => monitor.restore(adoption).await.map_err(LeverError::from),
            Self::Libvirt(domain) => domain.restore(adoption).await.map_err(LeverError::from),
        }
    }

    /// What happens to it, by the name that QEMU has for that, if that is told at all. May be dropped before it has come.
    pub(super) async fn event(&mut self, limit: &RateLimit) -> Result<String, LeverError> {
        match self {
            Self::Monitor(monitor) => monitor.event(limit).await.map_err(LeverError::from),
            Self::Libvirt(_) => std::future::pending().await,
        }
    }
}
