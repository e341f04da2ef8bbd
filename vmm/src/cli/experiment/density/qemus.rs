//! Equal guests under QEMU's microvm in a memory cgroup, whoever manages them.

use super::super::qemu_guest::{
    DoesNotBoot, GuestDisk, QemuConfig, QemuGuest, image_in, put_image,
};
use super::kernel::MemoryGroup;
use super::processes::cpu_s;
use anyhow::{Context, Result};
use experiment::density::{Density, TileReport};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// What is the same for all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alike<'a> {
    pub(super) density: &'a Density,
    pub(super) folder: &'a Path,
    pub(super) group: &'a MemoryGroup,
    pub(super) free_page_reporting: bool,
    /// Whether a host has them: then each has a monitor, and what is in its balloon may go back to a guest that runs out of memory.
    pub(super) is_managed: bool,
}

/// The guests.
#[derive(Debug)]
pub(super) struct Qemus<'a> {
    alike: Alike<'a>,
    guests: Vec<QemuGuest>,
}

impl<'a> Qemus<'a> {
    /// None so far.
    pub(super) fn new(alike: Alike<'a>) -> Result<Self> {
        put_image(alike.folder).context("cannot put the guest's image into a folder")?;
        Ok(Self {
            alike,
            guests: Vec::new(),
        })
    }

    /// Starts one more; where its monitor is, if it was to have one. None if it does not boot, as without memory.
    pub(super) async fn start(&mut self) -> Result<Option<PathBuf>> {
        let Alike {
            density, folder, ..
        } = self.alike;
        let number = self.guests.len() + 1;
        let disk = folder.join(format!("{number}.img"));
        File::create_new(&disk)
            .and_then(|file| file.set_len(density.disk().bytes()))
            .with_context(|| format!("cannot make {}", disk.display()))?;
        let monitor = folder.join(format!("{number}.qmp"));
        let config = QemuConfig {
            image: &image_in(folder),
            number,
            memory: density.vm(),
            vcpus: 1,
            workload: &density.workload,
            disk: Some(GuestDisk {
                path: &disk,
                is_direct: true,
            }),
            free_page_reporting: self.alike.free_page_reporting,
            deflate_on_oom: self.alike.is_managed,
            monitor: self.alike.is_managed.then_some(&*monitor),
            group: Some(&self.alike.group.processes()),
        };
        match config.start().await {
            Ok(guest) => self.guests.push(guest),
            Err(error) if error.is::<DoesNotBoot>() => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(monitor))
    }

    pub(super) async fn ask(&mut self, patience: Duration) -> Vec<Option<TileReport>> {
        let until = Instant::now() + patience;
        let mut reports = Vec::new();
        for guest in &self.guests {
            // One after the other: each answers in some milliseconds, and is measured by its own clock.
            let left = until.saturating_duration_since(Instant::now());
            reports.push(guest.line.ask_for_report(left).await.ok());
        }
        reports
    }

    pub(super) async fn type_line(&self, line: &str) -> Result<()> {
        for guest in &self.guests {
            guest.line.type_line(line).await?;
        }
        Ok(())
    }

    pub(super) fn have_ended(&mut self) -> Vec<bool> {
        self.guests.iter_mut().map(QemuGuest::has_ended).collect()
    }

    pub(super) fn cpu_s(&self) -> f64 {
        let pids = self.guests.iter().filter_map(QemuGuest::pid);
        pids.map(cpu_s).sum()
    }

    /// Ends all, and waits until they have, so that nothing is counted any more.
    pub(super) async fn end(&mut self) {
        for guest in self.guests.drain(..) {
            guest.end().await;
        }
    }
}
