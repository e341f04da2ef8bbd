//! The host: the daemon that owns the machine memory and gives it to VMs.
//!
//! ```text
//!   clients ──HTTP──▶ routes ──▶ Host ◀── rounds (every second: observe, decide, act)
//!                                 │
//!                                 ├── Vm ── Link ──▶ VM process
//!                                 └── Vm ── Link ──▶ VM process
//! ```
//!
//! * Who gets how much is decided by `policy::plan` from a snapshot; nothing here has an opinion.
//! * What VMs use is read from the kernel; what they say about themselves is shown, and believed
//!   only where it makes them hold more, never less, than the kernel counts.
//! * Clients see what the last round or the last change published, whole and under a number, so that
//!   no two of them are told different things about one moment.
//! * One thread runs everything here; no call blocks, and a VM process or client that does not
//!   answer holds up nobody.

mod arrivals;
mod asides;
mod bundles;
mod cgroup;
mod claim;
mod comeback;
pub mod console;
mod console_log;
mod definitions;
mod descriptors;
mod device_watch;
mod drop_elsewhere;
mod error;
mod events;
mod figures;
mod group;
mod kernel;
mod libvirt;
mod metrics;
mod open_files;
mod publication;
mod qmp;
mod qmp_dir;
mod queue;
mod rate_limit;
pub mod recording;
mod request;
pub(crate) mod rotating;
mod round;
mod routes;
pub mod runtime_dir;
mod server;
mod settings;
pub mod sharing;
mod state;
pub mod state_store;
mod swap_dir;
mod tokens;
mod untrusted_stream;
mod vm;
mod web;

#[cfg(feature = "fuzzing")]
pub(crate) use claim::fuzz as claim_fuzz;
pub use error::HostError;
pub(crate) use events::now_ms;
pub use group::Group;
pub use kernel::MachineMemory;
pub use libvirt::LibvirtUri;
pub use qmp::Leave;
pub use server::serve;
pub use vm::AdoptError;

use api::{
    BalloonRequest, EventView, ExplanationView, Figures, HistoryQuery, HistoryView, HostChange,
    HostSettings, HostView, Overview, VmChange, VmView, whole_pages,
};
use bundles::Agreed;
use console::Console;
use definitions::Definitions;
use page::{PageCount, VmId};
use protocol::JailMode;
use publication::Publication;
use recording::{Decision, Recorder};
use request::{check_budget, pinned};
use runtime_dir::{Place, make_private_folders};
use sharing::{Audit, Direction, PageSharing, Report};
use state::State;
use state_store::{Definition, Kept, StateStore, Step};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokens::Tokens;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// How long shared pages may take to be brought home before the rest is left to go on by itself.
const SHARING_PATIENCE: Duration = Duration::from_secs(30);
/// How long memory that is missing for that may take to come from balloons.
const MISSING_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks whether pages have been brought home.
const SHARING_POLL: Duration = Duration::from_millis(50);
/// How long an audit may take, agents coming to rest included.
const AUDIT_PATIENCE: Duration = Duration::from_secs(60);

/// Clients at consoles at the same time.
const MOST_CONSOLE_CLIENTS: usize = 64;
/// Clients that follow the host at the same time.
const MOST_STREAM_CLIENTS: usize = 64;

/// What a host is told when it starts.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// What can be changed later.
    pub settings: HostSettings,
    /// Time between rounds: ESX's paper and DESIGN say every second.
    pub interval: Duration,
    /// Whether the host ends when its last VM has.
    pub exit_when_empty: bool,
    /// Who may use the host's socket besides its owner.
    pub socket_group: Option<Group>,
    /// Where browsers and scrapers find it, if they should.
    pub http: Option<HttpOptions>,
    /// A folder for a file of what each VM prints, if that should be kept.
    pub console_log: Option<PathBuf>,
    /// A folder for VMs' swap files, if their pages may go there.
    pub swap: Option<PathBuf>,
    /// How VM processes are jailed.
    pub jail: JailMode,
    /// A folder in which is kept what outlives the host, if anything is.
    pub state: Option<PathBuf>,
    /// The libvirt whose running domains are put under it, if any's are.
    pub libvirt: Option<LibvirtUri>,
    /// A folder of sockets of QEMUs' monitors, if these are put under it.
    pub qmp_dir: Option<PathBuf>,
    /// What may be done to QEMUs that are put under it.
    pub leave: Leave,
    /// What of the settings was asked for at its start. Others are as somebody last changed them, where that was kept.
    pub given: HostChange,
}

impl HostOptions {
    /// What a host is that was told nothing but its budget.
    #[must_use]
    pub fn new(budget: PageCount) -> Self {
        Self {
            settings: HostSettings::new(budget),
            interval: Duration::from_secs(1),
            exit_when_empty: false,
            socket_group: None,
            http: None,
            console_log: None,
            swap: None,
            jail: JailMode::default(),
            state: None,
            libvirt: None,
            qmp_dir: None,
            leave: Leave::default(),
            given: HostChange::default(),
        }
    }
}

/// How a host serves on TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Where.
    pub address: SocketAddr,
    /// Names by which it is reached besides, without a port, in lower case.
    pub names: Vec<String>,
    /// Whether the token is logged: a log file may have more readers than the token's own file.
    pub log_token: bool,
}

/// A running host; clones are the same one.
#[derive(Clone, Debug)]
pub struct Host {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    interval: Duration,
    /// What may be done to QEMUs.
    leave: Leave,
    place: Place,
    state: Mutex<State>,
    /// A VM has answered.
    answered: Notify,
    /// Something has changed that should not wait for the next round.
    round_wanted: Notify,
    /// How many VMs there are, those that wait to be admitted among them. Told again, unchanged, when one was refused.
    count: watch::Sender<usize>,
    /// Places for clients at consoles.
    console_places: Arc<Semaphore>,
    /// Places for clients that follow.
    stream_places: Arc<Semaphore>,
    /// How many rounds there were.
    rounds: watch::Sender<u64>,
    sharing: PageSharing,
    /// Who may do what over TCP.
    tokens: Tokens,
    /// What outlives the host.
    store: StateStore,
    /// Held by whoever changes what must be kept: from the look at what there is until that is changed.
    changes: tokio::sync::Mutex<()>,
}

impl Host {
    /// A host without VMs at a place. Starts its rounds, so it must be called inside a runtime.
    ///
    /// # Errors
    /// When the budget is above what the machine has.
    pub fn start(options: &HostOptions, place: &Place) -> Result<Self, HostError> {
        let machine = MachineMemory::read()
            .map_err(HostError::MachineMemory)?
            .total;
        let (store, kept) = match &options.state {
            Some(folder) => StateStore::open(folder, place).map_err(HostError::OpenState)?,
            None => (StateStore::off(), Kept::default()),
        };
        let settings = settings::with_kept(options, &kept.settings, machine)?;
        let options = &HostOptions {
            settings,
            ..options.clone()
        };
        let settings = &options.settings;
        check_budget(settings.budget, machine)?;
        if let Some(folder) = &options.console_log {
            make_private_folders(folder).map_err(|source| HostError::ConsoleFolder {
                folder: folder.clone(),
                source,
            })?;
        }
        if let Some(folder) = &options.swap {
            let made = make_private_folders(folder).and_then(|()| swap_dir::try_out(folder));
            made.map_err(|source| HostError::SwapFolder {
                folder: folder.clone(),
                source,
            })?;
        }
        let sharing = PageSharing::start(machine, settings.rates, place.store_notes())
            .map_err(HostError::StartScanner)?;
        sharing.set_rates(settings.rates, settings.scan_priority);
        if !settings.sharing {
            sharing.direct(Direction::BringHome);
        }
        let mut state = State::new(options, machine, Recorder::new(place.decisions()));
        state.definitions = Definitions::of(&kept);
        state.left_adopted = kept.adoptions.clone().into_values().collect();
        state.changed_settings = kept.settings.clone();
        state.publish_change();
        let host = Self {
            shared: Arc::new(Shared {
                interval: options.interval,
                leave: options.leave,
                place: place.clone(),
                state: Mutex::new(state),
                answered: Notify::new(),
                round_wanted: Notify::new(),
                count: watch::Sender::new(0),
                console_places: Arc::new(Semaphore::new(descriptors::clients(
                    MOST_CONSOLE_CLIENTS,
                ))),
                stream_places: Arc::new(Semaphore::new(descriptors::clients(MOST_STREAM_CLIENTS))),
                rounds: watch::Sender::new(0),
                sharing,
                tokens: Tokens::of(&kept.tokens, options.state.is_some()),
                store,
                changes: tokio::sync::Mutex::default(),
            }),
        };
        tokio::spawn(round::run(host.clone()));
        Ok(host)
    }

    /// Everything there is to see.
    #[must_use]
    pub fn overview(&self) -> Overview {
        self.published().overview.clone()
    }

    /// What is counted.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.published().figures.clone()
    }

    /// What was seen last.
    fn published(&self) -> Arc<Publication> {
        Arc::clone(&self.lock().published)
    }

    /// What was counted in the last ten minutes, or in the last day.
    ///
    /// # Errors
    /// When there is no VM of that name.
    pub fn history(&self, query: &HistoryQuery) -> Result<HistoryView, HostError> {
        self.lock().history(query)
    }

    /// One VM.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn vm(&self, name: &str) -> Result<VmView, HostError> {
        self.published().vm(name)
    }

    /// Why a VM holds what it holds; with `more`, also what would bring it so much more.
    ///
    /// # Errors
    /// When there is no such VM, or nothing was decided about it yet.
    pub fn explain(
        &self,
        name: &str,
        more_bytes: Option<u64>,
    ) -> Result<ExplanationView, HostError> {
        let more = more_bytes.map(whole_pages).transpose()?;
        self.lock().explain(name, more)
    }

    /// Changes a VM's claims on memory.
    ///
    /// # Errors
    /// When the change makes no sense or would break a promise.
    pub async fn set(&self, name: &str, change: &VmChange) -> Result<VmView, HostError> {
        let _turn = self.shared.changes.lock().await;
        let (id, settings) = self.lock().checked(name, change)?;
        let with_change = |definition: &mut Definition| {
            definition.request = definitions::with_change(&definition.request, change);
        };
        let agree = |agreed: &mut Agreed| agreed.config.settings = settings.clone();
        self.agree(id, agree, with_change).await?;
        let mut state = self.lock();
        let vm = state.vm_mut(id)?;
        vm.config.settings = settings.clone();
        vm.tell(|backend| backend.remember(&settings));
        self.changed(state, name)
    }

    /// What was agreed about a VM is there from here on, whatever becomes of this host and this machine.
    async fn agree(
        &self,
        id: VmId,
        change: impl FnOnce(&mut Agreed),
        in_definition: impl FnOnce(&mut Definition),
    ) -> Result<(), HostError> {
        let (before, is_running, adoption) = {
            let state = self.lock();
            let vm = state.vm(id)?;
            let is_running = vm.running().is_some();
            (vm.agreed(), is_running, vm.adoption().cloned())
        };
        if let Some(adoption) = adoption {
            let mut agreed = before;
            change(&mut agreed);
            return self.agree_adopted(id, adoption, agreed).await;
        }
        if is_running {
            let mut agreed = before.clone();
            change(&mut agreed);
            self.write_agreed(&agreed)?;
        }
        let kept = self.redefine(&before.config.name, in_definition).await;
        if kept.is_err() && is_running {
            self.write_agreed(&before)?;
        }
        kept
    }

    async fn agree_adopted(
        &self,
        id: VmId,
        before: state_store::Adoption,
        agreed: Agreed,
    ) -> Result<(), HostError> {
        let adoption = state_store::Adoption {
            settings: agreed.config.settings,
            pinned: agreed.pinned,
            ..before
        };
        let step = Step::Adopt(Box::new(adoption.clone()));
        self.keep(vec![step]).await?;
        self.lock().vm_mut(id)?.set_adoption(adoption);
        Ok(())
    }

    fn write_agreed(&self, agreed: &Agreed) -> Result<(), HostError> {
        let written = self.shared.place.bundles().write(agreed);
        written.map_err(|source| HostError::NotWrittenDown {
            name: agreed.config.name.clone(),
            folder: self.shared.place.folder(),
            source,
        })
    }

    /// Shows what has changed of a VM.
    fn changed(&self, mut state: MutexGuard<'_, State>, name: &str) -> Result<VmView, HostError> {
        state.publish_change();
        self.shared.round_wanted.notify_one();
        state.published.vm(name)
    }

    /// Changes the host.
    ///
    /// # Errors
    /// When the change makes no sense or would break a promise.
    pub async fn set_host(&self, change: &HostChange) -> Result<HostView, HostError> {
        self.change_settings(change).await?;
        self.shared.round_wanted.notify_one();
        if let Some(on) = change.sharing {
            self.set_sharing(on).await;
        }
        let mut state = self.lock();
        state.publish_change();
        Ok(state.published.overview.host.clone())
    }

    async fn change_settings(&self, change: &HostChange) -> Result<(), HostError> {
        let _turn = self.shared.changes.lock().await;
        let (settings, changed) = {
            let state = self.lock();
            let settings = state.durable.settings.with(change)?;
            check_budget(settings.budget, state.machine)?;
            policy::admit_budget(&state.snapshot(), settings.budget)
                .map_err(|refusal| HostError::BudgetRefused(state.named(refusal)))?;
            (settings, state.changed_settings.clone().then(change))
        };
        self.keep(vec![Step::Settings(changed.clone())]).await?;
        let mut state = self.lock();
        state.changed_settings = changed;
        let (rates, priority) = (settings.rates, settings.scan_priority);
        let old = std::mem::replace(&mut state.durable.settings, settings);
        if (rates, priority) != (old.rates, old.scan_priority) {
            self.shared.sharing.set_rates(rates, priority);
        }
        let budget = state.durable.settings.budget;
        if budget != old.budget {
            // What was used before belongs to the old budget.
            state.used_max = state.used;
            // At once: until then the scanner takes memory that is no more.
            self.shared.sharing.adapt(state.sharing_conditions());
            let what = format!("the budget is {budget} now");
            state.events.add(None, what);
        }
        Ok(())
    }

    /// Shares equal pages from now on, or brings home what is shared: returns when nothing is shared any
    /// more, when memory is missing for that, or when it has taken too long.
    async fn set_sharing(&self, on: bool) {
        let direction = match on {
            true => Direction::Share,
            false => Direction::BringHome,
        };
        let is_new = self.lock().account.report.direction != direction;
        self.shared.sharing.direct(direction);
        if is_new {
            let what = format!("page sharing is {} now", if on { "on" } else { "off" });
            self.lock().events.add(None, what);
        }
        let begin = Instant::now();
        let is_there = |report: &Report| {
            report.direction == direction
                && (on || report.counts.shared + report.counts.broken == 0)
        };
        loop {
            tokio::time::sleep(SHARING_POLL).await;
            let report = self.shared.sharing.report();
            // What is missing at first may come from balloons.
            let is_stuck = report.missing > PageCount::ZERO && begin.elapsed() > MISSING_PATIENCE;
            if is_there(&report) || is_stuck || begin.elapsed() > SHARING_PATIENCE {
                break;
            }
        }
        // The views show what the last round found.
        let round = self.lock().account_rounds;
        while self.lock().account_rounds < round + 2 && begin.elapsed() < SHARING_PATIENCE {
            tokio::time::sleep(SHARING_POLL).await;
        }
    }

    /// Compares what the host believes of shared pages with what the kernel's page tables say.
    ///
    /// # Errors
    /// When the VMs' agents do not come to rest in time.
    pub async fn audit(&self) -> Result<Audit, HostError> {
        let answer = self.shared.sharing.audit();
        let waited = tokio::task::spawn_blocking(move || answer.recv_timeout(AUDIT_PATIENCE));
        match waited.await {
            Ok(Ok(audit)) => Ok(audit),
            _ => Err(HostError::NoAudit),
        }
    }

    /// Fixes a VM's balloon, or leaves it to the policy again.
    ///
    /// # Errors
    /// When the balloon would take what the VM was promised.
    pub async fn set_balloon(
        &self,
        name: &str,
        request: BalloonRequest,
    ) -> Result<VmView, HostError> {
        let _turn = self.shared.changes.lock().await;
        let (id, pinned) = {
            let mut state = self.lock();
            let vm = state.find(name)?;
            let balloon = request.balloon_bytes.map(whole_pages).transpose()?;
            let pinned = balloon.map(|balloon| pinned(vm, balloon)).transpose()?;
            (vm.config.id, pinned)
        };
        let fix = |definition: &mut Definition| definition.balloon_bytes = request.balloon_bytes;
        let agree = |agreed: &mut Agreed| agreed.pinned = pinned;
        self.agree(id, agree, fix).await?;
        let mut state = self.lock();
        state.vm_mut(id)?.pinned = pinned;
        self.changed(state, name)
    }

    /// A VM's console.
    ///
    /// # Errors
    /// When there is no such VM, or it does not run yet.
    pub fn console(&self, name: &str) -> Result<Console, HostError> {
        let mut state = self.lock();
        let vm = state.find(name)?;
        let Some(running) = vm.running() else {
            return Err(HostError::NotRunningYet(vm.config.name.clone()));
        };
        let process = running.backend.process();
        let process = process.ok_or_else(|| HostError::NotOurs(vm.config.name.clone()))?;
        Ok(process.console.clone())
    }

    /// A place for a client at a console; it is given back when it is dropped.
    ///
    /// # Errors
    /// When all are taken.
    fn console_place(&self) -> Result<OwnedSemaphorePermit, HostError> {
        let places = Arc::clone(&self.shared.console_places);
        places
            .try_acquire_owned()
            .map_err(|_taken| HostError::TooManyConsoles)
    }

    /// What was seen last, and the events that `seen_events` does not count yet.
    fn moment(&self, seen_events: &mut u64) -> (Arc<Publication>, Vec<EventView>) {
        let state = self.lock();
        let events = state.events.since(seen_events);
        (Arc::clone(&state.published), events)
    }

    /// What was decided last.
    pub(crate) fn decision(&self) -> Option<Decision> {
        self.lock().decision.clone()
    }

    /// Changes with every round.
    pub(crate) fn rounds(&self) -> watch::Receiver<u64> {
        self.shared.rounds.subscribe()
    }

    /// A place for a client that follows; it is given back when it is dropped.
    fn stream_place(&self) -> Result<OwnedSemaphorePermit, HostError> {
        let places = Arc::clone(&self.shared.stream_places);
        places
            .try_acquire_owned()
            .map_err(|_taken| HostError::TooManyStreams)
    }

    /// How many VMs there are, as it changes.
    #[must_use]
    pub fn count(&self) -> watch::Receiver<usize> {
        self.shared.count.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
