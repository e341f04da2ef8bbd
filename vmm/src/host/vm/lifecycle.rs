//! A VM's life, and all that moves it on.
//!
//! ```text
//!   admit ──▶ Waiting ──first grant──▶ Starting ──its guest runs──▶ Running ──stop──▶ Stopping
//!                │                        │                            │                 │
//!                │ no memory in time      │ its process failed         │ its process has ended
//!                └────────────────────────┴─────────────┬──────────────┴─────────────────┘
//!                                                       ▼
//!                                                    remove
//! ```
//!
//! From its admission until it is removed, a VM is in the host's books, and what it holds counts as used: that is after
//! its process has ended and its memory was freed. Whoever lets go of a process without waiting for its end ends it.

use super::{Running, Vm, process};
use crate::host::definitions::HowEnded;
use crate::host::request::pinned;
use crate::host::{Host, HostError, descriptors};
use crate::vm::POWER_OFF_PATIENCE;
use api::{RunRequest, VmPhase, VmView, whole_pages};
use page::VmId;
use policy::OVERHEAD;
use protocol::{ToVm, VmName};
use std::mem;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a VM may wait until its memory was taken from others.
const MEMORY_PATIENCE: Duration = Duration::from_secs(30);
/// How long a VM process may take to end in order.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Where in its life a VM is.
#[derive(Debug)]
pub(in crate::host) enum Life {
    /// For memory. Whoever starts it is told of the first grant.
    Waiting(oneshot::Sender<()>),
    /// Its guest does not run yet.
    Starting,
    Running(Running),
    /// Told to end, or about to be.
    Stopping(Running),
}

impl Life {
    /// As clients are told.
    pub(super) fn phase(&self) -> VmPhase {
        match self {
            Self::Waiting(_) => VmPhase::Waiting,
            Self::Starting => VmPhase::Starting,
            Self::Running(_) => VmPhase::Running,
            Self::Stopping(_) => VmPhase::Stopping,
        }
    }

    pub(super) fn running(&self) -> Option<&Running> {
        match self {
            Self::Running(running) | Self::Stopping(running) => Some(running),
            Self::Waiting(_) | Self::Starting => None,
        }
    }

    /// There is memory for it.
    pub(super) fn start(&mut self) {
        match mem::replace(self, Self::Starting) {
            // If nobody hears it, the wait was given up at this moment: who waited removes the VM.
            Self::Waiting(granted) => drop(granted.send(())),
            later => *self = later,
        }
    }

    /// It is to end. None if its guest does not run yet.
    fn stop(&mut self) -> Option<&Running> {
        *self = match mem::replace(self, Self::Starting) {
            Self::Running(running) => Self::Stopping(running),
            other => other,
        };
        self.running()
    }
}

/// A VM that is wanted.
#[derive(Debug)]
pub(in crate::host) struct Wanted {
    pub(in crate::host) request: RunRequest,
    /// What its balloon is to take, if that is fixed.
    pub(in crate::host) balloon_bytes: Option<u64>,
    /// Whether its name is its own already: it waits under it, or is defined.
    pub(in crate::host) holds_name: bool,
}

/// A VM that has just been admitted.
pub(in crate::host) struct Admitted {
    id: VmId,
    name: VmName,
    first_grant: oneshot::Receiver<()>,
}

impl Vm {
    /// Whether it can be stopped at all.
    pub(in crate::host) fn check_stop(&self) -> Result<(), HostError> {
        match self.capabilities().stop {
            true => Ok(()),
            false => Err(HostError::NotOurs(self.config.name.clone())),
        }
    }

    /// How it ended, of which nothing is left.
    pub(in crate::host) fn how_ended(&self) -> HowEnded {
        match self.life {
            Life::Stopping(_) => HowEnded::Told,
            _ if self.has_switched_off => HowEnded::SwitchedOff,
            _ => HowEnded::Failed,
        }
    }
}

impl Host {
    /// Starts a VM and waits until its guest runs.
    ///
    /// # Errors
    /// When the request makes no sense, cannot be admitted, or the VM does not start.
    pub async fn run(&self, mut request: RunRequest) -> Result<VmView, HostError> {
        let refused = |_: &HostError| {
            // A host that was started for this VM alone may end now.
            self.shared.count.send_modify(|_| {});
        };
        let defined = self.define(&mut request).await.inspect_err(refused)?;
        let wanted = Wanted {
            request,
            balloon_bytes: None,
            holds_name: defined.is_some(),
        };
        let admitted = match self.admit_in_turn(wanted).await.inspect_err(refused) {
            Ok(admitted) => admitted,
            Err(error) => {
                if let Some(defined) = defined {
                    defined.take_back().await;
                }
                return Err(error);
            }
        };
        self.shared.round_wanted.notify_one();
        let name = admitted.name.clone();
        // A task of its own: a client that hangs up does not leave a VM half started.
        let host = self.clone();
        let starting = tokio::spawn(async move {
            let result = host.start_admitted(admitted).await;
            match (&result, defined) {
                (Ok(()), Some(defined)) => defined.settle(),
                (Err(_), Some(defined)) => defined.take_back().await,
                (_, None) => {}
            }
            result
        });
        starting.await.map_err(|_ended| HostError::Stopping)??;
        self.published_anew(&name)
    }

    /// Waits for a VM's first grant and until its guest runs. Nothing of one is left that does not start.
    pub(in crate::host) async fn start_admitted(
        &self,
        admitted: Admitted,
    ) -> Result<(), HostError> {
        let Admitted {
            id,
            name,
            first_grant,
        } = admitted;
        let granted = timeout(MEMORY_PATIENCE, first_grant).await;
        let result = match granted {
            Ok(Ok(())) => process::launch(self, id).await,
            Ok(Err(_)) => Err(HostError::EndedWhileWaiting(name)),
            Err(_) => Err(HostError::NoMemoryInTime {
                name,
                seconds: MEMORY_PATIENCE.as_secs(),
                keepers: self.lock().keepers(),
            }),
        };
        if result.is_err() {
            self.remove(id, "was not started");
        }
        result
    }

    /// Shows a VM that has just been started.
    pub(in crate::host) fn published_anew(&self, name: &VmName) -> Result<VmView, HostError> {
        self.shared.round_wanted.notify_one();
        let mut state = self.lock();
        state.publish_change();
        state.published.vm(name.as_str())
    }

    /// Ends a VM: in order if its process listens, by force if it does not. Returns when nothing
    /// of it is left. It is not started again by this host, and with `on-failure` by none.
    ///
    /// # Errors
    /// When there is no such VM, it does not run yet, or it cannot be kept that it was stopped.
    pub async fn stop(&self, name: &str) -> Result<(), HostError> {
        let is_defined = self.stay_stopped(name).await?;
        match self.end(name).await {
            // It did not run, and will not.
            Err(HostError::UnknownVm(_) | HostError::NotRunning(_)) if is_defined => Ok(()),
            ended => ended,
        }
    }

    /// Ends a VM, whatever becomes of it then.
    pub(in crate::host) async fn end(&self, name: &str) -> Result<(), HostError> {
        let (mut gone, kill, is_asked) = {
            let mut state = self.lock();
            let vm = state.find(name)?;
            vm.check_stop()?;
            let Some(running) = vm.life.stop() else {
                return Err(HostError::NotRunningYet(vm.config.name.clone()));
            };
            let (gone, kill) = (running.gone.subscribe(), Arc::clone(&running.kill));
            // The embedded guest has nothing to put in order.
            let is_asked = vm.config.kernel.is_some() && vm.send(&ToVm::PressPowerButton);
            if !is_asked {
                vm.send(&ToVm::Stop);
            }
            (gone, kill, is_asked)
        };
        if is_asked
            && timeout(POWER_OFF_PATIENCE, gone.changed()).await.is_err()
            && let Ok(vm) = self.lock().find(name)
        {
            vm.send(&ToVm::Stop);
        }
        if timeout(STOP_PATIENCE, gone.changed()).await.is_err() {
            kill.notify_one();
        }
        // It never changes: it fails when the VM has gone, which is what is waited for.
        drop(gone.changed().await);
        Ok(())
    }

    /// Ends every VM and admits no more.
    pub async fn stop_all(&self) {
        let (waiting, others): (Vec<_>, Vec<_>) = {
            let mut state = self.lock();
            state.stopping = true;
            let vms = state.durable.vms.values();
            let vms = vms.filter(|vm| vm.adoption().is_none());
            vms.map(|vm| (vm.config.id, vm.config.name.clone(), vm.life.phase()))
                .partition(|(_, _, phase)| *phase == VmPhase::Waiting)
        };
        self.leave_adopted().await;
        self.give_up_all().await;
        for (id, ..) in waiting {
            self.remove(id, "was not started");
        }
        let stops = others.into_iter().map(|(_, name, _)| {
            let host = self.clone();
            tokio::spawn(async move { drop(host.end(name.as_str()).await) })
        });
        for stop in stops.collect::<Vec<_>>() {
            drop(stop.await);
        }
        // One that was still being started shows up when its start has ended.
        let mut count = self.shared.count.subscribe();
        while *count.borrow_and_update() > 0 {
            for running in self.lock().durable.vms.values().filter_map(Vm::running) {
                running.kill.notify_one();
            }
            if timeout(STOP_PATIENCE, count.changed()).await.is_err() {
                tracing::warn!("a VM does not end");
                return;
            }
        }
    }

    /// Admits a VM now, with its ticket if it has waited. Not while something is being changed: what is promised may be
    /// more then.
    pub(in crate::host) async fn admit_now(
        &self,
        wanted: &Wanted,
        ticket: Option<u64>,
    ) -> Result<Admitted, HostError> {
        let _turn = self.shared.changes.lock().await;
        let mut state = self.lock();
        if state.stopping {
            return Err(HostError::Stopping);
        }
        let config = state.config(wanted.request.clone(), wanted.holds_name)?;
        if !state.queue.is_turn_of(ticket) {
            let count = state.queue.len();
            return Err(HostError::OthersWait { count });
        }
        policy::admit(&state.snapshot(), &config.settings, OVERHEAD)?;
        let starting = state
            .durable
            .vms
            .values()
            .filter(|vm| vm.running().is_none());
        descriptors::check(starting.count(), config.console_log.is_some())?;
        let (id, name) = (config.id, config.name.clone());
        let (grant, first_grant) = oneshot::channel();
        state.durable.next_id += 1;
        let mut vm = Vm::new(config, grant);
        // What was fixed once may not be possible any more.
        let balloon = wanted
            .balloon_bytes
            .and_then(|bytes| whole_pages(bytes).ok());
        vm.pinned = balloon.and_then(|balloon| pinned(&vm, balloon).ok());
        state.durable.vms.insert(id, vm);
        state.publish_change();
        self.shared.count.send_replace(state.count());
        Ok(Admitted {
            id,
            name,
            first_grant,
        })
    }

    /// Forgets a VM of which nothing is left; its memory is free from here on. Who waits for its end is told by
    /// its drop.
    pub(super) fn remove(&self, id: VmId, what: &str) {
        let mut state = self.lock();
        let Some(vm) = state.durable.vms.remove(&id) else {
            return;
        };
        state.events.add(Some(&vm.config.name), what);
        self.after_end(&mut state, &vm);
        state.publish_change();
        self.shared.count.send_replace(state.count());
        self.remove_bundle(&vm.config.name);
        drop(state);
        self.shared.round_wanted.notify_one();
    }
}
