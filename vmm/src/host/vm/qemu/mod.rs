//! A QEMU that somebody else started and that was put under this host: its balloon is the only lever, and the kernel's reclaim of its
//! cgroup where that is allowed; its guest's statistics are the only witness, and what it uses is the kernel's count.
//!
//! It is reached by its own monitor or by libvirt (`lever`), which may hang, go, or be somebody else's. Then it does not answer, and
//! is counted as it was: **only the kernel says that it has ended**. A task of its own speaks to it, so that it holds nobody else up.

mod adopt;
mod attend;
mod by_libvirt;
mod by_monitor;
mod domain;
mod lever;
mod statistics;

pub use adopt::AdoptError;
pub(in crate::host) use domain::DomainWish;
pub(in crate::host) use statistics::Reported;

use super::Question;
use super::backend::Backend;
use crate::host::cgroup::OwnCgroup;
use crate::host::kernel::{VmUse, own_memory};
use crate::host::state_store::Adoption;
use lever::LeverError;
use page::PageCount;
use policy::{Capabilities, LargePages, Supposed, TouchLimit, VmSettings};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot, watch};

/// What of its process beyond what its guest may hold is not held against the guest: what a process has besides changes.
const SLACK: PageCount = PageCount::from_mebibytes(16);

/// A QEMU as its host acts on it.
#[derive(Debug)]
pub(in crate::host) struct Qemu {
    orders: watch::Sender<Orders>,
    releases: mpsc::Sender<Release>,
    shared: Arc<Shared>,
    pub(in crate::host) adoption: Adoption,
    /// Its cgroup, if it has one of its own.
    cgroup: Option<Arc<OwnCgroup>>,
    is_reclaiming: Arc<AtomicBool>,
}

/// Who wants it released, and is told when it is as it was.
type Release = oneshot::Sender<Result<(), LeverError>>;

/// What it is to do. Only the newest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Orders {
    sequence: u64,
    /// What its balloon is to hold.
    target: Option<PageCount>,
}

/// What its task has seen.
#[derive(Debug)]
struct Shared {
    /// Pages that its guest has not given up, by QEMU's word.
    held: AtomicU64,
    /// What it would hold of those, if it is looked at only; else the most there can be.
    supposed_held: AtomicU64,
    /// Pages of its process that are not its guest's, as they were counted when it was adopted.
    besides: u64,
    is_described: AtomicBool,
}

/// What was heard besides an observation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) held: PageCount,
    /// Whether its vCPUs do not run.
    pub(super) is_paused: bool,
    /// Whether its guest has not reported its memory for too long.
    pub(super) is_stale: bool,
    /// Pages that its faults brought since its figures before; none if these are not new.
    pub(super) faulted: Option<PageCount>,
    /// Whether its guest has begun anew.
    pub(super) has_begun: bool,
    /// If it is looked at only, what is supposed of it but for what that saves.
    pub(super) supposed: Option<Supposed>,
}

impl Qemu {
    /// Whether an administrator has allowed that the kernel takes pages of it, and it can.
    pub(super) fn may_be_reclaimed(&self) -> bool {
        self.adoption.low_before.is_some() && self.cgroup.is_some()
    }

    /// Its min is protected from what else the kernel reclaims for.
    pub(super) fn protect(&self, settings: &VmSettings) {
        let Some(cgroup) = self.cgroup.as_ref().filter(|_| self.may_be_reclaimed()) else {
            return;
        };
        let low = settings.min.bytes().to_string();
        let set = cgroup.check().map_err(io::Error::other);
        if let Err(error) = set.and_then(|()| cgroup.set_low(&low)) {
            tracing::warn!("its min is not protected: {}", crate::error_chain(&error));
        }
    }
}

impl Backend for Qemu {
    fn capabilities(&self) -> Capabilities {
        Capabilities::BALLOON_ALONE
    }

    fn is_described(&self) -> bool {
        self.shared.is_described.load(Ordering::Relaxed)
    }

    fn sense(&self, question: Question) -> bool {
        let sequence = question.sequence;
        self.orders.send_modify(|orders| orders.sequence = sequence);
        true
    }

    fn measure(&self) -> io::Result<VmUse> {
        let own = own_memory(self.adoption.pid)?;
        let cgroup = self.cgroup.as_ref().filter(|own| own.check().is_ok());
        // Page tables and what is compressed in memory are there, too.
        let all = cgroup
            .and_then(|cgroup| cgroup.used())
            .unwrap_or(own)
            .max(own);
        let pressure = cgroup.and_then(|cgroup| cgroup.pressure_permille());
        let held = PageCount(self.shared.held.load(Ordering::Relaxed));
        let guest = own.saturating_sub(PageCount(self.shared.besides));
        // A guest that claims to have given up what it still uses is found out by this.
        let guest = match guest <= held + SLACK {
            true => guest.min(held),
            false => guest,
        };
        let guest = guest.min(self.adoption.settings.size);
        let supposed = PageCount(self.shared.supposed_held.load(Ordering::Relaxed));
        let memory_file = guest.min(supposed);
        Ok(VmUse {
            memory_file,
            anonymous: all - guest,
            pressure_permille: pressure.unwrap_or(0),
            saved: guest - memory_file,
        })
    }

    fn inflate_to(&self, target: PageCount) -> bool {
        self.orders
            .send_modify(|orders| orders.target = Some(target));
        true
    }

    fn reclaim_above(&self, _limit: Option<TouchLimit>) -> bool {
        false
    }

    fn make_large_pages(&self, _pages: LargePages) -> bool {
        false
    }

    fn reclaim_by_kernel(&self, pages: PageCount) -> bool {
        let Some(cgroup) = self
            .cgroup
            .clone()
            .filter(|_| self.adoption.low_before.is_some())
        else {
            return false;
        };
        if self.is_reclaiming.swap(true, Ordering::Relaxed) {
            return false;
        }
        let is_reclaiming = Arc::clone(&self.is_reclaiming);
        // The kernel answers when it has done it, or could not.
        tokio::task::spawn_blocking(move || {
            let taken = cgroup.check().map_err(io::Error::other);
            if let Err(error) = taken.and_then(|()| cgroup.reclaim(pages)) {
                tracing::warn!("{pages} are not taken: {}", crate::error_chain(&error));
            }
            is_reclaiming.store(false, Ordering::Relaxed);
        });
        true
    }

    /// It outlives its host by what is kept of its adoption. What is protected of it follows its min.
    fn remember(&self, settings: &VmSettings) -> bool {
        self.protect(settings);
        true
    }
}
