//! A QEMU by its own monitor.

use super::lever::{LeverError, Look, POLLING_INTERVAL_S, polls};
use super::statistics::{Reported, balloon_in};
use crate::host::qmp::{Leave, Monitor, POLLING_INTERVAL, QmpError};
use crate::host::rate_limit::RateLimit;
use crate::host::state_store::Adoption;
use serde_json::{Value, json};
use std::path::PathBuf;

const CONTAINERS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// Where the device of its balloon is.
pub(super) async fn find_balloon(monitor: &mut Monitor) -> Result<Option<String>, QmpError> {
    for container in CONTAINERS {
        let children = monitor
            .execute("qom-list", json!({"path": container}))
            .await?;
        if let Some(path) = balloon_in(container, &children) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// What its guest has not given up, in bytes.
pub(super) async fn actual(monitor: &mut Monitor) -> Result<u64, QmpError> {
    let answer = monitor.execute("query-balloon", json!({})).await?;
    Ok(answer.get("actual").and_then(Value::as_u64).unwrap_or(0))
}

async fn set_polling(monitor: &mut Monitor, path: &str, seconds: u64) -> Result<(), QmpError> {
    let set = json!({"path": path, "property": POLLING_INTERVAL, "value": seconds});
    monitor.execute("qom-set", set).await.map(drop)
}

/// Its monitor, as far as it is there.
#[derive(Debug)]
pub(super) struct ByMonitor {
    socket: PathBuf,
    /// The process that is to listen there.
    pid: u32,
    /// What may be done to it.
    leave: Leave,
    /// Whether how often it asks its guest is set.
    polls: bool,
    monitor: Option<Monitor>,
    /// Where its balloon is, once its figures are polled there.
    balloon: Option<String>,
}

impl ByMonitor {
    /// That process, which asked its guest for its figures so often before. It is connected by and by.
    pub(super) fn new(socket: PathBuf, pid: u32, leave: Leave, polling_interval_s: u64) -> Self {
        Self {
            socket,
            pid,
            leave,
            polls: polls(leave, polling_interval_s),
            monitor: None,
            balloon: None,
        }
    }

    pub(super) fn connected(self, monitor: Monitor) -> Self {
        Self {
            monitor: Some(monitor),
            ..self
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.monitor.is_none()
    }

    pub(super) async fn connect(&mut self) -> Result<(), LeverError> {
        let monitor = Monitor::connect(&self.socket, self.leave).await?;
        match monitor.pid() == Some(self.pid) {
            true => self.monitor = Some(monitor),
            false => return Err(LeverError::AnotherProcess),
        }
        Ok(())
    }

    pub(super) fn failed(&mut self, error: &QmpError) {
        if error.is_final() {
            self.monitor = None;
        }
        if error.is_final() || error.is_no_device() {
            self.balloon = None;
        }
    }

    fn monitor(&mut self) -> Result<&mut Monitor, QmpError> {
        self.monitor.as_mut().ok_or(QmpError::Closed)
    }

    pub(super) async fn look(&mut self) -> Result<Look, QmpError> {
        let monitor = self.monitor.as_mut().ok_or(QmpError::Closed)?;
        let mut is_new_balloon = false;
        if self.balloon.is_none() {
            self.balloon = find_balloon(monitor).await?;
            if let Some(path) = &self.balloon {
                if self.polls {
                    set_polling(monitor, path, POLLING_INTERVAL_S).await?;
                }
                is_new_balloon = true;
            }
        }
        let held_bytes = match &self.balloon {
            None => None,
            Some(_) => Some(actual(monitor).await?),
        };
        let status = monitor.execute("query-status", json!({})).await?;
        let is_running = status.get("running").and_then(Value::as_bool);
        let reported = match &self.balloon {
            None => Reported::default(),
            Some(path) => {
                let get = json!({"path": path, "property": "guest-stats"});
                let reported = Reported::of(&monitor.execute("qom-get", get).await?);
                reported.with_disks(&monitor.execute("query-blockstats", json!({})).await?)
            }
        };
        Ok(Look {
            held_bytes,
            is_new_balloon,
            is_running: is_running == Some(true),
            reported,
            // It is an event.
            has_begun: false,
            lack: None,
        })
    }

    pub(super) async fn leave(&mut self, bytes: u64) -> Result<(), QmpError> {
        if self.leave.looks_only() {
            return Ok(());
        }
        let value = json!({ "value": bytes });
        let told = self.monitor()?.execute("balloon", value).await;
        told.map(drop)
    }

    pub(super) async fn restore(&mut self, adoption: &Adoption) -> Result<(), QmpError> {
        if !self.polls {
            return Ok(());
        }
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::connect(&self.socket, self.leave).await?);
        }
        let monitor = self.monitor()?;
        if let Some(path) = find_balloon(monitor).await? {
            set_polling(monitor, &path, adoption.polling_interval_s).await?;
            self.leave(adoption.held_bytes).await?;
        }
        Ok(())
    }

    pub(super) async fn event(&mut self, limit: &RateLimit) -> Result<String, QmpError> {
        tokio::time::sleep_until(limit.next().into()).await;
        let Some(monitor) = &mut self.monitor else {
            return std::future::pending().await;
        };
        let event = monitor.event().await?;
        if event.name == "DEVICE_DELETED" {
            self.balloon = None;
        }
        Ok(event.name)
    }
}
