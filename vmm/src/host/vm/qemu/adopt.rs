//! Puts running QEMUs under a host, lets them go, and finds them again. Whoever is refused is left as it was.

use super::attend::Attendant;
use super::by_libvirt::ByLibvirt;
use super::by_monitor::{ByMonitor, actual, find_balloon};
use super::lever::{Lever, POLLING_INTERVAL_S};
use super::statistics::Reported;
use super::{Orders, Qemu, Shared};
use crate::host::cgroup::{NoCgroup, OwnCgroup, restore_low};
use crate::host::definitions::MOST_DEFINED;
use crate::host::kernel::{besides, other_than_qemu, started_ticks};
use crate::host::libvirt::{NotFound, Unfit, VirshError};
use crate::host::qmp::{Leave, Monitor, POLLING_INTERVAL, QmpError};
use crate::host::state_store::{Adoption, LowBefore, Step, Way};
use crate::host::vm::backend::AnyBackend;
use crate::host::vm::handle::ProcessHandle;
use crate::host::vm::{Running, Vm};
use crate::host::{Host, HostError, settings};
use api::{AdoptRequest, RunRequest, VmView};
use page::{PAGE_SIZE, PageCount, VmId};
use policy::{OVERHEAD, SupposedBalloon};
use protocol::VmName;
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a release may take, a time-out of each of its commands and of the one that is under way.
const RELEASE_PATIENCE: Duration = Duration::from_secs(40);

/// Why a QEMU is not adopted.
#[derive(Debug, Error)]
pub enum AdoptError {
    #[error(transparent)]
    Monitor(Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "it has no balloon: start it with -device virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on"
    )]
    NoBalloon,
    #[error("its process is not seen from here: run the host in its PID namespace")]
    NoProcess,
    #[error("its process {pid} cannot be looked at: run the host as root or as its user")]
    Process { pid: u32, source: io::Error },
    #[error("it says that its guest has no memory")]
    NoMemory,
    #[error("the kernel cannot take pages of it")]
    NoReclaim(#[from] NoCgroup),
    #[error(
        "libvirt keeps its vCPUs and itself in cgroups of their own, where the kernel cannot be told to take its pages: adopt it without --reclaim"
    )]
    ReclaimOfDomain,
    #[error("it is adopted already, as '{0}'")]
    Already(VmName),
    #[error(
        "process {pid} listens there, which is '{program}' and no QEMU: the socket of a QEMU that another program made for it, as libvirt \
         does, is managed by that program: for libvirt's domains start the host with --libvirt"
    )]
    NotQemu { pid: u32, program: String },
    #[error("its path is no UTF-8 text, so it cannot be kept: give the socket another name")]
    NotText,
    #[error(transparent)]
    Unfit(Box<dyn std::error::Error + Send + Sync>),
    #[error("it is not running: `virsh list` shows those that are")]
    NotRunning,
    #[error(
        "its name cannot be used here: give it another by `ballonet adopt --domain … --name NAME`, or by `virsh domrename`"
    )]
    Name,
    #[error("its metadata says adopt=\"no\"")]
    NotWanted,
    #[error("it was released: `ballonet adopt` takes it again, or its next start")]
    Released,
}

impl AdoptError {
    /// Whether somebody wants it so, of which nobody is to be told.
    pub(in crate::host) fn is_wanted_so(&self) -> bool {
        matches!(self, Self::NotWanted | Self::Released)
    }
}

impl From<VirshError> for AdoptError {
    fn from(error: VirshError) -> Self {
        Self::Monitor(Box::new(error))
    }
}

impl From<Unfit> for AdoptError {
    fn from(error: Unfit) -> Self {
        Self::Unfit(Box::new(error))
    }
}

impl From<NotFound> for AdoptError {
    fn from(error: NotFound) -> Self {
        Self::Unfit(Box::new(error))
    }
}

impl From<QmpError> for AdoptError {
    fn from(error: QmpError) -> Self {
        Self::Monitor(Box::new(error))
    }
}

/// What a QEMU is that was asked for.
pub(super) struct Found {
    pub(super) lever: Lever,
    pub(super) way: Way,
    pub(super) process: FoundProcess,
    pub(super) name: Option<VmName>,
    pub(super) size_bytes: u64,
    pub(super) held_bytes: u64,
    pub(super) vcpus: u64,
    pub(super) polling_interval_s: u64,
    /// What else is told of it.
    pub(super) version: String,
}

/// Its process, as the kernel knows it.
pub(super) struct FoundProcess {
    handle: ProcessHandle,
    pub(super) pid: u32,
    pub(super) started: u64,
    pub(super) besides: PageCount,
}

impl FoundProcess {
    /// Looks at a process whose guest has so much. What answers after that as its QEMU is this one.
    pub(super) async fn look(pid: u32, guest_bytes: u64) -> Result<Self, AdoptError> {
        let failed = |source| AdoptError::Process { pid, source };
        let handle = ProcessHandle::of(pid).map_err(failed)?;
        let counting = tokio::task::spawn_blocking(move || besides(pid, guest_bytes));
        let besides = counting
            .await
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self {
            handle,
            pid,
            started: started_ticks(pid).map_err(failed)?,
            besides: besides.map_err(failed)?,
        })
    }
}

/// Asks a QEMU what it is, and changes nothing.
async fn look(socket: &Path, leave: Leave) -> Result<Found, AdoptError> {
    let mut monitor = Monitor::connect(socket, leave).await?;
    let pid = monitor.pid().ok_or(AdoptError::NoProcess)?;
    check_program(pid)?;
    let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
    let memory = monitor
        .execute("query-memory-size-summary", json!({}))
        .await?;
    let size_bytes =
        number(&memory, "base-memory").saturating_add(number(&memory, "plugged-memory"));
    // Opened before it answers: a process that answers then is this one.
    let process = FoundProcess::look(pid, size_bytes).await?;
    let held_bytes = match actual(&mut monitor).await {
        Err(error) if error.is_no_device() => return Err(AdoptError::NoBalloon),
        other => other?,
    };
    let path = find_balloon(&mut monitor)
        .await?
        .ok_or(AdoptError::NoBalloon)?;
    let get = json!({"path": path, "property": POLLING_INTERVAL});
    let polling = monitor.execute("qom-get", get).await?;
    let polling_interval_s = polling.as_u64().unwrap_or(0);
    let name = monitor.execute("query-name", json!({})).await?;
    let name = name.get("name").and_then(Value::as_str);
    let vcpus = monitor.execute("query-cpus-fast", json!({})).await?;
    let vcpus = vcpus.as_array().map_or(1, Vec::len);
    let pid = process.pid;
    let lever = ByMonitor::new(socket.to_owned(), pid, leave, polling_interval_s);
    Ok(Found {
        process,
        way: Way::Monitor(socket.to_owned()),
        name: name.and_then(|name| name.parse().ok()),
        size_bytes,
        held_bytes,
        vcpus: u64::try_from(vcpus).unwrap_or(u64::MAX),
        polling_interval_s,
        version: format!("of QEMU {}", monitor.version()),
        lever: Lever::Monitor(lever.connected(monitor)),
    })
}

/// A socket that another program has made and given to QEMU names that program.
fn check_program(pid: u32) -> Result<(), AdoptError> {
    match other_than_qemu(pid) {
        Ok(None) => Ok(()),
        Ok(Some(program)) => Err(AdoptError::NotQemu { pid, program }),
        Err(source) => Err(AdoptError::Process { pid, source }),
    }
}

/// What is changed of it from now on.
fn told_of(found: &Found, leave: Leave) -> String {
    let before = match found.polling_interval_s {
        0 => "never".into(),
        seconds => format!("every {seconds} s"),
    };
    let polls = format!(
        "its guest's figures are asked for every {POLLING_INTERVAL_S} s from now on (before: {before})"
    );
    let (pid, version) = (found.process.pid, &found.version);
    let left = PageCount(found.held_bytes / PAGE_SIZE);
    let changes = match (leave, found.polling_interval_s) {
        (Leave::Manage, _) => format!("adopted: {polls}, its balloon left it {left}"),
        (Leave::LookAndPoll, 0) => format!("looked at: {polls}, and nothing else is changed"),
        (Leave::Look, 0) => "looked at, and nothing is changed: its guest's figures are not asked for, so what it needs is not known \
             (--poll has them asked for until the end)"
            .into(),
        _ => format!("looked at, and nothing is changed: its guest's figures are asked for {before}"),
    };
    format!("{changes}: process {pid} {version}")
}

/// What its cgroup protects now, if it is its own and the kernel can take pages there.
fn low_of(pid: u32) -> Result<LowBefore, NoCgroup> {
    let cgroup = OwnCgroup::of(pid)?;
    cgroup.check_reclaim()?;
    let path = cgroup.path().to_owned();
    match cgroup.low() {
        Ok(low) => Ok(LowBefore { path, low }),
        Err(source) => Err(NoCgroup::Unusable { path, source }),
    }
}

fn told_of_low(adoption: &Adoption) -> String {
    let min = adoption.settings.min;
    let told = |before: &LowBefore| {
        let LowBefore { path, low } = before;
        format!(
            "; memory.low of its cgroup {path} is {min} now (before: {low}), and the kernel may take its pages there"
        )
    };
    adoption.low_before.as_ref().map(told).unwrap_or_default()
}

/// Sets back what its cgroup protected, if that was changed.
pub(super) fn restore_cgroup(adoption: &Adoption) {
    let Some(LowBefore { path, low }) = &adoption.low_before else {
        return;
    };
    if let Err(error) = restore_low(path, low) {
        tracing::warn!("memory.low of {path} is not set back to {low}: {error}");
    }
}

impl Host {
    /// Puts a running QEMU under this host.
    ///
    /// # Errors
    /// When it is none, cannot be managed, or cannot be admitted. Nothing was changed then.
    pub async fn adopt(&self, request: AdoptRequest) -> Result<VmView, HostError> {
        match (&request.socket, &request.domain) {
            (Some(socket), None) => self.adopt_by_monitor(&socket.clone(), request, None).await,
            (None, Some(domain)) => self.adopt_named_domain(&domain.clone(), request).await,
            _ => Err(HostError::BadRequest(
                "give either socket, its monitor's, or domain, its name in libvirt".into(),
            )),
        }
    }

    /// The same by its monitor. One that was only found is not taken if it was released, and has this name if QEMU has none.
    pub(in crate::host) async fn adopt_by_monitor(
        &self,
        socket: &Path,
        request: AdoptRequest,
        found_as: Option<Option<VmName>>,
    ) -> Result<VmView, HostError> {
        let leave = self.shared.leave;
        let looked = match (socket.to_str(), self.adopted_at(socket)) {
            (None, _) => Err(AdoptError::NotText),
            (_, Some(name)) => Err(AdoptError::Already(name)),
            _ => look(socket, leave).await,
        };
        let mut found = looked.map_err(|source| HostError::NotAdopted {
            what: Way::Monitor(socket.to_owned()).to_string(),
            source,
        })?;
        let is_found = found_as.is_some();
        found.name = found.name.or(found_as.flatten());
        self.take(found, request, is_found).await
    }

    /// Who was adopted by that socket, which serves nobody else then.
    fn adopted_at(&self, socket: &Path) -> Option<VmName> {
        let state = self.lock();
        let way = Way::Monitor(socket.to_owned());
        let there = state.adoptions().find(|adoption| adoption.way == way);
        there.map(|adoption| adoption.name.clone())
    }

    /// Takes a QEMU under this host that was looked at.
    pub(super) async fn take(
        &self,
        found: Found,
        wishes: AdoptRequest,
        is_found: bool,
    ) -> Result<VmView, HostError> {
        let what = found.way.to_string();
        let not_adopted = |source| HostError::NotAdopted {
            what: what.clone(),
            source,
        };
        if found.size_bytes < PAGE_SIZE {
            return Err(not_adopted(AdoptError::NoMemory));
        }
        let leave = self.shared.leave;
        let size_bytes = found.size_bytes / PAGE_SIZE * PAGE_SIZE;
        let process = &found.process;
        let low_before = match (wishes.reclaim, &found.way) {
            (false, _) => None,
            (true, Way::Domain(_)) => return Err(not_adopted(AdoptError::ReclaimOfDomain)),
            (true, Way::Monitor(_)) => {
                Some(low_of(process.pid).map_err(|why| not_adopted(why.into()))?)
            }
        };
        let _turn = self.shared.changes.lock().await;
        let adoption = {
            let mut state = self.lock();
            if state.stopping {
                return Err(HostError::Stopping);
            }
            let mut vms = state.durable.vms.values();
            let pid_of = |vm: &Vm| vm.running().map(|running| running.pid);
            if let Some(vm) = vms.find(|vm| pid_of(vm) == Some(process.pid)) {
                return Err(not_adopted(AdoptError::Already(vm.config.name.clone())));
            }
            if is_found && state.is_released(process.pid, process.started) {
                return Err(not_adopted(AdoptError::Released));
            }
            if state.adoptions().count() >= MOST_DEFINED {
                return Err(HostError::TooManyDefined(MOST_DEFINED));
            }
            let run = RunRequest {
                name: wishes.name.or_else(|| found.name.clone()),
                memory_bytes: size_bytes,
                min_bytes: wishes.min_bytes,
                max_bytes: wishes.max_bytes,
                shares: wishes.shares,
                idle_tax_permille: wishes.idle_tax_permille,
                large_pages: Some(false),
                ..RunRequest::default()
            };
            let name = state.free_name(&run)?;
            state.check_name(&name)?;
            let settings = settings::of_vm(&run, state.machine, false)?;
            policy::admit(&state.snapshot(), &settings, OVERHEAD.max(process.besides))?;
            Adoption {
                name,
                way: found.way.clone(),
                pid: process.pid,
                started: process.started,
                besides: process.besides,
                vcpus: u8::try_from(found.vcpus).unwrap_or(u8::MAX),
                settings,
                pinned: None,
                held_bytes: found.held_bytes.min(size_bytes),
                polling_interval_s: found.polling_interval_s,
                is_released: false,
                low_before,
            }
        };
        let mut steps = self.lock().forget_released(adoption.pid);
        steps.push(Step::Adopt(Box::new(adoption.clone())));
        self.keep(steps).await?;
        let what = told_of(&found, leave) + &told_of_low(&adoption);
        let name = adoption.name.clone();
        let held = PageCount(adoption.held_bytes / PAGE_SIZE);
        self.attend_qemu(adoption, found.lever, held, found.process.handle, &what);
        self.published_anew(&name)
    }

    fn attend_qemu(
        &self,
        adoption: Adoption,
        lever: Lever,
        held: PageCount,
        process: ProcessHandle,
        what: &str,
    ) {
        let mut state = self.lock();
        let id = VmId(state.durable.next_id);
        state.durable.next_id += 1;
        let leave = self.shared.leave;
        let supposed = leave.looks_only().then(|| SupposedBalloon::new(held));
        let shared = Arc::new(Shared {
            held: AtomicU64::new(held.0),
            supposed_held: AtomicU64::new(supposed.map_or(u64::MAX, |balloon| balloon.held().0)),
            besides: adoption.besides.0,
            is_described: AtomicBool::new(false),
        });
        let (orders, ordered) = watch::channel(Orders::default());
        let (releases, released) = mpsc::channel(1);
        let running = Running {
            pid: adoption.pid,
            backend: AnyBackend::Qemu(Box::new(Qemu {
                cgroup: OwnCgroup::of(adoption.pid).ok().map(Arc::new),
                is_reclaiming: Arc::default(),
                orders,
                releases,
                shared: Arc::clone(&shared),
                adoption: adoption.clone(),
            })),
            since: Instant::now(),
            kill: Arc::<Notify>::default(),
            gone: watch::Sender::new(()),
        };
        let mut config = state.adopted_config(id, &adoption);
        config.balloon_target = adoption.settings.size - held.min(adoption.settings.size);
        let vm = Vm::adopted(config, adoption.pinned, running);
        vm.tell(|backend| backend.remember(&adoption.settings));
        state.durable.vms.insert(id, vm);
        state.events.add(Some(&adoption.name), what);
        self.shared.count.send_replace(state.count());
        drop(state);
        let attendant = Attendant {
            host: self.clone(),
            id,
            adoption,
            shared,
            lever,
            told: None,
            reported: Reported::default(),
            leave,
            supposed,
            faulted: PageCount::ZERO,
            fresh: None,
            driver_seen: None,
            has_begun: false,
            trouble: None,
        };
        tokio::spawn(attendant.attend(ordered, released, process));
    }

    /// Lets an adopted QEMU go, as it was; with `force` as it is, whether it answers or not.
    ///
    /// # Errors
    /// When there is none of that name, or it does not answer.
    pub async fn release(&self, name: &str, force: bool) -> Result<(), HostError> {
        let (id, name, releases) = {
            let mut state = self.lock();
            let vm = state.find(name)?;
            let (id, name) = (vm.config.id, vm.config.name.clone());
            let qemu = vm.qemu();
            let qemu = qemu.ok_or_else(|| HostError::NotAdoptedAtAll(name.clone()))?;
            (id, name, qemu.releases.clone())
        };
        // Nobody else's change waits for one that may hang.
        if !force {
            let (wanted, done) = oneshot::channel();
            let answer = async {
                releases.send(wanted).await.ok()?;
                done.await.ok()
            };
            match timeout(RELEASE_PATIENCE, answer).await {
                Ok(Some(Ok(()))) => {}
                Ok(Some(Err(error))) => {
                    return Err(HostError::NotReleased {
                        name,
                        why: crate::error_chain(&error),
                    });
                }
                // It has ended meanwhile.
                Ok(None) => return Ok(()),
                Err(_) => {
                    let why = "its monitor does not answer".into();
                    return Err(HostError::NotReleased { name, why });
                }
            }
        }
        let _turn = self.shared.changes.lock().await;
        let adoption = match self.lock().vm(id) {
            Ok(vm) => vm.adoption().cloned(),
            Err(_) => None,
        };
        // It has ended, or somebody else has released it, meanwhile.
        let Some(adoption) = adoption else {
            return Ok(());
        };
        restore_cgroup(&adoption);
        let step = self.lock().note_released(adoption);
        self.keep(vec![step]).await?;
        self.remove(
            id,
            match force {
                true => "released as it is",
                false if self.shared.leave.looks_only() => "is looked at no longer",
                false => "released: its balloon and the polling of its figures are as they were",
            },
        );
        Ok(())
    }

    /// The same of one that was found and has disappeared from where it was: it is taken again when it comes back there.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub(in crate::host) async fn release_found(&self, name: &VmName) -> Result<(), HostError> {
        let pid = self
            .lock()
            .find(name.as_str())?
            .adoption()
            .map(|adoption| adoption.pid);
        self.release(name.as_str(), false).await?;
        let steps = pid.map(|pid| self.lock().forget_released(pid));
        self.keep(steps.unwrap_or_default()).await
    }

    /// Finds QEMUs again that a host before has adopted. Until one says how it is, it is counted whole.
    pub(in crate::host) fn find_adopted(&self, adoptions: Vec<Adoption>) {
        for adoption in adoptions {
            let process = ProcessHandle::of(adoption.pid);
            let is_same = started_ticks(adoption.pid).is_ok_and(|at| at == adoption.started);
            match process {
                Ok(_) if is_same && adoption.is_released => {
                    self.lock().released.push(adoption);
                }
                Ok(process) if is_same => {
                    let (lever, size) = (self.lever(&adoption), adoption.settings.size);
                    self.attend_qemu(adoption, lever, size, process, "found again");
                }
                _ => {
                    restore_cgroup(&adoption);
                    let name = adoption.name;
                    if !adoption.is_released {
                        let what = "its QEMU ended while there was no host";
                        self.lock().events.add(Some(&name), what);
                    }
                    drop(self.shared.store.commit(vec![Step::Release(name)]));
                }
            }
        }
        self.lock().publish_change();
    }

    fn lever(&self, adoption: &Adoption) -> Lever {
        match &adoption.way {
            Way::Monitor(socket) => {
                let polled_s = adoption.polling_interval_s;
                let leave = self.shared.leave;
                Lever::Monitor(ByMonitor::new(
                    socket.clone(),
                    adoption.pid,
                    leave,
                    polled_s,
                ))
            }
            Way::Domain(domain) => {
                let libvirt = self.libvirt(&domain.uri);
                let polled_s = adoption.polling_interval_s;
                Lever::Libvirt(ByLibvirt::new(libvirt, domain.uuid, polled_s))
            }
        }
    }

    /// Lets all go at once, as they were. Those that do not answer stay as they are, and are under this host no longer: why.
    pub(crate) async fn release_all(&self) -> Vec<HostError> {
        let mut releases = JoinSet::new();
        for (id, name) in self.adopted() {
            let host = self.clone();
            releases.spawn(async move {
                let error = host.release(name.as_str(), false).await.err()?;
                host.remove(id, "stays as it is, as it did not answer");
                Some(error)
            });
        }
        releases.join_all().await.into_iter().flatten().collect()
    }

    /// The host ends. Those that the next one finds again stay as they are; others are let go.
    pub(in crate::host) async fn leave_adopted(&self) {
        if !self.shared.store.keeps() {
            for error in self.release_all().await {
                tracing::warn!("{}", crate::error_chain(&error));
            }
        }
        for (id, _) in self.adopted() {
            self.remove(id, "stays as it is, for the next host to find it");
        }
    }

    fn adopted(&self) -> Vec<(VmId, VmName)> {
        let state = self.lock();
        let vms = state.durable.vms.values();
        let vms = vms.filter(|vm| vm.adoption().is_some());
        vms.map(|vm| (vm.config.id, vm.config.name.clone()))
            .collect()
    }
}
