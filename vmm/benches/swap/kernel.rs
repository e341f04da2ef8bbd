//! The kernel's own swap, and a group of processes whose memory is limited. What is set up here is taken down at the end.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

const DEVICE_BYTES: u64 = 1 << 30;

/// Pages that the kernel has brought back and taken out so far.
pub(crate) fn swapped() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let count = |name: &str| -> Result<u64> {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.context("the kernel counts it")?.parse()?)
    };
    Ok((count("pswpin")?, count("pswpout")?))
}

fn run(words: &[&str]) -> Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).output()?;
    if !output.status.success() {
        bail!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Where the kernel swaps to, and nowhere else meanwhile.
#[derive(Debug)]
pub(crate) struct SwapDevice {
    path: PathBuf,
    zram: Option<u32>,
}

impl SwapDevice {
    /// Compressed memory, by lz4.
    pub(crate) fn zram() -> Result<Self> {
        nothing_else()?;
        let number = fs::read_to_string("/sys/class/zram-control/hot_add")
            .context("this kernel has no zram")?;
        let number: u32 = number.trim().parse()?;
        let device = Self {
            path: format!("/dev/zram{number}").into(),
            zram: Some(number),
        };
        let settings = format!("/sys/block/zram{number}");
        fs::write(format!("{settings}/comp_algorithm"), "lz4")?;
        fs::write(format!("{settings}/disksize"), DEVICE_BYTES.to_string())?;
        device.on()
    }

    /// A file on a disk.
    pub(crate) fn file(folder: &Path) -> Result<Self> {
        nothing_else()?;
        let path = folder.join("swap");
        let (text, size) = (
            path.to_str().context("its path is text")?,
            DEVICE_BYTES.to_string(),
        );
        run(&["fallocate", "-l", &size, text])?;
        run(&["chmod", "600", text])?;
        Self { path, zram: None }.on()
    }

    fn on(self) -> Result<Self> {
        let path = self.path.to_str().context("its path is text")?;
        run(&["mkswap", path])?;
        run(&["swapon", path])?;
        Ok(self)
    }

    /// What it takes of memory.
    pub(crate) fn remark(&self) -> Result<String> {
        let Some(number) = self.zram else {
            return Ok(String::new());
        };
        let text = fs::read_to_string(format!("/sys/block/zram{number}/mm_stat"))?;
        let used = text.split_whitespace().nth(2).context("mm_stat tells it")?;
        let used: u64 = used.parse()?;
        Ok(format!(
            "{:.1} MiB of zram besides",
            used as f64 / f64::from(1 << 20)
        ))
    }
}

fn nothing_else() -> Result<()> {
    let others = fs::read_to_string("/proc/swaps")?.lines().count() - 1;
    if others > 0 {
        bail!("not measured: this machine swaps already, and to where could not be told");
    }
    Ok(())
}

impl Drop for SwapDevice {
    fn drop(&mut self) {
        if let Some(path) = self.path.to_str() {
            drop(run(&["swapoff", path]));
        }
        if let Some(number) = self.zram {
            let control = "/sys/class/zram-control/hot_remove";
            drop(fs::write(control, number.to_string()));
        }
    }
}

/// A memory cgroup, of either version.
#[derive(Debug)]
pub(crate) struct MemoryGroup {
    folder: PathBuf,
    limit: &'static str,
}

impl MemoryGroup {
    pub(crate) fn new() -> Result<Self> {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match first.exists() {
            true => (first, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let folder = root.join(format!("ballonet-bench-{}", std::process::id()));
        fs::create_dir(&folder).context("not measured: no memory cgroup can be made here")?;
        Ok(Self { folder, limit })
    }

    /// From now on what that process takes is counted here.
    pub(crate) fn take(&self, pid: u32) -> Result<()> {
        Ok(fs::write(
            self.folder.join("cgroup.procs"),
            pid.to_string(),
        )?)
    }

    /// What is above goes out.
    pub(crate) fn limit(&self, bytes: u64) -> Result<()> {
        // The kernel refuses as long as it finds nothing to take out.
        let mut tries = 0;
        loop {
            match fs::write(self.folder.join(self.limit), bytes.to_string()) {
                Ok(()) => return Ok(()),
                Err(error) if tries > 50 => return Err(error).context("no limit can be set"),
                Err(_) => sleep(Duration::from_millis(100)),
            }
            tries += 1;
        }
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its process has ended, and the kernel may not have noticed.
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            sleep(Duration::from_millis(100));
        }
    }
}
