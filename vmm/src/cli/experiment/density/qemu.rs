//! The same guests under QEMU's microvm, in a memory cgroup of the budget, with what the kernel can do for them.

use super::super::super::private_host::{Interrupted, PrivateFolder};
use super::super::qemu_guest::DoesNotBoot;
use super::fleet::{Fleet, Look, Started};
use super::kernel::{MemoryGroup, SwapDevice};
use super::ksm::Ksm;
use super::probe::Stage;
use super::processes::{cpu_s, kernel_thread};
use super::qemus::{Alike, Qemus};
use anyhow::Result;
use experiment::density::{Density, Probe, QemuSettings, TileReport};
use std::ffi::c_int;
use std::time::Duration;

/// How readily the kernel swaps: to compressed memory it should rather than not, say its documents.
const SWAPPINESS: u32 = 100;
/// How often the limit is set anew at a look.
const FOLLOWS: usize = 3;

struct Theirs<'a> {
    // Guests end before what they are in.
    qemus: Qemus<'a>,
    density: &'a Density,
    settings: &'a QemuSettings,
    zram: Option<&'a SwapDevice>,
    group: &'a MemoryGroup,
    /// What is to come back.
    withheld: u64,
}

pub(super) async fn probe(
    stage: &Stage<'_>,
    settings: &QemuSettings,
    interrupt: impl Future<Output = c_int>,
) -> Result<(Probe, Vec<String>)> {
    let folder = PrivateFolder::make("density")?;
    let budget = stage.density.budget_bytes();
    // Dropped in reverse: first the guests, then what was set for them.
    let ksm = settings.ksm_pass_s.map(|pass_s| Ksm::start(budget, pass_s));
    let ksm = ksm.transpose()?;
    let zram = settings
        .zram
        .then(|| SwapDevice::zram(budget))
        .transpose()?;
    let group = MemoryGroup::new("density")?;
    group.limit(budget)?;
    let mut words = vec![format!("memory cgroup of {}M", budget >> 20)];
    if zram.is_some() {
        group.set_swappiness(SWAPPINESS);
        words.push(format!("zram: lz4, swappiness {SWAPPINESS}"));
    }
    words.extend(ksm.iter().flat_map(Ksm::words).cloned());
    let alike = Alike {
        density: stage.density,
        folder: folder.path(),
        group: &group,
        free_page_reporting: settings.free_page_reporting,
        is_managed: false,
    };
    let mut theirs = Theirs {
        qemus: Qemus::new(alike)?,
        density: stage.density,
        settings,
        zram: zram.as_ref(),
        group: &group,
        withheld: 0,
    };
    let probed = tokio::select! {
        probed = stage.perform(&mut theirs) => probed,
        signal = interrupt => Err(Interrupted(signal).into()),
    };
    theirs.qemus.end().await;
    Ok((probed?, words))
}

impl Theirs<'_> {
    fn zram_bytes(&self) -> Result<u64> {
        self.zram.map_or(Ok(0), SwapDevice::used_bytes)
    }

    /// What is compressed for the guests is taken from what they may have.
    fn follow_zram(&self, zram: u64) {
        let limit = self
            .density
            .budget_bytes()
            .saturating_sub(zram + self.withheld);
        if let Err(error) = self.group.try_limit(limit) {
            tracing::debug!("the limit of {limit} bytes cannot be kept now: {error}");
        }
    }
}

impl Fleet for Theirs<'_> {
    async fn start(&mut self) -> Result<Started> {
        Ok(match self.qemus.start().await? {
            Some(_) => Started::Runs,
            None => Started::Refused(DoesNotBoot.to_string()),
        })
    }

    async fn ask(&mut self, patience: Duration) -> Vec<Option<TileReport>> {
        self.qemus.ask(patience).await
    }

    async fn type_line(&mut self, line: &str) -> Result<()> {
        self.qemus.type_line(line).await
    }

    fn have_ended(&mut self) -> Vec<bool> {
        self.qemus.have_ended()
    }

    fn look(&mut self) -> Result<Look> {
        if self.zram.is_some() {
            // To make room fills it further, by less.
            for _ in 0..FOLLOWS {
                self.follow_zram(self.zram_bytes()?);
            }
        }
        let zram = self.zram_bytes()?;
        let swapped = self.zram.map_or(Ok(0), SwapDevice::stored_bytes)?;
        Ok(Look {
            used: self.group.used_bytes()? + zram,
            saved: match self.settings.ksm_pass_s {
                Some(_) => Ksm::saved_bytes(),
                None => 0,
            },
            swapped,
        })
    }

    fn oom_kills(&self) -> Result<u64> {
        self.group.oom_kills()
    }

    fn cpu_s(&self) -> f64 {
        let ksmd = self.settings.ksm_pass_s.and_then(|_| kernel_thread("ksmd"));
        self.qemus.cpu_s() + ksmd.map_or(0.0, cpu_s)
    }

    fn swap_in_us(&self) -> Option<[u64; 2]> {
        None
    }

    async fn take_back(&mut self, bytes: u64) -> Result<bool> {
        self.withheld = bytes;
        match self.zram {
            // Without swap, nothing can be had.
            None => Ok(false),
            Some(_) => {
                self.follow_zram(self.zram_bytes()?);
                Ok(true)
            }
        }
    }
}
