//! Guests that run Debian's own kernels, made by `tests/linux/build`.
//!
//! Their first process obeys orders on the console and marks where each answer begins and ends, so that
//! a test is a list of shell commands and what they must print.

use crate::console::GuestConsole;
use crate::host::TestHost;
use crate::outer_machine::test_inside_with;
use crate::wait::{SLOWNESS_VARIABLE, wait_until, wait_while_progress};
use crate::{Value, vms};
use std::collections::BTreeMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every guest's kernel is told.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1";
/// Where guests have been made already.
const GUESTS_VARIABLE: &str = "BALLONET_LINUX_GUESTS";
/// How many times more patience what is inside is to have: less than the script has, so that what was
/// waited for in vain is said.
const SLOWNESS: &str = "3";
/// All that a host keeps of what a guest printed.
const ALL_OUTPUT: &str = "64K";

/// Checks a claim on a KVM that runs Linux: this machine's, or else that of the outer machine, where
/// this same program runs the one test called `name`, which must be the caller.
///
/// # Panics
/// If the claim does not hold, or cannot be checked.
pub fn where_linux_runs(name: &str, limit_seconds: u32, claim: impl FnOnce(&LinuxGuests)) {
    let guests = LinuxGuests::build();
    if kvm_runs_linux() {
        return claim(&guests);
    }
    assert!(
        env::var_os(GUESTS_VARIABLE).is_none(),
        "not even the outer machine has a KVM that runs Linux"
    );
    let folder = guests.folder.to_str().expect("its path is text");
    let variables = [(GUESTS_VARIABLE, folder), (SLOWNESS_VARIABLE, SLOWNESS)];
    test_inside_with(limit_seconds, name, &variables);
}

/// Whether Linux can be a guest of /dev/kvm: it needs VT-x or SVM, for a KVM without either emulates
/// too little of the processor.
fn kvm_runs_linux() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags"));
    let virtualizes = flags.is_some_and(|flags| {
        let mut flags = flags.split_whitespace();
        flags.any(|flag| ["vmx", "svm"].contains(&flag))
    });
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    virtualizes && kvm.is_ok()
}

/// What guests are made of.
#[derive(Clone, Debug)]
pub struct LinuxGuests {
    folder: PathBuf,
}

impl LinuxGuests {
    /// Makes what is not there yet.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn build() -> Self {
        if let Some(folder) = env::var_os(GUESTS_VARIABLE) {
            return Self {
                folder: folder.into(),
            };
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("linux/build");
        let output = Command::new(script)
            .output()
            .expect("the script can be run");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let printed = String::from_utf8(output.stdout).expect("it prints a path");
        Self {
            folder: printed.trim().into(),
        }
    }

    /// The kernels, oldest first.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn kernels(&self) -> Vec<LinuxKernel> {
        let entries = fs::read_dir(&self.folder).expect("it has been built");
        let mut kernels: Vec<LinuxKernel> = entries
            .filter_map(|entry| LinuxKernel::in_folder(entry.ok()?.path()))
            .collect();
        kernels.sort_by_key(|kernel| kernel.version);
        assert!(!kernels.is_empty(), "no kernels in {:?}", self.folder);
        kernels
    }

    /// The newest kernel.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn newest(&self) -> LinuxKernel {
        self.kernels().pop().expect("there is one")
    }

    /// The disk image with Debian's programs.
    ///
    /// # Panics
    /// If its path is no text.
    #[must_use]
    pub fn disk(&self) -> String {
        let path = self.folder.join("disk.img");
        path.to_str().expect("its path is text").to_owned()
    }
}

/// One of Debian's kernels.
#[derive(Clone, Debug)]
pub struct LinuxKernel {
    folder: PathBuf,
    /// Its series, as in 6.12.
    pub version: (u32, u32),
}

/// In which form a kernel is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Compressed; starts by Linux's own protocol.
    BzImage,
    /// As it is in memory; starts by PVH.
    Elf,
}

impl LinuxKernel {
    fn in_folder(folder: PathBuf) -> Option<Self> {
        let (major, minor) = folder.file_name()?.to_str()?.split_once('.')?;
        let version = (major.parse().ok()?, minor.parse().ok()?);
        folder.is_dir().then_some(Self { folder, version })
    }

    /// Its file.
    #[must_use]
    pub fn image(&self, image: Image) -> PathBuf {
        self.folder.join(match image {
            Image::BzImage => "bzImage",
            Image::Elf => "vmlinux",
        })
    }

    /// Its initial file system.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// Starts a VM with it, with more arguments for `ballonet run`, and waits until its first process
    /// obeys.
    #[must_use]
    pub fn boot<'a>(
        &self,
        host: &'a TestHost,
        name: &'a str,
        image: Image,
        words: &[&str],
    ) -> LinuxGuest<'a> {
        self.start(host, name, image, words, "").wait_until_ready()
    }

    /// Like [`LinuxKernel::boot`], with the first of the VM's disks as its root.
    #[must_use]
    pub fn boot_from_disk<'a>(
        &self,
        host: &'a TestHost,
        name: &'a str,
        words: &[&str],
    ) -> LinuxGuest<'a> {
        self.start(host, name, Image::Elf, words, "root=/dev/vda")
            .wait_until_ready()
    }

    /// Starts a VM with it and more on its command line, and waits for nothing.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start<'a>(
        &self,
        host: &'a TestHost,
        name: &'a str,
        image: Image,
        words: &[&str],
        more: &str,
    ) -> LinuxGuest<'a> {
        let (kernel, initrd) = (self.image(image), self.initrd());
        let (kernel, initrd) = (kernel.to_str(), initrd.to_str());
        let paths = kernel.zip(initrd).expect("paths are text");
        let command_line = format!("{COMMAND_LINE} {more}");
        let own = [
            "--kernel",
            paths.0,
            "--initrd",
            paths.1,
            "--cmdline",
            &command_line,
        ];
        host.start_vm(name, &[&own[..], words].concat());
        LinuxGuest {
            host,
            name,
            console: GuestConsole::attach_replaying(host, name, ALL_OUTPUT),
            orders: 0,
        }
    }
}

/// A VM with a Linux guest that obeys.
#[derive(Debug)]
pub struct LinuxGuest<'a> {
    host: &'a TestHost,
    name: &'a str,
    console: GuestConsole,
    orders: u32,
}

impl LinuxGuest<'_> {
    fn wait_until_ready(self) -> Self {
        wait_while_progress("the guest is ready", || {
            let printed = self.console.text().len();
            let is_ready = self.lines().any(|line| line.starts_with("ready "));
            if is_ready { Ok(()) } else { Err(printed) }
        });
        assert!(
            !self.console.text().contains("failed: "),
            "{}",
            self.console.text()
        );
        self
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let text = self.console.text();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.into_iter()
    }

    /// What the host knows of it.
    #[must_use]
    pub fn vm(&self) -> Value {
        self.host.vm(self.name)
    }

    /// Waits until its VM has ended and nothing of it is left.
    pub fn wait_for_end(&self) {
        wait_until("the VM has ended", || {
            vms(&self.host.overview())
                .iter()
                .all(|vm| vm["name"] != self.name)
        });
    }
}

impl Obeys for LinuxGuest<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn printed(&self) -> String {
        self.console.text()
    }

    fn type_line(&mut self, line: &str) {
        self.console.type_line(line);
    }

    fn next_order(&mut self) -> u32 {
        self.orders += 1;
        self.orders
    }
}

/// A Linux guest whose first process does what is typed on its console, whoever runs it.
pub trait Obeys {
    /// What it is called.
    fn name(&self) -> &str;

    /// All that it printed.
    fn printed(&self) -> String;

    /// Types a line on its console.
    ///
    /// # Panics
    /// If its machine has ended.
    fn type_line(&mut self, line: &str);

    /// A number that no order had so far.
    fn next_order(&mut self) -> u32;

    /// Gives an order that is not waited for, and of which there may be no answer.
    ///
    /// # Panics
    /// If it is more than a line, or its machine has ended.
    fn order(&mut self, command: &str) -> u32 {
        assert!(!command.contains('\n'), "an order is one line: {command}");
        let order = self.next_order();
        self.type_line(&format!("{order} {command}"));
        order
    }

    /// Waits for the answer to an order: what it printed, and the status it ended with.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    fn answer(&self, order: u32) -> (String, u8) {
        let done = |text: &str| {
            let (_, answer) = text.split_once(&format!("begin {order}\n"))?;
            let (answer, status) = answer.split_once(&format!("end {order} "))?;
            let (status, _) = status.split_once('\n')?;
            Some((answer.to_owned(), status.parse().ok()?))
        };
        wait_while_progress(&format!("order {order} of {} is done", self.name()), || {
            let text = self.printed();
            done(&text).ok_or(text.len())
        })
    }

    /// Runs a shell command that must succeed; what it printed.
    ///
    /// # Panics
    /// If it fails.
    fn run(&mut self, command: &str) -> String {
        let order = self.order(command);
        let (printed, status) = self.answer(order);
        assert_eq!(status, 0, "`{command}` in {}: {printed}", self.name());
        printed
    }

    /// The most important of its kernel's figures on memory.
    ///
    /// # Panics
    /// If it prints none.
    fn memory(&mut self) -> GuestMemory {
        let lines = "^(Mem|Buffers|Cached|SwapCached)";
        GuestMemory::parse(&self.run(&format!("grep -E '{lines}' /proc/meminfo")))
    }

    /// Messages of its kernel that tell of its own or its machine's faults.
    fn complaints(&mut self) -> String {
        const SIGNS: &str = "BUG|Oops|WARNING|Call Trace|ACPI.*Error|soft lockup|rcu.*stall|\
                             general protection|Unknown NMI|virtio.*(fail|error)";
        // A processor without new microcode is no fault of the VM.
        let but = "Speculative Return Stack Overflow";
        // The emulated processor lets guests enable AVX without a word to KVM, which then does not
        // know how large their state is. QEMU's guests there complain as well.
        let emulated = "/XSAVE consistency problem/,/end trace/d";
        self.run(&format!(
            "dmesg | sed '{emulated}' | grep -E '{SIGNS}' | grep -v '{but}' || true"
        ))
    }
}

impl Drop for LinuxGuest<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the guest {} printed:\n{}", self.name, self.console.text());
            let overview = self.host.run(&["stats", "--json"]);
            eprintln!("and its host says: {}", overview.stdout);
        }
    }
}

/// A guest's own figures, as in /proc/meminfo.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory(BTreeMap<String, u64>);

impl GuestMemory {
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
            Some((name.to_owned(), kibibytes * 1024))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// One of them, in bytes.
    ///
    /// # Panics
    /// If there is none of that name.
    #[must_use]
    pub fn bytes(&self, name: &str) -> u64 {
        *self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}
