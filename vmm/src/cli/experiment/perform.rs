//! Carries out one run: a host of its own, guests on it, things that happen, and a look at all of it again
//! and again. Guests of QEMU are started idle and adopted before they are told what to do, as memory can be had back from them
//! from then on.

use super::super::guest_report::ask_for_report;
use super::super::private_host::{PrivateFolder, with_private_host};
use super::qemu_guest::{GuestDisk, GuestLine, QemuConfig, QemuGuest, image_in, put_image};
use crate::host::console::Console;
use crate::host::{Host, HostOptions};
use anyhow::{Context, Result};
use api::{AdoptRequest, BalloonRequest, VmChange, VmKind};
use experiment::active::Active;
use experiment::plan::{Action, Order, PlannedHost, PlannedVm, Run};
use experiment::reading::{GuestCounters, Moment, Reading, read, read_guest};
use experiment::record::{Mark, Point, Record, Subject};
use experiment::vmm::is_known;
use page::{PAGE_SIZE, PageCount};
use protocol::{DiskSpec, VmName};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// Guests are asked no more often than this: to answer costs them some milliseconds.
const GUEST_INTERVAL: Duration = Duration::from_secs(1);
/// How long a guest may take to answer. One that takes longer has no figures for once.
const GUEST_PATIENCE: Duration = Duration::from_millis(900);

/// How to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks {
    /// How long.
    pub(super) length: Duration,
    /// How often.
    pub(super) interval: Duration,
    /// Whether guests are asked as well.
    pub(super) asks_guests: bool,
}

/// What is remembered while a run lasts.
#[derive(Debug, Default)]
struct Live {
    record: Record,
    /// The VMs that should be there.
    active: BTreeMap<VmName, Active>,
    /// Those of them that QEMU runs.
    qemus: BTreeMap<VmName, QemuGuest>,
    /// How many QEMU has run so far.
    qemu_count: usize,
}

/// A guest's console, whoever runs it.
enum GuestConsole {
    Ours(Console),
    Qemu(GuestLine),
}

impl GuestConsole {
    async fn type_line(&self, line: &str) -> Result<()> {
        match self {
            Self::Ours(console) => Ok(console.write(format!("{line}\n").as_bytes()).await?),
            Self::Qemu(console) => Ok(console.type_line(line).await?),
        }
    }

    async fn ask_for_report(&self) -> Result<GuestCounters> {
        match self {
            Self::Ours(console) => ask_for_report(console, GUEST_PATIENCE).await,
            Self::Qemu(console) => console.ask_for_report(GUEST_PATIENCE).await,
        }
    }
}

/// One run on its host.
struct Stage<'a> {
    host: &'a Host,
    folder: &'a Path,
    vmm: VmKind,
    begin: Instant,
    live: RefCell<Live>,
}

/// Carries out a run; `tick` is told how many seconds of it have passed.
pub(super) async fn perform(
    run: &Run,
    looks: Looks,
    interrupt: impl Future<Output = c_int>,
    tick: impl Fn(f64),
) -> Result<Record> {
    let folder = PrivateFolder::make("experiment")?;
    if run.vmm == VmKind::Qemu {
        put_image(folder.path()).context("cannot put the guest's image into it")?;
    }
    let script = async |host: &Host| {
        let stage = Stage {
            host,
            folder: folder.path(),
            vmm: run.vmm,
            begin: Instant::now(),
            live: RefCell::default(),
        };
        tokio::select! {
            driven = stage.drive(run, looks.length) => driven?,
            () = stage.watch(looks, tick) => {}
        }
        let Live { record, qemus, .. } = stage.live.into_inner();
        for guest in qemus.into_values() {
            guest.end().await;
        }
        Ok(record)
    };
    let performed = with_private_host(&folder, &options(&run.host), interrupt, script).await;
    performed.with_context(|| match run.combination.to_string() {
        nothing if nothing.is_empty() => "the run broke off".into(),
        combination => format!("the run with {combination} broke off"),
    })
}

fn options(host: &PlannedHost) -> HostOptions {
    let default = HostOptions::new(host.settings.budget);
    HostOptions {
        settings: host.settings.clone(),
        interval: host.interval.unwrap_or(default.interval),
        ..default
    }
}

impl Stage<'_> {
    /// Makes happen what is to happen, and returns when the run is over.
    async fn drive(&self, run: &Run, length: Duration) -> Result<()> {
        for event in &run.events {
            sleep_until(self.begin + event.at).await;
            match &event.action {
                Action::Start(vm) => self.start(vm).await?,
                Action::Tell(name, order) => {
                    let told = self.tell(name, order).await;
                    told.with_context(|| format!("VM '{name}'"))?;
                }
                Action::ChangeHost(change) => {
                    self.host.set_host(change).await?;
                    self.mark(Subject::Host, "the host is changed".into());
                }
            }
        }
        sleep_until(self.begin + length).await;
        Ok(())
    }

    fn now_s(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    fn mark(&self, subject: Subject, what: String) {
        let time_s = self.now_s();
        let mark = Mark {
            time_s,
            subject,
            what,
        };
        self.live.borrow_mut().record.marks.push(mark);
    }

    async fn start(&self, vm: &PlannedVm) -> Result<()> {
        let disk = vm.disk.map(|size| {
            let path = self.folder.join(format!("{}.img", vm.name));
            let made = make_image(&path, size);
            made.with_context(|| format!("cannot make {}", path.display()))?;
            anyhow::Ok(path)
        });
        let disk = disk.transpose()?;
        let workload = vm.request.workload.clone().unwrap_or_default();
        let started = match self.vmm {
            VmKind::Ballonet => self.start_ours(vm, disk).await,
            VmKind::Qemu => self.start_qemu(vm, disk.as_deref()).await,
        };
        started.with_context(|| format!("VM '{}'", vm.name))?;
        let active = vm.order.active.unwrap_or_default();
        self.live
            .borrow_mut()
            .active
            .insert(vm.name.clone(), active);
        self.mark(
            Subject::Vm(vm.name.clone()),
            format!("starts with {workload}"),
        );
        let told = self.tell(&vm.name, &vm.order).await;
        told.with_context(|| format!("VM '{}'", vm.name))
    }

    async fn start_ours(&self, vm: &PlannedVm, disk: Option<PathBuf>) -> Result<()> {
        let mut request = vm.request.clone();
        request.disks.extend(disk.map(|path| DiskSpec {
            path,
            read_only: false,
            direct: false,
            raw: false,
        }));
        self.host.run(request).await?;
        Ok(())
    }

    async fn start_qemu(&self, vm: &PlannedVm, disk: Option<&Path>) -> Result<()> {
        let number = {
            let mut live = self.live.borrow_mut();
            live.qemu_count += 1;
            live.qemu_count
        };
        let monitor = self.folder.join(format!("{number}.qmp"));
        let config = QemuConfig {
            image: &image_in(self.folder),
            number,
            memory: PageCount(vm.request.memory_bytes / PAGE_SIZE),
            vcpus: vm.request.vcpus.unwrap_or(1),
            workload: "idle",
            disk: disk.map(|path| GuestDisk {
                path,
                is_direct: false,
            }),
            free_page_reporting: true,
            deflate_on_oom: true,
            monitor: Some(&monitor),
            group: None,
        };
        let guest = config.start().await?;
        let request = AdoptRequest {
            socket: Some(monitor),
            name: Some(vm.name.clone()),
            min_bytes: vm.request.min_bytes,
            max_bytes: vm.request.max_bytes,
            shares: vm.request.shares,
            ..AdoptRequest::default()
        };
        self.host.adopt(request).await?;
        let workload = vm.request.workload.as_deref().unwrap_or("idle");
        let told = guest.line.type_line(&format!("workload {workload}")).await;
        told.context("its console is closed")?;
        let mut live = self.live.borrow_mut();
        live.qemus.insert(vm.name.clone(), guest);
        Ok(())
    }

    fn console(&self, name: &VmName) -> Result<GuestConsole> {
        if let Some(guest) = self.live.borrow().qemus.get(name) {
            return Ok(GuestConsole::Qemu(guest.line.clone()));
        }
        Ok(GuestConsole::Ours(self.host.console(name.as_str())?))
    }

    async fn stop(&self, name: &VmName) -> Result<()> {
        let qemu = self.live.borrow_mut().qemus.remove(name);
        match qemu {
            Some(guest) => guest.end().await,
            None => self.host.stop(name.as_str()).await?,
        }
        Ok(())
    }

    async fn tell(&self, name: &VmName, order: &Order) -> Result<()> {
        let subject = || Subject::Vm(name.clone());
        if let Some(workload) = &order.workload {
            let line = format!("workload {workload}");
            self.console(name)?.type_line(&line).await?;
            self.mark(subject(), format!("goes on with {workload}"));
        }
        if let Some(active) = order.active {
            self.live.borrow_mut().active.insert(name.clone(), active);
        }
        if order.change != VmChange::default() {
            self.host.set(name.as_str(), &order.change).await?;
            self.mark(subject(), "has other claims".into());
        }
        if let Some(held) = order.hold {
            self.hold(name, held).await?;
            self.mark(subject(), format!("is to hold {held}"));
        }
        if order.stop {
            self.live.borrow_mut().active.remove(name);
            self.mark(subject(), "ends".into());
            self.stop(name).await?;
        }
        Ok(())
    }

    async fn hold(&self, name: &VmName, held: PageCount) -> Result<()> {
        let size_bytes = self.host.vm(name.as_str())?.size_bytes;
        let request = BalloonRequest {
            balloon_bytes: Some(size_bytes.saturating_sub(held.bytes())),
        };
        self.host.set_balloon(name.as_str(), request).await?;
        Ok(())
    }

    /// Looks again and again, for ever.
    async fn watch(&self, looks: Looks, tick: impl Fn(f64)) {
        let mut ticks = interval(looks.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut asked: Option<Instant> = None;
        loop {
            ticks.tick().await;
            tick(self.now_s());
            self.look();
            let is_due = asked.is_none_or(|asked| asked.elapsed() >= GUEST_INTERVAL);
            if looks.asks_guests && is_due {
                asked = Some(Instant::now());
                self.ask_guests().await;
            }
        }
    }

    fn look(&self) {
        let overview = self.host.overview();
        let readings = read(&Moment {
            overview: &overview,
            active: &self.live.borrow().active,
        });
        self.keep(readings, self.now_s());
    }

    fn keep(&self, readings: Vec<Reading>, time_s: f64) {
        let mut live = self.live.borrow_mut();
        let known = readings
            .into_iter()
            .filter(|(_, series, _)| is_known(self.vmm, *series));
        for (subject, series, value) in known {
            live.record.add(subject, series, Point { time_s, value });
        }
    }

    /// All at once, so that one that does not answer holds up no other.
    async fn ask_guests(&self) {
        let names: Vec<VmName> = self.live.borrow().active.keys().cloned().collect();
        let mut questions = JoinSet::new();
        for name in names {
            if let Ok(console) = self.console(&name) {
                questions.spawn(async move {
                    let report = console.ask_for_report().await;
                    (name, report)
                });
            }
        }
        while let Some(answered) = questions.join_next().await {
            match answered {
                Ok((name, Ok(counters))) => self.keep(read_guest(&name, counters), self.now_s()),
                Ok((name, Err(error))) => tracing::debug!("VM '{name}': {error:#}"),
                Err(error) => tracing::debug!("a question was cut off: {error}"),
            }
        }
    }
}

/// A file of zeros that takes no room until it is written to.
fn make_image(path: &Path, size: PageCount) -> std::io::Result<()> {
    File::create_new(path)?.set_len(size.bytes())
}
