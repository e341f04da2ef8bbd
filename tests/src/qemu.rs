//! Guests on QEMU with QEMU's own balloon device: the embedded one on its microvm, and what Linux guests (`linux_qemu`) run on.

use crate::console::{Printed, parse_report};
use crate::guest_image::guest_image;
use crate::linux::{COMMAND_LINE, Image, LinuxKernel};
use crate::process::resident_bytes;
use crate::wait::{patience, wait_for, wait_while_progress};
use crate::{Value, json, number};
use std::cmp::Reverse;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use tempfile::{NamedTempFile, TempDir};

const QEMU: &str = "qemu-system-x86_64";

/// A QEMU that runs the guest.
#[derive(Debug)]
pub struct Qemu {
    process: Child,
    input: ChildStdin,
    printed: Printed,
    /// None of one whose monitor is left to others.
    monitor: Option<BufReader<UnixStream>>,
    socket: PathBuf,
    log: Option<NamedTempFile>,
    _folder: TempDir,
}

/// Whether its guest may begin anew. Otherwise QEMU ends then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnReboot {
    End,
    BeginAnew,
}

impl Qemu {
    /// Boots the guest with that accelerator, memory as in `256M`, and workload.
    ///
    /// # Panics
    /// If QEMU is missing or does not start.
    #[must_use]
    pub fn boot(accelerator: &str, memory: &str, workload: &str) -> Self {
        Self::boot_with(accelerator, memory, workload, &[])
    }

    /// The same with a disk.
    #[must_use]
    pub fn boot_with_disk(accelerator: &str, memory: &str, workload: &str, disk: &Path) -> Self {
        let drive = format!("id=d0,if=none,format=raw,file={}", disk.display());
        let words = ["-drive", &drive, "-device", "virtio-blk-device,drive=d0"];
        Self::boot_with(accelerator, memory, workload, &words)
    }

    /// Boots it on KVM under that name, and leaves its monitor to whoever wants it.
    #[must_use]
    pub fn boot_unattended(name: &str, memory: &str, workload: &str) -> Self {
        let mut qemu = Self::boot_with("kvm", memory, workload, &["-name", name]);
        qemu.monitor = None;
        qemu
    }

    /// The same with a log of all that its monitor is told, which [`Self::was_told`] reads.
    #[must_use]
    pub fn boot_watched(name: &str, memory: &str, workload: &str) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a file can be made");
        let path = log.path().to_str().expect("its path is text").to_owned();
        let words = ["-name", name, "-trace", "handle_qmp_command", "-D", &path];
        let mut qemu = Self::boot_with("kvm", memory, workload, &words);
        qemu.log = Some(log);
        qemu
    }

    /// The commands that its monitor was told since it started, with what was told with them.
    ///
    /// # Panics
    /// If it is not watched.
    #[must_use]
    pub fn was_told(&self) -> Vec<Value> {
        let log = self.log.as_ref().expect("it is watched");
        let log = std::fs::read_to_string(log.path()).expect("QEMU's log can be read");
        let requests = log.lines().filter_map(|line| line.split_once("req: "));
        requests
            .map(|(_, request)| serde_json::from_str(request).expect("QEMU logs JSON"))
            .collect()
    }

    /// Boots it on KVM under that name without a driver for its balloon, and leaves its monitor to whoever wants it. It is idle.
    #[must_use]
    pub fn boot_driverless(name: &str, memory: &str) -> Self {
        let append = ["-append", "id=1 workload=idle balloon=off"];
        let mut qemu = Self::boot_with(
            "kvm",
            memory,
            "idle",
            &[&["-name", name], &append[..]].concat(),
        );
        qemu.monitor = None;
        qemu
    }

    /// Leaves its monitor to whoever wants it.
    pub fn leave_monitor(&mut self) {
        self.monitor = None;
    }

    /// How often QEMU asks its guest for statistics.
    pub fn statistics_are_polled(&mut self) -> u64 {
        let request =
            json!({"path": "/machine/peripheral/b0", "property": "guest-stats-polling-interval"});
        self.execute("qom-get", &request)
            .as_u64()
            .expect("it is a number")
    }

    /// The same with a second monitor, at [`Self::second_socket`]: this one stays with the test. Its guest may begin anew.
    /// `cmdline` is what its guest is told besides its workload, `words` what QEMU is.
    #[must_use]
    pub fn boot_shared(name: &str, memory: &str, cmdline: &str, words: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let second = second_monitor(&folder);
        let words = [&["-name", name, "-qmp", &second], words].concat();
        let guest = Guest {
            accelerator: "kvm",
            memory,
            cmdline,
            on_reboot: OnReboot::BeginAnew,
        };
        Self::launch(folder, &guest.words(), &words, true)
    }

    /// A whole computer on which no guest starts, with a balloon that nobody drives, at that identifier on a bus from which it
    /// can be taken. It has a second monitor as well.
    #[must_use]
    pub fn start_without_guest(name: &str, memory: &str, balloon: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let second = second_monitor(&folder);
        let device = format!("virtio-balloon-pci,id={balloon}");
        let words = ["-name", name, "-qmp", &second, "-device", &device];
        let machine = ["-M", "pc", "-accel", "tcg", "-m", memory, "-nodefaults"];
        let machine = machine.map(str::to_owned).to_vec();
        Self::launch(folder, &machine, &words, false)
    }

    /// A whole computer on KVM that boots that Linux kernel, with a balloon `b0` that can be taken out of it. It has a second
    /// monitor as well, and its guest may begin anew. Nothing is waited for.
    #[must_use]
    pub(crate) fn start_linux(name: &str, memory: &str, kernel: &LinuxKernel) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let second = second_monitor(&folder);
        let machine = ["-M", "pc", "-accel", "kvm", "-m", memory, "-nodefaults"];
        let mut machine = machine.map(str::to_owned).to_vec();
        for (option, path) in [
            ("-kernel", kernel.image(Image::BzImage)),
            ("-initrd", kernel.initrd()),
        ] {
            let path = path.to_str().expect("its path is text").to_owned();
            machine.extend([option.to_owned(), path]);
        }
        let balloon = "virtio-balloon-pci,id=b0,deflate-on-oom=on,free-page-reporting=on";
        let own = ["-name", name, "-qmp", &second, "-append", COMMAND_LINE];
        let words = [&own[..], &["-device", balloon]].concat();
        Self::launch(folder, &machine, &words, false)
    }

    /// Types a line on the guest's console.
    pub(crate) fn type_line(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("QEMU reads");
    }

    /// What its guest printed, from a byte on.
    pub(crate) fn printed_from(&self, start: usize) -> String {
        self.printed.text_from(start)
    }

    /// Where the monitor is that the test leaves to others.
    ///
    /// # Panics
    /// If that is no text.
    #[must_use]
    pub fn second_socket(&self) -> String {
        let path = self._folder.path().join(SECOND);
        path.to_str().expect("its path is text").to_owned()
    }

    /// Ends it by its own monitor's word, whatever is under way, and waits for its end.
    pub fn quit(&mut self) {
        let stream = self.monitor().get_mut();
        writeln!(stream, "{}", json!({"execute": "quit"})).expect("QEMU's monitor listens");
        wait_for("QEMU ends", || {
            self.process.try_wait().expect("a child can be waited for")
        });
    }

    /// Where its monitor is.
    ///
    /// # Panics
    /// If that is no text.
    #[must_use]
    pub fn socket(&self) -> &str {
        self.socket.to_str().expect("its path is text")
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Takes its monitor, which nobody holds any more, once it answers.
    pub fn attend(&mut self) {
        let stream = UnixStream::connect(&self.socket).expect("QEMU listens");
        stream
            .set_read_timeout(Some(patience()))
            .expect("it is not zero");
        self.monitor = Some(BufReader::new(stream));
        self.next_message();
        self.execute("qmp_capabilities", &json!({}));
    }

    fn monitor(&mut self) -> &mut BufReader<UnixStream> {
        self.monitor.as_mut().expect("it was not left to others")
    }

    fn boot_with(accelerator: &str, memory: &str, workload: &str, more: &[&str]) -> Self {
        let balloon = "virtio-balloon-device,id=b0,deflate-on-oom=on,free-page-reporting=on";
        let words = [&["-device", balloon], more].concat();
        let guest = Guest {
            accelerator,
            memory,
            cmdline: &format!("workload={workload}"),
            on_reboot: OnReboot::End,
        };
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::launch(folder, &guest.words(), &words, true)
    }

    fn launch(folder: TempDir, machine: &[String], words: &[&str], has_guest: bool) -> Self {
        let socket = folder.path().join("qmp.sock");
        let mut process = Command::new(QEMU)
            .args(machine)
            .args(["-no-user-config", "-display", "none", "-serial", "stdio"])
            .args(words)
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| match error.kind() {
                ErrorKind::NotFound => panic!("{QEMU} is missing: install qemu-system-x86"),
                _ => panic!("{QEMU} does not start: {error}"),
            });
        let input = process.stdin.take().expect("it is piped");
        let printed = Printed::by(process.stdout.take().expect("it is piped"));
        let stream = wait_for("QEMU's monitor answers", || {
            let ended = process.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "{QEMU} ended: {ended:?}");
            UnixStream::connect(&socket).ok()
        });
        stream
            .set_read_timeout(Some(patience()))
            .expect("it is not zero");
        let mut qemu = Self {
            process,
            input,
            printed,
            monitor: Some(BufReader::new(stream)),
            socket,
            log: None,
            _folder: folder,
        };
        qemu.next_message();
        qemu.execute("qmp_capabilities", &json!({}));
        if has_guest {
            qemu.printed.wait_for("> ", 0);
        }
        qemu
    }

    /// Waits until its guest has begun once more since that many bytes of its console, and takes lines.
    pub fn wait_for_prompt(&mut self, after: usize) {
        self.printed.wait_for("> ", after);
    }

    /// How many bytes its guest has printed.
    #[must_use]
    pub fn printed_bytes(&self) -> usize {
        self.printed.count()
    }

    fn next_message(&mut self) -> Value {
        let mut line = String::new();
        self.monitor()
            .read_line(&mut line)
            .expect("QEMU's monitor answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Executes a command of QEMU's monitor.
    ///
    /// # Panics
    /// If QEMU refuses it.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        let stream = self.monitor().get_mut();
        writeln!(stream, "{request}").expect("QEMU's monitor listens");
        loop {
            let message = self.next_message();
            if let Some(answer) = message.get("return") {
                return answer.clone();
            }
            // Events come in between.
            assert!(message.get("error").is_none(), "{request}: {message}");
        }
    }

    /// Asks the balloon to leave the guest that many bytes, and waits until it has.
    pub fn balloon_to(&mut self, bytes: u64) {
        self.execute("balloon", &json!({ "value": bytes }));
        wait_while_progress("the balloon has its size", || {
            let left = self.execute("query-balloon", &json!({}));
            match number(&left, "/actual").abs_diff(bytes) {
                0 => Ok(()),
                missing => Err(Reverse(missing)),
            }
        });
    }

    /// The guest's statistics as QEMU has them last, with their time.
    pub fn statistics(&mut self) -> Value {
        let path = "/machine/peripheral/b0";
        let request = json!({"path": path, "property": "guest-stats"});
        self.execute("qom-get", &request)
    }

    /// Lets QEMU ask for statistics so often.
    pub fn poll_statistics(&mut self, seconds: u64) {
        let request = json!({"path": "/machine/peripheral/b0",
            "property": "guest-stats-polling-interval", "value": seconds});
        self.execute("qom-set", &request);
    }

    /// Types a line on the guest's console and waits for the answer.
    ///
    /// # Panics
    /// If the guest does not answer.
    pub fn ask(&mut self, line: &str) -> String {
        let start = self.printed.count();
        self.type_line(line);
        let echo = format!("{line}\r\n");
        let what = format!("the guest answers '{line}'");
        self.printed.wait_for_part(&what, start, |text| {
            let (_, answer) = text.split_once(&echo)?;
            Some(answer.split_once("> ")?.0.to_owned())
        })
    }

    /// The guest's figures.
    ///
    /// # Panics
    /// If the guest does not answer with its report.
    pub fn report(&mut self) -> Value {
        let answer = self.ask("report");
        parse_report(&answer).unwrap_or_else(|| panic!("no report: {answer}"))
    }

    /// Memory that QEMU's process holds in all, in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.process.id())
    }
}

/// The embedded guest on a microvm.
struct Guest<'a> {
    accelerator: &'a str,
    memory: &'a str,
    cmdline: &'a str,
    on_reboot: OnReboot,
}

impl Guest<'_> {
    fn words(&self) -> Vec<String> {
        let image = guest_image();
        let cmdline = format!("id=1 {}", self.cmdline);
        let words = ["-M", "microvm,acpi=off", "-accel", self.accelerator];
        let memory = ["-m", self.memory, "-nodefaults"];
        let legacy = ["-global", "virtio-mmio.force-legacy=false"];
        let kernel = ["-append", &cmdline, "-kernel"];
        let mut words: Vec<String> = [&words[..], &memory, &legacy, &kernel]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        words.push(image.to_str().expect("its path is text").into());
        if self.on_reboot == OnReboot::End {
            words.push("-no-reboot".into());
        }
        words
    }
}

const SECOND: &str = "second.sock";

fn second_monitor(folder: &TempDir) -> String {
    let path = folder.path().join(SECOND);
    format!("unix:{},server=on,wait=off", path.display())
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
