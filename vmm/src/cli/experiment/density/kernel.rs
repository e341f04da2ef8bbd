//! The kernel's own swap, and a group of processes whose memory is limited. What is set up here is taken down at the end.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Pages that the kernel has brought back and taken out so far.
#[allow(dead_code, reason = "others use it")]
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
    /// Compressed memory, by lz4, of that many bytes before.
    pub(crate) fn zram(bytes: u64) -> Result<Self> {
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
        fs::write(format!("{settings}/disksize"), bytes.to_string())?;
        device.on()
    }

    /// A file of that size on a disk.
    #[allow(dead_code, reason = "others use it")]
    pub(crate) fn file(folder: &Path, bytes: u64) -> Result<Self> {
        nothing_else()?;
        let path = folder.join("swap");
        let (text, size) = (
            path.to_str().context("its path is text")?,
            bytes.to_string(),
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

    /// What it takes of memory; nothing where it is on a disk.
    pub(crate) fn used_bytes(&self) -> Result<u64> {
        self.statistic(2)
    }

    /// What is in it; nothing is known where it is on a disk.
    #[allow(dead_code, reason = "others use it")]
    pub(crate) fn stored_bytes(&self) -> Result<u64> {
        self.statistic(0)
    }

    fn statistic(&self, field: usize) -> Result<u64> {
        let Some(number) = self.zram else {
            return Ok(0);
        };
        let text = fs::read_to_string(format!("/sys/block/zram{number}/mm_stat"))?;
        let value = text.split_whitespace().nth(field);
        Ok(value.context("mm_stat tells it")?.parse()?)
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
    names: &'static Names,
}

/// What the files of a version are called, and the lines in them.
#[derive(Debug)]
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// Page cache, in `memory.stat`.
    cache: &'static str,
    /// What of that is shared memory.
    shared: &'static str,
    events: &'static str,
}

const VERSION_1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: "total_cache",
    shared: "total_shmem",
    events: "memory.oom_control",
};
const VERSION_2: Names = Names {
    limit: "memory.max",
    usage: "memory.current",
    cache: "file",
    shared: "shmem",
    events: "memory.events",
};

impl MemoryGroup {
    /// One for a command of that name.
    pub(crate) fn new(command: &str) -> Result<Self> {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, names) = match first.exists() {
            true => (first, &VERSION_1),
            false => (Path::new("/sys/fs/cgroup"), &VERSION_2),
        };
        let folder = root.join(format!("ballonet-{command}-{}", std::process::id()));
        fs::create_dir(&folder).context("not measured: no memory cgroup can be made here")?;
        let group = Self { folder, names };
        // Of the second version one without the memory controller can be made.
        fs::metadata(group.folder.join(names.usage))
            .context("not measured: no memory cgroup can be made here")?;
        Ok(group)
    }

    /// The file to which a process's number is written that is to be in it.
    pub(crate) fn processes(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// From now on what that process takes is counted here.
    pub(crate) fn take(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.processes(), pid.to_string())?)
    }

    /// What is above goes out.
    pub(crate) fn limit(&self, bytes: u64) -> Result<()> {
        // The kernel refuses as long as it finds nothing to take out.
        let mut tries = 0;
        loop {
            match self.try_limit(bytes) {
                Ok(()) => return Ok(()),
                Err(error) if tries > 50 => return Err(error).context("no limit can be set"),
                Err(_) => sleep(Duration::from_millis(100)),
            }
            tries += 1;
        }
    }

    /// The same, if it can be done at once.
    pub(crate) fn try_limit(&self, bytes: u64) -> std::io::Result<()> {
        fs::write(self.folder.join(self.names.limit), bytes.to_string())
    }

    /// What its processes use, page tables and the like with it, but no files' page cache.
    #[allow(dead_code, reason = "others use it")]
    pub(crate) fn used_bytes(&self) -> Result<u64> {
        let usage: u64 = self.read(self.names.usage)?.trim().parse()?;
        let statistics = self.read("memory.stat")?;
        let count = |name| count_of(&statistics, name).context("memory.stat tells it");
        let files = count(self.names.cache)?.saturating_sub(count(self.names.shared)?);
        Ok(usage.saturating_sub(files))
    }

    /// Processes that the kernel ended because others in it needed memory.
    #[allow(dead_code, reason = "others use it")]
    pub(crate) fn oom_kills(&self) -> Result<u64> {
        let events = self.read(self.names.events)?;
        count_of(&events, "oom_kill").context("the kernel counts it")
    }

    /// How readily it swaps, where that can be said of one group.
    #[allow(dead_code, reason = "others use it")]
    pub(crate) fn set_swappiness(&self, value: u32) {
        // The second version has no such file.
        drop(fs::write(
            self.folder.join("memory.swappiness"),
            value.to_string(),
        ));
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }
}

/// The number behind a name at the beginning of a line.
#[allow(dead_code, reason = "others use it")]
fn count_of(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
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

/// This process in a group, until it is dropped.
#[derive(Debug)]
#[allow(dead_code, reason = "others use it")]
pub(crate) struct Inside {
    before: PathBuf,
}

#[allow(dead_code, reason = "others use it")]
impl Inside {
    /// This process and all that it starts from now on are in the group.
    pub(crate) fn enter(group: &MemoryGroup) -> Result<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let root = group.folder.parent().context("a group has one above it")?;
        let own = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let is_meant =
                controllers.split(',').any(|name| name == "memory") || controllers.is_empty();
            is_meant.then(|| path.trim_start_matches('/'))
        });
        let before = root.join(own.unwrap_or_default()).join("cgroup.procs");
        group.take(std::process::id())?;
        Ok(Self { before })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.before, std::process::id().to_string()) {
            eprintln!("this process is not where it was: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_count_is_that_of_its_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 1\noom_kill 7\n";
        assert_eq!(super::count_of(text, "oom_kill"), Some(7));
        assert_eq!(super::count_of(text, "oom"), None);
    }
}
