//! A libvirtd of one test: in mounts of its own, so that it sees no domain but the test's, finds its domains again when it is
//! started anew, and leaves nothing.

use crate::guest_image::guest_image;
use crate::process::{self, Signal};
use crate::wait::{wait_for, wait_until};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// What it and its clients are in, in Debian: tests/run installs them.
const PACKAGES: &str = "libvirt-daemon, libvirt-daemon-driver-qemu and libvirt-clients";
/// The folders of its own.
const FOLDERS: [&str; 4] = ["/run", "/var/lib", "/var/cache", "/var/log"];
/// The user that Debian's libvirtd wants to be there, whoever QEMU is started as.
const USER: &str = "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "libvirt-qemu:x:64055:\n";
/// It has no systemd to ask for cgroups, and no virtlogd.
const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n\
     dynamic_ownership = 0\nremember_owner = 0\nstdio_handler = \"file\"\n";

/// A running libvirtd.
#[derive(Debug)]
pub struct Libvirtd {
    daemon: Option<Child>,
    folder: TempDir,
}

impl Libvirtd {
    /// Starts one without domains.
    ///
    /// # Panics
    /// If it is not installed, or does not serve.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("ballonet-libvirt-")
            .tempdir()
            .expect("a temporary folder can be made");
        let path = |name: &str| folder.path().join(name);
        for name in FOLDERS {
            fs::create_dir_all(path(&name[1..])).expect("a folder can be made");
        }
        for name in ["etc", "s"] {
            fs::create_dir(path(name)).expect("a folder can be made");
        }
        let write = |name: &str, text: &str| fs::write(path(name), text).expect("there is room");
        let of_machine = |name: &str| fs::read_to_string(name).expect("every machine has that");
        write("passwd", &(of_machine("/etc/passwd") + USER));
        write("group", &(of_machine("/etc/group") + GROUP));
        write("etc/qemu.conf", QEMU_CONF);
        let sockets = path("s");
        let config = format!(
            "unix_sock_dir = \"{}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nlog_outputs = \"3:stderr\"\n",
            sockets.display()
        );
        write("etc/libvirtd.conf", &config);
        let mut libvirtd = Self {
            daemon: None,
            folder,
        };
        libvirtd.start_again();
        libvirtd
    }

    /// Its folder, where its domains' files may lie.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where it is reached.
    #[must_use]
    pub fn uri(&self) -> String {
        let socket = self.path().join("s/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// Starts it after its end.
    ///
    /// # Panics
    /// If it does not serve.
    pub fn start_again(&mut self) {
        let own: String = FOLDERS
            .iter()
            .map(|name| {
                format!(
                    "mount -t tmpfs none {name}; mkdir {name}/libvirt; mount --bind .{name} {name}/libvirt; "
                )
            })
            .collect();
        let script = format!(
            "set -e; {own} mkdir -p /etc/libvirt; mount --bind etc /etc/libvirt; mount --bind passwd /etc/passwd; \
             mount --bind group /etc/group; exec libvirtd -f etc/libvirtd.conf -p libvirtd.pid"
        );
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log())
            .expect("a file can be made");
        let daemon = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .current_dir(self.path())
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.daemon = Some(daemon.expect("unshare is there"));
        wait_until("libvirtd serves", || {
            let daemon = self.daemon.as_mut().expect("it was started");
            let ended = daemon.try_wait().expect("a child can be waited for");
            let log = || fs::read_to_string(self.folder.path().join("libvirtd.log"));
            assert!(
                ended.is_none(),
                "libvirtd ended ({ended:?}); it and virsh are in Debian's {PACKAGES}: {}",
                log().unwrap_or_default()
            );
            self.try_virsh(&["list"]).is_ok()
        });
    }

    fn log(&self) -> PathBuf {
        self.path().join("libvirtd.log")
    }

    /// Kills it. Its domains run on.
    pub fn die(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }

    fn try_virsh(&self, words: &[&str]) -> Result<String, String> {
        let output = Command::new("virsh")
            .args(["-q", "-c", &self.uri()])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("virsh: {error}: install {PACKAGES}"))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Has virsh do something; what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn virsh(&self, words: &[&str]) -> String {
        self.try_virsh(words)
            .unwrap_or_else(|error| panic!("virsh {words:?}: {error}"))
    }

    /// Defines a domain by its description.
    ///
    /// # Panics
    /// If it is refused.
    pub fn define(&self, name: &str, xml: &str) {
        let path = self.path().join(format!("{name}.xml"));
        fs::write(&path, xml).expect("there is room");
        self.virsh(&["define", path.to_str().expect("its path is text")]);
    }

    /// Defines a domain of 256 MiB that runs the embedded guest on KVM.
    pub fn define_embedded(&self, name: &str, metadata: &str, current_mib: u64, balloon: &str) {
        let (kernel, log) = (guest_image(), self.path().join(format!("{name}.log")));
        self.define(
            name,
            &format!(
                "<domain type='kvm'><name>{name}</name><metadata>{metadata}</metadata><memory unit='MiB'>256</memory>\
                 <currentMemory unit='MiB'>{current_mib}</currentMemory><vcpu>1</vcpu>\
                 <os><type arch='x86_64' machine='microvm'>hvm</type><kernel>{}</kernel>\
                 <cmdline>id=1 workload=verify:size=max,rate=2000</cmdline></os><devices>\
                 <emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>\
                 <serial type='file'><source path='{}'/></serial>{balloon}</devices></domain>",
                kernel.display(),
                log.display()
            ),
        );
    }

    /// What a domain printed.
    #[must_use]
    pub fn printed(&self, name: &str) -> String {
        let log = fs::read(self.path().join(format!("{name}.log")));
        String::from_utf8_lossy(&log.unwrap_or_default()).into_owned()
    }

    /// The process of a domain that runs.
    #[must_use]
    pub fn pid(&self, name: &str) -> u32 {
        wait_for("its process is known", || self.pid_in(&self.pid_file(name)))
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.path().join("run/qemu").join(format!("{name}.pid"))
    }

    fn pid_in(&self, file: &Path) -> Option<u32> {
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// What a domain's balloon leaves its guest, in bytes, as libvirt has it.
    ///
    /// # Panics
    /// If libvirt does not say that.
    #[must_use]
    pub fn balloon_leaves(&self, name: &str) -> u64 {
        let said = self.virsh(&["domstats", "--raw", "--balloon", name]);
        let mut lines = said.lines();
        let current = lines.find_map(|line| line.trim().strip_prefix("balloon.current="));
        let kibibytes: u64 = current
            .expect("it has a balloon")
            .parse()
            .expect("a number");
        kibibytes * 1024
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        self.die();
        let files = fs::read_dir(self.path().join("run/qemu"));
        for file in files.into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|extension| extension == "pid")
                && path.file_stem().is_some_and(|name| name != "driver")
                && let Some(pid) = self.pid_in(&path)
                && process::is_alive(pid)
            {
                process::signal(pid, Signal::KILL);
            }
        }
    }
}
