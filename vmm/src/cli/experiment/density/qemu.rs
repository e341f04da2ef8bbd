//! The same guests under QEMU's microvm, in a memory cgroup of the budget, with what the kernel can do for them.

use super::super::super::guest_report::find_report;
use super::super::super::private_host::{Interrupted, PrivateFolder};
use super::fleet::{Fleet, Look, Started};
use super::kernel::{MemoryGroup, SwapDevice};
use super::ksm::Ksm;
use super::probe::Stage;
use super::processes::{cpu_s, kernel_thread};
use crate::vm::EMBEDDED_GUEST;
use anyhow::{Context, Result};
use experiment::density::{Density, Probe, QemuSettings, TileReport};
use std::ffi::c_int;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

const QEMU: &str = "qemu-system-x86_64";
/// How readily the kernel swaps: to compressed memory it should rather than not, say its documents.
const SWAPPINESS: u32 = 100;
/// How often the limit is set anew at a look.
const FOLLOWS: usize = 3;
/// How long a guest may take to boot.
const BOOT: Duration = Duration::from_secs(30);

/// Why there are no such sides here, if there are none.
pub(super) fn problem() -> Option<String> {
    let found = std::process::Command::new(QEMU)
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    match found {
        Ok(_) => None,
        Err(error) => Some(format!(
            "{QEMU} does not start ({error}): install qemu-system-x86"
        )),
    }
}

struct Qemu {
    process: Child,
    keyboard: ChildStdin,
    /// What it said last, counted; the first is its prompt.
    said: watch::Receiver<(u64, Option<TileReport>)>,
}

struct Theirs<'a> {
    // Guests end before what they are in.
    guests: Vec<Qemu>,
    density: &'a Density,
    settings: &'a QemuSettings,
    folder: &'a Path,
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
    let image = folder.path().join("guest.elf");
    std::fs::write(&image, EMBEDDED_GUEST)?;
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
    let mut theirs = Theirs {
        guests: Vec::new(),
        density: stage.density,
        settings,
        folder: folder.path(),
        zram: zram.as_ref(),
        group: &group,
        withheld: 0,
    };
    let probed = tokio::select! {
        probed = stage.perform(&mut theirs) => probed,
        signal = interrupt => Err(Interrupted(signal).into()),
    };
    theirs.end().await;
    Ok((probed?, words))
}

impl Theirs<'_> {
    fn command(&self, number: usize, disk: &Path) -> Command {
        let mut command = Command::new("sh");
        let reporting = match self.settings.free_page_reporting {
            true => "on",
            false => "off",
        };
        // In its group from its first page on.
        command
            .args(["-c", "echo $$ >\"$0\" && exec \"$@\""])
            .arg(self.group.processes())
            .args([QEMU, "-M", "microvm,acpi=off", "-accel", "kvm", "-m"])
            .arg(format!("{}M", self.density.vm().bytes() >> 20))
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args(["-global", "virtio-mmio.force-legacy=false", "-device"])
            .arg(format!(
                "virtio-balloon-device,free-page-reporting={reporting}"
            ))
            .arg("-drive")
            .arg(format!(
                "id=d0,if=none,format=raw,cache=none,file={}",
                disk.display()
            ))
            .args(["-device", "virtio-blk-device,drive=d0", "-kernel"])
            .arg(self.folder.join("guest.elf"))
            .arg("-append")
            .arg(format!("id={number} workload={}", self.density.workload))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Ends all, and waits until they have, so that nothing is counted any more.
    async fn end(&mut self) {
        for guest in &mut self.guests {
            if let Err(error) = guest.process.kill().await {
                tracing::debug!("a QEMU has ended already: {error}");
            }
        }
        self.guests.clear();
    }

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

/// Passes reports on, and the first prompt.
async fn listen(output: ChildStdout, said: watch::Sender<(u64, Option<TileReport>)>) {
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(mut line)) = lines.next_segment().await {
        line.push(b'\n');
        let report = find_report(&line);
        let boots = String::from_utf8_lossy(&line).contains("ballonet guest");
        if boots || report.is_some() {
            said.send_modify(|(count, last)| {
                *count += 1;
                *last = report;
            });
        }
    }
}

impl Qemu {
    async fn ask(&mut self, until: Instant) -> Option<TileReport> {
        let before = self.said.borrow_and_update().0;
        self.keyboard.write_all(b"report\n").await.ok()?;
        let heard = timeout_at(until, self.said.wait_for(|(count, _)| *count > before)).await;
        heard.ok()?.ok()?.1.clone()
    }
}

impl Fleet for Theirs<'_> {
    async fn start(&mut self) -> Result<Started> {
        let number = self.guests.len() + 1;
        let disk = self.folder.join(format!("{number}.img"));
        File::create_new(&disk)
            .and_then(|file| file.set_len(self.density.disk().bytes()))
            .with_context(|| format!("cannot make {}", disk.display()))?;
        let mut process = self
            .command(number, &disk)
            .spawn()
            .with_context(|| format!("cannot start {QEMU}"))?;
        let keyboard = process.stdin.take().context("it is piped")?;
        let output = process.stdout.take().context("it is piped")?;
        let (sender, mut said) = watch::channel((0, None));
        tokio::spawn(listen(output, sender));
        let boots = said.wait_for(|(count, _)| *count > 0);
        let has_booted = tokio::time::timeout(BOOT, boots).await;
        let has_booted = has_booted.is_ok_and(|heard| heard.is_ok());
        self.guests.push(Qemu {
            process,
            keyboard,
            said,
        });
        Ok(match has_booted {
            true => Started::Runs,
            false => Started::Refused("QEMU's guest does not boot".into()),
        })
    }

    async fn ask(&mut self, patience: Duration) -> Vec<Option<TileReport>> {
        let until = Instant::now() + patience;
        let mut reports = Vec::new();
        for guest in &mut self.guests {
            // One after the other: each answers in some milliseconds, and is measured by its own clock.
            reports.push(guest.ask(until).await);
        }
        reports
    }

    async fn type_line(&mut self, line: &str) -> Result<()> {
        for guest in &mut self.guests {
            guest
                .keyboard
                .write_all(format!("{line}\n").as_bytes())
                .await?;
        }
        Ok(())
    }

    fn have_ended(&mut self) -> Vec<bool> {
        let guests = self.guests.iter_mut();
        guests
            .map(|guest| !matches!(guest.process.try_wait(), Ok(None)))
            .collect()
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
        let pids = self.guests.iter().filter_map(|guest| guest.process.id());
        let ksmd = self.settings.ksm_pass_s.and_then(|_| kernel_thread("ksmd"));
        pids.chain(ksmd).map(cpu_s).sum()
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
