//! Puts running QEMUs under a host, lets them go, and finds them again. Whoever is refused is left as it was.

use super::attend::{Attendant, POLLING_INTERVAL_S, actual, find_balloon};
use super::statistics::Reported;
use super::{Orders, Qemu, Shared};
use crate::host::cgroup::{NoCgroup, OwnCgroup, restore_low};
use crate::host::definitions::MOST_DEFINED;
use crate::host::kernel::{besides, started_ticks};
use crate::host::qmp::{Leave, Monitor, POLLING_INTERVAL, QmpError};
use crate::host::state_store::{Adoption, LowBefore, Step};
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
    #[error("it is adopted already, as '{0}'")]
    Already(VmName),
}

impl From<QmpError> for AdoptError {
    fn from(error: QmpError) -> Self {
        Self::Monitor(Box::new(error))
    }
}

/// What a QEMU is that was asked for.
struct Found {
    monitor: Monitor,
    process: ProcessHandle,
    pid: u32,
    started: u64,
    besides: PageCount,
    name: Option<VmName>,
    size_bytes: u64,
    held_bytes: u64,
    vcpus: u8,
    polling_interval_s: u64,
}

/// Asks a QEMU what it is, and changes nothing.
async fn look(socket: &Path, leave: Leave) -> Result<Found, AdoptError> {
    let mut monitor = Monitor::connect(socket, leave).await?;
    let pid = monitor.pid().ok_or(AdoptError::NoProcess)?;
    let failed = |source| AdoptError::Process { pid, source };
    // Opened before it answers: a process that answers then is this one.
    let process = ProcessHandle::of(pid).map_err(failed)?;
    let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
    let memory = monitor
        .execute("query-memory-size-summary", json!({}))
        .await?;
    let size_bytes =
        number(&memory, "base-memory").saturating_add(number(&memory, "plugged-memory"));
    let held_bytes = match actual(&mut monitor).await {
        Err(error) if error.is_no_device() => return Err(AdoptError::NoBalloon),
        other => other?,
    };
    let path = find_balloon(&mut monitor)
        .await?
        .ok_or(AdoptError::NoBalloon)?;
    let get = json!({"path": path, "property": POLLING_INTERVAL});
    let polling = monitor.execute("qom-get", get).await?;
    let name = monitor.execute("query-name", json!({})).await?;
    let name = name.get("name").and_then(Value::as_str);
    let vcpus = monitor.execute("query-cpus-fast", json!({})).await?;
    let vcpus = vcpus.as_array().map_or(1, Vec::len);
    if size_bytes < PAGE_SIZE {
        return Err(AdoptError::NoMemory);
    }
    let counting = tokio::task::spawn_blocking(move || besides(pid, size_bytes));
    let besides = counting
        .await
        .map_err(|error| failed(io::Error::other(error)))?;
    Ok(Found {
        process,
        pid,
        started: started_ticks(pid).map_err(failed)?,
        besides: besides.map_err(failed)?,
        name: name.and_then(|name| name.parse().ok()),
        size_bytes: size_bytes / PAGE_SIZE * PAGE_SIZE,
        held_bytes: held_bytes.min(size_bytes),
        vcpus: u8::try_from(vcpus).unwrap_or(u8::MAX),
        polling_interval_s: polling.as_u64().unwrap_or(0),
        monitor,
    })
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
    let (pid, version) = (found.pid, found.monitor.version());
    let left = PageCount(found.held_bytes / PAGE_SIZE);
    let changes = match (leave, found.polling_interval_s) {
        (Leave::Manage, _) => format!("adopted: {polls}, its balloon left it {left}"),
        (Leave::LookAndPoll, 0) => format!("looked at: {polls}, and nothing else is changed"),
        (Leave::Look, 0) => "looked at, and nothing is changed: its guest's figures are not asked for, so what it needs is not known \
             (--poll has them asked for until the end)"
            .into(),
        _ => format!("looked at, and nothing is changed: its guest's figures are asked for {before}"),
    };
    format!("{changes}: process {pid} of QEMU {version}")
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
pub(super) fn restore(adoption: &Adoption) {
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
        let socket = request.socket.clone();
        let not_adopted = |source| HostError::NotAdopted {
            socket: socket.clone(),
            source,
        };
        let leave = self.shared.leave;
        let found = look(&socket, leave).await.map_err(not_adopted)?;
        let low_before = match request.reclaim {
            true => Some(low_of(found.pid).map_err(|why| not_adopted(why.into()))?),
            false => None,
        };
        let _turn = self.shared.changes.lock().await;
        let adoption = {
            let mut state = self.lock();
            if state.stopping {
                return Err(HostError::Stopping);
            }
            let mut vms = state.durable.vms.values();
            let pid_of = |vm: &Vm| vm.running().map(|running| running.pid);
            if let Some(vm) = vms.find(|vm| pid_of(vm) == Some(found.pid)) {
                return Err(not_adopted(AdoptError::Already(vm.config.name.clone())));
            }
            let adopted = state
                .durable
                .vms
                .values()
                .filter(|vm| vm.adoption().is_some());
            if adopted.count() >= MOST_DEFINED {
                return Err(HostError::TooManyDefined(MOST_DEFINED));
            }
            let run = RunRequest {
                name: request.name.or_else(|| found.name.clone()),
                memory_bytes: found.size_bytes,
                min_bytes: request.min_bytes,
                max_bytes: request.max_bytes,
                shares: request.shares,
                idle_tax_permille: request.idle_tax_permille,
                large_pages: Some(false),
                ..RunRequest::default()
            };
            let name = state.free_name(&run)?;
            state.check_name(&name)?;
            let settings = settings::of_vm(&run, state.machine, false)?;
            policy::admit(&state.snapshot(), &settings, OVERHEAD.max(found.besides))?;
            Adoption {
                name,
                socket: request.socket,
                pid: found.pid,
                started: found.started,
                besides: found.besides,
                vcpus: found.vcpus,
                settings,
                pinned: None,
                held_bytes: found.held_bytes,
                polling_interval_s: found.polling_interval_s,
                low_before,
            }
        };
        let step = Step::Adopt(Box::new(adoption.clone()));
        self.keep(vec![step]).await?;
        let what = told_of(&found, leave) + &told_of_low(&adoption);
        let name = adoption.name.clone();
        self.attend_qemu(adoption, Some(found.monitor), found.process, &what);
        self.published_anew(&name)
    }

    fn attend_qemu(
        &self,
        adoption: Adoption,
        monitor: Option<Monitor>,
        process: ProcessHandle,
        what: &str,
    ) {
        let mut state = self.lock();
        let id = VmId(state.durable.next_id);
        state.durable.next_id += 1;
        let held = match &monitor {
            Some(_) => PageCount(adoption.held_bytes / PAGE_SIZE),
            // Until it says how much it has given up.
            None => adoption.settings.size,
        };
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
            backend: AnyBackend::Qemu(Qemu {
                cgroup: OwnCgroup::of(adoption.pid).ok().map(Arc::new),
                is_reclaiming: Arc::default(),
                orders,
                releases,
                shared: Arc::clone(&shared),
                adoption: adoption.clone(),
            }),
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
            monitor,
            balloon: None,
            told: None,
            reported: Reported::default(),
            leave,
            supposed,
            faulted: PageCount::ZERO,
            fresh: None,
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
        let _turn = self.shared.changes.lock().await;
        let (id, name, releases, adoption) = {
            let mut state = self.lock();
            let vm = state.find(name)?;
            let adoption = vm.adoption().cloned();
            let (id, name) = (vm.config.id, vm.config.name.clone());
            let releases = vm.qemu().map(|qemu| qemu.releases.clone());
            (
                id,
                name.clone(),
                releases.ok_or(HostError::NotAdoptedAtAll(name))?,
                adoption,
            )
        };
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
        if let Some(adoption) = &adoption {
            restore(adoption);
        }
        self.keep(vec![Step::Release(name)]).await?;
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

    /// Finds QEMUs again that a host before has adopted. Until one says how it is, it is counted whole.
    pub(in crate::host) fn find_adopted(&self, adoptions: Vec<Adoption>) {
        for adoption in adoptions {
            let process = ProcessHandle::of(adoption.pid);
            let is_same = started_ticks(adoption.pid).is_ok_and(|at| at == adoption.started);
            match process {
                Ok(process) if is_same => {
                    self.attend_qemu(adoption, None, process, "found again");
                }
                _ => {
                    restore(&adoption);
                    let name = adoption.name;
                    let what = "its QEMU ended while there was no host";
                    self.lock().events.add(Some(&name), what);
                    drop(self.shared.store.commit(vec![Step::Release(name)]));
                }
            }
        }
        self.lock().publish_change();
    }

    /// The host ends. Those that the next one finds again stay as they are; others are let go.
    pub(in crate::host) async fn leave_adopted(&self) {
        let adopted: Vec<_> = {
            let state = self.lock();
            let vms = state.durable.vms.values();
            let vms = vms.filter(|vm| vm.adoption().is_some());
            vms.map(|vm| (vm.config.id, vm.config.name.clone()))
                .collect()
        };
        for (id, name) in adopted {
            if !self.shared.store.keeps()
                && let Err(error) = self.release(name.as_str(), false).await
            {
                tracing::warn!(vm = %name, "{}", crate::error_chain(&error));
            }
            self.remove(id, "stays as it is, for the next host to find it");
        }
    }
}
