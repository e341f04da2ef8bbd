//! Why the host does not do what it was asked.

use super::state_store::StateError;
use api::{InvalidNumber, ProblemKind, TokenName};
use page::{PageCount, VmId};
use protocol::VmName;
use std::path::PathBuf;
use std::{fmt, io};
use thiserror::Error;

/// A request that cannot be granted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    #[error("no VM is called '{0}': `ballonet ps` lists them")]
    UnknownVm(String),
    #[error("VM '{0}' does not run: `ballonet restart {0}` starts it")]
    NotRunning(VmName),
    #[error("VM '{0}' runs or is about to: stop it first, or use `ballonet rm --force`")]
    StillRuns(VmName),
    #[error(
        "a VM called '{0}' is defined already: choose another name, start it with `ballonet restart {0}`, or forget it with `ballonet rm {0}`"
    )]
    Defined(VmName),
    #[error("{0} VMs that are to come back are defined already: forget some with `ballonet rm`")]
    TooManyDefined(usize),
    #[error(
        "nothing was changed, for it cannot be kept: make room on the disk, or start the host with another --state or `--state none`"
    )]
    NotKept(#[source] StateError),
    #[error(
        "the state of an earlier host cannot be used: give another --state, `--state none`, or move the file away"
    )]
    OpenState(#[source] StateError),
    #[error("no token is called '{0}': `ballonet token list` lists them")]
    UnknownToken(String),
    #[error(
        "a token called '{0}' is there already: choose another name, or `ballonet token rm {0}` first"
    )]
    TokenNameInUse(TokenName),
    #[error("there are {0} tokens already: withdraw some with `ballonet token rm`")]
    TooManyTokens(usize),
    #[error("a token cannot live for {0} s: give 1 second to 100 years")]
    TokenLife(u64),
    #[error("no token can be made, for this machine has no random numbers")]
    TokenNotMade(#[source] io::Error),
    #[error(
        "token '{name}' is worth nothing from now on, but the next host would take it: make room on the disk, and remove it again"
    )]
    TokenStays { name: String, source: StateError },
    #[error(
        "VM '{0}' is run by QEMU, which this host manages the memory of and nothing else: do that with what started it; \
         `ballonet release {0}` lets it go"
    )]
    NotOurs(VmName),
    #[error("{what} is not adopted, and as it was")]
    NotAdopted {
        what: String,
        source: super::AdoptError,
    },
    #[error("VM '{0}' was not adopted: `ballonet stop {0}` ends it")]
    NotAdoptedAtAll(VmName),
    #[error(
        "VM '{name}' is not released: {why}; try again, or `ballonet release --force {name}` lets it go as it is"
    )]
    NotReleased { name: VmName, why: String },
    #[error("a VM called '{0}' is running: choose another name, or stop it first")]
    NameInUse(VmName),
    #[error(
        "a VM of {size} is larger than this machine, which has {machine}: give a smaller --memory"
    )]
    LargerThanMachine { size: PageCount, machine: PageCount },
    #[error(
        "a budget of {budget} is less than the process of one VM needs: give a --memory from {least} to {machine}, which this machine has"
    )]
    BudgetTooSmall {
        budget: PageCount,
        least: PageCount,
        machine: PageCount,
    },
    #[error(
        "a budget of {budget} is larger than this machine, which has {machine}: give a smaller --memory"
    )]
    BudgetLargerThanMachine {
        budget: PageCount,
        machine: PageCount,
    },
    #[error("{0} processors: give 1 to {most}", most = crate::vm::MOST_VCPUS)]
    Vcpus(u8),
    #[error("{0} network cards: give {most} at most", most = crate::vm::MOST_NETS)]
    TooManyNets(usize),
    #[error(
        "a network card with bytes_per_s 0 lets nothing through: give it some, or leave it out"
    )]
    NoNetRate,
    #[error(
        "--workload is for the embedded guest: leave out --kernel, or tell the kernel by --cmdline"
    )]
    WorkloadWithKernel,
    #[error("what VM '{name}' prints cannot be kept in {}: give another --console-log", .path.display())]
    ConsoleLog {
        name: VmName,
        path: PathBuf,
        source: io::Error,
    },
    #[error("what VM '{other}' prints is kept in {}: give VM '{name}' another --console-log", .path.display())]
    ConsoleLogInUse {
        name: VmName,
        path: PathBuf,
        other: VmName,
    },
    #[error("cannot make {} for what VMs print: give another folder as --console-log, or console_log in the configuration", .folder.display())]
    ConsoleFolder { folder: PathBuf, source: io::Error },
    #[error("cannot make swap files in {}: give another folder as --swap, or swap in the configuration", .folder.display())]
    SwapFolder { folder: PathBuf, source: io::Error },
    #[error("the workload is refused: {0}")]
    Workload(String),
    #[error(transparent)]
    Number(#[from] InvalidNumber),
    #[error(transparent)]
    Settings(#[from] policy::InvalidSettings),
    #[error(transparent)]
    Refused(#[from] policy::Refusal),
    #[error("VM '{name}' is not changed: {refusal}")]
    ChangeRefused { name: VmName, refusal: NamedRefusal },
    #[error(
        "VM '{name}' is not changed: its swap file was reserved when it started, and has no room for what may be out with a \
         min of {min}: give it one of {least} or more, or start it anew"
    )]
    SwapFileTooSmall {
        name: VmName,
        min: PageCount,
        least: PageCount,
    },
    #[error("{0}")]
    BudgetRefused(NamedRefusal),
    #[error(
        "a balloon of {balloon} would leave VM '{name}' {left}, and its min is {min}: give a smaller balloon, or `ballonet set {name} min=…` first"
    )]
    BalloonBelowMin {
        name: VmName,
        balloon: PageCount,
        left: PageCount,
        min: PageCount,
    },
    #[error(
        "a balloon of {balloon} is larger than VM '{name}', which has {size}: give a smaller balloon, {most} at most"
    )]
    BalloonLargerThanVm {
        name: VmName,
        balloon: PageCount,
        size: PageCount,
        most: PageCount,
    },
    #[error(
        "VM '{name}' was not started: its memory could not be taken from the other VMs within {seconds} s: {keepers}"
    )]
    NoMemoryInTime {
        name: VmName,
        seconds: u64,
        keepers: Keepers,
    },
    #[error(
        "the host may have {limit} descriptors, {open} are open, and {needed} must be free to start a VM: stop another, or raise the limit (`ulimit -Hn`, or LimitNOFILE= of the service) before the host is started"
    )]
    TooFewDescriptors { open: u64, limit: u64, needed: u64 },
    #[error("VM '{name}' did not start: {why}")]
    DidNotStart { name: VmName, why: String },
    #[error("VM '{0}' does not run yet: try again in a moment")]
    NotRunningYet(VmName),
    #[error(
        "{} clients are at consoles already: leave one first",
        super::MOST_CONSOLE_CLIENTS
    )]
    TooManyConsoles,
    #[error(
        "{} clients follow this host already: close one first",
        super::MOST_STREAM_CLIENTS
    )]
    TooManyStreams,
    #[error("VM '{0}' was not started: its host was told to end while it waited for memory")]
    EndedWhileWaiting(VmName),
    #[error(
        "VMs that came before wait to be admitted, {count} of them: wait behind them with --wait, or see `ballonet ps`"
    )]
    OthersWait { count: usize },
    #[error("{0} VMs wait to be admitted already: try again later")]
    QueueFull(usize),
    #[error("VM '{name}' was not admitted within {seconds} s: {why}")]
    WaitedInVain {
        name: VmName,
        seconds: u64,
        why: Box<HostError>,
    },
    #[error("the host is stopping")]
    Stopping,
    #[error("nothing was decided about VM '{0}' yet: try again in a moment")]
    NotDecided(VmName),
    #[error("what was agreed about {name} cannot be written to {}: see that there is room; all is as before", .folder.display())]
    NotWrittenDown {
        name: VmName,
        folder: PathBuf,
        source: io::Error,
    },
    #[error("cannot start the scanner of page sharing")]
    StartScanner(#[source] io::Error),
    #[error("the audit was given up: the VMs' agents did not come to rest in time; try again")]
    NoAudit,
    #[error("cannot read this machine's memory")]
    MachineMemory(#[source] io::Error),
    #[error("{0}")]
    BadRequest(String),
}

/// VMs that hold more than they should, and by how much, the worst first.
#[derive(Debug, Default)]
pub struct Keepers(pub Vec<(VmName, PageCount)>);

/// So many are named.
const NAMED_KEEPERS: usize = 3;

impl fmt::Display for Keepers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((worst, _)) = self.0.first() else {
            return f.write_str("`ballonet ps` shows balloons behind their targets");
        };
        for (place, (name, pages)) in self.0.iter().take(NAMED_KEEPERS).enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}'{name}' holds {pages} more than it should")?;
        }
        if let Some(others @ 1..) = self.0.len().checked_sub(NAMED_KEEPERS) {
            write!(f, ", {others} others also hold more")?;
        }
        write!(f, "; `ballonet explain {worst}` says why")
    }
}

/// A refusal, in which those that keep memory have names.
#[derive(Debug)]
pub struct NamedRefusal {
    refusal: policy::Refusal,
    keepers: Vec<(String, policy::Keeper)>,
}

impl NamedRefusal {
    pub(super) fn new(refusal: policy::Refusal, name_of: impl Fn(VmId) -> String) -> Self {
        let keepers = match &refusal {
            policy::Refusal::Kept { keepers, .. } => keepers.as_slice(),
            _ => &[],
        };
        let named = |&keeper: &policy::Keeper| (name_of(keeper.id), keeper);
        Self {
            keepers: keepers.iter().map(named).collect(),
            refusal,
        }
    }
}

impl fmt::Display for NamedRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.refusal)?;
        for (place, (name, keeper)) in self.keepers.iter().take(NAMED_KEEPERS).enumerate() {
            let between = if place == 0 { "; " } else { ", " };
            let policy::Keeper { least, min, .. } = keeper;
            write!(f, "{between}'{name}' keeps {least}, and its min is {min}")?;
        }
        match self.keepers.len().checked_sub(NAMED_KEEPERS) {
            Some(others @ 1..) => write!(f, ", as do {others} more"),
            _ => Ok(()),
        }
    }
}

impl HostError {
    /// No VM has that name, of which any client may have sent any length.
    pub(super) fn unknown_vm(name: &str) -> Self {
        Self::UnknownVm(name.chars().take(80).collect())
    }

    /// Whether waiting may help.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::OthersWait { .. } | Self::TooFewDescriptors { .. }
        )
    }

    /// Whether somebody wants it so, of which nobody is to be told.
    pub(super) fn is_wanted_so(&self) -> bool {
        matches!(self, Self::NotAdopted { source, .. } if source.is_wanted_so())
    }

    /// What kind of error clients are told.
    pub(super) fn kind(&self) -> ProblemKind {
        match self {
            Self::UnknownVm(_) | Self::NotRunning(_) => ProblemKind::UnknownVm,
            Self::NameInUse(_) | Self::Defined(_) | Self::TokenNameInUse(_) => {
                ProblemKind::NameInUse
            }
            Self::NotOurs(_) => ProblemKind::NotOurs,
            Self::NotAdopted { .. } => ProblemKind::NotAdopted,
            Self::NotReleased { .. } => ProblemKind::NotReleased,
            Self::NotAdoptedAtAll(_) => ProblemKind::InvalidRequest,
            Self::UnknownToken(_) => ProblemKind::UnknownToken,
            Self::TooManyTokens(_) => ProblemKind::TooManyTokens,
            Self::StillRuns(_) => ProblemKind::StillRuns,
            Self::NotKept(_) | Self::TokenStays { .. } => ProblemKind::NotKept,
            Self::Refused(_)
            | Self::ChangeRefused { .. }
            | Self::SwapFileTooSmall { .. }
            | Self::BudgetRefused(_)
            | Self::OthersWait { .. }
            | Self::WaitedInVain { .. }
            | Self::TooFewDescriptors { .. } => ProblemKind::NotAdmitted,
            Self::QueueFull(_) | Self::TooManyDefined(_) => ProblemKind::QueueFull,
            Self::NoMemoryInTime { .. } => ProblemKind::NoMemoryInTime,
            Self::EndedWhileWaiting(_) => ProblemKind::HostEnded,
            Self::NotDecided(_) => ProblemKind::NotDecidedYet,
            Self::NotRunningYet(_) => ProblemKind::NotRunningYet,
            Self::Stopping => ProblemKind::Stopping,
            Self::TooManyStreams => ProblemKind::TooManyStreams,
            Self::TooManyConsoles => ProblemKind::TooManyConsoles,
            Self::NoAudit => ProblemKind::NoAudit,
            Self::MachineMemory(_)
            | Self::StartScanner(_)
            | Self::NotWrittenDown { .. }
            | Self::TokenNotMade(_)
            | Self::OpenState(_) => ProblemKind::HostError,
            Self::DidNotStart { .. } => ProblemKind::DidNotStart,
            Self::Number(_)
            | Self::LargerThanMachine { .. }
            | Self::BudgetTooSmall { .. }
            | Self::BudgetLargerThanMachine { .. }
            | Self::Vcpus(_)
            | Self::TooManyNets(..)
            | Self::NoNetRate
            | Self::WorkloadWithKernel
            | Self::ConsoleLog { .. }
            | Self::ConsoleLogInUse { .. }
            | Self::ConsoleFolder { .. }
            | Self::SwapFolder { .. }
            | Self::Workload(_)
            | Self::Settings(_)
            | Self::BalloonBelowMin { .. }
            | Self::BalloonLargerThanVm { .. }
            | Self::TokenLife(_)
            | Self::BadRequest(_) => ProblemKind::InvalidRequest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy::{Keeper, Refusal};

    const fn mebibytes(count: u64) -> PageCount {
        PageCount::from_mebibytes(count)
    }

    #[test]
    fn who_keeps_what_a_budget_lacks_is_named() {
        let keeper = |id, least| Keeper {
            id: VmId(id),
            least: mebibytes(least),
            min: mebibytes(16),
        };
        let refusal = Refusal::Kept {
            budget: mebibytes(220),
            kept: mebibytes(290),
            missing: mebibytes(70),
            limit_percent: 65,
            keepers: vec![keeper(1, 98), keeper(2, 70), keeper(3, 60), keeper(4, 50)],
        };
        let error = HostError::BudgetRefused(NamedRefusal::new(refusal, |id| format!("vm-{id}")));
        let text = error.to_string();
        for part in [
            "70 MiB less than the 290 MiB",
            "at most 65 % of a VM",
            "stop a VM",
            "; 'vm-1' keeps 98 MiB, and its min is 16 MiB, 'vm-2' keeps",
            ", as do 1 more",
        ] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }

    #[test]
    fn a_refused_change_has_the_name_of_its_vm_and_no_number() {
        let refusal = Refusal::Change {
            budget: mebibytes(200),
            promised: mebibytes(106),
            min: mebibytes(100),
            overhead: mebibytes(6),
            missing: mebibytes(12),
        };
        let error = HostError::ChangeRefused {
            name: "p".parse().unwrap(),
            refusal: NamedRefusal::new(refusal, |id| format!("VM {id}")),
        };
        let text = error.to_string();
        assert!(
            text.starts_with("VM 'p' is not changed: the budget is 200 MiB"),
            "{text}"
        );
        assert!(text.contains("it would need min 100 MiB"), "{text}");
    }
}
