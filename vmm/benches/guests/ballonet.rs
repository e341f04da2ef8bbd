//! Guests under a host of the program that is measured.

use crate::machine::Machine;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ballonet");

/// A private host.
pub(crate) struct Host {
    process: Child,
    folder: tempfile::TempDir,
    count: Cell<u32>,
}

impl Host {
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(words: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let process = Command::new(PROGRAM)
            .arg("--socket")
            .arg(folder.path().join("host.sock"))
            .args(["host", "--state", "none", "--memory", "12G"])
            .args(words)
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a host")?;
        let host = Self {
            process,
            folder,
            count: Cell::new(0),
        };
        for _ in 0..200 {
            if host.call(&["ps"]).is_ok() {
                return Ok(host);
            }
            sleep(Duration::from_millis(20));
        }
        bail!("the host does not answer")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--socket").arg(self.socket());
        command
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("host.sock")
    }

    fn call(&self, args: &[&str]) -> Result<String> {
        let output = self.command().args(args).output()?;
        if !output.status.success() {
            bail!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) fn set(&self, changes: &[&str]) -> Result<()> {
        self.call(&[&["set", "host"], changes].concat()).map(drop)
    }

    fn new_name(&self) -> String {
        self.count.set(self.count.get() + 1);
        format!("vm{}", self.count.get())
    }

    pub(crate) fn vm(&self, bytes: u64, workload: &str) -> Result<Vm<'_>> {
        self.vm_of(bytes, 1, workload)
    }

    pub(crate) fn vm_of(&self, bytes: u64, vcpus: u32, workload: &str) -> Result<Vm<'_>> {
        let vcpus = vcpus.to_string();
        self.vm_with(bytes, &["--vcpus", &vcpus, "--workload", workload])
    }

    pub(crate) fn vm_with(&self, bytes: u64, words: &[&str]) -> Result<Vm<'_>> {
        let name = self.new_name();
        let size = bytes.to_string();
        let first = ["run", "--json", "--name", &name, "--memory", &size];
        let json = self.call(&[&first[..], words].concat())?;
        let view: Value = serde_json::from_str(&json)?;
        let pid = view["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .context("a VM has a process")?;
        Ok(Vm {
            host: self,
            name,
            pid,
        })
    }

    /// Somebody who takes every message of the stream.
    pub(crate) fn follow(&self) -> Result<Follower> {
        let mut stream = UnixStream::connect(self.socket())?;
        write!(
            stream,
            "GET /v1/events/stream HTTP/1.1\r\nHost: ballonet\r\n\r\n"
        )?;
        let reader = stream.try_clone()?;
        let (sender, lengths) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(reader).lines().map_while(Result::ok);
            // It ends with its connection, or when nobody wants to know.
            lines
                .filter(|line| line.starts_with("data: "))
                .take_while(|line| sender.send(line.len()).is_ok())
                .for_each(drop);
        });
        Ok(Follower { stream, lengths })
    }

    /// `run` returns when the guest's processor begins.
    pub(crate) fn time_to_first_instruction(&self, bytes: u64) -> Result<Duration> {
        let begin = Instant::now();
        let vm = self.vm(bytes, "idle")?;
        let time = begin.elapsed();
        drop(vm);
        Ok(time)
    }

    pub(crate) fn time_to_first_line(&self, bytes: u64) -> Result<Duration> {
        let name = self.new_name();
        let begin = Instant::now();
        let mut console = self
            .command()
            .args([
                "run",
                "--console",
                "--name",
                &name,
                "--memory",
                &bytes.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(console.stdout.take().context("piped")?).read_line(&mut line)?;
        let time = begin.elapsed();
        console.kill()?;
        console.wait()?;
        self.call(&["stop", &name])?;
        if !line.contains("ballonet guest") {
            bail!("the guest's first line is {line:?}");
        }
        Ok(time)
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

/// A client of a host's stream.
pub(crate) struct Follower {
    stream: UnixStream,
    lengths: mpsc::Receiver<usize>,
}

impl Follower {
    pub(crate) fn bytes_of_a_message(&self) -> Result<usize> {
        Ok(self.lengths.recv()?)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // One that has ended by itself is no harm.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

/// A guest of that host.
pub(crate) struct Vm<'a> {
    host: &'a Host,
    name: String,
    pid: u32,
}

impl Vm<'_> {
    pub(crate) fn set(&self, change: &str) -> Result<()> {
        self.host.call(&["set", &self.name, change]).map(drop)
    }

    pub(crate) fn stats(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.host.call(&["stats", "--json", &self.name])?,
        )?)
    }
}

impl Machine for Vm<'_> {
    fn command(&mut self, line: &str) -> Result<String> {
        let mut console = self
            .host
            .command()
            .args(["console", "--replay", "0", &self.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        writeln!(console.stdin.take().context("piped")?, "{line}")?;
        Ok(String::from_utf8_lossy(&console.wait_with_output()?.stdout).into_owned())
    }

    fn set_balloon(&mut self, bytes: u64) -> Result<()> {
        self.host
            .call(&["balloon", &self.name, &bytes.to_string()])
            .map(drop)
    }

    fn resident(&mut self) -> Result<u64> {
        self.stats()?["memory_file_bytes"]
            .as_u64()
            .context("stats have memory_file_bytes")
    }

    fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.host.call(&["stop", &self.name]) {
            eprintln!("{error}");
        }
    }
}
