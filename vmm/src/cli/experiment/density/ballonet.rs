//! Guests on a host of our own. Host and VM processes are in a memory cgroup, which counts what they use and does not
//! limit it: to keep its budget is the host's business, and whether it does is looked at.

use super::super::super::guest_report::ask_for_report;
use super::super::super::private_host::{PrivateFolder, with_private_host};
use super::fleet::{Fleet, Look, Started};
use super::kernel::{Inside, MemoryGroup};
use super::probe::Stage;
use super::processes::cpu_s;
use crate::host::{Host, HostOptions};
use anyhow::{Context, Result};
use api::{HostChange, RunRequest, ScanChange};
use experiment::density::{BallonetSettings, Density, Probe, TileReport};
use page::PageCount;
use policy::TaxRate;
use protocol::{DiskSpec, OnHostDeath, VmName};
use std::ffi::c_int;
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;

struct Ours<'a> {
    host: &'a Host,
    density: &'a Density,
    settings: &'a BallonetSettings,
    folder: &'a Path,
    group: &'a MemoryGroup,
    names: Vec<VmName>,
    pids: Vec<u32>,
}

pub(super) async fn probe(
    stage: &Stage<'_>,
    settings: &BallonetSettings,
    interrupt: impl Future<Output = c_int>,
) -> Result<(Probe, Vec<String>)> {
    let folder = PrivateFolder::make("density")?;
    let group = MemoryGroup::new("density")?;
    let _inside = Inside::enter(&group)?;
    let options = options(stage.density, settings, &folder)?;
    let script = async |host: &Host| {
        let mut ours = Ours {
            host,
            density: stage.density,
            settings,
            folder: folder.path(),
            group: &group,
            names: Vec::new(),
            pids: Vec::new(),
        };
        stage.perform(&mut ours).await
    };
    let probe = with_private_host(&folder, &options, interrupt, script).await?;
    Ok((probe, words(&options)))
}

/// What a host is told of the budget.
pub(super) fn told(density: &Density, reserve_percent: u64, less_bytes: u64) -> PageCount {
    let whole = density.budget().0;
    let reserve = whole * reserve_percent / 100;
    let less = less_bytes / page::PAGE_SIZE;
    PageCount(whole.saturating_sub(reserve).saturating_sub(less))
}

fn options(
    density: &Density,
    settings: &BallonetSettings,
    folder: &PrivateFolder,
) -> Result<HostOptions> {
    let default = HostOptions::new(told(density, settings.reserve_percent, 0));
    let tax = |percent: u64| percent.to_string().parse::<TaxRate>();
    let change = HostChange {
        sharing: Some(settings.sharing),
        large_pages: Some(settings.large_pages),
        compression: Some(settings.compression),
        scan: ScanChange {
            pass_s: Some(settings.scan_pass_s),
            ..ScanChange::default()
        },
        idle_tax_permille: settings.idle_tax.map(tax).transpose()?,
        sample_period_s: Some(settings.sample_period_s),
        rebalance_interval_s: Some(settings.rebalance_interval_s),
        ..HostChange::default()
    };
    let swap = folder.path().join("swap");
    if settings.swap {
        std::fs::create_dir(&swap).with_context(|| format!("cannot make {}", swap.display()))?;
    }
    Ok(HostOptions {
        settings: default.settings.with(&change)?,
        swap: settings.swap.then_some(swap),
        given: change,
        ..default
    })
}

/// What a host was told.
pub(super) fn words(options: &HostOptions) -> Vec<String> {
    let memory = format!("memory={}M", options.settings.budget.bytes() >> 20);
    let pair = |(key, value): (&str, String)| format!("{key}={value}");
    let given = options.given.words().into_iter().map(pair);
    let swap = options.swap.iter().map(|_| "--swap".to_owned());
    [memory].into_iter().chain(given).chain(swap).collect()
}

impl Ours<'_> {
    fn request(&self, number: usize) -> Result<RunRequest> {
        let path = self.folder.join(format!("{number}.img"));
        File::create_new(&path)
            .and_then(|file| file.set_len(self.density.disk().bytes()))
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(RunRequest {
            name: Some(VmName::try_from(format!("tile-{number}"))?),
            memory_bytes: self.density.vm().bytes(),
            trust_group: Some("tiles".parse()?),
            workload: Some(self.density.workload.clone()),
            cmdline: (!self.settings.balloon).then(|| "balloon=off".into()),
            disks: vec![DiskSpec {
                path,
                read_only: false,
                direct: true,
                raw: false,
            }],
            on_host_death: OnHostDeath::Stop,
            ..RunRequest::default()
        })
    }
}

impl Fleet for Ours<'_> {
    async fn start(&mut self) -> Result<Started> {
        let request = self.request(self.names.len() + 1)?;
        match self.host.run(request).await {
            Ok(view) => {
                self.pids.extend(view.pid);
                self.names.push(view.name);
                Ok(Started::Runs)
            }
            Err(error) => Ok(Started::Refused(error.to_string())),
        }
    }

    async fn ask(&mut self, patience: Duration) -> Vec<Option<TileReport>> {
        let mut questions = JoinSet::new();
        for (index, name) in self.names.iter().enumerate() {
            if let Ok(console) = self.host.console(name.as_str()) {
                questions.spawn(async move {
                    let report = ask_for_report::<TileReport>(&console, patience).await;
                    (index, report.ok())
                });
            }
        }
        let mut reports = vec![None; self.names.len()];
        for (index, report) in questions.join_all().await {
            reports[index] = report;
        }
        reports
    }

    async fn type_line(&mut self, line: &str) -> Result<()> {
        for name in &self.names {
            let console = self.host.console(name.as_str())?;
            console.write(format!("{line}\n").as_bytes()).await?;
        }
        Ok(())
    }

    fn have_ended(&mut self) -> Vec<bool> {
        let names = self.names.iter();
        names
            .map(|name| self.host.vm(name.as_str()).is_err())
            .collect()
    }

    fn look(&mut self) -> Result<Look> {
        let overview = self.host.overview();
        let sharing = &overview.host.sharing;
        let out = |vm: &api::VmView| vm.states.compressed + vm.states.swapped;
        Ok(Look {
            used: self.group.used_bytes()?,
            saved: sharing.saving_bytes.max(0).unsigned_abs() + sharing.zero_bytes,
            swapped: overview.vms.iter().map(out).sum(),
        })
    }

    fn oom_kills(&self) -> Result<u64> {
        self.group.oom_kills()
    }

    fn cpu_s(&self) -> f64 {
        let own = cpu_s(std::process::id());
        own + self.pids.iter().copied().map(cpu_s).sum::<f64>()
    }

    fn swap_in_us(&self) -> Option<[u64; 2]> {
        let overview = self.host.overview();
        let swaps = overview.vms.iter().filter_map(|vm| vm.swap);
        let waits = swaps.flat_map(|swap| [swap.pool_wait_us, swap.file_wait_us]);
        let waits = waits.filter_map(|wait| Some([wait.p50?, wait.p99?]));
        waits.reduce(|[half, most], [p50, p99]| [half.max(p50), most.max(p99)])
    }

    async fn take_back(&mut self, bytes: u64) -> Result<bool> {
        let change = HostChange {
            memory_bytes: Some(told(self.density, self.settings.reserve_percent, bytes).bytes()),
            ..HostChange::default()
        };
        // Refused where it would break a promise.
        Ok(self.host.set_host(&change).await.is_ok())
    }
}
