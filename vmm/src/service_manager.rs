//! What systemd is told of a host that it started: that it serves, and with each round that it lives.

pub(crate) use sd_notify::NotifyState;

/// Tells it, if there is one.
pub(crate) fn tell(what: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[what]) {
        tracing::debug!("the service manager is not told: {error}");
    }
}
