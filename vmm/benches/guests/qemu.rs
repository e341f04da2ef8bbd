//! The same guest image under QEMU's microvm with QEMU's own balloon device.

use crate::machine::{Machine, PATIENCE};
use crate::process::guest_resident;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-x86_64";

/// A QEMU process with the guest in it.
pub(crate) struct Qemu {
    process: Child,
    keyboard: ChildStdin,
    lines: Receiver<String>,
    control: BufReader<UnixStream>,
    bytes: u64,
    _folder: tempfile::TempDir,
}

fn command(bytes: u64, vcpus: u32, workload: &str, folder: &tempfile::TempDir) -> Result<Command> {
    let image = folder.path().join("guest.elf");
    std::fs::write(&image, ballonet::internals::EMBEDDED_GUEST)?;
    let mut command = Command::new(QEMU);
    command
        .args(["-M", "microvm,acpi=off", "-accel", "kvm", "-m"])
        .arg(format!("{}M", bytes >> 20))
        .args(["-smp", &vcpus.to_string()])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .args([
            "-global",
            "virtio-mmio.force-legacy=false",
            "-device",
            "virtio-balloon-device,id=balloon",
        ])
        .arg("-kernel")
        .arg(image)
        .arg("-append")
        .arg(format!("id=1 cpus={vcpus} workload={workload}"))
        .arg("-qmp")
        .arg(format!(
            "unix:{},server=on,wait=off",
            folder.path().join("qmp").display()
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    Ok(command)
}

/// Time from the command to the guest's first line.
pub(crate) fn time_to_first_line(bytes: u64) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let mut command = command(bytes, 1, "idle", &folder)?;
    let begin = Instant::now();
    let mut process = command
        .spawn()
        .context("install qemu-system-x86 to compare with QEMU")?;
    let mut output = BufReader::new(process.stdout.take().context("piped")?);
    let mut line = String::new();
    while !line.contains("ballonet guest") {
        line.clear();
        if output.read_line(&mut line)? == 0 {
            bail!("QEMU ended without a line of its guest");
        }
    }
    let time = begin.elapsed();
    process.kill()?;
    process.wait()?;
    Ok(time)
}

impl Qemu {
    pub(crate) fn start(bytes: u64, workload: &str) -> Result<Self> {
        Self::start_with(bytes, 1, workload)
    }

    pub(crate) fn start_with(bytes: u64, vcpus: u32, workload: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Self::start_by(
            command(bytes, vcpus, workload, &folder)?,
            bytes,
            folder,
            |_| Ok(()),
        )
    }

    /// One that does nothing yet, with whose process something is done before its guest starts.
    pub(crate) fn start_idle_in(bytes: u64, with: impl FnOnce(u32) -> Result<()>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Self::start_by(command(bytes, 1, "idle", &folder)?, bytes, folder, with)
    }

    fn start_by(
        mut command: Command,
        bytes: u64,
        folder: tempfile::TempDir,
        with: impl FnOnce(u32) -> Result<()>,
    ) -> Result<Self> {
        let mut process = command
            .spawn()
            .context("install qemu-system-x86 to compare with QEMU")?;
        with(process.id())?;
        let output = process.stdout.take().context("piped")?;
        let (send, lines) = channel();
        thread::spawn(move || forward_lines(output, |line| send.send(line).is_ok()));
        let keyboard = process.stdin.take().context("piped")?;
        let control = connect(&folder.path().join("qmp"))?;
        let mut qemu = Self {
            process,
            keyboard,
            lines,
            control,
            bytes,
            _folder: folder,
        };
        qemu.ask(&json!({"execute": "qmp_capabilities"}))?;
        qemu.wait_for_line("ballonet guest")?;
        // The guest answers once its balloon is up.
        qemu.report()?;
        Ok(qemu)
    }

    fn wait_for_line(&mut self, word: &str) -> Result<String> {
        let begin = Instant::now();
        let mut seen = String::new();
        while begin.elapsed() < PATIENCE {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                break;
            };
            seen.push_str(&line);
            seen.push('\n');
            if line.contains(word) {
                return Ok(seen);
            }
        }
        bail!("QEMU's guest said {seen:?}, and not {word:?}")
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.control.get_mut(), "{request}")?;
        loop {
            let mut line = String::new();
            if self.control.read_line(&mut line)? == 0 {
                bail!("QEMU closed its control socket");
            }
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {request}: {error}");
            }
            // Events and the greeting come in between.
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }
}

fn connect(socket: &std::path::Path) -> Result<BufReader<UnixStream>> {
    let begin = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(BufReader::new(stream)),
            Err(error) if begin.elapsed() > PATIENCE => {
                return Err(error).context("QEMU's control socket");
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn forward_lines(output: impl Read, mut send: impl FnMut(String) -> bool) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        if !send(line) {
            return;
        }
    }
}

impl Machine for Qemu {
    fn command(&mut self, line: &str) -> Result<String> {
        while self.lines.try_recv().is_ok() {}
        writeln!(self.keyboard, "{line}")?;
        match line {
            "report" => self.wait_for_line("report {"),
            _ => {
                thread::sleep(Duration::from_millis(200));
                Ok(String::new())
            }
        }
    }

    fn set_balloon(&mut self, bytes: u64) -> Result<()> {
        let value = self.bytes - bytes;
        self.ask(&json!({"execute": "balloon", "arguments": {"value": value}}))
            .map(drop)
    }

    fn resident(&mut self) -> Result<u64> {
        guest_resident(self.process.id(), self.bytes)
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
