//! Page sharing in the host: a scanner on a thread of its own, and what the host says to it and learns
//! from it. See the `sharing` crate for what is decided, and `scanner` for what is done.

pub(super) mod account;
mod audit;
mod hash;
mod listener;
mod priority;
mod registry;
mod scanner;
mod store_notes;
mod vm;

pub use audit::Audit;
#[cfg(test)]
pub(crate) use audit::NotCompared;
pub use scanner::Totals;
pub use store_notes::StoreNotes;
pub use vm::{SampleOrder, SampleReport, ScannedVmSpec, VmFigures};

use crate::event::Event;
use crate::memory::MemoryError;
use crate::memory::areas::FileId;
use api::ScanPriority;
use listener::Listener;
use page::{PageCount, VmId};
use priority::Loan;
use registry::{Registry, Stores};
use scanner::Scanner;
use sharing::{Counts, FrameRange, Pace, Pressure, RateSettings, VmCounts};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Which way pages go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Equal pages become one.
    #[default]
    Share,
    /// Shared pages are brought home, as far as there is memory, and no more are shared.
    BringHome,
}

enum Command {
    AddVm(Box<ScannedVmSpec>),
    /// Another host's VMs, not taken over yet, have mapped these frames.
    Expect(Vec<FrameRange>),
    /// All VMs of one domain that another host had.
    TakeOver(Vec<ScannedVmSpec>),
    /// All have come.
    AllHaveCome,
    RemoveVm(VmId),
    Rates(RateSettings, ScanPriority),
    Direct(Direction),
    Adapt(Box<Conditions>),
    /// Sharing costs more than it saves: look for frames that nobody uses.
    Sweep,
    Audit(SyncSender<Audit>),
    Sample(VmId, SampleOrder),
}

/// How things stand with memory.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// How to go on.
    pub pace: Pace,
    /// Whether memory is short.
    pub pressure: Pressure,
    /// What no VM uses.
    pub free: PageCount,
    /// What of that shared pages may take at any time, by being broken.
    pub reserve: PageCount,
    /// How things stand with each VM.
    pub vms: Vec<VmConditions>,
}

/// How things stand with a VM.
#[derive(Clone, Copy, Debug)]
pub struct VmConditions {
    /// Which.
    pub id: VmId,
    /// Anonymous pages of its process, by the kernel.
    pub anonymous: PageCount,
    /// Its blocks that are not shared in.
    pub kept: KeptBlocks,
    /// Whether it may hold pages back that its guest touches, and the kernel does not tell what was written.
    pub is_guarded: bool,
}

/// Blocks that are left alone, for what could be shared of them is worth less than that they are large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeptBlocks {
    /// None.
    #[default]
    None,
    /// Until all others were looked at, those that are large and known to be used.
    UsedAtFirst,
    /// Those that are large and known to be used.
    Used,
    /// Those that are large.
    Large,
    /// Those of which nothing is shared: if they are not large, they soon will be.
    Whole,
}

/// What the scanner last said of itself.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Which way pages go.
    pub direction: Direction,
    /// All VMs together.
    pub counts: Counts,
    /// Each VM.
    pub vms: BTreeMap<VmId, VmReport>,
    /// What was done since the start.
    pub totals: Totals,
    /// The time that the scanner had on a core.
    pub cpu: Duration,
    /// What is missing to bring the next pages home.
    pub missing: PageCount,
    /// VMs that cannot share, and why.
    pub not_sharing: BTreeMap<VmId, String>,
}

/// One VM in the scanner's report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmReport {
    /// Its pages.
    pub counts: VmCounts,
    /// Pages that its agent was asked to map so far.
    pub asked: u64,
    /// Anonymous pages of its process that are no guest's, once that was looked at.
    pub own_anonymous: Option<PageCount>,
    /// What its shared pages cost, each frame divided by its references, in thousandths of a page.
    pub charge_millipages: u64,
    /// Pages that are nominated for sharing.
    pub hints: u64,
    /// The memory areas that its process may have.
    pub areas_limit: u64,
    /// How often it was gone over.
    pub passes: u64,
    /// What was looked at.
    pub figures: VmFigures,
    /// The pages whose touches are watched.
    pub sample: Option<SampleReport>,
}

/// Page sharing of a host. The scanner ends when this is dropped.
#[derive(Debug)]
pub struct PageSharing {
    // `None` only while it is being dropped.
    commands: Option<Sender<Command>>,
    wake: Event,
    loan: Arc<Loan>,
    report: Arc<Mutex<Report>>,
    stores: Stores,
}

impl PageSharing {
    /// Starts the scanner of a machine with so much memory. Its stores are noted in `notes`.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn start(machine: PageCount, rates: RateSettings, notes: StoreNotes) -> io::Result<Self> {
        let (commands, inbox): (Sender<Command>, Receiver<Command>) = channel();
        let wake = Event::new()?;
        let report = Arc::new(Mutex::new(Report::default()));
        let stores = Stores::new(notes);
        let loan = Arc::new(Loan::default());
        let listener = Listener::new(wake.clone())?;
        let registry = Registry::new(machine, stores.clone());
        let (lent, said) = (Arc::clone(&loan), Arc::clone(&report));
        let body = move || Scanner::new(inbox, lent, listener, said, registry, rates).run();
        thread::Builder::new().name("scanner".into()).spawn(body)?;
        Ok(Self {
            commands: Some(commands),
            wake,
            loan,
            report,
            stores,
        })
    }

    /// A VM has started.
    pub fn add_vm(&self, spec: ScannedVmSpec) {
        self.say(Command::AddVm(Box::new(spec)));
    }

    /// A VM of another host has mapped these frames of the store in this file. The number by which that is known from now
    /// on.
    ///
    /// # Errors
    /// When the store is none of this place's.
    pub(crate) fn expect(
        &self,
        store: &File,
        frames: Vec<FrameRange>,
    ) -> Result<FileId, MemoryError> {
        let id = self.stores.arrives(store)?;
        self.say(Command::Expect(frames));
        Ok(id)
    }

    /// No VM of another host is expected any more.
    pub(crate) fn all_have_come(&self) {
        self.say(Command::AllHaveCome);
    }

    /// All VMs of one domain that another host had have come, and each obeys this host.
    pub(crate) fn take_over(&self, vms: Vec<ScannedVmSpec>) {
        self.say_and_wait(Command::TakeOver(vms));
    }

    /// A VM's process has ended. The frames that it alone showed are freed soon, however busy the machine is.
    pub fn remove_vm(&self, id: VmId) {
        self.say_and_wait(Command::RemoveVm(id));
    }

    /// Scan at another rate.
    pub fn set_rates(&self, rates: RateSettings, priority: ScanPriority) {
        self.say(Command::Rates(rates, priority));
    }

    /// Share, or bring home.
    pub fn direct(&self, direction: Direction) {
        self.say(Command::Direct(direction));
    }

    /// How things stand with memory.
    pub fn adapt(&self, conditions: Conditions) {
        self.loan.lend();
        self.say(Command::Adapt(Box::new(conditions)));
    }

    /// Sharing costs more than it saves: frames that nobody uses are looked for at once.
    pub fn sweep(&self) {
        self.say_and_wait(Command::Sweep);
    }

    /// Watch which of some random private pages a VM touches from now on, instead of those watched before.
    pub fn sample(&self, vm: VmId, order: SampleOrder) {
        self.say(Command::Sample(vm, order));
    }

    /// Has all VMs' memory maps compared with the books. The answer comes when no agent is at work.
    #[must_use]
    pub fn audit(&self) -> Receiver<Audit> {
        let (answer, result) = sync_channel(1);
        self.say_and_wait(Command::Audit(answer));
        result
    }

    /// What the scanner last said.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Machine memory that the stores hold, as the kernel counts it.
    #[must_use]
    pub fn stored(&self) -> PageCount {
        self.stores.allocated()
    }

    /// Says what somebody waits for, and lends the scanner a place meanwhile.
    fn say_and_wait(&self, command: Command) {
        self.loan.want();
        self.say(command);
        self.loan.lend();
    }

    fn say(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // It fails only when the scanner has panicked, and then the whole program ends.
            drop(commands.send(command));
            self.wake.signal();
        }
    }
}

impl Drop for PageSharing {
    fn drop(&mut self) {
        self.commands = None;
        self.wake.signal();
    }
}
