//! The real scanner, in this process, over the real agents of processes that hold memory.

use crate::contents::Contents;
use crate::cpu;
use crate::holder::{Holder, Job, Kind};
use anyhow::{Context, Result, bail, ensure};
use ballonet::internals::ScanPriority;
use ballonet::internals::{Conditions, PageSharing, Report, ScannedVmSpec, StoreNotes};
use page::{PAGE_SIZE, PageCount, VmId};
use sharing::{Pace, Pressure, RateSettings, TrustGroup};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// How long nothing may happen before no more is expected.
const STANDSTILL: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(4);
/// The most frames that there can be.
const MACHINE: PageCount = PageCount::from_mebibytes(12 * 1024);

/// As fast as it can.
const FULL_SPEED: RateSettings = RateSettings {
    pass_s: 1,
    vm_pages_per_s: 100_000_000,
    host_pages_per_s: 100_000_000,
    core_share_permille: 1000,
    short_factor: 1000,
};

/// A scanner and the processes that it scans.
#[derive(Debug)]
pub(crate) struct Ours {
    // Dropped first: what it scans must outlive it.
    sharing: Option<PageSharing>,
    vms: Vec<Holder>,
    files: Vec<File>,
    anonymous_before: u64,
    before: u64,
    agents_before: Duration,
    /// In which its stores are noted.
    _notes: tempfile::TempDir,
}

/// What was reached, and what it took of a core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    /// Pages saved, by the kernel's count.
    pub(crate) saved: u64,
    pub(crate) scanner: Duration,
    pub(crate) agents: Duration,
}

impl Reached {
    pub(crate) fn cpu(self) -> Duration {
        self.scanner + self.agents
    }
}

impl Ours {
    /// Fills the processes' memory, and starts a scanner that knows none of them yet.
    pub(crate) fn prepare(contents: Contents, vms: u64) -> Result<Self> {
        Self::prepare_in(Kind::Vm, contents, vms)
    }

    /// As [`Self::prepare`], in small pages or large ones.
    pub(crate) fn prepare_in(kind: Kind, contents: Contents, vms: u64) -> Result<Self> {
        let job = |vm| Job { kind, vm, contents };
        let vms: Result<Vec<Holder>> = (0..vms).map(|vm| Holder::start(&job(vm))).collect();
        let mut vms = vms?;
        vms.iter_mut().try_for_each(Holder::wait_until_filled)?;
        let files: Result<Vec<File>> = vms.iter().map(Holder::memory_file).collect();
        let folder = tempfile::tempdir()?;
        let notes = StoreNotes::in_folder(folder.path().into());
        let mut ours = Self {
            sharing: Some(PageSharing::start(MACHINE, FULL_SPEED, notes)?),
            _notes: folder,
            vms,
            files: files?,
            anonymous_before: 0,
            before: 0,
            agents_before: Duration::ZERO,
        };
        ours.sharing()?.set_rates(FULL_SPEED, ScanPriority::Normal);
        ours.anonymous_before = ours.anonymous()?;
        ours.before = ours.used()?;
        ours.agents_before = ours.agents()?;
        Ok(ours)
    }

    /// Has the scanner copy what it reads: what cannot be written is not read through windows.
    pub(crate) fn copy(&mut self) -> Result<()> {
        for file in &mut self.files {
            *file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        }
        Ok(())
    }

    fn sharing(&self) -> Result<&PageSharing> {
        self.sharing.as_ref().context("the scanner has ended")
    }

    /// Has the scanner know them all.
    pub(crate) fn begin(&mut self) -> Result<()> {
        for (number, (vm, file)) in (1..).zip(self.vms.iter_mut().zip(&self.files)) {
            let spec = ScannedVmSpec {
                id: VmId(number),
                name: format!("vm-{number}").parse()?,
                group: Some(TrustGroup::try_from(String::from("bench"))?),
                size: PageCount(file.metadata()?.len() / PAGE_SIZE),
                pid: vm.pid(),
                ram_address: vm.ram_address()?,
                memory_file: Arc::new(file.try_clone()?),
                socket: vm.take_socket()?,
                store: None,
            };
            self.sharing
                .as_ref()
                .context("the scanner has ended")?
                .add_vm(spec);
        }
        Ok(())
    }

    /// As when memory is short: then not even a pass a second is kept to.
    pub(crate) fn hurry(&self) -> Result<()> {
        let conditions = Conditions {
            pace: Pace::GoOn,
            pressure: Pressure::Short,
            free: PageCount::ZERO,
            reserve: PageCount::ZERO,
            vms: Vec::new(),
        };
        self.sharing()?.adapt(conditions);
        Ok(())
    }

    /// Has it scan no more, but for a page now and then.
    pub(crate) fn rest(&self) -> Result<()> {
        let slow = RateSettings {
            pass_s: 1_000_000,
            vm_pages_per_s: 1,
            host_pages_per_s: 1,
            core_share_permille: 1,
            short_factor: 1,
        };
        self.sharing()?.set_rates(slow, ScanPriority::Normal);
        // Agents finish what they were asked.
        sleep(Duration::from_millis(300));
        Ok(())
    }

    pub(crate) fn vms(&mut self) -> &mut Vec<Holder> {
        &mut self.vms
    }

    pub(crate) fn report(&self) -> Result<Report> {
        let report = self.sharing()?.report();
        ensure!(report.not_sharing.is_empty(), "{:?}", report.not_sharing);
        ensure!(
            report.counts.surprises == 0,
            "the scanner was surprised: {:?}",
            report.counts
        );
        Ok(report)
    }

    /// A report of a later time than now.
    pub(crate) fn fresh_report(&self) -> Result<Report> {
        sleep(Duration::from_millis(1300));
        self.report()
    }

    /// Waits until so many pages are saved, or nothing more happens.
    pub(crate) fn wait_until_saved(&self, pages: u64) -> Result<Reached> {
        let begin = Instant::now();
        let (mut best, mut best_at) = (self.reached()?, Instant::now());
        while best.saved < pages {
            if begin.elapsed() > PATIENCE {
                bail!(
                    "only {} of {pages} pages saved in {PATIENCE:?}: {:?}",
                    best.saved,
                    self.report()?
                );
            }
            if best_at.elapsed() > STANDSTILL {
                eprintln!("  stands still at {} of {pages} pages", best.saved);
                break;
            }
            sleep(POLL);
            let now = self.reached()?;
            if now.saved > best.saved {
                (best, best_at) = (now, Instant::now());
            }
        }
        Ok(best)
    }

    pub(crate) fn reached(&self) -> Result<Reached> {
        Ok(Reached {
            saved: self.before.saturating_sub(self.used()?),
            scanner: cpu::of_threads(std::process::id(), "scanner")?,
            agents: self.agents()?.saturating_sub(self.agents_before),
        })
    }

    fn agents(&self) -> Result<Duration> {
        self.vms
            .iter()
            .map(|vm| cpu::of_threads(vm.pid(), "agent"))
            .sum()
    }

    /// Pages that memory files, store and copies take.
    fn used(&self) -> Result<u64> {
        let mut used = self.sharing()?.stored().0;
        for file in &self.files {
            used += file.metadata()?.blocks() * 512 / PAGE_SIZE;
        }
        Ok(used + self.anonymous()?.saturating_sub(self.anonymous_before))
    }

    fn anonymous(&self) -> Result<u64> {
        let of = |vm: &Holder| cpu::kibibytes(&format!("/proc/{}/status", vm.pid()), "RssAnon");
        let kibibytes: u64 = self.vms.iter().map(of).sum::<Result<u64>>()?;
        Ok(kibibytes * 1024 / PAGE_SIZE)
    }

    /// Memory areas of a process.
    pub(crate) fn areas(&self, vm: usize) -> Result<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.vms[vm].pid()))?;
        Ok(maps.lines().count() as u64)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.sharing = None;
        // The next scanner's time must not be mixed with this one's.
        let is_there =
            || cpu::of_threads(std::process::id(), "scanner").is_ok_and(|time| !time.is_zero());
        for _ in 0..1000 {
            if !is_there() {
                return;
            }
            sleep(POLL);
        }
    }
}
