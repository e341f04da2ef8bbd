//! KSM at full speed, and as it was afterwards.

use crate::cpu;
use crate::restore::Changed;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long KSM may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(4);

fn path(name: &str) -> PathBuf {
    Path::new("/sys/kernel/mm/ksm").join(name)
}

/// Why KSM cannot be measured here, if it cannot.
pub(crate) fn problem() -> Option<String> {
    let run = path("run");
    if !run.exists() {
        return Some("this kernel has no KSM".into());
    }
    let opened = fs::OpenOptions::new().write(true).open(run);
    opened
        .err()
        .map(|error| format!("KSM cannot be set: {error}"))
}

/// KSM under our settings.
#[derive(Debug)]
pub(crate) struct Ksm {
    _changed: Vec<Changed>,
}

/// What KSM does with pages of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroPages {
    /// They are pages like others, as KSM comes.
    Merged,
    /// They become the kernel's zero page.
    Zero,
}

impl Ksm {
    /// Without its shortcuts and pauses, and not running yet.
    pub(crate) fn prepare(zeros: ZeroPages) -> Result<Self> {
        // Merged by nobody any more: what others offer to KSM is whole for as long as we measure.
        let mut changed = vec![Changed::set(path("run"), "2")?];
        for (name, value) in [
            ("advisor_mode", "none"),
            ("smart_scan", "0"),
            ("pages_to_scan", "10000"),
            ("sleep_millisecs", "0"),
            (
                "use_zero_pages",
                if zeros == ZeroPages::Zero { "1" } else { "0" },
            ),
        ] {
            // Older kernels have fewer of them.
            if path(name).exists() {
                changed.push(Changed::set(path(name), value)?);
            }
        }
        // The pace is put back first, so that KSM never runs at ours on its own.
        changed.rotate_left(1);
        Ok(Self { _changed: changed })
    }

    pub(crate) fn run(&self) -> Result<()> {
        set("run", 1)
    }

    /// Stops it; what is merged stays so.
    pub(crate) fn stop(&self) -> Result<()> {
        set("run", 0)
    }

    pub(crate) fn set_smart_scan(&self, on: bool) -> Result<bool> {
        let exists = path("smart_scan").exists();
        if exists {
            set("smart_scan", u64::from(on))?;
        }
        Ok(exists)
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        // Nothing is left merged; the setting itself is put back right after.
        if let Err(error) = set("run", 2) {
            eprintln!("{error}");
        }
    }
}

fn set(name: &str, value: u64) -> Result<()> {
    fs::write(path(name), value.to_string()).with_context(|| format!("KSM's {name}"))
}

/// One of KSM's counters; 0 for one that this kernel has not.
pub(crate) fn counter(name: &str) -> Result<u64> {
    match fs::read_to_string(path(name)) {
        Ok(text) => Ok(text.trim().parse()?),
        Err(_) => Ok(0),
    }
}

/// Pages that are not needed any more because others are equal, or zero.
pub(crate) fn saved() -> Result<u64> {
    Ok(counter("pages_sharing")? + counter("ksm_zero_pages")?)
}

/// What ksmd has done so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) scanned: u64,
    pub(crate) skipped: u64,
    pub(crate) cpu: Duration,
}

impl Progress {
    pub(crate) fn now() -> Result<Self> {
        Ok(Self {
            scanned: counter("pages_scanned")?,
            skipped: counter("pages_skipped")?,
            cpu: cpu::of_ksmd()?,
        })
    }

    /// Pages looked over for each second of ksmd's time, those included that it skipped.
    pub(crate) fn covered_per_cpu_s(self, since: Self) -> f64 {
        let pages = self.scanned + self.skipped - since.scanned - since.skipped;
        pages as f64 / (self.cpu - since.cpu).as_secs_f64()
    }
}

/// Waits until so many pages were looked over since `since`, those skipped included.
pub(crate) fn wait_until_covered(since: Progress, pages: u64) -> Result<Progress> {
    let target = since.scanned + since.skipped + pages;
    wait(|| Ok(counter("pages_scanned")? + counter("pages_skipped")? >= target))?;
    Progress::now()
}

/// Waits until so many pages are saved.
pub(crate) fn wait_until_saved(pages: u64) -> Result<()> {
    wait(|| Ok(saved()? >= pages))
}

fn wait(mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_done()? {
        if begin.elapsed() > PATIENCE {
            bail!(
                "KSM did not get there in {PATIENCE:?}: {} pages saved",
                saved()?
            );
        }
        sleep(POLL);
    }
    Ok(())
}
