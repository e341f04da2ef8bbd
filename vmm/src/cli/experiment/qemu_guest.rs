//! The embedded guest under QEMU's microvm: started, spoken to on its console, and ended.

use super::super::guest_report::find_report;
use crate::vm::EMBEDDED_GUEST;
use anyhow::{Context, Result, anyhow};
use page::PageCount;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

const QEMU: &str = "qemu-system-x86_64";
/// How long a guest may take to boot.
const BOOT: Duration = Duration::from_secs(30);

/// QEMU runs and its guest does not come up.
#[derive(Debug, thiserror::Error)]
#[error("QEMU's guest does not boot within {} s", BOOT.as_secs())]
pub(super) struct DoesNotBoot;

/// Why there are no such guests here, if there are none.
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

/// Where [`put_image`] puts it.
pub(super) fn image_in(folder: &Path) -> PathBuf {
    folder.join("guest.elf")
}

/// Puts the guest's image into a folder, for QEMU to read it there.
pub(super) fn put_image(folder: &Path) -> io::Result<()> {
    std::fs::write(image_in(folder), EMBEDDED_GUEST)
}

/// A disk of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestDisk<'a> {
    pub(super) path: &'a Path,
    /// Whether it bypasses the page cache.
    pub(super) is_direct: bool,
}

/// How a guest is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct QemuConfig<'a> {
    /// Where [`put_image`] has put it.
    pub(super) image: &'a Path,
    /// What the guest puts into its patterns.
    pub(super) number: usize,
    pub(super) memory: PageCount,
    pub(super) vcpus: u8,
    pub(super) workload: &'a str,
    pub(super) disk: Option<GuestDisk<'a>>,
    /// Whether its balloon takes what the guest reports free.
    pub(super) free_page_reporting: bool,
    /// Whether a guest that runs out of memory takes some back from its balloon.
    pub(super) deflate_on_oom: bool,
    /// Where its monitor listens, if it has one.
    pub(super) monitor: Option<&'a Path>,
    /// The file of the control group that it is in from its first page on.
    pub(super) group: Option<&'a Path>,
}

impl QemuConfig<'_> {
    fn command(&self) -> Command {
        let mut command = match self.group {
            None => Command::new(QEMU),
            Some(processes) => {
                let mut shell = Command::new("sh");
                shell
                    .args(["-c", "echo $$ >\"$0\" && exec \"$@\""])
                    .arg(processes)
                    .arg(QEMU);
                shell
            }
        };
        command
            .args(["-M", "microvm,acpi=off", "-accel", "kvm", "-m"])
            .arg(format!("{}K", self.memory.bytes() >> 10))
            .args(["-smp", &self.vcpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args(["-global", "virtio-mmio.force-legacy=false", "-device"])
            .arg(self.balloon());
        if let Some(GuestDisk { path, is_direct }) = self.disk {
            let cache = match is_direct {
                true => "none",
                false => "writeback",
            };
            let drive = format!(
                "id=d0,if=none,format=raw,cache={cache},file={}",
                path.display()
            );
            command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=d0"]);
        }
        if let Some(path) = self.monitor {
            let monitor = format!("unix:{},server=on,wait=off", path.display());
            command.args(["-qmp", &monitor]);
        }
        let cmdline = format!("id={} workload={}", self.number, self.workload);
        command
            .arg("-kernel")
            .arg(self.image)
            .args(["-append", &cmdline])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn balloon(&self) -> String {
        let on_or_off = |is_on| match is_on {
            true => "on",
            false => "off",
        };
        format!(
            "virtio-balloon-device,free-page-reporting={},deflate-on-oom={}",
            on_or_off(self.free_page_reporting),
            on_or_off(self.deflate_on_oom)
        )
    }

    /// Starts it and waits until its guest has booted.
    ///
    /// # Errors
    /// When QEMU cannot be started, or its guest does not boot; nothing is left then.
    pub(super) async fn start(&self) -> Result<QemuGuest> {
        let mut process = self
            .command()
            .spawn()
            .with_context(|| format!("cannot start {QEMU}"))?;
        let keyboard = process.stdin.take().context("it is piped")?;
        let output = process.stdout.take().context("it is piped")?;
        let (sender, mut said) = watch::channel((0, None));
        tokio::spawn(listen(output, sender));
        let boots = timeout(BOOT, said.wait_for(|(count, _)| *count > 0)).await;
        if !boots.is_ok_and(|heard| heard.is_ok()) {
            return Err(DoesNotBoot.into());
        }
        Ok(QemuGuest {
            process,
            line: GuestLine {
                keyboard: Arc::new(Mutex::new(keyboard)),
                said,
            },
        })
    }
}

/// What it said last, counted; the first is that it boots.
type Said = (u64, Option<Value>);

/// Passes reports on, and that it boots.
async fn listen(output: ChildStdout, said: watch::Sender<Said>) {
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

/// A QEMU with its guest. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct QemuGuest {
    process: Child,
    pub(super) line: GuestLine,
}

impl QemuGuest {
    /// None of one that has ended.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Ends it, and waits until it has, so that nothing of it is counted any more.
    pub(super) async fn end(mut self) {
        if let Err(error) = self.process.kill().await {
            tracing::debug!("a QEMU has ended already: {error}");
        }
    }
}

/// The console of a guest.
#[derive(Clone, Debug)]
pub(super) struct GuestLine {
    keyboard: Arc<Mutex<ChildStdin>>,
    said: watch::Receiver<Said>,
}

impl GuestLine {
    /// Types a line.
    pub(super) async fn type_line(&self, line: &str) -> io::Result<()> {
        let mut keyboard = self.keyboard.lock().await;
        keyboard.write_all(format!("{line}\n").as_bytes()).await
    }

    /// Types `report` and reads the figures of the answer.
    pub(super) async fn ask_for_report<T: DeserializeOwned>(
        &self,
        patience: Duration,
    ) -> Result<T> {
        let answer = async {
            let mut said = self.said.clone();
            let before = said.borrow_and_update().0;
            self.type_line("report").await?;
            let heard = said.wait_for(|(count, _)| *count > before).await;
            let report = heard.context("its console was closed")?.1.clone();
            Ok(serde_json::from_value(report.unwrap_or_default())?)
        };
        timeout(patience, answer)
            .await
            .map_err(|_late| anyhow!("its guest does not answer"))?
    }
}
