//! KSM as an administrator would set it, and as it was afterwards.

use super::restore::Changed;
use anyhow::{Context, Result};
use page::PAGE_SIZE;
use std::fs;
use std::path::{Path, PathBuf};

/// How often KSM looks at some pages where it has no advisor.
const SLEEP_MS: u64 = 20;

fn path(name: &str) -> PathBuf {
    Path::new("/sys/kernel/mm/ksm").join(name)
}

/// KSM under our settings.
#[derive(Debug)]
pub(super) struct Ksm {
    changed: Vec<Changed>,
    words: Vec<String>,
}

impl Ksm {
    /// Runs, with the aim to look at so many bytes in so many seconds.
    pub(super) fn start(bytes: u64, pass_s: u32) -> Result<Self> {
        if !path("run").exists() {
            anyhow::bail!("this kernel has no KSM");
        }
        let mut ksm = Self {
            changed: Vec::new(),
            words: Vec::new(),
        };
        if path("advisor_mode").exists() {
            ksm.set("advisor_mode", "scan-time")?;
            ksm.set("advisor_target_scan_time", &pass_s.to_string())?;
        } else {
            let pages = bytes / PAGE_SIZE * SLEEP_MS / 1000 / u64::from(pass_s);
            ksm.set("pages_to_scan", &pages.max(100).to_string())?;
            ksm.set("sleep_millisecs", &SLEEP_MS.to_string())?;
        }
        ksm.set("run", "1")?;
        Ok(ksm)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let changed = Changed::set(path(name), value);
        self.changed
            .push(changed.with_context(|| format!("KSM's {name} cannot be set"))?);
        self.words.push(format!("ksm/{name}={value}"));
        Ok(())
    }

    /// What was set.
    pub(super) fn words(&self) -> &[String] {
        &self.words
    }

    /// Bytes that are not needed because others are equal.
    pub(super) fn saved_bytes() -> u64 {
        let count = |name| -> u64 {
            let text = fs::read_to_string(path(name)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        (count("pages_sharing") + count("ksm_zero_pages")) * PAGE_SIZE
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        // Nothing is left merged; the settings are put back right after, this one last of them.
        if let Err(error) = fs::write(path("run"), "2") {
            tracing::warn!("KSM is not stopped: {error}");
        }
    }
}
