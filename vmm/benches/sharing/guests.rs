//! Whole guests: under a host of the program that is measured, and under QEMU for KSM.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Names another program to measure.
const PROGRAM_VARIABLE: &str = "BALLONET";
const QEMU: &str = "qemu-system-x86_64";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> OsString {
    std::env::var_os(PROGRAM_VARIABLE).unwrap_or_else(|| env!("CARGO_BIN_EXE_ballonet").into())
}

/// A private host.
#[derive(Debug)]
pub(crate) struct Host {
    process: Child,
    folder: tempfile::TempDir,
}

impl Host {
    /// It shares nothing until it is told to.
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let process = Command::new(program())
            .arg("--socket")
            .arg(folder.path().join("host.sock"))
            .args([
                "host",
                "--state",
                "none",
                "--memory",
                "6G",
                "--sharing",
                "off",
                "--interval-ms",
                "200",
            ])
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a host")?;
        let host = Self { process, folder };
        wait_for("the host's answer", || host.call(&["ps"]).is_ok())?;
        Ok(host)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(program());
        command
            .arg("--socket")
            .arg(self.folder.path().join("host.sock"));
        command
    }

    pub(crate) fn call(&self, args: &[&str]) -> Result<String> {
        let output = self.command().args(args).output()?;
        if !output.status.success() {
            bail!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// As fast as it can, once around in `pass_s` seconds at most as long as pages are read.
    pub(crate) fn share(&self, pass_s: u64) -> Result<()> {
        let pass = format!("scan-pass={pass_s}");
        let fast = ["scan-vm=100000000", "scan-host=100000000", "scan-core=100"];
        let mut args = vec!["set", "host", "sharing=on", "scan-priority=normal", &pass];
        args.extend(fast);
        self.call(&args).map(drop)
    }

    /// Scans no more, but for a page now and then; what is shared stays so.
    pub(crate) fn rest(&self) -> Result<()> {
        self.call(&[
            "set",
            "host",
            "scan-pass=1000000",
            "scan-vm=1",
            "scan-host=1",
            "scan-core=1",
        ])?;
        sleep(Duration::from_millis(500));
        Ok(())
    }

    pub(crate) fn run(
        &self,
        name: &str,
        mebibytes: u64,
        group: &str,
        workload: &str,
    ) -> Result<()> {
        let size = format!("{mebibytes}M");
        let args = ["run", "--json", "--name", name, "--memory", &size];
        let more = ["--trust-group", group, "--workload", workload];
        self.call(&[&args[..], &more[..]].concat()).map(drop)
    }

    pub(crate) fn vm(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.call(&["stats", "--json", name])?,
        )?)
    }

    /// The host's figures and all VMs'.
    pub(crate) fn all(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.call(&["ps", "--json"])?)?)
    }

    /// Waits until a figure of a VM, by its JSON pointer, is at least so much.
    pub(crate) fn wait_until(&self, name: &str, pointer: &str, least: u64) -> Result<()> {
        wait_for(pointer, || {
            let view = self.vm(name).ok();
            let figure = view
                .as_ref()
                .and_then(|view| view.pointer(pointer)?.as_u64());
            figure.is_some_and(|figure| figure >= least)
        })
    }

    /// Types a line on a VM's console; what its guest answers.
    fn type_line(&self, name: &str, line: &str) -> Result<String> {
        let mut console = self
            .command()
            .args(["console", "--replay", "0", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        writeln!(console.stdin.take().context("piped")?, "{line}")?;
        Ok(String::from_utf8_lossy(&console.wait_with_output()?.stdout).into_owned())
    }

    pub(crate) fn break_pages(&self, name: &str) -> Result<Break> {
        let answer = self.type_line(name, "break")?;
        Break::parse(&answer).with_context(|| format!("the breaker said {answer:?}"))
    }

    /// A VM's memory file, for writing.
    pub(crate) fn memory_file(&self, name: &str) -> Result<File> {
        let pid = self.vm(name)?["pid"]
            .as_u64()
            .context("a VM has a process")?;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let target = std::fs::read_link(&path)?;
            if target.to_string_lossy().contains("ballonet-ram") {
                return Ok(File::options().read(true).write(true).open(path)?);
            }
        }
        bail!("process {pid} has no memory file")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let told = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            told.unwrap_or_else(|error| eprintln!("the host has ended: {error}"));
        }
        drop(self.process.wait());
    }
}

/// How long a guest's first writes took, by its own clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Break {
    pub(crate) p50_ns: f64,
    pub(crate) p99_ns: f64,
}

impl Break {
    /// From a line such as `breaker: 16384 writes p50=60ns p99=3711ns max=20811ns`.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().rev().find(|line| line.contains("breaker: "))?;
        let figure = |name: &str| {
            let word = line
                .split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name));
            word?.strip_suffix("ns")?.parse().ok()
        };
        Some(Self {
            p50_ns: figure("p50=")?,
            p99_ns: figure("p99=")?,
        })
    }
}

fn wait_for(what: &str, mut is_done: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !is_done() {
        if begin.elapsed() > PATIENCE {
            bail!("{what} did not come in {PATIENCE:?}");
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The same guest under QEMU, which offers guest memory to KSM.
#[derive(Debug)]
pub(crate) struct Qemu {
    process: Child,
    keyboard: ChildStdin,
    lines: Receiver<String>,
    _folder: tempfile::TempDir,
}

impl Qemu {
    pub(crate) fn start(mebibytes: u64, workload: &str, id: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let image = folder.path().join("guest.elf");
        std::fs::write(&image, ballonet::internals::EMBEDDED_GUEST)?;
        let mut process = Command::new(QEMU)
            .args(["-M", "microvm,acpi=off,mem-merge=on", "-accel", "kvm"])
            .args([
                "-m",
                &format!("{mebibytes}M"),
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
            ])
            .args(["-display", "none", "-serial", "stdio"])
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .args(["-device", "virtio-balloon-device"])
            .arg("-kernel")
            .arg(image)
            .args(["-append", &format!("id={id} workload={workload}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("install qemu-system-x86 to compare with KSM under a guest")?;
        let output = BufReader::new(process.stdout.take().context("piped")?);
        let (send, lines) = channel();
        thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .all(|line| send.send(line).is_ok())
        });
        let keyboard = process.stdin.take().context("piped")?;
        let qemu = Self {
            process,
            keyboard,
            lines,
            _folder: folder,
        };
        qemu.wait_for_line("ballonet guest")?;
        Ok(qemu)
    }

    fn wait_for_line(&self, word: &str) -> Result<String> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .context("QEMU's guest says nothing")?;
            if line.contains(word) {
                return Ok(line);
            }
        }
        bail!("QEMU's guest did not say {word:?}")
    }

    pub(crate) fn break_pages(&mut self) -> Result<Break> {
        writeln!(self.keyboard, "break")?;
        let line = self.wait_for_line("breaker: ")?;
        Break::parse(&line).with_context(|| format!("the breaker said {line:?}"))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
