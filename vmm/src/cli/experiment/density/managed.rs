//! The same guests under QEMU's microvm, each adopted by a host of our own as soon as it has booted. QEMU's processes and the
//! host are in a memory cgroup, which counts what they use and does not limit it.

use super::super::super::private_host::{PrivateFolder, with_private_host};
use super::super::qemu_guest::DoesNotBoot;
use super::ballonet::{told, words};
use super::fleet::{Fleet, Look, Started};
use super::kernel::{Inside, MemoryGroup};
use super::probe::Stage;
use super::processes::cpu_s;
use super::qemus::{Alike, Qemus};
use crate::host::{Host, HostOptions};
use anyhow::Result;
use api::{AdoptRequest, HostChange};
use experiment::density::{Density, ManagedSettings, Probe, TileReport};
use policy::TaxRate;
use std::ffi::c_int;
use std::time::Duration;

struct Managed<'a> {
    // Guests end before what they are in.
    qemus: Qemus<'a>,
    host: &'a Host,
    density: &'a Density,
    settings: &'a ManagedSettings,
    group: &'a MemoryGroup,
}

pub(super) async fn probe(
    stage: &Stage<'_>,
    settings: &ManagedSettings,
    interrupt: impl Future<Output = c_int>,
) -> Result<(Probe, Vec<String>)> {
    let folder = PrivateFolder::make("density")?;
    let group = MemoryGroup::new("density")?;
    let _inside = Inside::enter(&group)?;
    let options = options(stage.density, settings)?;
    let script = async |host: &Host| {
        let alike = Alike {
            density: stage.density,
            folder: folder.path(),
            group: &group,
            free_page_reporting: true,
            is_managed: true,
        };
        let mut managed = Managed {
            qemus: Qemus::new(alike)?,
            host,
            density: stage.density,
            settings,
            group: &group,
        };
        let probed = stage.perform(&mut managed).await;
        managed.qemus.end().await;
        probed
    };
    let probe = with_private_host(&folder, &options, interrupt, script).await?;
    Ok((probe, words(&options)))
}

fn options(density: &Density, settings: &ManagedSettings) -> Result<HostOptions> {
    let default = HostOptions::new(told(density, settings.reserve_percent, 0));
    let tax = |percent: u64| percent.to_string().parse::<TaxRate>();
    let change = HostChange {
        idle_tax_permille: settings.idle_tax.map(tax).transpose()?,
        rebalance_interval_s: Some(settings.rebalance_interval_s),
        ..HostChange::default()
    };
    Ok(HostOptions {
        settings: default.settings.with(&change)?,
        given: change,
        ..default
    })
}

impl Fleet for Managed<'_> {
    async fn start(&mut self) -> Result<Started> {
        let Some(socket) = self.qemus.start().await? else {
            return Ok(Started::Refused(DoesNotBoot.to_string()));
        };
        let request = AdoptRequest {
            socket: Some(socket),
            ..AdoptRequest::default()
        };
        Ok(match self.host.adopt(request).await {
            Ok(_) => Started::Runs,
            Err(error) => Started::Refused(crate::error_chain(&error)),
        })
    }

    async fn ask(&mut self, patience: Duration) -> Vec<Option<TileReport>> {
        self.qemus.ask(patience).await
    }

    async fn type_line(&mut self, line: &str) -> Result<()> {
        self.qemus.type_line(line).await
    }

    fn have_ended(&mut self) -> Vec<bool> {
        self.qemus.have_ended()
    }

    fn look(&mut self) -> Result<Look> {
        Ok(Look {
            used: self.group.used_bytes()?,
            saved: 0,
            swapped: 0,
        })
    }

    fn oom_kills(&self) -> Result<u64> {
        self.group.oom_kills()
    }

    fn cpu_s(&self) -> f64 {
        cpu_s(std::process::id()) + self.qemus.cpu_s()
    }

    fn swap_in_us(&self) -> Option<[u64; 2]> {
        None
    }

    async fn take_back(&mut self, bytes: u64) -> Result<bool> {
        let told = told(self.density, self.settings.reserve_percent, bytes);
        let change = HostChange {
            memory_bytes: Some(told.bytes()),
            ..HostChange::default()
        };
        // Refused where it would break a promise.
        Ok(self.host.set_host(&change).await.is_ok())
    }
}
