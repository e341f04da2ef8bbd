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

mod claim;
pub mod console;
mod console_log;
mod descriptors;
mod device_watch;
mod drop_elsewhere;
mod error;
mod events;
mod figures;
mod kernel;
mod launch;
mod link;
mod metrics;
mod orphans;
mod publication;
mod queue;
mod rate_limit;
pub mod recording;
pub(crate) mod rotating;
mod round;
mod routes;
pub mod runtime_dir;
mod sampling;
mod server;
pub mod sharing;
mod state;
mod untrusted_stream;
mod vm;
mod web;
mod wish;

pub use error::HostError;
pub use kernel::MachineMemory;
pub use server::serve;

use crate::api::{
    BalloonRequest, EventView, ExplanationView, Figures, HistoryQuery, HistoryView, HostChange,
    HostView, Overview, RunRequest, ScanChange, ScanPriority, VmChange, VmIdleTax, VmPhase, VmView,
};
use crate::name::VmName;
use crate::protocol::ToVm;
use crate::vm::POWER_OFF_PATIENCE;
use ::sharing::RateSettings;
use console::Console;
use page::{PageCount, VmId};
use policy::{OVERHEAD, REBALANCE_INTERVAL, SAMPLE_PERIOD, TaxRate, VmSettings};
use publication::Publication;
use recording::Recorder;
use runtime_dir::{Place, make_private_folders};
use sharing::{Audit, Direction, PageSharing, Report};
use state::{Beginning, State};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use vm::Vm;
use wish::{
    check_budget, new_rates, new_rebalance_interval, new_sample_period, pinned, whole_pages,
    whole_pages_or,
};

/// How long a VM may wait until its memory was taken from others.
const MEMORY_PATIENCE: Duration = Duration::from_secs(30);
/// How long a VM process may take to end in order.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How long shared pages may take to be brought home before the rest is left to go on by itself.
const SHARING_PATIENCE: Duration = Duration::from_secs(30);
/// How long memory that is missing for that may take to come from balloons.
const MISSING_PATIENCE: Duration = Duration::from_secs(5);
/// How often is looked whether they are.
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
    /// Machine memory for all VMs together.
    pub budget: PageCount,
    /// Time between rounds: ESX's paper and DESIGN say every second.
    pub interval: Duration,
    /// Whether the host ends when its last VM has.
    pub exit_when_empty: bool,
    /// Whether equal pages are shared from the start.
    pub sharing: bool,
    /// How fast memory is scanned.
    pub rates: RateSettings,
    /// The scanner's place among all that want a core.
    pub scan_priority: ScanPriority,
    /// The tax on idle memory.
    pub idle_tax: TaxRate,
    /// How long each sample of a VM's pages is watched.
    pub sample_period: Duration,
    /// How long targets hold if nothing happens.
    pub rebalance_interval: Duration,
    /// Where browsers and scrapers find it, if they should.
    pub http: Option<HttpOptions>,
    /// A folder for a file of what each VM prints, if that should be kept.
    pub console_log: Option<PathBuf>,
}

impl HostOptions {
    /// What a host is that was told nothing but its budget.
    #[must_use]
    pub fn new(budget: PageCount) -> Self {
        Self {
            budget,
            interval: Duration::from_secs(1),
            exit_when_empty: false,
            sharing: true,
            rates: RateSettings::default(),
            scan_priority: ScanPriority::default(),
            idle_tax: TaxRate::default(),
            sample_period: SAMPLE_PERIOD,
            rebalance_interval: REBALANCE_INTERVAL,
            http: None,
            console_log: None,
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

/// A VM that has just been admitted.
struct Admitted {
    id: VmId,
    name: VmName,
    first_grant: oneshot::Receiver<PageCount>,
}

/// A running host; clones are the same one.
#[derive(Clone, Debug)]
pub struct Host {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    interval: Duration,
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
        check_budget(options.budget, machine)?;
        new_rates(options.rates, ScanChange::default())?;
        if let Some(folder) = &options.console_log {
            make_private_folders(folder).map_err(|source| HostError::ConsoleFolder {
                folder: folder.clone(),
                source,
            })?;
        }
        let sharing =
            PageSharing::start(machine, options.rates).map_err(HostError::StartScanner)?;
        sharing.set_rates(options.rates, options.scan_priority);
        if !options.sharing {
            sharing.direct(Direction::BringHome);
        }
        let host = Self {
            shared: Arc::new(Shared {
                interval: options.interval,
                place: place.clone(),
                state: Mutex::new(State::new(Beginning {
                    budget: options.budget,
                    machine,
                    rates: options.rates,
                    scan_priority: options.scan_priority,
                    idle_tax: options.idle_tax,
                    sample_period: options.sample_period,
                    rebalance_interval: options.rebalance_interval,
                    recorder: Recorder::new(place.decisions()),
                    console_log: options.console_log.clone(),
                })),
                answered: Notify::new(),
                round_wanted: Notify::new(),
                count: watch::Sender::new(0),
                console_places: Arc::new(Semaphore::new(descriptors::clients(
                    MOST_CONSOLE_CLIENTS,
                ))),
                stream_places: Arc::new(Semaphore::new(descriptors::clients(MOST_STREAM_CLIENTS))),
                rounds: watch::Sender::new(0),
                sharing,
            }),
        };
        tokio::spawn(round::run(host.clone()));
        Ok(host)
    }

    /// Starts a VM and waits until its guest runs.
    ///
    /// # Errors
    /// When the wish makes no sense, cannot be admitted, or the VM does not start.
    pub async fn run(&self, request: RunRequest) -> Result<VmView, HostError> {
        let Admitted {
            id,
            name,
            first_grant,
        } = self.admit_in_turn(request).await.inspect_err(|_| {
            // A host that was started for this VM alone may end now.
            self.shared.count.send_modify(|_| {});
        })?;
        self.shared.round_wanted.notify_one();
        // A task of its own: a client that hangs up does not leave a VM half started.
        let host = self.clone();
        let starting = tokio::spawn(async move {
            let granted = tokio::time::timeout(MEMORY_PATIENCE, first_grant).await;
            let result = match granted {
                Ok(Ok(_)) => launch::launch(&host, id).await,
                Ok(Err(_)) => Err(HostError::EndedWhileWaiting(name)),
                Err(_) => Err(HostError::NoMemoryInTime {
                    name,
                    seconds: MEMORY_PATIENCE.as_secs(),
                    keepers: host.lock().keepers(),
                }),
            };
            if result.is_err() {
                host.remove(id, "was not started");
            }
            result
        });
        starting.await.map_err(|_ended| HostError::Stopping)??;
        self.shared.round_wanted.notify_one();
        let mut state = self.lock();
        let name = state.vm(id)?.config.name.clone();
        state.publish_change();
        state.published.vm(name.as_str())
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
    pub fn set(&self, name: &str, change: &VmChange) -> Result<VmView, HostError> {
        let mut state = self.lock();
        let snapshot = state.snapshot();
        let vm = state.find(name)?;
        let old = &vm.config.settings;
        let settings = VmSettings {
            size: old.size,
            min: whole_pages_or(change.min_bytes, old.min)?,
            max: whole_pages_or(change.max_bytes, old.max)?,
            shares: change.shares.unwrap_or(old.shares),
            idle_tax: match change.idle_tax {
                None => old.idle_tax,
                Some(VmIdleTax::Host) => None,
                Some(VmIdleTax::Permille(rate)) => Some(rate),
            },
        };
        settings.check()?;
        policy::admit_change(&snapshot, vm.config.id, &settings)?;
        vm.config.settings = settings.clone();
        vm.send(&ToVm::SetSettings(settings));
        self.changed(state, name)
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
        self.set_budget_and_rates(change)?;
        self.shared.round_wanted.notify_one();
        if let Some(on) = change.sharing {
            self.set_sharing(on).await;
        }
        let mut state = self.lock();
        state.publish_change();
        Ok(state.published.overview.host.clone())
    }

    fn set_budget_and_rates(&self, change: &HostChange) -> Result<(), HostError> {
        let mut state = self.lock();
        let budget = whole_pages_or(change.memory_bytes, state.budget)?;
        check_budget(budget, state.machine)?;
        policy::admit_budget(&state.snapshot(), budget)?;
        let rates = new_rates(state.rates, change.scan)?;
        let sample_period = new_sample_period(state.sample_period, change.sample_period_s)?;
        let interval =
            new_rebalance_interval(state.rebalance.interval, change.rebalance_interval_s)?;
        (state.sample_period, state.rebalance.interval) = (sample_period, interval);
        state.idle_tax = change.idle_tax_permille.unwrap_or(state.idle_tax);
        let priority = change.scan.priority.unwrap_or(state.scan_priority);
        if (rates, priority) != (state.rates, state.scan_priority) {
            (state.rates, state.scan_priority) = (rates, priority);
            self.shared.sharing.set_rates(rates, priority);
        }
        if budget != state.budget {
            // What was used before belongs to the old budget.
            state.used_max = state.used;
            state.budget = budget;
            state
                .events
                .add(None, format!("the budget is {budget} now"));
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
    pub fn set_balloon(&self, name: &str, request: BalloonRequest) -> Result<VmView, HostError> {
        let mut state = self.lock();
        let vm = state.find(name)?;
        vm.pinned = match request.balloon_bytes {
            Some(bytes) => Some(pinned(vm, whole_pages(bytes)?)?),
            None => None,
        };
        self.changed(state, name)
    }

    /// A VM's console.
    ///
    /// # Errors
    /// When there is no such VM, or it does not run yet.
    pub fn console(&self, name: &str) -> Result<Console, HostError> {
        let mut state = self.lock();
        let vm = state.find(name)?;
        match &vm.running {
            Some(running) => Ok(running.console.clone()),
            None => Err(HostError::NotRunningYet(vm.config.name.clone())),
        }
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

    /// Changes with every round.
    fn rounds(&self) -> watch::Receiver<u64> {
        self.shared.rounds.subscribe()
    }

    /// A place for a client that follows; it is given back when it is dropped.
    fn stream_place(&self) -> Result<OwnedSemaphorePermit, HostError> {
        let places = Arc::clone(&self.shared.stream_places);
        places
            .try_acquire_owned()
            .map_err(|_taken| HostError::TooManyStreams)
    }

    /// Ends a VM: in order if its process listens, by force if it does not. Returns when nothing
    /// of it is left.
    ///
    /// # Errors
    /// When there is no such VM, or it does not run yet.
    pub async fn stop(&self, name: &str) -> Result<(), HostError> {
        let (mut gone, kill, is_asked) = {
            let mut state = self.lock();
            let vm = state.find(name)?;
            if vm.running.is_none() {
                return Err(HostError::NotRunningYet(vm.config.name.clone()));
            }
            vm.phase = VmPhase::Stopping;
            // The embedded guest has nothing to put in order.
            let is_asked = vm.config.kernel.is_some() && vm.send(&ToVm::PressPowerButton);
            if !is_asked {
                vm.send(&ToVm::Stop);
            }
            (vm.gone.subscribe(), Arc::clone(&vm.kill), is_asked)
        };
        if is_asked
            && tokio::time::timeout(POWER_OFF_PATIENCE, gone.wait_for(|gone| *gone))
                .await
                .is_err()
            && let Ok(vm) = self.lock().find(name)
        {
            vm.send(&ToVm::Stop);
        }
        if tokio::time::timeout(STOP_PATIENCE, gone.wait_for(|gone| *gone))
            .await
            .is_err()
        {
            kill.notify_one();
        }
        // It fails only when the VM has gone altogether, which is what is waited for.
        drop(gone.wait_for(|gone| *gone).await);
        Ok(())
    }

    /// Ends every VM and admits no more.
    pub async fn stop_all(&self) {
        let names: Vec<VmName> = {
            let mut state = self.lock();
            state.stopping = true;
            // Those that wait for memory need not wait any longer.
            state
                .vms
                .values_mut()
                .for_each(|vm| drop(vm.first_grant.take()));
            state
                .vms
                .values()
                .map(|vm| vm.config.name.clone())
                .collect()
        };
        let stops = names.into_iter().map(|name| {
            let host = self.clone();
            tokio::spawn(async move { drop(host.stop(name.as_str()).await) })
        });
        for stop in stops.collect::<Vec<_>>() {
            drop(stop.await);
        }
        // One that was still being started shows up when its start has ended.
        let mut count = self.shared.count.subscribe();
        while *count.borrow_and_update() > 0 {
            let left: Vec<Arc<Notify>> = self
                .lock()
                .vms
                .values()
                .map(|vm| Arc::clone(&vm.kill))
                .collect();
            left.iter().for_each(|kill| kill.notify_one());
            if tokio::time::timeout(STOP_PATIENCE, count.changed())
                .await
                .is_err()
            {
                tracing::warn!("a VM does not end");
                return;
            }
        }
    }

    /// How many VMs there are, as it changes.
    #[must_use]
    pub fn count(&self) -> watch::Receiver<usize> {
        self.shared.count.subscribe()
    }

    /// Admits a VM now, with its ticket if it has waited.
    fn admit(&self, request: RunRequest, ticket: Option<u64>) -> Result<Admitted, HostError> {
        let mut state = self.lock();
        if state.stopping {
            return Err(HostError::Stopping);
        }
        let config = state.config(request, ticket)?;
        if !state.queue.is_turn_of(ticket) {
            let count = state.queue.len();
            return Err(HostError::OthersWait { count });
        }
        policy::admit(&state.snapshot(), &config.settings, OVERHEAD)?;
        let starting = state.vms.values().filter(|vm| vm.running.is_none());
        descriptors::check(starting.count(), config.console_log.is_some())?;
        let (id, name) = (config.id, config.name.clone());
        let (grant, first_grant) = oneshot::channel();
        state.next_id += 1;
        state.vms.insert(id, Vm::new(config, grant));
        state.publish_change();
        self.shared.count.send_replace(state.count());
        Ok(Admitted {
            id,
            name,
            first_grant,
        })
    }

    /// Forgets a VM of which nothing is left; its memory is free from here on.
    fn remove(&self, id: VmId, what: &str) {
        let mut state = self.lock();
        let Some(vm) = state.vms.remove(&id) else {
            return;
        };
        state.events.add(Some(&vm.config.name), what);
        state.publish_change();
        self.shared.count.send_replace(state.count());
        vm.gone.send_replace(true);
        drop(state);
        self.shared.round_wanted.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
